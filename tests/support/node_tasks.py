"""Tasks that say when they begin, on the nodes of a cluster too. Every process there imports
this for itself, so it imports nothing that takes its time."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from light_tasks import wait_for

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


def note_and_wait(path: Path, gate: Path) -> None:
    """Note the beginning, wait for the file, and note the end."""
    note(path)
    wait_for(gate)
    note(path)


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


def write_line(path: Path, text: str) -> None:
    with open(path, "a", buffering=1) as file:
        file.write(f"{text}\n")


def alone(path: Path) -> bool:
    """Fails if another task is in here at the same time."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    return True


def count_tasks(dask_scheduler: Any) -> int:
    """In a scheduler: the tasks that it knows."""
    return len(dask_scheduler.tasks)


def is_known(key: str, dask_scheduler: Any) -> bool:
    """In a scheduler, to which Dask gives itself by this name."""
    return key in dask_scheduler.tasks


class Unpicklable(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}", threading.Lock())


def raise_unpicklable() -> None:
    raise Unpicklable(7)
