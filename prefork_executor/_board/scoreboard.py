"""The scoreboard: one shared mapping, a slot of words for every worker.

ONE WRITER PER WORD. There are no locks, because a process that dies holding a
lock takes the pool with it. Each word is eight aligned bytes, written by one
store, so a reader sees the old value or the new one and never a mixture. (CPython
copies an item of a memoryview by a memcpy of eight bytes, which compilers make one
access; x86-64 and aarch64 carry it out as one where it is aligned.)

==================  =========  ==================================================
word                writer     meaning
==================  =========  ==================================================
header MAGIC        creator    tells that this is a board; written last
header LAYOUT       creator    the version of all that is said here
header KIND         creator    EXECUTOR or RAW
header SLOTS        creator    how many slots there are
header CLIENT       creator    the process that has the pool: the caller's; raw: the main one
header MAIN         supervisor the process that forks, or that its forks will; raw: as CLIENT
header STARTED      creator    when the board was made (ns since the epoch)
header SPARED       creator    1: who is hot may leave out its fences (see below)
header MIN_SPARE,   creator    as the user has asked for; IDLE_TIMEOUT in milliseconds, NEVER
MAX_SPARE,                     if there is none, AUTO if the regulator is to choose it
IDLE_TIMEOUT
header START_COST   pool       how long a start takes (ns), as far as was seen; 0: none was
header OUTSTANDING  client     tasks accepted and not yet resolved
header BELL         pool       1: a worker that goes idle rings the doorbell
header ENOUGH       pool       the client rings when OUTSTANDING is above this
header GENERATION   pool       how often all workers were told to make way for new ones
header RECORDING    client     1: a recording is on; workers tell when tasks began
header SIGN         pool       what the client has asked for a sign of, up to this number, is
                               done; NEVER: all is, and the pool ends
header PEAK_BACKLOG client     the most tasks there have been that nobody had begun; raw: the
                               most in LISTEN_QUEUE; written by the pool
header MEMORY_BOUND creator    bytes that all workers may take together; 0: any
header MEMORY_TAKEN client     bytes that they took when that was last seen
header HELD         client     tasks beyond OUTSTANDING that do not begin for lack of memory
header MEMORY_ENDED client     tasks that were ended because the pool was above MEMORY_BOUND
header FITTING      client     how many workers fit into MEMORY_BOUND; 0: any number
header MEMORY_SAID  client     decisions written so far to the ring of those about memory
header LISTENERS    pool       raw: how many listeners it knows
header LISTEN_QUEUE pool       raw: connections that wait to be accepted, when it last looked
header FORKS to     pool       what has been so far; :mod:`.counters` has them one by one.
DECISIONS                      While there is no pool, between two supervisors, the client
                               counts what the first has left behind
slot PID            pool       the worker's process id; 0: the slot is free
slot BORN           pool       when it was forked (ns, monotonic clock)
slot RETIRE         pool       1: leave as soon as you hold nothing. The worker, too, may
                               write this 1, when nobody has told it but it is to leave
slot DOOMED         pool       1: the signal that comes from the pool ends the task; written
                               before that is sent
slot HOLDS          worker     a state (`worker_states.py`), and a number (see
                               :func:`pack_holds`). BUSY: that of the task it holds, and how
                               many of the same message came before it, whose outcomes may
                               not have been sent yet, and come after it, which have not
                               begun. Else: that of the last message it has taken, 0 if there
                               was none; raw: how often it has asked for a connection
slot SINCE          worker     when it last became IDLE or BUSY, or began a task (ns,
                               monotonic); written before HOLDS
slot DONE           worker     tasks it has finished
slot READY          worker     when it was ready for its first task (ns, monotonic); 0: it is not
slot IDLE_FOR       worker     how long it has been idle in all (ns), but for now
slot RECALL         client     the last task of a message: begin no other of that
slot UNSENT         worker     bytes of outcomes in the slot's *area* that have not
                               been sent yet
slot NAME           worker     the index of the name of the task's function, written before
                               HOLDS
slot HEARD          worker     raw: 1: the signal that retires it has met its handler; 2: one
                               that came when it was DOOMED has
slot ASKED          worker     1: a signal from outside has asked it to leave
slot ENDED          pool       1: the worker has been reaped, and counted among those that have
                               ended; who counts the live leaves it out
==================  =========  ==================================================

Behind the slots, and the areas of which the next paragraph tells, there are sections of
which only as much takes memory as has been written:

* *waits*, a ring a slot, written by its worker: of one task in some, how long it waited from
  its submission to its beginning, and when it began (ns, monotonic). A new worker in the
  slot goes on with it from the beginning.
* *decisions*, a ring written by the pool: see :mod:`.decisions`; and behind it another of the
  same kind, written by the client, of decisions about memory.
* *names* of functions, written by the client when the first task of a function is sent. A
  name's index is told to the worker with the call.

All this can be read from outside, by :mod:`prefork_executor.status`, which writes nothing.
Whoever changes the meaning of anything here counts LAYOUT_VERSION up.

Behind the slots each has an area of AREA bytes for outcomes of tasks that are too
short to be worth a message each. They are written before UNSENT says so, and the
area is written from its beginning again only when another task has been named. So
whoever has read UNSENT, then the bytes, and finds the same in HOLDS before and after,
has read what was there.

The pool clears a slot after it has reaped the worker, when the slot's writer no
longer exists.

The order in which others see what one writes
---------------------------------------------
x86-64 lets a read overtake the writes before it; aarch64 lets any two accesses to different
words change places. What holds on both, and is all that is relied on here:

* Two accesses of one process to the same word stay in order, and a write is seen by all
  others at once. So what must be read together is *one word*: who reads that a worker is
  BUSY reads which task it holds, and each time that it takes a message HOLDS changes.
* A message keeps order. Who finds a message, or finds it gone, has come through the lock of
  a socket's queue after the one who sent or took it, and sees what that one wrote before. And
  what a process writes after it has sent a message is seen by nobody before it has had that
  lock: what is sent by somebody who has seen it lies behind the message. A pipe keeps order,
  too, and so do a signal and its handler, a fork and its child, and the end of a process and
  who has waited for it. The recoveries (:mod:`_client.recovery`) and all that raw pools do
  need no more than this and single words.
* Everywhere else somebody makes *fences*, as :mod:`.fences` has it: the rare side for
  both where the kernel does that (SPARED), each side its own elsewhere. These are the places,
  each a litmus program in the suite. Both write and then read:

  ===========================  ===========================  ==============================
  hot                          rare                         else
  ===========================  ===========================  ==============================
  worker: HOLDS (TAKING, or    pool: RETIRE; HOLDS          the signal that is to end a
  the next task); RETIRE       (`WorkerPool.end_task`)      task hits another
  worker: HOLDS (the next      client: RECALL; HOLDS        a task runs twice
  task); RECALL                (`Batches._recall`)
  client: OUTSTANDING; ENOUGH  pool: ENOUGH; OUTSTANDING    tasks wait, and nobody starts a
                               (`Supervisor._listen`)       worker
  ===========================  ===========================  ==============================

  One writes both, and the other reads both the other way round (x86-64 keeps that order):

  ===========================  ===========================  ==============================
  worker: SINCE; HOLDS         client: HOLDS; SINCE         a task is ended for the time
                               (`Deadlines.due`)              that another took
  worker: UNSENT; HOLDS        client: HOLDS; UNSENT        more is read than the area holds
                               (`Batches._kept`)            by now
  worker: the area; UNSENT     client: UNSENT; the area     half an outcome is read
                               (`Batches._kept`)
  worker: HOLDS; the area      client: the area; HOLDS      what was overwritten meanwhile
                               (`Batches._kept`)            is taken for an outcome
  ===========================  ===========================  ==============================

What else is read is only shown, or a reason to look again, or to lose patience after seconds:
it may be of another moment.

`worker_states.py` says what each state means, what it does not imply, and who may change it.
"""

from __future__ import annotations

import mmap
import os
import posix
import time
from collections.abc import Sequence

from .._support.named_tuples import NamedTuple
from . import worker_states
from .worker_states import Event, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

# Plain ints for the loops that run once a task, where an enum costs a look-up each.
FREE, STARTING, IDLE, TAKING, BUSY, LEAVING = (int(state) for state in State)

FILE_NAME = "prefork-scoreboard"
"""How the board's file is called, for those who look for boards."""
MAGIC_WORD = int.from_bytes(b"preforkX", "little")
LAYOUT_VERSION = 4
EXECUTOR, RAW = 1, 2
MAGIC, LAYOUT, KIND, SLOTS, CLIENT, MAIN, STARTED, SPARED = range(8)
# The words that are written all the time have a cache line of their own.
OUTSTANDING, BELL, ENOUGH, GENERATION, RECORDING, SIGN = range(8, 14)
PEAK_BACKLOG, MIN_SPARE, MAX_SPARE, IDLE_TIMEOUT = range(16, 20)
MEMORY_BOUND, MEMORY_TAKEN, HELD, MEMORY_ENDED = range(20, 24)
MEMORY_SAID, START_COST = 35, 36
LISTENERS, LISTEN_QUEUE, FITTING = 37, 38, 39
FORKS, RETIREMENTS, DEATHS, OTHER_DEATHS, DONE_BEFORE = range(24, 29)
PEAK, USED, FULL_TIMES, FULL_FOR, FULL_SINCE, DECISIONS = range(29, 35)
NEVER = 2**64 - 1
"""In ENOUGH: whatever OUTSTANDING is, do not ring."""
AUTO = NEVER - 1
HEADER_WORDS = 40
PID, BORN, RETIRE, HOLDS, SINCE, DONE, RECALL, UNSENT, NAME, ASKED, DOOMED = range(11)
ENDED, HEARD, READY, IDLE_FOR = range(11, 15)
SLOT_WORDS = 16
"""One slot fills two 64-byte cache lines: workers do not slow each other's marks."""
WORD_BYTES = 8
AREA = 4096
"""Bytes of a slot's area: the outcomes of some hundred tasks that return little."""
WAITS = 32
"""Waits that each slot's ring keeps, of two words each."""
DECISIONS_KEPT = 64
DECISION_BYTES = 128
MAX_NAMES = 8192
"""Names there is room for; index 0 is none. The ones after these overwrite the first:
a task that began so long ago may then be shown by another's name."""
MIN_NAMES = 64
"""Names there is room for where files may not be larger than this (RLIMIT_FSIZE)."""
NAME_BYTES = 128
STATE_BITS, COUNT_BITS, NUMBER_SHIFT = 4, 6, 16
"""How HOLDS is made up: the state, two counts above it, and the number above these."""
STATE_MASK, MAX_BESIDE = (1 << STATE_BITS) - 1, (1 << COUNT_BITS) - 1
MAX_NUMBER = (1 << 64 - NUMBER_SHIFT) - MAX_BESIDE - 1
"""Tasks' numbers are below this, and so are those of a message's other tasks. There are
enough for a million tasks a second, for nine years."""
assert max(State) <= STATE_MASK
assert STATE_BITS + 2 * COUNT_BITS == NUMBER_SHIFT


def pack_holds(state: int, number: int = 0, head: int = 0, tail: int = 0) -> int:
    """The word HOLDS: what a worker does, and which task it holds, with so many before and
    after it in its message, MAX_BESIDE at most. One word, so that nobody can read a state
    with another's task, or a number with another's rest."""
    return number << NUMBER_SHIFT | head << STATE_BITS + COUNT_BITS | tail << STATE_BITS | state


def _pack_timeout(seconds: float | Literal["auto"] | None) -> int:
    if seconds is None:
        return NEVER
    return AUTO if seconds == "auto" else int(min(seconds, 1e9) * 1000)


def unpack_timeout(word: int) -> float | Literal["auto"] | None:
    """What the word IDLE_TIMEOUT says."""
    if word == NEVER:
        return None
    return "auto" if word == AUTO else word / 1e3


class Slot(NamedTuple):
    """One reading of one slot, ``place`` its index. Times are nanoseconds on the
    monotonic clock. What HOLDS says is of one moment: ``state``, ``task`` (its number),
    ``head`` and ``tail``. The rest may be of another."""

    place: int
    pid: int
    born: int
    retire: int
    state: int
    task: int
    since: int
    done: int
    head: int = 0
    tail: int = 0
    recall: int = 0
    unsent: int = 0
    name: int = 0
    asked: int = 0


def slot_of(place: int, words: Sequence[int]) -> Slot:
    """A slot from its words."""
    pid, born, retire, holds, since, done, *rest = words[: ASKED + 1]
    state, number = holds & STATE_MASK, holds >> NUMBER_SHIFT
    head, tail = holds >> STATE_BITS + COUNT_BITS & MAX_BESIDE, holds >> STATE_BITS & MAX_BESIDE
    return Slot(place, pid, born, retire, state, number, since, done, head, tail, *rest)


class Sections(NamedTuple):
    """Where in the file of a board with so many slots what begins, in bytes."""

    areas: int
    waits: int
    decisions: int
    memory_decisions: int
    names: int
    end: int

    @property
    def minimum_end(self) -> int:
        """With as few names as there may be."""
        return self.names + MIN_NAMES * NAME_BYTES

    @classmethod
    def of(cls, slots: int) -> Sections:
        areas = (HEADER_WORDS + slots * SLOT_WORDS) * WORD_BYTES
        waits = areas + slots * AREA
        decisions = waits + slots * WAITS * 2 * WORD_BYTES
        memory_decisions = decisions + DECISIONS_KEPT * DECISION_BYTES
        names = memory_decisions + DECISIONS_KEPT * DECISION_BYTES
        return cls(areas, waits, decisions, memory_decisions, names, names + MAX_NAMES * NAME_BYTES)


class Scoreboard:
    """A process's view of the board that lies in the file behind a descriptor.

    Args:
        descriptor: an open file of at least :meth:`size_for` bytes. The board
            owns it and closes it. -1: it is not open here.
        slots: how many workers there can be.
        mapped: the file, if somebody has mapped it for us. None: the board maps it.
    """

    def __init__(self, descriptor: int, slots: int, mapped: memoryview | None = None) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self.sections = Sections.of(slots)
        self._areas = self.sections.areas
        if mapped is None:
            size = min(os.fstat(descriptor).st_size, self.sections.end)
            mapped = memoryview(mmap.mmap(descriptor, size))
        self._names = (len(mapped) - self.sections.names) // NAME_BYTES
        self._bytes = mapped
        self._is_open = True
        self.words = self._bytes[: self._areas].cast("Q")
        self._last_name = 0

    @staticmethod
    def size_for(slots: int, limit: int | None = None) -> int:
        """Bytes that a board for this many slots takes: ``limit``, if it can do with that by
        keeping fewer names."""
        sections = Sections.of(slots)
        return (
            sections.end if limit is None else min(sections.end, max(sections.minimum_end, limit))
        )

    def introduce(
        self,
        kind: int,
        client: int,
        *,
        min_spare: int,
        max_spare: int,
        idle_timeout: float | Literal["auto"] | None,
    ) -> None:
        """Say on a new board whose it is, for those who look from outside."""
        words = self.words
        words[LAYOUT], words[KIND], words[SLOTS] = LAYOUT_VERSION, kind, self.slots
        words[CLIENT], words[MAIN] = client, client if kind == RAW else 0
        words[STARTED] = time.time_ns()
        words[MIN_SPARE], words[MAX_SPARE] = min_spare, max_spare
        words[IDLE_TIMEOUT] = _pack_timeout(idle_timeout)
        words[MAGIC] = MAGIC_WORD

    @staticmethod
    def base(index: int) -> int:
        """Where a slot's words begin: ``words[base(index) + HOLDS]``."""
        return HEADER_WORDS + index * SLOT_WORDS

    def read(self, index: int) -> Slot:
        base = self.base(index)
        return slot_of(index, tuple(self.words[base : base + ASKED + 1]))

    def area(self, index: int) -> memoryview:
        """Where a slot's outcomes lie that have not been sent."""
        start = self._areas + index * AREA
        return self._bytes[start : start + AREA]

    def unsent(self, index: int) -> bytes:
        """Outcomes that a worker has left there, which lives no more."""
        return bytes(self.area(index)[: self.words[self.base(index) + UNSENT]])

    def waits(self, index: int) -> memoryview:
        """The words of a slot's ring of waits."""
        size = WAITS * 2 * WORD_BYTES
        start = self.sections.waits + index * size
        return self._bytes[start : start + size].cast("Q")

    def span_of_waits(self) -> tuple[int, int]:
        """Where the rings of waits begin, and how many bytes they take, those of slots that
        have never had a worker left out."""
        return self.sections.waits, self.words[USED] * WAITS * 2 * WORD_BYTES

    def copy(self, start: int, size: int) -> bytes:
        """So many bytes of the file."""
        return bytes(self._bytes[start : start + size])

    def write_decision(self, packed: bytes) -> None:
        """Put a decision (`decisions.py`) into the pool's ring, or as much of it as there is room
        for."""
        self._write_entry(DECISIONS, self.sections.decisions, packed)

    def write_memory_decision(self, packed: bytes) -> None:
        """The same for the client's ring."""
        self._write_entry(MEMORY_SAID, self.sections.memory_decisions, packed)

    def _write_entry(self, counter: int, ring: int, packed: bytes) -> None:
        count = self.words[counter]
        start = ring + count % DECISIONS_KEPT * DECISION_BYTES
        entry = packed[:DECISION_BYTES].ljust(DECISION_BYTES, b"\0")
        self._bytes[start : start + DECISION_BYTES] = entry
        self.words[counter] = count + 1

    def enter_name(self, name: str) -> int:
        """Put the next name into the table, cut if need be. Returns its index."""
        index = self._last_name = self._last_name % (self._names - 1) + 1
        start = self.sections.names + index * NAME_BYTES
        text = name.encode(errors="replace")[: NAME_BYTES - 1]
        self._bytes[start : start + NAME_BYTES] = text.ljust(NAME_BYTES, b"\0")
        return index

    def read_all(self) -> list[Slot]:
        """Every slot that has a worker."""
        pids = range(HEADER_WORDS + PID, len(self.words), SLOT_WORDS)
        words = self.words
        slots = [self.read(i) for i, at in enumerate(pids) if words[at]]
        # One may just have been cleared, in part or as a whole.
        return [slot for slot in slots if slot.pid and slot.state]

    def states(self) -> list[int]:
        """The state of every slot, the free ones included."""
        return [word & STATE_MASK for word in self.words[HEADER_WORDS + HOLDS :: SLOT_WORDS]]

    def free_slot(self) -> int | None:
        """Index of a slot without a worker, or None if all are taken."""
        words = self.words
        for index in range(self.slots):
            if not words[self.base(index) + PID]:
                return index
        return None

    def check(self, index: int, event: str) -> None:
        """Whoever writes HOLDS is about to, because of this event. Called in tests alone.

        Raises:
            IllegalTransition: it cannot come in the state that the slot is in.
        """
        state = self.words[self.base(index) + HOLDS] & STATE_MASK
        worker_states.check(event, state, f"the worker in slot {index}")

    def clear(self, index: int) -> None:
        if worker_states.report_to:
            self.check(index, Event.POOL_FREES)
        base = self.base(index)
        for word in range(SLOT_WORDS):
            self.words[base + word] = 0

    def close(self) -> None:
        """Unmap and close the descriptor. Safe to call again."""
        if self.descriptor >= 0:
            posix.close(self.descriptor)
            self.descriptor = -1
        if self._is_open:
            self._is_open = False
            mapping = self._bytes.obj
            self.words.release()
            self._bytes.release()
            if isinstance(mapping, mmap.mmap):
                mapping.close()

    def disarm(self) -> None:
        """In a process that runs code of the user's, which could write to the file by its
        descriptor: from now on that can only be read. (Who looks from outside finds the pool
        by it.) Where this cannot be done, it is closed: the memory is enough."""
        if self.descriptor < 0:
            return
        try:
            readable = posix.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            readable = -1
        posix.close(self.descriptor)
        self.descriptor = readable
