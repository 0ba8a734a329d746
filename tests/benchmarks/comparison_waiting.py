"""What the probes of comparison.py wait for, each with a bound."""

from __future__ import annotations

import threading
import time
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from comparison_pools import (
    Cell,
    no,
    yes,
)
from fault_stage import eventually
from performance_pools import Thunk

PATIENCE = 6.0
"""Seconds after which what has not ended does not end."""
SETTLES = 15.0
"""Seconds after which a call that has not returned hangs. Dask tries again for a while."""
QUIET = 0.7
"""Seconds without a beat after which a task has ended that beats twenty times a second."""


def settled(thunk: Thunk) -> Future[Any]:
    """What becomes of a call; not done if it hangs."""
    called: Future[Any] = Future()

    def call() -> None:
        try:
            called.set_result(thunk())
        except BaseException as error:
            called.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    eventually(called.done, SETTLES)
    return called


def succeeds(thunk: Thunk) -> bool:
    """Whether it returns, and in time."""
    called = settled(thunk)
    return called.done() and called.exception() is None


def begun(path: str) -> bool:
    """Wait until a task beats."""
    return eventually(lambda: Path(path).exists())


def has_ended(path: str) -> bool:
    """Whether a task that beats stops doing so, soon."""
    file, deadline = Path(path), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        beats = file.stat().st_size
        time.sleep(QUIET)
        if file.stat().st_size == beats:
            return True
    return False


def ended_alone(path: str, others: list[Thunk]) -> Cell:
    """Whether it ends, and what that costs others that run or come later."""
    if not has_ended(path):
        return no("the task runs on")
    lost = sum(not succeeds(other) for other in others)
    return no("it ends, and with it others") if lost else yes()


def settled_value(thunk: Thunk) -> Any:
    """What it returns; None if it raises or hangs."""
    called = settled(thunk)
    return called.result() if called.done() and not called.exception() else None


def fetch(address: str) -> str:
    """A page of this machine."""
    with urllib.request.urlopen(address, timeout=10) as response:
        text: str = response.read().decode(errors="replace")
        return text
