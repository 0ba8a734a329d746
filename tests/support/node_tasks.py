"""Tasks that say when they begin, on the nodes of a cluster too. Every process there imports
this for itself, so it imports nothing that takes its time."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

FOREVER = 3600.0
"""Seconds that a task sleeps which nobody waits for."""


def fail(number: int) -> int:
    if number == 3:
        raise ValueError(f"it was {number}")
    return number


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(path: Path) -> int:
    """Say that it has begun, and where; returns how often that has been said."""
    with open(path, "a", buffering=1) as file:
        file.write(f"{os.getpid()}\n")
    return len(noted(path))


def noted(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def begin_and_sleep(path: Path, seconds: float = FOREVER) -> str:
    note(path)
    time.sleep(seconds)
    return "slept"


def die_at_first(path: Path) -> int:
    run = note(path)
    if run == 1:
        die()
    return run


def sleep_at_first(path: Path) -> int:
    run = note(path)
    if run == 1:
        time.sleep(FOREVER)
    return run


def meet(directory: Path, others: int) -> int:
    """Return when so many have come."""
    (directory / str(os.getpid())).touch()
    while len(list(directory.iterdir())) < others:
        time.sleep(0.005)
    return os.getpid()


def address_of_worker() -> str:
    """In a thread of a Dask worker."""
    from distributed import get_worker

    return str(get_worker().address)


def is_known(key: str, dask_scheduler: Any) -> bool:
    """In a scheduler, to which Dask gives itself by this name."""
    return key in dask_scheduler.tasks


class Unpicklable(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}", threading.Lock())


def raise_unpicklable() -> None:
    raise Unpicklable(7)
