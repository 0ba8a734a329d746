"""The backlog of a raw pool: connections that wait in the kernel for a child to accept them."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard
from .._system.listen_queues import queue_length

INTERVAL = 1.0
"""Seconds between two looks while no child is idle. Then the queues may grow, and no event wakes
the main process."""


class Backlog:
    """The queues of the listeners that the pool knows.

    Args:
        listeners: those.
        board: says how many there are, and how many connections wait.
    """

    def __init__(self, listeners: Sequence[socket.socket], board: Scoreboard) -> None:
        self._listeners = listeners
        self._board = board
        self._looked_at = 0.0
        board.words[sb.LISTENERS] = len(listeners)

    def look(self) -> int:
        """How many connections wait now."""
        if not self._listeners:
            return 0
        self._looked_at = time.monotonic()
        words, waiting = self._board.words, sum(map(queue_length, self._listeners))
        words[sb.LISTEN_QUEUE] = waiting
        words[sb.PEAK_BACKLOG] = max(words[sb.PEAK_BACKLOG], waiting)
        return waiting

    def due_in(self) -> float | None:
        """Seconds until the next look is due, if nothing else happens."""
        if not self._listeners or self._has_spares():
            return None
        return max(0.0, self._looked_at + INTERVAL - time.monotonic())

    def _has_spares(self) -> bool:
        # Who looks from outside is to see that the queue has become empty.
        if self._board.words[sb.LISTEN_QUEUE]:
            return False
        return any(state in (sb.IDLE, sb.TAKING, sb.STARTING) for state in self._board.states())
