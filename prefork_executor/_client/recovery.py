"""What a worker's death costs where the worker did not say what it held.

A death in TAKING
-----------------
Between asking the pipe and saying which task it got a worker may die with a task
that nobody can name. Such a death opens a :class:`Recovery`:

1. The pipe is emptied: what is in it was never taken and will be sent again.
   *Suspects* are then the tasks that had been sent, are not resolved, and did
   not come out of the pipe: some worker took each of them.
2. *Takers* are the workers seen in TAKING. Each may still be about to name a
   suspect, so the recovery waits until each has been seen to have left that state
   or has died. (The pipe has only newer tasks since, so nobody takes a suspect.)
3. Tasks named in BUSY slots in the reading that shows the last of them gone are taken
   off the suspects, and with them the others of their messages: those before have
   outcomes that may not have been sent, those after are still to begin. Then a
   marker is sent through the yell channel. When it has come round, every outcome
   and death notice of those who finished or died before that reading has been read.
4. A suspect that is still unresolved was in the dead worker's hands and had not
   begun: BUSY is marked before the first line of the user's. It is sent again.

Each of these orders is needed; without it a task that runs is sent again and
runs twice (the suite's model of the recovery shows how, for each):

* A worker says TAKING before it asks the pipe, and sends an outcome before it says
  TAKING again. It leaves TAKING by naming its task, in one word; TAKING goes with the
  number of the last message, so it is another word each time.
* A slot is cleared after the death notice was sent.
* The outcomes that lie before the marker are in the books when it is acted on.

A death in IDLE
---------------
The kernel wakes one waiting worker for each message. The one it woke may die
before it asks the pipe, and then the message lies there while the others sleep.
So after a death in IDLE, too, the pipe is emptied and its tasks are sent again; and
when a worker was stopped by a signal, which comes to the same as long as it lasts.
A worker that is told to leave as a message wakes it takes the message first.

A message that is gone
----------------------
The user's code may read from a descriptor that is not its own, and so take a task from the
pipe. Then workers are idle though tasks are in flight that none of them names. Where it has
been so for two looks in a row, a recovery is opened as well.
"""

from __future__ import annotations

import posix
import time
from collections.abc import Callable, Container, Iterable, Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._messages.channels import DONTWAIT, PoolChannels
from .._messages.wire import MAX_CALLS, Kind
from ..errors import ProtocolError
from .ledger import Ledger

MISSING_INTERVAL = 1.0
"""Seconds between two looks for messages that are gone, while tasks are in flight."""


class Recovery:
    """The recovery after one death in TAKING; see the head of this module."""

    def __init__(self, suspects: Iterable[int], board: Sequence[Slot]) -> None:
        self.suspects = set(suspects) - _held(board)
        self.marker: int | None = None
        self.takers = {
            slot.place: (slot.pid, slot.task) for slot in board if slot.state == sb.TAKING
        }
        """Those that have not said yet what they got, as they were then."""

    def look(self, read_board: Callable[[], Sequence[Slot]]) -> bool:
        """Take a look at the scoreboard. True when every taker has left and the
        marker is to be sent."""
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
    return {
        number
        for slot in board
        if slot.state == sb.BUSY
        for number in range(slot.task - slot.head, slot.task + slot.tail + 1)
    }


class Recoveries:
    """Opens recoveries and brings them to their end. All with the client's lock held."""

    def __init__(self, ledger: Ledger, channels: PoolChannels) -> None:
        self._ledger = ledger
        self._channels = channels
        self._open: list[Recovery] = []
        self._last_marker = 0
        self._unread: list[int] = []
        self.dropped: list[str] = []
        """What was found in the pipe and was no task, to be logged without the lock: a
        handler of the user's may wait for a thread that submits."""
        self._missing: set[int] = set()
        self._missing_at = 0.0

    @property
    def is_at_work(self) -> bool:
        return bool(self._open)

    def drain_pipe(self, unbegun: Iterable[int] = ()) -> None:
        """Take what no worker has taken out of the pipe, and requeue it. It is sent again,
        which wakes as many idle workers as there are messages.

        Args:
            unbegun: tasks that a worker had taken and that have not begun. They were sent
                before what is in the pipe, and so they are again.
        """
        numbers = list(unbegun)
        while True:
            try:
                packet = self._channels.task_reader.receive(DONTWAIT)
            except (BlockingIOError, EOFError):
                break  # Empty; or somebody has shut it down, which ends it as well.
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
        """Somebody may have died with a task that nobody can name."""
        self.drain_pipe()
        recovery = Recovery(self._ledger.in_flight, self._channels.board.read_all())
        if recovery.suspects:
            self._open.append(recovery)

    def close_unread(self) -> None:
        """Close the files of big payloads that have come back. Not with the lock held: that
        frees their memory, which takes its time."""
        while self._unread:
            posix.close(self._unread.pop())

    def look_for_missing(self) -> None:
        """Open a recovery if tasks are in nobody's hands though somebody waits for one."""
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
        """Go on with those that wait for a worker to move."""
        for recovery in self._open:
            if recovery.marker is None and recovery.look(self._channels.board.read_all):
                # If the channel is full, the next look tries again.
                recovery.marker = self.mark()

    def mark(self) -> int | None:
        """Send a marker: when it has come round, all that is in the yell channel now
        has been read. Its number; None: the channel is full, which the next turn ends."""
        if not self._channels.send_marker(self._last_marker + 1):
            return None
        self._last_marker += 1
        return self._last_marker

    def on_marker(self, marker: int, just_read: Container[int]) -> None:
        """A marker has come round. ``just_read`` are the tasks whose outcomes have
        been read and are not in the books yet."""
        for recovery in [
            recovery for recovery in self._open if recovery.marker == marker and marker
        ]:
            self._open.remove(recovery)
            unresolved = recovery.suspects & self._ledger.in_flight.keys()
            self._ledger.requeue(number for number in unresolved if number not in just_read)

    def forget(self) -> None:
        """Nothing is left to be recovered."""
        self._open.clear()
