"""One worker as the process sees it that has forked it, and how that makes it leave.

A worker goes through these steps, and never back:

=======  ===========================  ============================================
step     what brings it there         what is done then
=======  ===========================  ============================================
serving  it is forked                 nothing
told     `retire`: RETIRE is set on   It leaves when it holds nothing. If it has
         its slot; a raw child is     held nothing for ``leave_within`` seconds
         sent the retire signal       and is still there, it is killed.
ending   `end`, `end_task`: DOOMED    It ends, whatever it does. If it has not
         is set, a signal is sent     done so after its patience, it is killed.
killed   `enforce`: SIGKILL           The kernel ends it.
=======  ===========================  ============================================

A worker may also leave by itself: its slot says LEAVING. From then on it has
``leave_within`` seconds, too.

Signals may miss. A raw child that is sent one just before it waits does not notice it (see
_raw/child.py), so it is *reminded*, after waits that double, until it has said on its slot that it
has heard. A worker's handler of SIGTERM waits for a call into C to return, so *insisting*
sends a second one, as soon as the first has run into the handler (see `_server/end_signals.py`).

A worker's *leash* is a pipe of which the main process holds the writing end. To let it go wakes
a worker that waits, and one that has been told leaves then.
"""

from __future__ import annotations

import logging
import posix
import signal
import time

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._support import faults
from .._support.named_tuples import NamedTuple
from .._system import processes, signals

logger = logging.getLogger("prefork_executor")

LEAVE_WITHIN = 10.0
"""Seconds a worker that holds no task may take to end after it was told to, or
said that it would: enough to flush its queues and join its threads. Then SIGKILL."""
TASK_GRACE = 3.0
"""Seconds that a task which is to be ended may take to clean up after SIGTERM."""
INSIST_INTERVAL = 0.01
"""Seconds between two looks whether a worker that is to end, and has not, needs a second
signal for that."""
INSIST_FOR = 1.0
"""Seconds after which nobody looks for that any more."""
REMIND_AFTER = 0.05
"""Seconds after which a raw child is sent SIGTERM again that seems not to have noticed; and
after as long again as it has been by then."""
_NANO = 1_000_000_000


class Rules(NamedTuple):
    """What holds for all workers of a pool."""

    board: Scoreboard
    leave_within: float
    """Seconds that one may take to leave when it holds nothing."""
    retire_signal: int | None
    """For raw children: they run code of the user's, which watches no leash."""


class PoolWorker:
    """A worker that has been forked, and not yet been reaped."""

    def __init__(self, pid: int, slot: int, leash: int, rules: Rules) -> None:
        self.pid = pid
        self.slot = slot
        self.leash = leash
        self._rules = rules
        self._board = rules.board
        self._told_at: int | None = None
        self._ended_at: int | None = None
        self._is_killed = False
        self._patience = rules.leave_within
        self._is_done = False
        self._taking: tuple[int, int] | None = None
        self._remind_at = 0
        self._may_insist = False
        self._ended_task: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether it was told to leave, or to end."""
        return self._told_at is not None

    def look(self) -> Slot:
        """What it says on its slot."""
        return self._board.read(self.slot)

    def last_look(self) -> Slot:
        """What its slot says now that it has ended, and means.

        A worker names the next task of its message before it sees that it is not to begin it.
        If the signal that was to end the task before comes just then, the slot names a task that
        has not begun."""
        slot = self.look()
        if slot.state == sb.BUSY and slot.head and slot.task - 1 == self._ended_task:
            return slot._replace(task=slot.task - 1, head=slot.head - 1, tail=slot.tail + 1)
        return slot

    # --- the steps --------------------------------------------------------------------

    def retire(self, *, is_done: bool = False) -> None:
        """Tell it to leave as soon as it holds nothing. ``is_done``: nobody waits for what it
        may seem to hold, as when it was stopped just after its outcome."""
        self._is_done = self._is_done or is_done
        self._tell()
        self.let_go()

    def let_go(self) -> None:
        """Wake it, if it waits, to see what it was told."""
        if self.leash >= 0:
            posix.close(self.leash)
            self.leash = -1

    def end(self, number: int) -> None:
        """Send it this signal, whatever it does. If it survives that it takes no other
        task, and is killed when its time is up."""
        # Before the signal is sent: this one is no mere retirement.
        self._set(sb.DOOMED)
        self._ended_at = self._ended_at or time.monotonic_ns()
        is_sent = not self.is_told and number == self._rules.retire_signal
        self._tell()
        if not is_sent:
            self._doom(number)
        # Not before, or one that waits would leave in peace, and call its finalizer.
        self.let_go()

    def end_task(self, task: int) -> bool:
        """End it if it holds this very task: by SIGTERM, and by SIGKILL if that has not ended
        it in TASK_GRACE seconds. Otherwise do nothing. Returns whether it is to end now.

        The signal can hit no other task: the worker is told to leave first, and if it
        still holds the task after that, it will take no other (see _server/worker.py). Of its
        message it may name the next, but begins it no more: see :meth:`last_look`."""
        if self._ended_at is not None or not self._holds(task):
            return False
        self._tell()
        self.let_go()
        fences.everywhere(self._board)
        if not self._holds(task):
            return False
        faults.at("supervisor.ends_task", task)
        self._ended_task = task
        self._ended_at, self._patience = time.monotonic_ns(), TASK_GRACE
        self._doom(signal.SIGTERM)
        return True

    def enforce(self) -> None:
        """Do what is due now, if it should have left by now: insist, remind it, kill it."""
        now = time.monotonic_ns()
        if self._may_insist:
            self._insist(now)
        if now >= self._remind_at and self._is_deaf():
            self._remind(now)
        since = self._leaves_since()
        if since is not None and now - since > self._patience * _NANO:
            logger.warning("worker %d did not leave in %g s; killing it", self.pid, self._patience)
            processes.send_signal(self.pid, signal.SIGKILL)
            self._is_killed = True

    def due_at(self) -> float | None:
        """When to enforce again, in seconds of the monotonic clock, as far as is known."""
        if self._may_insist:
            return time.monotonic() + INSIST_INTERVAL
        since = self._leaves_since()
        due = None if since is None else since / _NANO + self._patience
        if self._is_deaf():
            remind_at = self._remind_at / _NANO
            due = remind_at if due is None else min(due, remind_at)
        return due

    # --- what they are made of -----------------------------------------------------------

    def _set(self, word: int) -> None:
        self._board.words[self._board.base(self.slot) + word] = 1

    def _tell(self) -> None:
        """One that waits is told when it is let go as well."""
        if self._told_at is None:
            self._told_at = time.monotonic_ns()
            self._set(sb.RETIRE)
            if self._rules.retire_signal is not None:
                self._send(self._rules.retire_signal)

    def _doom(self, number: int) -> None:
        """Send a signal that ends what it does, and say before whose the signal is."""
        self._set(sb.DOOMED)
        self._send(number)
        # A raw child's handlers are all the user's.
        self._may_insist = number == signal.SIGTERM and self._rules.retire_signal is None

    def _send(self, number: int) -> None:
        self._remind_at = time.monotonic_ns() + int(REMIND_AFTER * _NANO)
        processes.send_signal(self.pid, number)

    def _insist(self, now: int) -> None:
        if signals.has_default_action(self.pid, signal.SIGTERM):
            processes.send_signal(self.pid, signal.SIGTERM)
            self._may_insist = False
        elif self._ended_at is not None and now - self._ended_at > INSIST_FOR * _NANO:
            self._may_insist = False

    def _remind(self, now: int) -> None:
        self._remind_at = now + (now - (self._ended_at or self._told_at or now))
        processes.send_signal(self.pid, signal.SIGTERM)

    def _is_deaf(self) -> bool:
        """Whether it is a raw child that seems not to have noticed what it was sent."""
        if self._rules.retire_signal is None or self._told_at is None or self._is_killed:
            return False
        slot, base = self.look(), self._board.base(self.slot)
        heard = self._board.words[base + sb.HEARD]
        if self._board.words[base + sb.DOOMED]:
            return heard < 2 and slot.state != sb.LEAVING
        return heard < 1 and slot.state == sb.IDLE

    def _holds(self, task: int) -> bool:
        slot = self.look()
        return slot.state == sb.BUSY and slot.task == task

    def _leaves_since(self) -> int | None:
        """When it was told to end, or began to leave holding no task (ns)."""
        if self._is_killed:
            return None
        if self._ended_at is not None:
            return self._ended_at
        slot = self.look()
        if slot.state == sb.LEAVING:
            return slot.since
        if self._told_at is not None and slot.state == sb.TAKING:
            # A matter of microseconds, unless it was stopped by a signal just then.
            if self._taking is None or self._taking[0] != slot.task:
                self._taking = (slot.task, time.monotonic_ns())
            return self._taking[1]
        holds_nothing = slot.state in (sb.IDLE, sb.STARTING) or self._is_done
        return self._told_at if holds_nothing else None
