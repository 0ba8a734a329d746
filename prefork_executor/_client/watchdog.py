"""Kills a supervisor that does not react in time.

Only the supervisor can end a task, the workers, or the pool. If it hangs, or is stopped by a signal
or a debugger, none of these would ever end. So with each such command the client asks for a *sign*:
a number that the supervisor writes on the board when it has carried out the commands before it. If
the sign does not come within REACT_WITHIN seconds, the client kills the supervisor, and its workers
die with it. The client then goes on as after any supervisor's death.

The client also kills a supervisor that should end and does not. That is so if the client has told
it to kill its workers and end, if the process that it has forked to run the pool has ended, or if
the board says that the pool ends.

The client counts its looks, not the time. If the client itself was stopped, for example with the
whole program, it has not looked meanwhile, and the supervisor gets its full time.
"""

from __future__ import annotations

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard
from .._messages.wire import Kind
from .._support.timers import Timer
from .._system import descriptors, processes
from .supervisor_handle import SupervisorHandle

REACT_WITHIN = 10.0
"""Seconds that the supervisor may take to react."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks while something is expected."""
_MAX_LOOKS = int(REACT_WITHIN / LOOK_INTERVAL)


class Watchdog:
    """Watches whether one supervisor does what the client expects.

    Args:
        supervisor: the present one.
        board: the pool's.
        timer: for the next look. It is set while something is expected.
    """

    def __init__(self, supervisor: SupervisorHandle, board: Scoreboard, timer: Timer) -> None:
        self._timer = timer
        self._supervisor = supervisor
        self._words = board.words
        self._number = 0
        self._is_to_end = False
        self._looks = 0
        self.watched: int | None = None
        """A descriptor that is readable when the process that runs the pool has ended, if that
        is not the supervisor itself."""

    def expect_sign(self) -> None:
        """Expect that the supervisor carries out the command that it was just sent."""
        if not self._timer.is_set:
            self._number += 1
            self._supervisor.tell(Kind.SIGN, self._number)
            self._begin()

    def expect_end(self) -> None:
        """Expect that the supervisor ends."""
        if not self._is_to_end:
            self._is_to_end = True
            self._begin()

    def _begin(self) -> None:
        self._looks = 0
        self._timer.set(LOOK_INTERVAL)

    def watch(self, main: int) -> int | None:
        """Watch the process ``main``, which runs the pool, unless it is the supervisor itself.
        Returns the descriptor to wait for, or None if there is nothing new to wait for."""
        if main == self._supervisor.pid or self.watched is not None:
            return None
        self.watched = processes.open_pidfd(main)
        return self.watched

    def on_readable(self, descriptors: list[int]) -> int | None:
        """Notice that the watched process has ended. Returns its descriptor then, which need not be
        watched any more, and else None."""
        if self.watched is None or self.watched not in descriptors:
            return None
        ended, self.watched = self.watched, None
        self.expect_end()
        return ended

    def is_overdue(self) -> bool:
        """Whether the time for what was expected is over."""
        if not self._timer.is_due():
            return False
        sign = self._words[sb.SIGN]
        if sign == sb.NEVER:
            self.expect_end()
        elif sign >= self._number and not self._is_to_end:
            self._timer.stop()
            return False
        self._looks += 1
        self._timer.set(LOOK_INTERVAL)
        if self._looks < _MAX_LOOKS:
            return False
        self._looks = 0
        return True

    def close(self) -> None:
        """Expect nothing more: the supervisor has ended."""
        if self.watched is not None:
            descriptors.close_quietly([self.watched])
            self.watched = None
        self._timer.stop()
