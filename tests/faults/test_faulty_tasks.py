"""Tasks and initializers that damage the process they run in, and pools within tasks."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import (
    Running,
    all_go_on,
    ended_at_once,
    idle_workers,
    is_alive,
    lines,
    lose_patience,
    pool_of,
    supervisor_of,
)
from light_tasks import BIG, die, note, run_until, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied

# --- tasks that damage their worker ---


def close_all() -> None:
    os.closerange(3, 1000)


def close_all_and_open_others() -> None:
    os.closerange(3, 1000)
    for _ in range(20):
        os.open(os.devnull, os.O_RDWR)


def close_all_and_answer_big() -> bytes:
    os.closerange(3, 1000)
    return bytes(BIG)


@pytest.mark.parametrize("task", [close_all, close_all_and_open_others, close_all_and_answer_big])
def test_a_task_that_closes_every_descriptor_costs_its_worker_only(
    task: Callable[[], object], start_method: str
) -> None:
    with ended_at_once(PreforkExecutor(2, start_method)) as executor:
        error = executor.submit(task).exception(BOUND)
        assert isinstance(error, WorkerDied)
        assert task.__name__ in str(error)
        all_go_on(executor)


def fork_one_that_stays(path: str) -> None:
    """The child keeps copies of all that this worker has open."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    note(path, str(pid))


def fork_one_that_stays_and_die(path: str) -> None:
    fork_one_that_stays(path)
    die()


@contextlib.contextmanager
def of_the_user(path: Path) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Processes that tasks have left behind, noted in the file: the user's, who ends
    them here."""
    try:
        yield lambda: [psutil.Process(int(pid)) for pid in lines(path)]
    finally:
        for pid in map(int, lines(path)):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("dies", [False, True])
def test_a_child_that_a_task_leaves_behind_hinders_nobody(
    dies: bool, start_method: str, tmp_path: Path
) -> None:
    noted_pids = tmp_path / "pids"
    with of_the_user(noted_pids) as left_behind:
        with ended_at_once(pool_of(2, start_method)) as executor:
            supervisor = supervisor_of(executor)
            pool = [supervisor, *supervisor.children()]
            task = fork_one_that_stays_and_die if dies else fork_one_that_stays
            error = executor.submit(task, str(noted_pids)).exception(BOUND)
            assert isinstance(error, WorkerDied) if dies else error is None
            all_go_on(executor)
            executor.shutdown(wait=False)
            assert executor.join(BOUND)
        (child,) = left_behind()
        assert is_alive(child)
        assert not any(map(is_alive, pool))


def test_a_supervisors_death_is_seen_though_a_tasks_child_holds_its_pipes(
    start_method: str, tmp_path: Path
) -> None:
    noted_pids = tmp_path / "pids"
    with of_the_user(noted_pids):
        with ended_at_once(pool_of(2, start_method)) as executor:
            executor.submit(fork_one_that_stays, str(noted_pids)).result(BOUND)
            workers = idle_workers(executor)
            supervisor_of(executor).kill()
            # One of them might still take a task, and die with it.
            eventually(lambda: not any(map(is_alive, workers)))
            all_go_on(executor)


def die_by(number: int) -> None:
    faulthandler.disable()
    os.kill(os.getpid(), number)


def read_nowhere() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


def test_every_end_of_a_task_is_known_under_every_start_method(start_method: str) -> None:
    with ended_at_once(PreforkExecutor(2, start_method)) as executor:
        exited, interrupted = executor.submit(sys.exit, 3), executor.submit(die_by, signal.SIGINT)
        ends: list[tuple[int | None, Future[None]]] = [
            (signal.SIGSEGV, executor.submit(read_nowhere)),
            (signal.SIGABRT, executor.submit(die_by, signal.SIGABRT)),
            (None, executor.submit(os._exit, 3)),
        ]
        assert isinstance(exited.exception(BOUND), SystemExit)
        assert isinstance(interrupted.exception(BOUND), KeyboardInterrupt)
        for number, future in ends:
            error = future.exception(BOUND)
            assert isinstance(error, WorkerDied)
            assert (error.signal, error.exitcode) == (number, None if number else 3)
        all_go_on(executor)


# --- initializers ---


def hang_after_the_first(flag: str, started: str) -> None:
    """The first worker is well; the others never get ready."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        note(started, str(os.getpid()))
        time.sleep(600)


def test_a_worker_stuck_in_its_initializer_is_killed_at_shutdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_patience(monkeypatch)
    flag, started = tmp_path / "flag", tmp_path / "started"
    options: dict[str, Any] = {"start_workers": 2, "min_spare_workers": 2}
    with ended_at_once(
        PreforkExecutor(2, "fork", hang_after_the_first, (str(flag), str(started)), **options)
    ) as executor:
        assert executor.submit(square, 3).result(BOUND) == 9
        eventually(lambda: lines(started))
        executor.shutdown(wait=False)
        assert executor.join(BOUND)


def test_a_worker_killed_in_its_initializer_is_replaced(start_method: str, tmp_path: Path) -> None:
    flag, started = tmp_path / "flag", tmp_path / "started"
    with ended_at_once(
        PreforkExecutor(1, start_method, hang_unless, (str(flag), str(started)))
    ) as executor:
        future = executor.submit(square, 3)
        eventually(lambda: lines(started))
        flag.touch()
        os.kill(int(lines(started)[0]), signal.SIGKILL)
        assert future.result(BOUND) == 9


def hang_unless(flag: str, started: str) -> None:
    if not os.path.exists(flag):
        note(started, str(os.getpid()))
        time.sleep(600)


# --- pools in pools, and pools that nobody refers to ---


def pool_whose_worker_dies() -> int:
    with PreforkExecutor(1) as executor:
        executor.submit(die).result()
    return 0


def test_a_death_in_a_tasks_own_pool_is_that_tasks_error(start_method: str) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        outer = executor.submit(os.getpid).result(BOUND)
        error = executor.submit(pool_whose_worker_dies).exception(BOUND)
        assert isinstance(error, WorkerDied)
        assert (error.signal, error.task) == (signal.SIGKILL, "light_tasks.die")
        assert error.pid != outer
        assert executor.submit(os.getpid).result(BOUND) == outer


def pool_at_work(gate: str, started: str, start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        futures = [executor.submit(run_until, gate, started) for _ in range(2)]
        for future in futures:
            future.result()


@pytest.mark.parametrize(
    ("outer_method", "inner_method"),
    [("fork", "fork"), ("forkserver", "spawn"), ("spawn", "forkserver")],
)
def test_with_the_worker_that_has_it_a_tasks_own_pool_ends(
    outer_method: str, inner_method: str, tmp_path: Path
) -> None:
    started, gate = tmp_path / "started", tmp_path / "gate"
    with ended_at_once(PreforkExecutor(1, outer_method)) as executor:
        outer = psutil.Process(executor.submit(os.getpid).result(BOUND))
        future = executor.submit(pool_at_work, str(gate), str(started), inner_method)
        eventually(lambda: len(lines(started)) == 2)
        inner = outer.children(recursive=True)
        assert len(inner) >= 3
        outer.kill()
        assert isinstance(future.exception(BOUND), WorkerDied)
        eventually(lambda: not any(map(is_alive, inner)), "the inner pool ends")
        all_go_on(executor)


def test_an_executor_that_nobody_refers_to_ends_its_work_in_spite_of_deaths(
    start_method: str, tmp_path: Path
) -> None:
    executor = pool_of(2, start_method)
    running = Running(executor, tmp_path)
    supervisor = supervisor_of(executor)
    futures = [executor.submit(square, i) for i in range(50)]
    del executor
    gc.collect()
    running.worker.kill()
    assert isinstance(running.future.exception(BOUND), WorkerDied)
    assert [future.result(BOUND) for future in futures] == [i * i for i in range(50)]
    eventually(lambda: not is_alive(supervisor))
