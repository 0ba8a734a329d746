"""What programs ask of a ProcessPoolExecutor by its type and its private attributes, and how
they stop it after an error: by ending every process that they find."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest
from injection import Running, all_go_on, ended_at_once, lines, pool_of
from light_tasks import note, run_until, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied, yell
from prefork_executor._messages import channels

Stop = Callable[[PreforkExecutor], object]

# --- the type ---------------------------------------------------------------------------------


def test_an_executor_is_a_process_pool_executor_and_so_are_its_views() -> None:
    with PreforkExecutor(2) as executor:
        assert isinstance(executor, ProcessPoolExecutor)
        assert isinstance(executor.with_options(retries=1), ProcessPoolExecutor)
        assert issubclass(PreforkExecutor, ProcessPoolExecutor)


def test_nothing_of_the_base_class_runs() -> None:
    script = """
import threading, concurrent.futures.process as process
process.ProcessPoolExecutor.__init__ = process._ExecutorManagerThread = None
from prefork_executor import PreforkExecutor
with PreforkExecutor(1, "fork") as executor:
    assert executor.submit(abs, -1).result() == 1
    assert [thread.name for thread in threading.enumerate()][1:] == ["prefork-executor-io"]
    assert not process._threads_wakeups
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=BOUND)


def test_its_attributes_answer_truthfully(start_method: str, tmp_path: Path) -> None:
    options = {"max_tasks_per_child": 100, "initializer": note, "initargs": (tmp_path / "a", "b")}
    executor = PreforkExecutor(2, start_method, **options)  # type: ignore[arg-type]
    for view in (executor, executor.with_options(retries=1)):
        assert view._max_workers == 2
        assert view._max_tasks_per_child == 100
        assert view._mp_context.get_start_method() == start_method
        assert (view._initializer, view._initargs) == (note, (tmp_path / "a", "b"))
        assert (view._broken, view._shutdown_thread) == (False, False)
        assert len(view._pending_work_items) == len(view._processes) == 0
    with ended_at_once(executor):
        running = Running(executor, tmp_path)
        others = [executor.submit(square, i) for i in range(20)]
        unfinished = {item.future for item in executor._pending_work_items.values()}
        assert running.future in unfinished
        assert running.worker.pid in executor._processes
        running.let_go()
        concurrent.futures.wait([running.future, *others], BOUND)
        eventually(lambda: not executor._pending_work_items)
        assert executor._work_ids.qsize() == 0
    assert executor._shutdown_thread is True
    assert dict(executor._processes) == {}
    with pytest.raises(AttributeError):
        executor._broken = True  # type: ignore[misc]


def test_a_broken_pool_says_why() -> None:
    with PreforkExecutor(1, initializer=fail) as executor:
        assert executor.submit(square, 1).exception(BOUND) is not None
        eventually(lambda: executor._broken)
        assert "no luck" in str(executor._broken)


def fail() -> None:
    raise ValueError("no luck")


def test_private_methods_that_start_processes_start_the_pool() -> None:
    with PreforkExecutor(2) as executor:
        executor._start_executor_manager_thread()
        executor._adjust_process_count()
        eventually(lambda: executor._processes)
        assert executor._executor_manager_thread is not None


# --- processes, one by one ----------------------------------------------------------------------


def test_processes_are_the_workers(start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        processes = executor._processes
        assert set(processes) == {worker.pid for worker in executor.stats().workers}
        assert len(processes) == 2
        assert {p.name for p in processes.values()} == {"PreforkWorker-1", "PreforkWorker-2"}
        for pid, process in processes.items():
            assert processes[pid] == process
            assert (process.pid, process.is_alive(), process.exitcode) == (pid, True, None)
        process = next(iter(processes.values()))
        os.kill(process.pid, signal.SIGKILL)
        assert multiprocessing.connection.wait([process.sentinel], BOUND)
        process.join(BOUND)
        assert (process.is_alive(), process.exitcode) == (False, -signal.SIGKILL)
        eventually(lambda: len(processes) == 2 and process.pid not in processes)
        all_go_on(executor)


def test_a_worker_has_ended_also_as_long_as_nobody_could_be_told(start_method: str) -> None:
    """The supervisor cannot tell: the executor's thread stands still, and the channel is full."""
    stands, gate = threading.Event(), threading.Event()

    def stand_still(*_: object) -> None:
        stands.set()
        gate.wait(BOUND)

    with ended_at_once(pool_of(2, start_method, on_yell=stand_still)) as executor:
        executor.submit(yell, "stop")
        assert stands.wait(BOUND)
        process = next(iter(executor._processes.values()))
        with contextlib.suppress(BlockingIOError):
            while True:
                executor._client._channels.yells_far.send(bytes(100), channels.DONTWAIT)
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(process.pid), "it is reaped")
        assert process.pid in executor._processes
        assert multiprocessing.connection.wait([process.sentinel], BOUND)
        gate.set()


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_ending_one_worker_costs_its_task_and_no_other(
    how: str, start_method: str, tmp_path: Path
) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running = Running(executor, tmp_path)
        others = [executor.submit(square, i) for i in range(20)]
        process = executor._processes[running.worker.pid]
        getattr(process, how)()
        error = running.future.exception(BOUND)
        assert isinstance(error, WorkerDied)
        number = signal.SIGTERM if how == "terminate" else signal.SIGKILL
        assert (error.pid, error.signal) == (process.pid, number)
        process.join(BOUND)
        assert process.exitcode == -number
        assert [future.result(BOUND) for future in others] == [i * i for i in range(20)]
        all_go_on(executor)


def test_a_worker_that_has_ended_may_be_ended_again(start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        process = next(iter(executor._processes.values()))
        process.terminate()
        process.join(BOUND)
        process.terminate()
        process.kill()
        process.close()
        all_go_on(executor)


# --- all at once ----------------------------------------------------------------------------------


def every_process(executor: PreforkExecutor) -> None:
    for process in executor._processes.values():
        process.terminate()


def every_process_by_its_pid(executor: PreforkExecutor) -> None:
    for pid in list(executor._processes):
        executor._processes[pid].kill()


def every_process_one_after_the_other(executor: PreforkExecutor) -> None:
    for process in executor._processes.copy().values():
        process.terminate()
        process.join(BOUND)


def every_child(_: PreforkExecutor) -> None:
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(BOUND)
        assert not child.is_alive()


def kill_every_child(_: PreforkExecutor) -> None:
    for child in multiprocessing.active_children():
        child.kill()
        child.join(BOUND)
        assert child.exitcode is not None


@pytest.mark.parametrize(
    "stop",
    [
        every_process,
        every_process_by_its_pid,
        every_process_one_after_the_other,
        every_child,
        kill_every_child,
    ],
)
def test_who_ends_every_process_has_stopped_the_pool(
    stop: Stop, start_method: str, tmp_path: Path
) -> None:
    gate, started = str(tmp_path / "never"), str(tmp_path / "started")
    executor = PreforkExecutor(2, start_method)
    with ended_at_once(executor):
        running = [executor.submit(run_until, gate, started) for _ in range(2)]
        eventually(lambda: len(lines(tmp_path / "started")) == 2)
        waiting = [executor.submit(note, str(tmp_path / "ran"), str(i)) for i in range(20)]
        stop(executor)
        errors = [future.exception(BOUND) for future in [*running, *waiting]]
        assert all(isinstance(error, BrokenProcessPool) for error in errors[:2])
        # While one waits for a worker's end another may take its place, and a task.
        if stop is not every_process_one_after_the_other:
            assert all(isinstance(error, BrokenProcessPool) for error in errors)
            assert "the pool was stopped: this program has ended" in str(errors[-1])
            assert not (tmp_path / "ran").exists()
        with pytest.raises(BrokenProcessPool, match="the pool was stopped"):
            executor.submit(square, 1)
        assert "the pool was stopped" in str(executor._broken)


def test_a_stopped_executors_with_block_ends_as_usual() -> None:
    with PreforkExecutor(2, "fork") as executor:
        future = executor.submit(time.sleep, BOUND)
        eventually(lambda: executor._processes)
        every_process(executor)
        assert isinstance(future.exception(BOUND), BrokenProcessPool)


def test_the_supervisors_process_is_one_of_multiprocessings(start_method: str) -> None:
    with PreforkExecutor(1, start_method) as executor:
        executor.submit(square, 1).result(BOUND)
        (child,) = [c for c in multiprocessing.active_children() if c.name == "PreforkSupervisor"]
        assert isinstance(child, multiprocessing.process.BaseProcess)
        assert child.is_alive()
    child.join(BOUND)
    assert (child.is_alive(), child.exitcode) == (False, 0)
    assert child.pid is not None
    child.terminate()


def test_a_forks_copy_of_the_supervisors_process_stops_nothing() -> None:
    with PreforkExecutor(1, "fork") as executor:
        assert executor.submit(square, 2).result(BOUND) == 4
        pid = os.fork()
        if pid == 0:
            for child in multiprocessing.active_children():
                child.terminate()
            os._exit(len(executor._processes))
        assert os.waitpid(pid, 0)[1] == 0
        assert executor.submit(square, 3).result(BOUND) == 9
