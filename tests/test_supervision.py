"""A real supervisor at work: when it looks and when it sleeps, and that no task is
left lying in the pipe while workers sleep."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

from prefork_executor import PreforkExecutor, _worker
from prefork_executor import _scoreboard as sb

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def work_for(path: str) -> int:
    """Run until the file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def new_executor(most: int, **options: Any) -> PreforkExecutor:
    """A pool that has come to rest, in which no timer helps: nobody ever tires."""
    executor = PreforkExecutor(most, "fork", idle_timeout=None, **options)
    executor.submit(int).result()
    return executor


def at_rest(executor: PreforkExecutor, idle: int) -> None:
    eventually(lambda: executor.stats().idle == idle, f"{idle} idle workers")
    # And the supervisor has had its last look.
    eventually(lambda: wake_ups(executor, 0.1) == 0, "a supervisor that sleeps")


def wake_ups(executor: PreforkExecutor, seconds: float) -> int:
    """How often the supervisor woke up within so many seconds."""
    supervisor = executor._client._supervisor
    assert supervisor is not None
    status = Path(f"/proc/{supervisor.pid}/status")

    def switches() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt" in line)

    before = switches()
    time.sleep(seconds)
    return switches() - before


# --- looking ----------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("pause", [0.0, 0.0005, 0.002, 0.01, 0.05])
def test_tasks_that_come_while_workers_start_have_workers_soon(
    tmp_path: Path, pause: float
) -> None:
    """Nobody rings when a worker is ready, and the bell has rung for the first task."""
    stop = tmp_path / "stop"
    with new_executor(8) as executor:
        at_rest(executor, idle=2)
        futures = [executor.submit(work_for, str(stop)) for _ in range(2)]
        time.sleep(pause)
        futures += [executor.submit(work_for, str(stop)) for _ in range(6)]
        eventually(lambda: executor.stats().busy == 8, "a worker for each task", bound=10)
        stop.touch()
        assert len({future.result() for future in futures}) == 8


@linux
def test_at_rest_the_supervisor_sleeps() -> None:
    with new_executor(8) as executor:
        at_rest(executor, idle=2)
        assert wake_ups(executor, 1.0) == 0


@linux
def test_with_all_workers_busy_the_supervisor_sleeps(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    with new_executor(2) as executor:
        futures = [executor.submit(work_for, str(stop)) for _ in range(20)]
        eventually(lambda: executor.stats().busy == 2, "two busy workers")
        eventually(lambda: wake_ups(executor, 0.1) == 0, "a supervisor that sleeps")
        futures += [executor.submit(work_for, str(stop)) for _ in range(20)]
        assert wake_ups(executor, 0.5) == 0
        stop.touch()
        assert all(future.result() for future in futures)


@linux
def test_one_task_after_the_other_leaves_the_supervisor_asleep() -> None:
    with new_executor(8) as executor:
        at_rest(executor, idle=2)
        for _ in range(200):
            executor.submit(int).result()
        assert wake_ups(executor, 0.3) == 0
        assert len(executor.stats().workers) == 2


# --- nobody sleeps while a task lies there -----------------------------------------------------

Wait = Callable[[_worker.Worker], bool]


def first_woken(tmp_path: Path, does: Callable[[_worker.Worker], bool]) -> Wait:
    """A worker's wait for work after which the first that a message wakes does this."""
    waits = _worker.Worker._wait_for_work

    def wait_for_work(worker: _worker.Worker) -> bool:
        woken = waits(worker)
        armed, done = tmp_path / "armed", tmp_path / "done"
        if woken and armed.exists():
            try:
                done.touch(exist_ok=False)
            except FileExistsError:
                return woken
            return does(worker)
        return woken

    return wait_for_work


def dies(_worker: _worker.Worker) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def leaves(worker: _worker.Worker) -> bool:
    """As if it had been told to just before it was woken."""
    worker._words[worker._base + sb.RETIRE] = 1
    return True


@linux
@pytest.mark.parametrize("does", [dies, leaves])
def test_a_task_whose_wake_up_went_to_a_worker_that_ends_is_run_by_another(
    does: Callable[[_worker.Worker], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker.Worker, "_wait_for_work", first_woken(tmp_path, does))
    # More idle workers than are kept ready: nobody is started for the one that ends.
    with new_executor(4, min_spare_workers=1, start_workers=4) as executor:
        at_rest(executor, idle=4)
        (tmp_path / "armed").touch()
        assert executor.submit(int).result(timeout=20) == 0
        assert (tmp_path / "done").exists()
