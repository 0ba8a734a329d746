"""What multiprocessing sees of a worker: a process, and its parent."""

from __future__ import annotations

import multiprocessing.process
from collections.abc import Callable

from .._support.named_tuples import NamedTuple


class Caller(NamedTuple):
    """The process that has the executor. multiprocessing in a worker takes it for the parent.
    ``pidfd`` is readable when it has ended; None: there is no pidfd."""

    pid: int
    name: str
    pidfd: int | None


class WorkerProcess(multiprocessing.process.BaseProcess):
    """The Process object that multiprocessing has for the current process in a worker.

    Its bootstrap does what the standard library and its users expect of a forked child. Queues and
    locks learn of the fork and are flushed at the end, ``current_process()`` has a name, and
    coverage can start there.

    Programs take a worker's number from the end of its name, or from ``_identity``. multiprocessing
    also makes the names of a task's child processes from ``_identity``. If a program asks for the
    parent process, and whether that still lives, it means the caller, not the supervisor."""

    _start_method = None

    def __init__(self, run: Callable[[], None], slot: int, caller: Caller) -> None:
        super().__init__(target=run, name=f"PreforkWorker-{slot + 1}")
        self._identity = (slot + 1,)
        self._parent_pid, self._parent_name = caller.pid, caller.name
