"""Whether the supervisor does what it is asked, in time.

A supervisor that is stopped, by a signal or a debugger, or that hangs would hold up for ever what
only it can do: end a task, the workers, the pool. So with each of these the client asks for a
*sign*: a number that the supervisor writes on the board when it has done what came before. If the
sign does not come within REACT_WITHIN, the client kills the supervisor, and its workers die with
it. Then the same happens as after any supervisor's death.

The client also kills it if it has nothing to do any more and does not end: it was told to kill
its workers and end, or the process that it has forked for the pool has ended or has said that
it is done.

Only time in which the client has looked counts. If the client itself was stopped, with the whole
program for example, it gives the supervisor time to go on as well.
"""

from __future__ import annotations

import time

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard
from .._messages.wire import Kind
from .._system import descriptors, processes
from .supervisor_handle import SupervisorHandle

REACT_WITHIN = 10.0
"""Seconds that the supervisor may take to react."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks while something is expected."""
_MAX_LOOKS = int(REACT_WITHIN / LOOK_INTERVAL)


class Supervision:
    """What the client expects of one supervisor."""

    def __init__(self, supervisor: SupervisorHandle, board: Scoreboard) -> None:
        self.look_at: float | None = None
        """When to look, on the monotonic clock; None: nothing is expected."""
        self._supervisor = supervisor
        self._words = board.words
        self._number = 0
        self._is_to_end = False
        self._looks = 0
        self.watched: int | None = None
        """A descriptor that is readable when the process that runs the pool has ended, if that
        is not the supervisor itself."""

    def expect_sign(self) -> None:
        """The supervisor must soon do what it was just told."""
        if self.look_at is None:
            self._number += 1
            self._supervisor.tell(Kind.SIGN, self._number)
            self._begin()

    def expect_end(self) -> None:
        """The supervisor must end soon."""
        if not self._is_to_end:
            self._is_to_end = True
            self._begin()

    def _begin(self) -> None:
        self._looks = 0
        self.look_at = time.monotonic() + LOOK_INTERVAL

    def watch(self, main: int) -> int | None:
        """This process runs the pool. Returns :attr:`watched` if that is new."""
        if main == self._supervisor.pid or self.watched is not None:
            return None
        self.watched = processes.open_pidfd(main)
        return self.watched

    def on_readable(self, descriptors: list[int]) -> int | None:
        """If the process has ended: the descriptor, which need not be watched any more."""
        if self.watched is None or self.watched not in descriptors:
            return None
        ended, self.watched = self.watched, None
        self.expect_end()
        return ended

    def is_overdue(self) -> bool:
        """Whether the supervisor has not done in time what was expected."""
        if self.look_at is None or time.monotonic() < self.look_at:
            return False
        sign = self._words[sb.SIGN]
        if sign == sb.NEVER:
            self.expect_end()
        elif sign >= self._number and not self._is_to_end:
            self.look_at = None
            return False
        self._looks += 1
        self.look_at = time.monotonic() + LOOK_INTERVAL
        if self._looks < _MAX_LOOKS:
            return False
        self._looks = 0
        return True

    def close(self) -> None:
        """The supervisor has ended."""
        if self.watched is not None:
            descriptors.close_quietly([self.watched])
            self.watched = None
        self.look_at = None
