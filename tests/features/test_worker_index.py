"""Who a worker is: its index, its name, its parent. For what each worker has of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from injection import Running, ended_at_once, lines
from waiting import BOUND, eventually

import prefork_executor
from prefork_executor import PreforkExecutor, worker_index
from prefork_executor._system.platform import FALLBACK


def who() -> tuple[int | None, tuple[int, ...], str]:
    process = multiprocessing.current_process()
    return worker_index(), process._identity, process.name


def who_with_others(directory: str, others: int) -> tuple[int | None, tuple[int, ...], str]:
    """Wait until so many are here at once."""
    Path(directory, str(os.getpid())).touch()
    end = time.monotonic() + BOUND
    while len(os.listdir(directory)) < others and time.monotonic() < end:
        time.sleep(0.01)
    return who()


def test_workers_are_numbered_and_named(start_method: str, tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(3, start_method)) as executor:
        here = [executor.submit(who_with_others, str(tmp_path), 3) for _ in range(3)]
        assert sorted(future.result(BOUND) for future in here) == [
            (0, (1,), "PreforkWorker-1"),
            (1, (2,), "PreforkWorker-2"),
            (2, (3,), "PreforkWorker-3"),
        ]


def hold_alone(directory: str, task: int) -> int:
    """Fails if another task holds what belongs to a worker of this index."""
    index = worker_index()
    assert index is not None
    mine = Path(directory, f"held-{index}")
    mine.touch(exist_ok=False)
    time.sleep(0.01)
    mine.unlink()
    if task % 7 == 3:
        os._exit(1)
    return index


def test_no_two_live_workers_have_the_same_index_whatever_becomes_of_them(tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(3, "fork", max_tasks_per_child=3)) as executor:
        futures = [executor.submit(hold_alone, str(tmp_path), task) for task in range(60)]
        eventually(lambda: executor.stats().workers)
        reloaded = executor.reload()
        with contextlib.suppress(ProcessLookupError):
            os.kill(executor.stats().workers[0].pid, signal.SIGTERM)
        ends = [future.exception(BOUND) for future in futures]
        held = {future.result() for future, end in zip(futures, ends, strict=True) if end is None}
        assert not [end for end in ends if isinstance(end, FileExistsError)]
        assert held <= {0, 1, 2}
        assert reloaded.exception(BOUND) is None


def test_the_next_worker_of_one_that_has_died_has_its_index() -> None:
    with ended_at_once(PreforkExecutor(1)) as executor:
        before = executor.submit(who).result(BOUND)
        assert executor.submit(os._exit, 1).exception(BOUND) is not None
        assert executor.submit(who).result(BOUND) == before == (0, (1,), "PreforkWorker-1")


def index_in_fork() -> str:
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(worker_index()).encode())
        os._exit(0)
    os.wait()
    return os.read(read, 10).decode()


def put(queue: Callable[[object], None]) -> None:
    queue((worker_index(), multiprocessing.current_process().name))


def index_in_child(method: str) -> tuple[int | None, str]:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=put, args=(queue.put,))
    child.start()
    index, name = queue.get()
    child.join()
    return index, name


def test_outside_a_worker_there_is_no_index() -> None:
    assert worker_index() is None
    with PreforkExecutor(1) as executor:
        assert executor.submit(index_in_fork).result(BOUND) == "None"
        assert "worker_index" in prefork_executor.__all__


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_a_task_starts_have_no_index_and_are_named_after_the_worker(
    method: str,
) -> None:
    with PreforkExecutor(1) as executor:
        index, name = executor.submit(index_in_child, method).result(BOUND)
        assert index is None
        assert re.fullmatch(r"\w+Process-1:1", name)


def parent() -> tuple[int | None, str, bool]:
    process = multiprocessing.parent_process()
    assert process is not None
    process.join(0)
    return process.pid, process.name, process.is_alive()


def test_a_workers_parent_is_the_callers_process(start_method: str) -> None:
    with PreforkExecutor(1, start_method) as executor:
        expected = (os.getpid(), multiprocessing.current_process().name, True)
        assert executor.submit(parent).result(BOUND) == expected


def parent_after(gate: str, started: str) -> tuple[int | None, str, bool]:
    Path(started).write_text(f"{os.getpid()}\n")
    while not Path(gate).exists():
        time.sleep(0.01)
    return parent()


@pytest.mark.skipif(FALLBACK, reason="no descriptor tells there of the caller's end")
def test_and_lives_though_the_worker_is_to_leave(tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(2)) as executor:
        gate, started = tmp_path / "open", tmp_path / "begun"
        future = executor.submit(parent_after, str(gate), str(started))
        eventually(lambda: lines(started))
        reloaded = executor.reload()
        Running(executor, tmp_path).let_go()  # By a new worker, so the old one is told to leave.
        eventually(lambda: len(executor.stats().workers) == 2)
        gate.touch()
        assert future.result(BOUND) == (os.getpid(), "MainProcess", True)
        assert reloaded.exception(BOUND) is None
