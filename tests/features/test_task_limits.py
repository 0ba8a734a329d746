"""Control over work that runs: time limits, retries, abort. Each ends one task, with its
worker, and touches no other; the pool stays usable after it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
from node_tasks import FOREVER, begin_and_sleep, note, noted, sleep_at_first
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskAborted, TaskTimeout, WorkerDied
from prefork_executor._pool import leaving


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    # Preloaded, or each new worker would take its time to import this module, and
    # that is part of a task's time.
    with PreforkExecutor(2, start_method, preload=__name__) as executor:
        yield executor
        assert executor.submit(pow, 2, 3).result(BOUND) == 8, "usable to the end"


def hang_in_c(path: Path) -> None:
    """Holds the interpreter for good: no handler of Python's would ever run."""
    note(path)
    sum(range(10**15))


def ignore_sigterm(path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin_and_sleep(path)


def clean_up_at_sigterm(path: Path, cleaned: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        begin_and_sleep(path)
    finally:
        cleaned.touch()


def return_at_sigterm(path: Path) -> str:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    try:
        return begin_and_sleep(path)
    except SystemExit:
        return "as far as I got"


def die_at_first(path: Path, runs: int) -> int:
    run = note(path)
    if run < runs:
        os.kill(os.getpid(), signal.SIGKILL)
    return run


def begun(path: Path) -> int:
    return len(noted(path))


def started(executor: PreforkExecutor, fn: Callable[..., object], path: Path) -> Future[object]:
    future = executor.submit(fn, path)
    eventually(lambda: begun(path))
    return future


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a forked supervisor less patient with tasks that are to end."""
    monkeypatch.setattr(leaving, "TASK_GRACE", 0.1)


# --- time limits ----------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [begin_and_sleep, hang_in_c])
def test_a_task_that_runs_for_too_long_is_ended(
    executor: PreforkExecutor, fn: Callable[..., object], tmp_path: Path
) -> None:
    future = executor.with_options(timeout=0.2).submit(fn, tmp_path / "a")
    with pytest.raises(TaskTimeout, match=rf"{fn.__name__} ran for more than 0.2 s") as caught:
        future.result(BOUND)
    assert isinstance(caught.value, TimeoutError)
    death = caught.value.__cause__
    assert isinstance(death, WorkerDied)
    assert (death.pid, death.signal) == (caught.value.pid, signal.SIGTERM)
    eventually(lambda: death.pid not in [worker.pid for worker in executor.stats().workers])


def test_the_constructors_limit_holds_for_every_task(start_method: str) -> None:
    with PreforkExecutor(2, start_method, task_timeout=0.4, preload=__name__) as executor:
        slow = executor.submit(time.sleep, FOREVER)
        assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
        assert isinstance(slow.exception(BOUND), TaskTimeout)
        unlimited = executor.with_options(timeout=None).submit(time.sleep, 0.5)
        assert unlimited.result(BOUND) is None


def test_time_spent_waiting_for_a_worker_does_not_count(tmp_path: Path) -> None:
    with PreforkExecutor(1, task_timeout=0.5) as executor:
        futures = [executor.submit(time.sleep, 0.2) for _ in range(5)]
        assert [future.result(BOUND) for future in futures] == [None] * 5


def test_no_other_task_is_touched(executor: PreforkExecutor) -> None:
    limited = executor.with_options(timeout=0.1)
    slow = [limited.submit(time.sleep, FOREVER) for _ in range(5)]
    quick = [executor.submit(time.sleep, 0.01) for _ in range(100)]
    assert [future.result(BOUND) for future in quick] == [None] * 100
    assert all(isinstance(future.exception(BOUND), TaskTimeout) for future in slow)


def test_tasks_that_end_just_at_their_limit_cost_no_other_task(tmp_path: Path) -> None:
    # Many a signal is sent as its task ends and the worker is about to take the next.
    with PreforkExecutor(2) as executor:
        limited = executor.with_options(timeout=0.005)
        at_limit, free = [], []
        for i in range(400):
            at_limit.append(limited.submit(time.sleep, 0.025 + 0.00002 * i))
            free.append(executor.submit(abs, -i))
        assert [future.result(BOUND) for future in free] == list(range(400))
        outcomes = {type(future.exception(BOUND)) for future in at_limit}
        assert outcomes <= {TaskTimeout, type(None)}


def test_a_task_that_ignores_sigterm_is_killed(short_grace: None, tmp_path: Path) -> None:
    with PreforkExecutor(2, "fork", task_timeout=0.3) as executor:
        error = executor.submit(ignore_sigterm, tmp_path / "a").exception(BOUND)
        assert isinstance(error, TaskTimeout)
        assert isinstance(error.__cause__, WorkerDied)
        assert error.__cause__.signal == signal.SIGKILL


def test_a_stopped_worker_is_ended_as_well(short_grace: None, tmp_path: Path) -> None:
    with PreforkExecutor(2, "fork", task_timeout=0.5) as executor:
        future = started(executor, begin_and_sleep, tmp_path / "a")
        busy = next(worker for worker in executor.stats().workers if worker.state == "busy")
        os.kill(busy.pid, signal.SIGSTOP)
        assert isinstance(future.exception(BOUND), TaskTimeout)


def test_a_task_may_clean_up_at_sigterm(executor: PreforkExecutor, tmp_path: Path) -> None:
    cleaned = tmp_path / "cleaned"
    limited = executor.with_options(timeout=0.3)
    error = limited.submit(clean_up_at_sigterm, tmp_path / "a", cleaned).exception(BOUND)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error.__cause__, SystemExit)
    assert cleaned.exists()


def test_a_result_that_is_quicker_than_the_end_stands(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    limited = executor.with_options(timeout=0.3)
    assert limited.submit(return_at_sigterm, tmp_path / "a").result(BOUND) == "as far as I got"


def test_an_outcome_that_the_caller_is_slow_to_read_is_not_late() -> None:
    with PreforkExecutor(2, task_timeout=0.2) as executor:
        # Known to be short, hundreds are sent ahead, more than are read at a time.
        list(executor.map(abs, range(2000)))
        futures = [executor.submit(abs, -i) for i in range(1000)]
        futures[0].add_done_callback(lambda _: time.sleep(1))
        futures += [executor.submit(bytes, 1_000_000) for _ in range(20)]
        assert [future.exception(BOUND) for future in futures] == [None] * 1020


def test_a_map_under_a_limit_raises_where_the_slow_item_is(executor: PreforkExecutor) -> None:
    results = executor.with_options(timeout=0.3).map(time.sleep, [0, 0, FOREVER, 0])
    assert next(results) is None
    assert next(results) is None
    with pytest.raises(TaskTimeout):
        next(results)


# --- retries ----------------------------------------------------------------------------------


def test_without_retries_a_lost_task_is_run_once(executor: PreforkExecutor, tmp_path: Path) -> None:
    future = executor.submit(die_at_first, tmp_path / "a", 2)
    assert isinstance(future.exception(BOUND), WorkerDied)
    assert begun(tmp_path / "a") == 1


def test_a_task_is_run_again_after_a_death(executor: PreforkExecutor, tmp_path: Path) -> None:
    patient = executor.with_options(retries=3)
    assert patient.submit(die_at_first, tmp_path / "a", 4).result(BOUND) == 4


def test_after_the_last_retry_its_future_says_how_often_it_was_run(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    error = (
        executor.with_options(retries=2).submit(die_at_first, tmp_path / "a", 9).exception(BOUND)
    )
    assert isinstance(error, WorkerDied)
    assert error.__notes__ == ["It was run 3 times, and lost each time."]
    assert begun(tmp_path / "a") == 3


def test_a_task_is_run_again_after_its_time_was_up(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    patient = executor.with_options(timeout=0.4, retries=1)
    assert patient.submit(sleep_at_first, tmp_path / "a").result(BOUND) == 2


def test_what_a_task_raises_is_no_reason_to_run_it_again(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    def fail(path: Path) -> None:
        note(path)
        raise WorkerDied(1, 2)

    future = executor.with_options(retries=3).submit(fail, tmp_path / "a")
    assert isinstance(future.exception(BOUND), WorkerDied)
    assert begun(tmp_path / "a") == 1


def test_a_task_is_run_again_after_the_supervisors_death(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    future = executor.with_options(retries=1).submit(sleep_at_first, tmp_path / "a")
    eventually(lambda: begun(tmp_path / "a"))
    worker = next(worker for worker in executor.stats().workers if worker.state == "busy")
    os.kill(psutil.Process(worker.pid).ppid(), signal.SIGKILL)
    assert future.result(BOUND) == 2


def test_retries_are_for_all_tasks_if_the_constructor_says_so(
    start_method: str, tmp_path: Path
) -> None:
    with PreforkExecutor(2, start_method, retries=1) as executor:
        assert executor.submit(die_at_first, tmp_path / "a", 2).result(BOUND) == 2
        once = executor.with_options(retries=0).submit(die_at_first, tmp_path / "b", 2)
        assert isinstance(once.exception(BOUND), WorkerDied)


# --- abort ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [begin_and_sleep, hang_in_c])
def test_a_running_task_can_be_aborted(
    executor: PreforkExecutor, fn: Callable[..., object], tmp_path: Path
) -> None:
    future = started(executor, fn, tmp_path / "a")
    assert executor.abort(future)
    error = future.exception(BOUND)
    assert isinstance(error, TaskAborted)
    name = f"{fn.__module__}.{fn.__name__}"
    assert str(error) == f"task {name} was aborted at the caller's request"
    assert isinstance(error.__cause__, WorkerDied)


def test_a_waiting_task_that_is_aborted_never_begins(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = [started(executor, begin_and_sleep, tmp_path / f"{i}") for i in range(2)]
    waiting = [executor.submit(note, tmp_path / "never") for _ in range(20)]
    assert all(executor.abort(future) for future in waiting)
    assert all(isinstance(future.exception(BOUND), TaskAborted) for future in waiting)
    assert all(executor.abort(future) for future in running)
    assert all(isinstance(future.exception(BOUND), TaskAborted) for future in running)
    assert executor.submit(pow, 2, 3).result(BOUND) == 8
    assert not begun(tmp_path / "never")


def test_the_future_of_an_aborted_task_is_told_once(
    executor: PreforkExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [executor.submit(begin_and_sleep, tmp_path / str(i), 0.05) for i in range(12)]
    # Some of these have been sent ahead to a worker, and have not begun.
    for future in reversed(futures):
        executor.abort(future)
    assert executor.submit(pow, 2, 3).result(BOUND) == 8
    for future in futures:
        assert isinstance(future.exception(BOUND), (TaskAborted, type(None)))
    assert "resolved by other code" not in caplog.text


def test_a_task_that_has_ended_cannot_be_aborted(executor: PreforkExecutor) -> None:
    future = executor.submit(pow, 2, 3)
    assert future.result(BOUND) == 8
    assert not executor.abort(future)
    assert future.result() == 8


def test_an_aborted_task_is_not_retried(executor: PreforkExecutor, tmp_path: Path) -> None:
    future = executor.with_options(retries=5).submit(begin_and_sleep, tmp_path / "a")
    eventually(lambda: begun(tmp_path / "a"))
    assert executor.abort(future)
    assert isinstance(future.exception(BOUND), TaskAborted)
    assert begun(tmp_path / "a") == 1


def test_aborting_at_any_moment_costs_no_other_task(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        executor.submit(abs, 0).result(BOUND)
        others = []
        for i in range(300):
            future = executor.submit(time.sleep, 0.001)
            others.append(executor.submit(abs, -i))
            time.sleep(0.00001 * (i % 50))
            executor.abort(future)
            assert isinstance(future.exception(BOUND), (TaskAborted, type(None)))
        assert [other.result(BOUND) for other in others] == list(range(300))


def test_a_task_of_a_full_pool_can_be_aborted_while_the_supervisor_is_replaced(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    future = started(executor, begin_and_sleep, tmp_path / "a")
    worker = next(worker for worker in executor.stats().workers if worker.state == "busy")
    os.kill(psutil.Process(worker.pid).ppid(), signal.SIGKILL)
    executor.abort(future)
    assert isinstance(future.exception(BOUND), TaskAborted | WorkerDied)


def test_a_view_shares_the_pool_and_keeps_what_it_was_not_told(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    view = executor.with_options(retries=1).with_options(timeout=0.4)
    assert view.submit(sleep_at_first, tmp_path / "a").result(BOUND) == 2
    future = view.with_options(timeout=None).submit(begin_and_sleep, tmp_path / "b")
    assert executor.abort(future)
    assert isinstance(future.exception(BOUND), TaskAborted)


def test_a_map_of_a_view_with_a_buffer_outlives_the_view(executor: PreforkExecutor) -> None:
    assert list(executor.with_options(retries=1).map(abs, range(50), buffersize=3)) == list(
        range(50)
    )
