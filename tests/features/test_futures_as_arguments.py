"""A call whose arguments are futures begins when these are done."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from light_tasks import fail_at_three, power, square, wait_at_zero, wait_for
from waiting import BOUND, eventually

from prefork_executor import BacklogFull, PreforkExecutor, TaskAborted


def total(*numbers: int) -> int:
    return sum(numbers)


def test_it_gets_their_results(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        nine = executor.submit(square, 3)
        two = executor.submit(abs, -2)
        assert executor.submit(power, nine, exponent=two).result(BOUND) == 81
        assert executor.submit(power, nine, nine).result(BOUND) == 9**9


def test_calls_may_wait_for_calls_that_wait() -> None:
    with PreforkExecutor(2, "fork") as executor:
        future = executor.submit(abs, 0)
        for _ in range(300):
            future = executor.submit(total, future, 1)
        many = [executor.submit(square, i) for i in range(200)]
        assert executor.submit(total, *many).result(BOUND) == sum(i * i for i in range(200))
        assert future.result(BOUND) == 300


def test_it_does_not_run_if_one_of_them_fails() -> None:
    with PreforkExecutor(2, "fork") as executor:
        failed = executor.submit(fail_at_three, 3)
        following = executor.submit(total, executor.submit(square, 2), failed)
        last = executor.submit(total, following)
        for future in (following, last):
            assert future.exception(BOUND) is failed.exception(BOUND)


def test_it_is_cancelled_if_one_of_them_is(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1, "fork") as executor:
        first = executor.submit(wait_for, str(gate))
        second = executor.submit(total, first)
        third = executor.submit(total, second, 1)
        assert second.cancel()
        done, _ = concurrent.futures.wait([second, third], timeout=BOUND)
        assert done == {second, third}
        with pytest.raises(CancelledError):
            third.result(BOUND)
        gate.touch()
        assert first.result(BOUND)


def test_it_can_be_aborted_while_it_waits(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1, "fork") as executor:
        first = executor.submit(wait_at_zero, str(gate), 0)
        second = executor.submit(square, first)
        third = executor.submit(square, second)
        assert executor.abort(second)
        assert isinstance(second.exception(BOUND), TaskAborted)
        assert not executor.abort(second)
        assert "square" in str(second.exception(BOUND))
        assert third.exception(BOUND) is second.exception(BOUND)
        gate.touch()
        assert first.result(BOUND) == 0


def test_shutdown_waits_for_calls_that_wait_for_futures_of_others() -> None:
    others: Future[int] = Future()
    with PreforkExecutor(1, "fork") as executor:
        following = executor.submit(square, others)
        threading.Timer(0.2, others.set_result, (7,)).start()
    assert following.result(0) == 49


def test_shutdown_that_cancels_cancels_them_too() -> None:
    others: Future[int] = Future()
    executor = PreforkExecutor(1, "fork")
    following = executor.submit(square, others)
    executor.shutdown(cancel_futures=True)
    assert following.cancelled()
    others.set_result(1)  # Comes too late, and does nothing.


def test_they_fail_with_the_pool(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    others: Future[int] = Future()
    with PreforkExecutor(1, "fork") as executor:
        first = executor.submit(wait_for, str(gate))
        following = executor.submit(square, first)
        independent = executor.submit(square, others)
        executor.kill_workers()
        assert isinstance(following.exception(BOUND), BrokenProcessPool)
        others.set_result(3)
        assert independent.result(BOUND) == 9, "the pool goes on"


def test_they_fail_if_the_pool_breaks() -> None:
    def no_worker() -> None:
        raise OSError("no database")

    others: Future[int] = Future()
    with PreforkExecutor(1, "fork", no_worker) as executor:
        waiting = executor.submit(square, others)
        assert isinstance(waiting.exception(BOUND), BrokenProcessPool)


def test_options_are_those_of_the_view(tmp_path: Path) -> None:
    with PreforkExecutor(1, "fork", max_backlog=1) as executor:
        gate = tmp_path / "gate"
        first = executor.submit(wait_at_zero, str(gate), 0)
        eventually(first.running)
        # These are no part of the backlog.
        following = [executor.with_options(priority=1).submit(square, first) for _ in range(10)]
        following += [executor.submit_nowait(square, first) for _ in range(10)]
        eventually(lambda: executor.stats().backlog == 0)
        executor.submit(abs, 1)
        with pytest.raises(BacklogFull):
            executor.submit_nowait(abs, 1)
        gate.touch()
        assert [future.result(BOUND) for future in following] == [0] * 20


def test_an_argument_that_cannot_be_pickled_is_that_calls_error(tmp_path: Path) -> None:
    others: Future[Any] = Future()
    others.set_result(threading.Lock())
    with PreforkExecutor(1, "fork") as executor:
        error = executor.submit(str, others).exception(BOUND)
        assert error is not None
        assert "lock" in str(error)
        assert executor.submit(square, 2).result(BOUND) == 4
