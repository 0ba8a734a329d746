"""What the adapted tests run in workers. Imported there, so it imports little."""

from __future__ import annotations

import logging
import os
from logging.handlers import QueueHandler
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Semaphore

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


def never_called() -> None:
    """A task for pools that cannot run any."""
