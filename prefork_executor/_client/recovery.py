"""Finds the tasks that a dead worker may have taken without naming them.

A death in TAKING
-----------------
A worker in TAKING has asked the pipe for a message, and has not named a task yet. If it dies then,
it may have taken a task, and no slot names that task. Such a death opens a :class:`Recovery`:

1. The client empties the pipe. No worker has taken the tasks in it, and they are sent again. The
   *suspects* are the other tasks in flight: some worker has taken each of them.
2. The *takers* are the workers that the client now sees in TAKING. Each may still be about to name
   a suspect. So the recovery waits until it has seen each taker leave TAKING or die. (The pipe has
   only newer tasks since then, so no worker takes a suspect any more.)
3. The reading that shows that the last taker has left also shows which tasks are named in BUSY
   slots. These, and all other tasks of their messages, are no longer suspects. (The outcomes of the
   tasks before them in the message may not have been sent yet. The tasks after them will begin.)
   Then the client sends a barrier (`barriers.py`). When it has come round, the client has read
   every outcome and death notice of the workers that finished a task or died before that reading.
4. The dead worker had taken the suspects that are still unresolved then, and had not begun them:
   a worker writes BUSY before it runs the first line of the user's code. They are sent again.

This needs the following orders. Without any one of them, a task that runs could be sent again, and
run twice. (The model of the recovery in the tests shows how, for each.)

* A worker writes TAKING before it asks the pipe, and it sends an outcome before it writes TAKING
  again. It leaves TAKING by naming its task, in one word. Beside TAKING, that word has the number
  of the last message, so it is another word each time.
* The supervisor sends a worker's death notice before it clears the slot.
* The outcomes that were sent before the barrier are in the books when the client acts on it.

A death in IDLE
---------------
The kernel wakes one waiting worker for each message. That worker may die before it asks the pipe.
Then the message stays in the pipe while the other workers sleep. So after a death in IDLE, too, the
client empties the pipe and sends its tasks again, which wakes other workers. It does the same when
a signal has stopped a worker, because a stopped worker asks the pipe no more than a dead one.
A worker that is told to leave just as a message wakes it takes that message first.

A message that has disappeared
------------------------------
The user's code may read from a descriptor of the pool, and so take a task out of the pipe. Then
workers are idle although no slot names some of the tasks in flight. If two looks in a row find the
same task in that state, the client opens a recovery as well.
"""

from __future__ import annotations

import functools
import posix
import time
from collections.abc import Callable, Container, Iterable, Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._messages.channels import DONTWAIT, PoolChannels
from .._messages.wire import MAX_CALLS, Kind
from ..errors import ProtocolError
from .barriers import Barriers
from .ledger import Ledger

MISSING_INTERVAL = 1.0
"""Seconds between two looks for messages that have disappeared, while tasks are in flight."""


class Recovery:
    """The recovery after one death in TAKING. See the head of this file."""

    def __init__(self, suspects: Iterable[int], board: Sequence[Slot]) -> None:
        self.suspects = set(suspects) - _held(board)
        self.is_marked = False
        """Whether its barrier has been sent."""
        self.takers = {
            slot.place: (slot.pid, slot.task) for slot in board if slot.state == sb.TAKING
        }
        """By slot, the workers that were in TAKING and have not been seen to leave it: their
        process ids, and the numbers that their slots had."""

    def look(self, read_board: Callable[[], Sequence[Slot]]) -> bool:
        """Look at the scoreboard. Returns True if every taker has left TAKING, so that the barrier
        must be sent now."""
        board = {slot.place: slot for slot in read_board()}
        for place in [place for place in self.takers if self._has_left(board.get(place))]:
            del self.takers[place]
        if self.takers:
            return False
        self.suspects -= _held(board.values())
        return True

    def _has_left(self, slot: Slot | None) -> bool:
        return (
            slot is None
            or slot.state != sb.TAKING
            or (slot.pid, slot.task) != self.takers[slot.place]
        )


def _held(board: Iterable[Slot]) -> set[int]:
    """The tasks that busy workers hold: the named ones, and the others of their messages."""
    return {
        number
        for slot in board
        if slot.state == sb.BUSY
        for number in range(slot.task - slot.head, slot.task + slot.tail + 1)
    }


class Recoveries:
    """The recoveries that are under way. Except for :meth:`close_unread`, call all methods with the
    client's lock held."""

    def __init__(self, ledger: Ledger, channels: PoolChannels, barriers: Barriers) -> None:
        self._ledger = ledger
        self._channels = channels
        self._barriers = barriers
        self._open: list[Recovery] = []
        self._unread: list[int] = []
        self.dropped: list[str] = []
        """What the client found in the pipe that was no task. The I/O thread logs it without the
        lock, because the user's log handler may wait for a thread that submits."""
        self._missing: set[int] = set()
        self._missing_at = 0.0

    @property
    def is_at_work(self) -> bool:
        return bool(self._open)

    def drain_pipe(self, unbegun: Iterable[int] = ()) -> None:
        """Take the tasks that lie in the pipe out of it, and put them back into the queue. They
        are sent again, which wakes an idle worker for each message.

        Args:
            unbegun: tasks that a worker had taken and that have not begun. They were sent before
                the tasks in the pipe, and are sent again before them.
        """
        numbers = list(unbegun)
        while True:
            try:
                packet = self._channels.task_reader.receive(DONTWAIT)
            except (BlockingIOError, EOFError):
                break  # The pipe is empty, or a task has shut it down.
            except ProtocolError as error:
                self.dropped.append(str(error))
                continue
            if packet.descriptor >= 0:
                self._unread.append(packet.descriptor)
            if packet.kind == Kind.CALL:
                numbers.append(packet.number)
            elif packet.kind == Kind.CALLS:
                numbers += range(packet.number, packet.number + min(packet.parts, MAX_CALLS))
        self._ledger.requeue(numbers)

    def open(self) -> None:
        """Open a recovery, because a worker may have died with a task that no slot names."""
        self.drain_pipe()
        recovery = Recovery(self._ledger.in_flight, self._channels.board.read_all())
        if recovery.suspects:
            self._open.append(recovery)

    def close_unread(self) -> None:
        """Close the files of the big payloads that came out of the pipe. Call this without the
        lock: closing a file frees its memory, which takes long."""
        while self._unread:
            posix.close(self._unread.pop())

    def look_for_missing(self) -> None:
        """Open a recovery if workers are idle although tasks have disappeared from the pipe. Looks
        every MISSING_INTERVAL seconds."""
        now = time.monotonic()
        if now < self._missing_at or self._open:
            return
        self._missing_at = now + MISSING_INTERVAL
        before, self._missing = self._missing, set()
        if not self._ledger.in_flight:
            return
        board = self._channels.board.read_all()
        if any(slot.state == sb.IDLE for slot in board):
            self._missing = self._ledger.in_flight.keys() - _held(board)
            if self._missing & before:
                self.open()

    def look(self) -> None:
        """Look whether the takers of the open recoveries have left TAKING."""
        for recovery in self._open:
            if not recovery.is_marked and recovery.look(self._channels.board.read_all):
                # If the channel is full, this is False, and the next look tries again.
                recovery.is_marked = self._barriers.send(functools.partial(self._end, recovery))

    def _end(self, recovery: Recovery, just_read: Container[int]) -> None:
        """End this recovery, whose barrier has come round: requeue the suspects that are left."""
        if recovery in self._open:
            self._open.remove(recovery)
            unresolved = recovery.suspects & self._ledger.in_flight.keys()
            self._ledger.requeue(number for number in unresolved if number not in just_read)

    def forget(self) -> None:
        """End all recoveries, because no task is in flight any more."""
        self._open.clear()
