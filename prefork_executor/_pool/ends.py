"""How the end of a worker is judged, by what its slot says."""

from __future__ import annotations

import time

from .._board import scoreboard as sb
from .rollover import SETTLED_AFTER

_NANO = 1_000_000_000


def as_counted(slot: sb.Slot, *, was_told: bool, is_raw: bool) -> sb.Slot:
    """The slot for the counters. If the pool has told a raw child to leave or to end, what the
    child held does not make its end a death."""
    return slot._replace(state=sb.LEAVING) if is_raw and was_told else slot


def own_reason(slot: sb.Slot, status: int, *, is_crash: bool) -> str:
    """Why a worker has ended that was not told to."""
    if is_crash:
        return "crash"
    return "exit" if slot.state == sb.LEAVING or not status else "died"


def is_crash(slot: sb.Slot) -> bool:
    """Whether a worker that was not told to leave ended before it did anything."""
    if slot.asked:
        return False
    if slot.state == sb.STARTING:
        return True
    if slot.state == sb.LEAVING and not slot.task and not slot.done:
        return True  # Its initializer has failed.
    if slot.state in (sb.BUSY, sb.LEAVING) or slot.done:
        return False
    return time.monotonic_ns() - slot.born < SETTLED_AFTER * _NANO
