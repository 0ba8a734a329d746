"""What the tests that inject faults share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from light_tasks import run_until, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, worker_index
from prefork_executor._support import faults

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's own means")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def noted_pid(path: Path) -> int:
    """The process id in the first line of this file, once that is there. A file that exists may
    still be empty."""
    eventually(lambda: lines(path), f"{path.name} has a line")
    return int(lines(path)[0])


def in_worker() -> bool:
    """Whether this is a worker; for faults that all processes of a forked pool inherit."""
    return worker_index() is not None


def supervisor_of(executor: PreforkExecutor) -> psutil.Process:
    parent = psutil.Process(executor.stats().workers[0].pid).parent()
    assert parent is not None
    return parent


def idle_workers(executor: PreforkExecutor) -> list[psutil.Process]:
    return [psutil.Process(w.pid) for w in executor.stats().workers if w.state == "idle"]


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def ended_at_once(executor: PreforkExecutor) -> Iterator[PreforkExecutor]:
    """Like the executor's own ``with``, but a test that fails does not wait for tasks
    that will never end."""
    try:
        with executor:
            try:
                yield executor
            except BaseException:
                executor.kill_workers()
                raise
    finally:
        executor.shutdown(wait=False)


def pool_of(count: int, start_method: str, **options: Any) -> PreforkExecutor:
    """A pool of so many workers, all of them idle."""
    executor = PreforkExecutor(
        count, start_method, start_workers=count, min_spare_workers=count, **options
    )
    executor.submit(square, 1).result(BOUND)
    eventually(lambda: executor.stats().idle == count, "all workers are idle")
    return executor


def all_go_on(executor: PreforkExecutor, tasks: int = 40) -> None:
    """Whatever happened, new tasks are done, and done right."""
    futures = [executor.submit(square, i) for i in range(tasks)]
    assert [future.result(BOUND) for future in futures] == [i * i for i in range(tasks)]


class Running:
    """A task that certainly runs, until it is let go."""

    def __init__(self, executor: PreforkExecutor, directory: Path) -> None:
        self._gate, started = directory / "gate", directory / "started"
        self.future: Future[int] = executor.submit(run_until, str(self._gate), str(started))
        eventually(lambda: lines(started), "the task runs")
        self.worker = psutil.Process(int(lines(started)[-1]))

    def let_go(self) -> None:
        self._gate.touch()


@contextlib.contextmanager
def batches_sent() -> Iterator[list[int]]:
    """How many tasks each message of several has; there must be some."""
    sizes: list[int] = []
    with faults.injected("client.sends_batch", lambda _number, count: sizes.append(count)):
        yield sizes
    assert max(sizes, default=0) > 3, "tasks have travelled together"


def lose_patience(patch: pytest.MonkeyPatch) -> None:
    """A forked supervisor soon kills workers that do not leave."""
    patch.setattr("prefork_executor._pool.leaving.LEAVE_WITHIN", 0.1)
