"""Tasks of the recordings' tests. They say themselves when and where they ran."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

Told = tuple[int, int, int]
"""A process id, and when the task began and ended there (ns, monotonic clock)."""


def work(seconds: float = 0.0) -> Told:
    begin = time.monotonic_ns()
    if seconds:
        time.sleep(seconds)
    return os.getpid(), begin, time.monotonic_ns()


def short(_number: int) -> Told:
    return work()


def large(_number: int) -> tuple[Told, bytes]:
    told = work()
    return told, bytes(100_000)


def fail() -> None:
    raise LookupError("on purpose")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(flag: str) -> Told:
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return work()
    die()
    raise AssertionError


def hold(started: str, release: str) -> Told:
    """Run until a file is there."""
    told = work()
    Path(started).touch()
    while not os.path.exists(release):
        time.sleep(0.002)
    return told
