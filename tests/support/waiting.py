"""Waiting for what a test expects."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

BOUND = 180.0
"""Seconds that anything awaited may take before the test fails: far beyond what it takes
on a machine with twenty times as much to do as it has processors. Nothing waits for a
fixed time."""


def eventually(condition: Callable[[], object], what: str = "", bound: float = BOUND) -> None:
    """Wait until ``condition()`` is true; fail after ``bound`` seconds."""
    deadline = time.monotonic() + bound
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not come true in {bound:g} s: {what or condition}")
        time.sleep(0.005)
