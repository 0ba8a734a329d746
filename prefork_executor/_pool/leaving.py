"""One worker, as seen by the process that forked it, and how that process makes it leave.

A worker goes through these steps, and never back:

=======  ===========================  ============================================
step     what brings it there         what happens then
=======  ===========================  ============================================
serving  it is forked                 nothing
told     `retire`: RETIRE is set on   It leaves when it holds no task. If it has
         its slot; a raw child is     held none for ``leave_within`` seconds and
         sent the retire signal       is still there, it is killed.
ending   `end`, `end_task`: DOOMED    It ends, whatever it does. If it has not
         is set, a signal is sent     ended when its time is up, it is killed.
killed   `enforce`: SIGKILL           The kernel ends it.
=======  ===========================  ============================================

A worker may also decide to leave: then its slot says LEAVING. From then on it has
``leave_within`` seconds, too.

A worker may miss a signal. A raw child does not notice one that comes just before it waits (see
_raw/child.py). So it is *reminded*, at intervals that double, until its slot says that it has
noticed. A worker's handler of SIGTERM waits for a call into C to return. So the main process
*insists*: it sends a second SIGTERM when the first has reached the handler (see
`_server/end_signals.py`).

A worker's *leash* is a pipe whose writing end the main process holds. Closing that end wakes a
waiting worker. If the worker has been told to leave, it leaves then.
"""

from __future__ import annotations

import posix
import signal
import time

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._support import faults
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from .._system import processes, signals

LEAVE_WITHIN = 10.0
"""Seconds that a worker without a task has to end, once it was told to or has said that it
will. This is enough to flush its queues and join its threads. Then SIGKILL."""
TASK_GRACE = 3.0
"""Seconds that a task has to clean up after the SIGTERM that ends it."""
INSIST_INTERVAL = 0.01
"""Seconds between two checks whether a worker that has not ended needs a second SIGTERM."""
INSIST_FOR = 1.0
"""Seconds after which these checks stop."""
REMIND_AFTER = 0.05
"""Seconds after which a raw child that seems not to have noticed SIGTERM is sent it again. The
time then doubles."""
_NANO = 1_000_000_000


class Rules(NamedTuple):
    """What applies to all workers of a pool."""

    board: Scoreboard
    leave_within: float
    """Seconds that a worker without a task may take to leave."""
    retire_signal: int | None
    """For raw children: they run the user's code, which does not watch the leash."""


class PoolWorker:
    """A worker that has been forked and not yet reaped."""

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
        """Whether the worker was told to leave or to end."""
        return self._told_at is not None

    def look(self) -> Slot:
        """What the worker says on its slot."""
        return self._board.read(self.slot)

    def last_look(self) -> Slot:
        """What the slot of a worker that has ended says.

        A worker names the next task of its message before it sees that it must not begin it. If
        the signal that ends the task before comes in between, the slot names a task that has
        not begun. This method names the right one."""
        slot = self.look()
        if slot.state == sb.BUSY and slot.head and slot.task - 1 == self._ended_task:
            return slot._replace(task=slot.task - 1, head=slot.head - 1, tail=slot.tail + 1)
        return slot

    # --- the steps --------------------------------------------------------------------

    def retire(self, *, is_done: bool = False) -> None:
        """Tell the worker to leave as soon as it holds no task. ``is_done``: no future waits for
        the task that it seems to hold, as when it was stopped just after sending its outcome."""
        self._is_done = self._is_done or is_done
        self._tell()
        self.let_go()

    def let_go(self) -> None:
        """Let go of its leash: if it waits, it wakes and sees what it was told."""
        if self.leash >= 0:
            posix.close(self.leash)
            self.leash = -1

    def end(self, number: int) -> None:
        """Send the worker this signal, whatever it does. If it survives the signal, it takes no
        more tasks, and is killed when its time is up."""
        # Set DOOMED before the signal is sent, so the worker knows that it must not just retire.
        self._set(sb.DOOMED)
        self._ended_at = self._ended_at or time.monotonic_ns()
        is_sent = not self.is_told and number == self._rules.retire_signal
        self._tell()
        if not is_sent:
            self._doom(number)
        # Not earlier: a waiting worker would leave in order, and call its finalizer.
        self.let_go()

    def end_task(self, task: int) -> bool:
        """End the worker if it holds this task: by SIGTERM, and by SIGKILL if it has not ended
        after TASK_GRACE seconds. Otherwise do nothing. Returns whether the worker now ends.

        The signal cannot hit another task. The worker is told to leave first. If it still holds
        the task after that, it will take no other (see _server/worker.py). It may name the next
        task of its message, but does not begin it: see :meth:`last_look`."""
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
        """If the worker should have left by now, do what is due: insist, remind it, or kill it."""
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
        """When to call :meth:`enforce` again, on the monotonic clock, as far as is known."""
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
        """Send the retire signal, if there is one. A waiting worker notices its leash as well."""
        if self._told_at is None:
            self._told_at = time.monotonic_ns()
            self._set(sb.RETIRE)
            if self._rules.retire_signal is not None:
                self._send(self._rules.retire_signal)

    def _doom(self, number: int) -> None:
        """Announce a signal as ours on the slot, and send it. It ends what the worker does."""
        self._set(sb.DOOMED)
        self._send(number)
        # In a raw child all handlers are the user's.
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
        """Whether this is a raw child that seems not to have noticed its signal."""
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
        """When it was told to end, or began to leave without a task (ns)."""
        if self._is_killed:
            return None
        if self._ended_at is not None:
            return self._ended_at
        slot = self.look()
        if slot.state == sb.LEAVING:
            return slot.since
        if self._told_at is not None and slot.state == sb.TAKING:
            # This state lasts microseconds, unless a signal has stopped the worker in it.
            if self._taking is None or self._taking[0] != slot.task:
                self._taking = (slot.task, time.monotonic_ns())
            return self._taking[1]
        holds_nothing = slot.state in (sb.IDLE, sb.STARTING) or self._is_done
        return self._told_at if holds_nothing else None
