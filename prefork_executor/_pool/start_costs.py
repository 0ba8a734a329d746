"""Measures how long the starts of workers take, and how long workers work.

A worker writes on its slot when it is ready, after its initializer, and how long it has been idle
in all. The pool keeps the cost of a start on the board. So the cost outlives a supervisor, and can
be read from outside. Children of raw pools write nothing of this: they are idle from their fork on,
and the cost of a start is not known.
"""

from __future__ import annotations

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .regulator import Life, learn

_NANO = 1_000_000_000


class StartCosts:
    """Measures the starts of one pool's workers."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._starting: set[int] = set()

    @property
    def estimate(self) -> float | None:
        """The seconds from a fork until the worker is ready; None: no start was measured."""
        return in_seconds(self._board.words[sb.START_COST])

    def began(self, place: int) -> None:
        """Note that a worker was forked into this slot."""
        self._starting.add(place)

    def look(self) -> None:
        """Measure the starts that have ended since the last look."""
        for place in tuple(self._starting):
            self._look_at(place)

    def ended(self, place: int) -> None:
        """Note that the worker in this slot was reaped. If it was ready before, measure its
        start."""
        if place in self._starting:
            self._look_at(place)
            self._starting.discard(place)

    def _look_at(self, place: int) -> None:
        words, base = self._board.words, self._board.base(place)
        if ready := words[base + sb.READY]:
            self._starting.discard(place)
            took = max(0, ready - words[base + sb.BORN]) / _NANO
            words[sb.START_COST] = max(1, int(learn(self.estimate, took) * _NANO))


def in_seconds(start_cost: int) -> float | None:
    """The word START_COST in seconds; None: no start was measured."""
    return start_cost / _NANO if start_cost else None


def life_of(board: Scoreboard, slot: Slot) -> Life:
    """What the worker of this slot, which is idle now, has done since it was ready."""
    words, base = board.words, board.base(slot.place)
    ready, idle_for = words[base + sb.READY], words[base + sb.IDLE_FOR]
    worked = max(0, slot.since - ready - idle_for) if ready else 0
    return Life(worked / _NANO, idle_for / _NANO)
