"""A real supervisor at work: when it looks and when it sleeps, and that no task is
left lying in the pipe while workers sleep."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._board import scoreboard as sb
from prefork_executor._support import faults

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


def come_to_rest(executor: PreforkExecutor) -> None:
    def all_idle() -> bool:
        states = {worker.state for worker in executor.stats().workers}
        return states == {"idle"}

    eventually(all_idle, "idle workers")
    # And the supervisor has had its last look.
    eventually(lambda: wake_ups(executor, 0.1) == 0, "a supervisor that sleeps")


def wake_ups(executor: PreforkExecutor, seconds: float) -> int:
    """How often the supervisor woke up within so many seconds."""
    supervisor = executor._client._supervisors.current
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
        come_to_rest(executor)
        futures = [executor.submit(work_for, str(stop)) for _ in range(2)]
        time.sleep(pause)
        futures += [executor.submit(work_for, str(stop)) for _ in range(6)]
        eventually(lambda: executor.stats().busy == 8, "a worker for each task")
        stop.touch()
        assert len({future.result() for future in futures}) == 8


@linux
def test_at_rest_the_supervisor_sleeps() -> None:
    with new_executor(8) as executor:
        come_to_rest(executor)
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
        for _ in range(200):
            executor.submit(int).result()
        come_to_rest(executor)
        assert wake_ups(executor, 0.3) == 0
        assert len(executor.stats().workers) <= 3


# --- nobody sleeps while a task lies there -----------------------------------------------------


Does = Callable[[sb.Scoreboard, int], None]


def the_first_woken(does: Does, tmp_path: Path) -> Does:
    """The first worker that a message wakes, once it is armed, does this before it takes the
    message."""
    armed, done = tmp_path / "armed", tmp_path / "done"

    def woke(board: sb.Scoreboard, slot: int) -> None:
        if armed.exists():
            with contextlib.suppress(FileExistsError):
                done.touch(exist_ok=False)
                does(board, slot)

    return woke


def dies(_board: sb.Scoreboard, _slot: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(board: sb.Scoreboard, slot: int) -> None:
    """It has been told to just now."""
    board.words[board.base(slot) + sb.RETIRE] = 1


@linux
@pytest.mark.parametrize("does", [dies, leaves])
def test_a_task_whose_wake_up_went_to_a_worker_that_ends_is_run_by_another(
    does: Does, tmp_path: Path
) -> None:
    # More idle workers than are kept ready: nobody is started for the one that ends.
    with (
        faults.injected("worker.woke", the_first_woken(does, tmp_path)),
        new_executor(4, min_spare_workers=1, start_workers=4) as executor,
    ):
        come_to_rest(executor)
        assert executor.stats().idle == 4
        (tmp_path / "armed").touch()
        future = executor.submit(int)
        concurrent.futures.wait([future], timeout=BOUND)
        if not future.done():
            executor.kill_workers()
        assert future.result() == 0
        assert (tmp_path / "done").exists()
