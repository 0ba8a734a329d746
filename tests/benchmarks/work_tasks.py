"""What the pools under measurement are given to do. Imports next to nothing, because
every worker imports it."""

from __future__ import annotations

import os
import time
from typing import Any

PAGE = 512
"""Doubles in a page of memory, or fewer."""


def nothing(_: object = None) -> None:
    """The no-op."""


def same(thing: Any) -> Any:
    """The echo."""
    return thing


def touch(array: Any) -> float:
    """Read a number of every page: what a task is sent must be there, not just promised."""
    return float(array[::PAGE].sum())


def touch_and_return(array: Any) -> Any:
    """The same, and the array back."""
    touch(array)
    return array


def nap(seconds: float) -> int:
    """Sleep; say who did."""
    time.sleep(seconds)
    return os.getpid()


def nap_and_tell(seconds: float) -> float:
    """Sleep; say when that began, on the monotonic clock, which all processes share."""
    began = time.monotonic()
    time.sleep(seconds)
    return began


def spin(loops: int) -> float:
    """Work. The seconds of a CPU that it took."""
    began = time.thread_time()
    for _ in range(loops):
        pass
    return time.thread_time() - began


def loops_for(seconds: float) -> int:
    """How much work takes so long here."""
    loops = 10_000
    quickest = min(spin(loops) for _ in range(50))
    return max(1, round(loops * seconds / quickest))
