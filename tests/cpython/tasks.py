"""What the adapted tests run in workers. Imported there, so it imports little."""

from __future__ import annotations

import logging
import os
import time
from logging.handlers import QueueHandler
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Semaphore
from pathlib import Path

_kept: Semaphore | None = None


def keep(semaphore: Semaphore) -> None:
    """An initializer: semaphores travel to workers only as its arguments."""
    global _kept
    _kept = semaphore


def acquire_kept() -> int:
    assert _kept is not None
    _kept.acquire()
    return os.getpid()


def fail_and_log_to(queue: Queue[logging.LogRecord]) -> None:
    """An initializer that fails, with the pool's log going into ``queue``."""
    logger = logging.getLogger("prefork_executor")
    logger.addHandler(QueueHandler(queue))
    logger.propagate = False
    raise ValueError("error in initializer")


def pass_gate(started: Path, gate: Path, number: int) -> int:
    """Say that it runs, and wait until the gate is there."""
    started.touch()
    while not gate.exists() and gate.parent.exists():
        time.sleep(0.005)
    return number


def never_called() -> None:
    """A task for pools that cannot run any."""


def use_pool() -> None:
    """What a process does that uses a pool of its own."""
    from prefork_executor import Pool

    pool = Pool(4)
    assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
    pool.close()
    pool.join()


def pid_after_a_moment(_: object) -> int:
    """So that whoever asks several times meets every worker."""
    time.sleep(0.05)
    return os.getpid()
