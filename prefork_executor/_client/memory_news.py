"""What is said of a pool's memory: decisions with their reasons, and warnings in the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from .._board.decisions import pack_decision
from .._board.scoreboard import Scoreboard
from .._support.logs import logger

SAY_AGAIN = 1.0
"""Seconds after which the same is said again, if it is so again."""


class MemoryNews:
    """Says it, with the client's lock held.

    Args:
        board: the scoreboard, for those who look from outside.
        decided: told of each decision, which is packed.
    """

    def __init__(self, board: Scoreboard, decided: Callable[[bytes], object]) -> None:
        self._board = board
        self._decided = decided
        self._said: dict[str, float] = {}
        self._to_log: list[str] = []

    def is_due(self, what: str) -> bool:
        """Whether this may be said, because it has not been for SAY_AGAIN. If it may, it counts
        as said."""
        now = time.monotonic()
        if now < self._said.get(what, 0.0) + SAY_AGAIN:
            return False
        self._said[what] = now
        return True

    def decided(self, reason: str, *, retired: int = 0, warns: bool = False) -> None:
        """This has been decided, and has so many workers end. ``warns``: the log is to have it."""
        text = f"memory: {reason}"
        packed = pack_decision(len(self._board.read_all()), 0, retired, text)
        self._board.write_memory_decision(packed)
        self._decided(packed)
        if warns:
            self._to_log.append(text)

    def log(self) -> None:
        """Log what is to be logged. Without the lock: a handler of the user's may wait for a
        thread that submits."""
        while self._to_log:
            logger.warning("%s", self._to_log.pop(0))


def mib(number: int) -> str:
    """Bytes, for readers."""
    return f"{number / 2**20:.0f} MiB"
