"""The scoreboard: one shared mapping, a slot of words for every worker.

ONE WRITER PER WORD. There are no locks, because a process that dies holding a
lock takes the pool with it. Each word is eight aligned bytes, written by one
store, so a reader sees the old value or the new one and never a mixture.

==================  =========  ==================================================
word                writer     meaning
==================  =========  ==================================================
header OUTSTANDING  client     tasks accepted and not yet resolved
header BELL         pool       1: a worker that goes idle rings the doorbell
header ENOUGH       pool       the client rings when OUTSTANDING is above this
header GENERATION   pool       how often all workers were told to make way for new ones
slot PID            pool       the worker's process id; 0: the slot is free
slot BORN           pool       when it was forked (ns, monotonic clock)
slot RETIRE         pool       1: leave as soon as you hold nothing
slot STATE          worker     a :class:`State`
slot TASK           worker     number of the task it holds; meaningful when BUSY
slot SINCE          worker     when STATE last became IDLE or BUSY (ns, monotonic)
slot TAKES          worker     messages it has taken from the task pipe
slot DONE           worker     tasks it has finished
==================  =========  ==================================================

The pool clears a slot after it has reaped the worker, when the slot's writer no
longer exists. A worker writes TASK before it writes STATE = BUSY; whoever reads
BUSY may believe TASK.

That readers see the words in the order in which they were written is certain on
x86. On machines that reorder stores it rests on the time between a mark and the
next look, which is longer by orders of magnitude than a store takes to be seen.

What a state does not imply: TAKING says that the worker is between asking the
task pipe for a message and saying which one it got. It may hold one task that
nobody else knows of, or none. Every other state is exact. LEAVING says that it
will take nothing more, not that it has ended.
"""

from __future__ import annotations

import enum
import mmap
import os
from typing import NamedTuple


class State(enum.IntEnum):
    FREE = 0
    STARTING = 1
    IDLE = 2
    TAKING = 3
    BUSY = 4
    LEAVING = 5


# Plain ints for the loops that run once a task, where an enum costs a look-up each.
FREE, STARTING, IDLE, TAKING, BUSY, LEAVING = (int(state) for state in State)

OUTSTANDING, BELL, ENOUGH, GENERATION = range(4)
NEVER = 2**64 - 1
"""In ENOUGH: whatever OUTSTANDING is, do not ring."""
HEADER_WORDS = 8
PID, BORN, RETIRE, STATE, TASK, SINCE, TAKES, DONE = range(8)
SLOT_WORDS = 8
"""One slot fills one 64-byte cache line: workers do not slow each other's marks."""
WORD_BYTES = 8


class Slot(NamedTuple):
    """One reading of one slot, ``place`` its index. Times are nanoseconds on the
    monotonic clock."""

    place: int
    pid: int
    born: int
    retire: int
    state: int
    task: int
    since: int
    takes: int
    done: int


class Scoreboard:
    """A process's view of the board that lies in the file behind a descriptor.

    Args:
        descriptor: an open file of at least :meth:`size_for` bytes. The board
            owns it and closes it.
        slots: how many workers there can be.
    """

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self._mapping = mmap.mmap(descriptor, self.size_for(slots))
        self._bytes = memoryview(self._mapping)
        self.words = self._bytes.cast("Q")

    @staticmethod
    def size_for(slots: int) -> int:
        """Bytes that a board for this many slots takes."""
        return (HEADER_WORDS + slots * SLOT_WORDS) * WORD_BYTES

    @staticmethod
    def base(index: int) -> int:
        """Where a slot's words begin: ``words[base(index) + STATE]``."""
        return HEADER_WORDS + index * SLOT_WORDS

    def read(self, index: int) -> Slot:
        base = self.base(index)
        return Slot(index, *self.words[base : base + SLOT_WORDS])

    def read_all(self) -> list[Slot]:
        """Every slot that has a worker."""
        pids = range(HEADER_WORDS + PID, len(self.words), SLOT_WORDS)
        words = self.words
        slots = [self.read(i) for i, at in enumerate(pids) if words[at]]
        # One may just have been cleared, in part or as a whole.
        return [slot for slot in slots if slot.pid and slot.state]

    def states(self) -> list[int]:
        """The state of every slot, the free ones included."""
        states: list[int] = self.words[HEADER_WORDS + STATE :: SLOT_WORDS].tolist()
        return states

    def free_slot(self) -> int | None:
        """Index of a slot without a worker, or None if all are taken."""
        words = self.words
        for index in range(self.slots):
            if not words[self.base(index) + PID]:
                return index
        return None

    def clear(self, index: int) -> None:
        base = self.base(index)
        for word in range(SLOT_WORDS):
            self.words[base + word] = 0

    def close(self) -> None:
        """Unmap and close the descriptor. Safe to call again."""
        if self.descriptor < 0:
            return
        self.words.release()
        self._bytes.release()
        self._mapping.close()
        os.close(self.descriptor)
        self.descriptor = -1
