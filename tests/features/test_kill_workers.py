"""Ending the workers at once: kill_workers, terminate_workers, and join."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied

FOREVER = 3600.0
"""Seconds that a task sleeps which nobody waits for."""

End = Callable[[PreforkExecutor], None]


@pytest.fixture(params=["terminate_workers", "kill_workers"])
def end(request: pytest.FixtureRequest) -> End:
    """Both ways to end the workers."""
    return lambda executor: getattr(executor, request.param)()


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    executor = PreforkExecutor(2, start_method)
    yield executor
    assert ends_when_killed(executor)


def ends_when_killed(executor: PreforkExecutor) -> bool:
    executor.shutdown(wait=False)
    executor.kill_workers()
    return executor.join(BOUND)


def say_and_sleep(sign: Path) -> None:
    sign.touch()
    time.sleep(FOREVER)


def ignore_and_sleep(sign: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_and_sleep(sign)


def clean_up_when_terminated(sign: Path, cleaned: Path) -> None:
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        say_and_sleep(sign)
    finally:
        cleaned.touch()


def started(executor: PreforkExecutor, tmp_path: Path, fn: Callable[..., object]) -> Future[object]:
    """The future of a task that certainly runs."""
    sign = tmp_path / "started"
    future = executor.submit(fn, sign)
    eventually(sign.exists, "the task starts")
    return future


def worker_processes(executor: PreforkExecutor) -> list[psutil.Process]:
    return [psutil.Process(worker.pid) for worker in executor.stats().workers]


def test_a_running_task_gets_an_error_that_says_who_did_it(
    executor: PreforkExecutor, end: End, tmp_path: Path
) -> None:
    future = started(executor, tmp_path, say_and_sleep)
    end(executor)
    with pytest.raises(BrokenProcessPool, match=r"caller's request: \w+_workers\(\)") as caught:
        future.result(BOUND)
    assert not isinstance(caught.value, WorkerDied)


def test_every_worker_ends(executor: PreforkExecutor, end: End, tmp_path: Path) -> None:
    started(executor, tmp_path, say_and_sleep)
    processes = worker_processes(executor)
    assert processes
    end(executor)
    eventually(lambda: not any(process.is_running() for process in processes))


def test_waiting_tasks_are_cancelled_and_all_futures_resolve(
    executor: PreforkExecutor, end: End, tmp_path: Path
) -> None:
    started(executor, tmp_path, say_and_sleep)
    futures = [executor.submit(time.sleep, FOREVER) for _ in range(100)]
    end(executor)
    eventually(lambda: all(future.done() for future in futures))
    assert futures[-1].cancelled()
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(), BrokenProcessPool)


def test_the_pool_stays_usable(executor: PreforkExecutor, end: End, tmp_path: Path) -> None:
    for _ in range(5):
        started(executor, tmp_path, say_and_sleep)
        end(executor)
        # In the same moment: an old worker that took it would take it along.
        futures = [executor.submit(pow, 2, 3) for _ in range(20)]
        assert [future.result(BOUND) for future in futures] == [8] * 20
        (tmp_path / "started").unlink()


def test_an_executor_without_tasks_stays_usable(executor: PreforkExecutor, end: End) -> None:
    end(executor)
    assert executor.submit(pow, 2, 3).result(BOUND) == 8


def test_there_are_never_more_workers_than_the_maximum(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    started(executor, tmp_path, ignore_and_sleep)
    executor.terminate_workers()
    futures = [executor.submit(time.sleep, 0.01) for _ in range(20)]
    while not all(future.done() for future in futures):
        assert len(executor.stats().workers) <= 2
        time.sleep(0.001)


def test_it_may_be_called_before_a_worker_is_there(executor: PreforkExecutor, end: End) -> None:
    future = executor.submit(time.sleep, FOREVER)
    end(executor)
    assert isinstance(future.exception(BOUND), BrokenProcessPool)


def test_it_may_be_called_twice_and_after_shutdown(executor: PreforkExecutor, end: End) -> None:
    result = executor.submit(pow, 2, 3)
    assert result.result(BOUND) == 8
    executor.shutdown()
    end(executor)
    end(executor)
    assert result.result() == 8
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 2, 3)


def test_it_ends_an_executor_that_another_thread_waits_for(
    executor: PreforkExecutor, end: End, tmp_path: Path
) -> None:
    started(executor, tmp_path, say_and_sleep)
    thread = threading.Thread(target=executor.shutdown)
    thread.start()
    end(executor)
    thread.join(BOUND)
    assert not thread.is_alive()


def test_it_may_be_called_by_a_futures_callback(executor: PreforkExecutor, end: End) -> None:
    futures = [executor.submit(pow, 2, 3), executor.submit(time.sleep, FOREVER)]
    futures[0].add_done_callback(lambda _: end(executor))
    assert futures[0].result(BOUND) == 8
    eventually(futures[1].done)


def test_workers_that_are_stopped_end_when_killed(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    started(executor, tmp_path, say_and_sleep)
    processes = worker_processes(executor)
    for process in processes:
        process.suspend()
    executor.kill_workers()
    eventually(lambda: not any(process.is_running() for process in processes))


def test_a_terminated_worker_can_clean_up(executor: PreforkExecutor, tmp_path: Path) -> None:
    sign, cleaned = tmp_path / "started", tmp_path / "cleaned"
    future = executor.submit(clean_up_when_terminated, sign, cleaned)
    eventually(sign.exists)
    executor.terminate_workers()
    assert isinstance(future.exception(BOUND), BrokenProcessPool)
    eventually(cleaned.exists)


def test_a_worker_that_ignores_sigterm_can_still_be_killed(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    future = started(executor, tmp_path, ignore_and_sleep)
    executor.terminate_workers()
    assert isinstance(future.exception(BOUND), BrokenProcessPool)
    assert ends_when_killed(executor)


@pytest.fixture
def soon_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a forked supervisor less patient with workers that do not leave."""
    monkeypatch.setattr("prefork_executor._pool.leaving.LEAVE_WITHIN", 0.1)


def test_a_worker_that_ignores_sigterm_is_killed_in_the_end(
    soon_killed: None, tmp_path: Path
) -> None:
    executor = PreforkExecutor(1, "fork")
    future = started(executor, tmp_path, ignore_and_sleep)
    executor.terminate_workers()
    assert isinstance(future.exception(BOUND), BrokenProcessPool)
    executor.shutdown(wait=False)
    assert executor.join(BOUND)


def test_the_supervisors_death_does_not_hinder_it(
    executor: PreforkExecutor, end: End, tmp_path: Path
) -> None:
    started(executor, tmp_path, say_and_sleep)
    supervisor = worker_processes(executor)[0].ppid()
    os.kill(supervisor, signal.SIGKILL)
    end(executor)
    assert executor.submit(pow, 2, 3).result(BOUND) == 8


def test_a_supervisor_that_dies_when_the_pool_closes_is_not_replaced(
    executor: PreforkExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    future = started(executor, tmp_path, say_and_sleep)
    executor.shutdown(wait=False)
    os.kill(worker_processes(executor)[0].ppid(), signal.SIGKILL)
    assert isinstance(future.exception(BOUND), WorkerDied)
    assert executor.join(BOUND)
    assert not [record for record in caplog.records if "bug" in record.message]


def test_killing_while_tasks_come_and_go_leaves_no_future_unresolved(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        futures = [executor.submit(pow, 2, 3)]
        assert futures[0].result(BOUND) == 8
        for _ in range(10):
            killer = threading.Timer(0.02, executor.kill_workers)
            killer.start()
            while killer.is_alive():
                futures.append(executor.submit(pow, 2, 3))
            killer.join()
        eventually(lambda: all(future.done() for future in futures))
        assert executor.submit(pow, 2, 3).result(BOUND) == 8


# --- join -----------------------------------------------------------------------------------


def test_join_needs_a_shutdown(executor: PreforkExecutor) -> None:
    with pytest.raises(RuntimeError, match=r"call shutdown\(\) before join\(\)"):
        executor.join()


def test_join_says_whether_all_has_ended(executor: PreforkExecutor, tmp_path: Path) -> None:
    started(executor, tmp_path, say_and_sleep)
    executor.shutdown(wait=False)
    assert not executor.join(0)
    assert not executor.join(0.01)
    executor.kill_workers()
    assert executor.join()


def test_join_of_an_executor_that_never_ran_returns_at_once(executor: PreforkExecutor) -> None:
    executor.shutdown()
    assert executor.join()


def test_join_in_a_callback_does_not_wait_for_itself(executor: PreforkExecutor) -> None:
    executor.submit(pow, 2, 3).result(BOUND)
    answers: list[bool] = []
    future = executor.submit(time.sleep, 0.01)
    executor.shutdown(wait=False)
    future.add_done_callback(lambda _: answers.append(executor.join()))
    assert executor.join(BOUND)
    # True if the callback was added after the task was done, and so ran here.
    assert len(answers) == 1


def exits_slowly() -> None:
    """Leaves a thread behind that the worker waits for at its exit."""
    threading.Thread(target=time.sleep, args=(FOREVER,)).start()


def test_a_worker_that_hangs_at_its_exit_is_killed(soon_killed: None) -> None:
    executor = PreforkExecutor(1, "fork")
    executor.submit(exits_slowly).result(BOUND)
    executor.shutdown(wait=False)
    assert executor.join(BOUND)
