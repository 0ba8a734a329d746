"""SIGTERM and SIGHUP from outside: to a whole process group, to one worker, to the supervisor.

A program that shuts its executor down in its handler finishes all that it has accepted; one
without a handler dies of the signal, and nothing of it stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from injection import (
    Running,
    all_go_on,
    ended_at_once,
    idle_workers,
    is_alive,
    lines,
    pool_of,
    supervisor_of,
)
from light_tasks import run_until, square
from scripts import program_text, run_script
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskTimeout, WorkerDied
from prefork_executor._pool import leaving
from prefork_executor.stats import ExecutorStats

END_SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])

GROUP = program_text("signal_to_group")


@END_SIGNALS
def test_a_program_whose_group_is_told_to_end_finishes_what_it_has_accepted(
    number: int, start_method: str, tmp_path: Path
) -> None:
    printed = run_script(tmp_path, GROUP, str(tmp_path), start_method, str(int(number)), "main")
    assert printed == "[0, 1, 2, 3, 4]\n"


def test_so_does_one_whose_pool_was_started_by_a_thread(tmp_path: Path) -> None:
    args = (str(tmp_path), "fork", str(int(signal.SIGTERM)), "thread")
    options = ("-W", "ignore::DeprecationWarning")  # Of the fork beside a thread.
    assert run_script(tmp_path, GROUP, *args, options=options) == "[0, 1, 2, 3, 4]\n"


@END_SIGNALS
def test_a_supervisor_takes_no_notice(number: int, start_method: str, tmp_path: Path) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running, supervisor = Running(executor, tmp_path), supervisor_of(executor)
        supervisor.send_signal(number)
        all_go_on(executor)
        running.let_go()
        assert running.future.result(BOUND) == running.worker.pid
        assert supervisor_of(executor) == supervisor


@END_SIGNALS
def test_a_worker_finishes_its_task_takes_no_other_and_is_replaced(
    number: int, start_method: str, tmp_path: Path
) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        running = Running(executor, tmp_path)
        after = [executor.submit(os.getpid) for _ in range(3)]
        running.worker.send_signal(number)
        running.let_go()
        assert running.future.result(BOUND) == running.worker.pid
        assert running.worker.pid not in {future.result(BOUND) for future in after}
        eventually(lambda: not is_alive(running.worker))
        assert executor.stats().deaths == 0


def compute_until(gate: str, started: str) -> int:
    with open(started, "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(gate):
        sum(range(1000))
    return os.getpid()


def test_so_does_one_that_computes_in_a_pool_that_a_thread_has_started(tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        thread = threading.Thread(target=lambda: executor.submit(square, 2).result(BOUND))
        thread.start()
        thread.join()
        started, gate = tmp_path / "started", tmp_path / "gate"
        future = executor.submit(compute_until, str(gate), str(started))
        eventually(lambda: lines(started))
        after = executor.submit(os.getpid)
        worker = int(lines(started)[0])
        os.kill(worker, signal.SIGTERM)
        gate.touch()
        assert future.result(BOUND) == worker != after.result(BOUND)


@END_SIGNALS
def test_an_idle_worker_leaves_at_once_and_that_is_no_crash(number: int, start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        first = idle_workers(executor)
        for worker in first:
            worker.send_signal(number)
        eventually(lambda: not any(map(is_alive, first)))
        eventually(lambda: executor.stats().idle == 2, "both were replaced")
        stats: ExecutorStats = executor.stats()
        assert stats.deaths == 0
        assert not [d.reason for d in stats.decisions if "crash" in d.reason]
        all_go_on(executor)


def leave_traces(directory: str) -> None:
    import atexit
    import multiprocessing.util

    multiprocessing.util.Finalize(None, Path(directory, "finalized").touch, exitpriority=1)
    atexit.register(Path(directory, "exited").touch)


def test_a_worker_that_is_told_to_leave_runs_its_finalizers(
    start_method: str, tmp_path: Path
) -> None:
    with ended_at_once(PreforkExecutor(1, start_method, leave_traces, (str(tmp_path),))) as pool:
        running = Running(pool, tmp_path)
        running.worker.terminate()
        running.let_go()
        running.future.result(BOUND)
        eventually(lambda: {"finalized", "exited"} <= set(os.listdir(tmp_path)))


def test_a_worker_that_starts_finishes_its_start_and_then_leaves(
    start_method: str, tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "starting"
    arguments = (str(gate), str(started))
    with ended_at_once(PreforkExecutor(1, start_method, run_until, arguments)) as executor:
        future = executor.submit(os.getpid)
        eventually(lambda: lines(started))
        first = int(lines(started)[0])
        for _ in range(2):
            os.kill(first, signal.SIGHUP)
            os.kill(first, signal.SIGTERM)
        gate.touch()
        assert future.result(BOUND) != first
        assert executor.stats().deaths == 0


# --- who has the last word -------------------------------------------------------------------


def handle(path: str, started: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Path(path).touch()))
    run_until(path + ".never", started)


def test_a_tasks_own_handler_wins(tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(1)) as executor:
        path, started = tmp_path / "handled", tmp_path / "started"
        future = executor.submit(handle, str(path), str(started))
        eventually(lambda: lines(started))
        os.kill(int(lines(started)[0]), signal.SIGTERM)
        assert isinstance(future.exception(BOUND), SystemExit)
        assert path.exists()


def set_handling(number: int, handler: signal.Handlers) -> None:
    signal.signal(number, handler)


@END_SIGNALS
def test_an_initializer_may_have_the_signal_end_the_task(
    number: int, start_method: str, tmp_path: Path
) -> None:
    arguments = (number, signal.SIG_DFL)
    with ended_at_once(PreforkExecutor(1, start_method, set_handling, arguments)) as executor:
        running = Running(executor, tmp_path)
        running.worker.send_signal(number)
        error = running.future.exception(BOUND)
        assert isinstance(error, WorkerDied)
        assert error.signal == number


@END_SIGNALS
def test_an_initializer_may_have_the_signal_ignored(
    number: int, start_method: str, tmp_path: Path
) -> None:
    arguments = (number, signal.SIG_IGN)
    with ended_at_once(PreforkExecutor(1, start_method, set_handling, arguments)) as executor:
        running = Running(executor, tmp_path)
        running.worker.send_signal(number)
        running.let_go()
        assert running.future.result(BOUND) == running.worker.pid
        assert executor.submit(os.getpid).result(BOUND) == running.worker.pid


def handling(number: int) -> object:
    return signal.getsignal(number)


def test_what_the_caller_ignores_is_ignored(start_method: str) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreforkExecutor(1, start_method) as executor:
            ignored = executor.submit(handling, signal.SIGHUP).result(BOUND)
            # A fork server may have been started before, and have its own.
            assert ignored == signal.SIG_IGN or start_method == "forkserver"
            # It is still the pool's to end a task.
            assert executor.submit(handling, signal.SIGTERM).result(BOUND) != signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def send_to_oneself(by: Callable[..., object], *args: object) -> None:
    by(*args)
    time.sleep(BOUND)


@END_SIGNALS
def test_a_task_that_sends_the_signal_to_its_own_worker_means_it(number: int) -> None:
    with ended_at_once(PreforkExecutor(1)) as executor:
        for future in (
            executor.submit(send_to_oneself, signal.raise_signal, number),
            executor.submit(signal.raise_signal, number),
        ):
            error = future.exception(BOUND)
            assert isinstance(error, WorkerDied)
            assert error.signal == number


# --- the pool's own ---------------------------------------------------------------------------


def hang_in_c(started: str) -> None:
    Path(started).touch()
    sum(range(10**15))


def test_the_pools_own_signal_ends_a_call_into_c_of_a_pool_that_a_thread_has_started(
    tmp_path: Path,
) -> None:
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        thread = threading.Thread(target=lambda: executor.submit(square, 2).result(BOUND))
        thread.start()
        thread.join()
        limited = executor.with_options(timeout=0.2)
        error = limited.submit(hang_in_c, str(tmp_path / "started")).exception(BOUND)
        assert isinstance(error, TaskTimeout)
        assert isinstance(error.__cause__, WorkerDied)
        assert error.__cause__.signal == signal.SIGTERM, "and no SIGKILL, after the grace"


def test_a_worker_that_was_told_to_leave_can_still_be_ended_at_once(
    start_method: str, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        future = executor.submit(run_until, str(tmp_path / "never"), str(started))
        eventually(lambda: lines(started))
        os.kill(int(lines(started)[0]), signal.SIGTERM)
        executor.abort(future)
        error = future.exception(BOUND)
        assert error is not None
        assert isinstance(error.__cause__, WorkerDied)
        assert error.__cause__.signal == signal.SIGTERM


def test_the_pool_signals_a_tasks_own_handler_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "TASK_GRACE", BOUND)
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        counted, started = tmp_path / "counted", tmp_path / "started"
        future = executor.submit(count_signals, str(counted), str(started))
        eventually(lambda: lines(started))
        executor.abort(future)
        assert future.result(BOUND) == 1


def count_signals(path: str, started: str) -> int:
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    run_for_signals(path, started, came)
    return len(came)


def run_for_signals(path: str, started: str, came: list[int]) -> None:
    Path(started).write_text(f"{os.getpid()}\n")
    end = time.monotonic() + BOUND
    while not came and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)  # Time for a second, if there was one.


# --- children of tasks --------------------------------------------------------------------------


def fork_one() -> str:
    pid = os.fork()
    if pid == 0:
        time.sleep(BOUND)
        os._exit(0)
    return end_of(pid)


def end_of(pid: int) -> str:
    """How a child ends that is sent SIGTERM as soon as it has got its handlers."""
    with contextlib.suppress(ProcessLookupError):
        while psutil.Process(pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    return str(os.waitstatus_to_exitcode(status))


def execute_one() -> str:
    child = subprocess.Popen(["sleep", "60"])
    return end_of(child.pid)


def start_some(method: str) -> str:
    """The exit codes of children that are terminated as soon as they exist."""
    codes = set()
    for _ in range(20 if method == "fork" else 1):
        child = multiprocessing.get_context(method).Process(target=time.sleep, args=(BOUND,))
        child.start()
        child.terminate()
        child.join(BOUND)
        codes.add(child.exitcode)
    return str(codes)


def map_in_a_pool() -> str:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return str(pool.map(abs, [-1]))  # It leaves by terminating the processes.


@pytest.mark.parametrize(
    ("start", "end"),
    [(fork_one, "-15"), (execute_one, "-15"), (map_in_a_pool, "[1]")],
)
def test_what_a_task_starts_ends_of_the_signal(start: Callable[[], str], end: str) -> None:
    with ended_at_once(PreforkExecutor(1)) as executor:
        assert executor.submit(start).result(BOUND) == end


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_a_task_starts_can_be_terminated_at_once(method: str) -> None:
    with ended_at_once(PreforkExecutor(1)) as executor:
        assert executor.submit(start_some, method).result(BOUND) == "{-15}"


def test_what_preload_starts_ends_of_the_signal() -> None:
    with ended_at_once(PreforkExecutor(1, "fork", preload=map_in_a_pool)) as executor:
        assert executor.submit(square, 2).result(BOUND) == 4


AT_FORK = program_text("signal_at_fork")


def test_what_an_at_fork_function_has_set_is_called_before_the_pools_signal_ends_the_task(
    start_method: str, tmp_path: Path
) -> None:
    assert run_script(tmp_path, AT_FORK, start_method) == "TaskAborted -15 True\n"
