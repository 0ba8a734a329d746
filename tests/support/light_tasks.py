"""Tasks for pools under test. The module imports next to nothing, because a worker imports
it in the middle of its first task."""

from __future__ import annotations

import os
import signal
import time

BIG = 1_000_000
"""Bytes: travels in a shared file of its own, either way."""
BOUND = 300.0
"""Seconds that a task waits for a file at the most."""


def square(x: int) -> int:
    return x * x


def power(base: int, exponent: int = 2) -> int:
    return int(base**exponent)


def fail_at_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


def end_at_three(error: type[BaseException], x: int) -> int:
    """Raises this at 3: a bare ``next(...)`` may raise StopIteration, for example."""
    if x == 3:
        raise error
    return x


def note(path: str, text: str) -> None:
    """One line, whole, whoever else writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def noted(path: str, text: str) -> str:
    """A task that leaves a record of every time it is run."""
    note(path, text)
    return text


def wait_for(path: str | os.PathLike[str], bound: float = BOUND) -> int:
    """A task that runs until the file is there; not for ever, if its test has failed."""
    deadline = time.monotonic() + bound
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.002)
    return os.getpid()


def wait_at_zero(gate: str, x: int) -> int:
    if x == 0:
        wait_for(gate)
    return x


def run_until(gate: str, started: str) -> int:
    """A task that says who runs it, and runs until the file is there."""
    note(started, str(os.getpid()))
    return wait_for(gate)


def big(_: object = None) -> bytes:
    return bytes(BIG)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
