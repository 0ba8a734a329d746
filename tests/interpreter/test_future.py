"""A pool's futures are as any future, whoever comes at which moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    InvalidStateError,
    ThreadPoolExecutor,
    as_completed,
    wait,
)

import pytest
from waiting import BOUND

from prefork_executor._client import futures
from prefork_executor._client.futures import TaskFuture


@pytest.fixture(params=[True, False], ids=["known", "unknown"])
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Future as we know it, and as it may be one day."""
    monkeypatch.setattr(futures, "_IS_KNOWN", request.param)


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_kind")
def test_a_future_that_nobody_waits_for_has_its_result() -> None:
    future = TaskFuture()
    assert not future.done()
    assert future.begin()
    assert future.running()
    future.finish(7)
    assert future.done()
    assert (future.result(), future.exception()) == (7, None)
    assert not future.cancel()


@pytest.mark.usefixtures("_kind")
def test_a_future_that_was_cancelled_does_not_begin() -> None:
    future = TaskFuture()
    assert future.cancel()
    assert not future.begin()
    with pytest.raises(CancelledError):
        future.result()


@pytest.mark.usefixtures("_kind")
def test_a_future_that_runs_cannot_be_cancelled() -> None:
    future = TaskFuture()
    assert future.begin()
    assert not future.cancel()
    future.finish(None)
    assert future.result() is None


@pytest.mark.usefixtures("_kind")
def test_a_future_that_somebody_else_resolved_says_so() -> None:
    future = TaskFuture()
    future.set_result(1)
    assert not future.begin()
    with pytest.raises(InvalidStateError):
        future.finish(2)
    assert future.result() == 1


@pytest.mark.usefixtures("_kind")
def test_an_exception_is_raised() -> None:
    future = TaskFuture()
    future.begin()
    future.set_exception(LookupError("x"))
    with pytest.raises(LookupError, match="x"):
        future.result()


@pytest.mark.usefixtures("_kind")
def test_callbacks_are_called_once_whenever_they_are_added() -> None:
    future, called = TaskFuture(), []
    future.add_done_callback(lambda _: called.append("pending"))
    future.begin()
    future.add_done_callback(lambda _: called.append("running"))
    future.finish(1)
    future.add_done_callback(lambda _: called.append("finished"))
    assert called == ["pending", "running", "finished"]


def test_the_condition_is_the_same_from_one_state_to_the_next() -> None:
    for steps in ([], ["begin"], ["begin", "finish"]):
        future = TaskFuture()
        for step in steps:
            getattr(future, step)(*[1] if step == "finish" else [])
        with future._condition:
            assert future._condition is future._condition


Ask = Callable[[TaskFuture], object]
ASKS: dict[str, Ask] = {
    "result": lambda future: future.result(BOUND),
    "wait": lambda future: wait([future], BOUND),
    "wait for two": lambda future: wait([future, future], BOUND, FIRST_COMPLETED),
    "as completed": lambda future: list(as_completed([future], BOUND)),
    "callback": lambda future: future.add_done_callback(lambda _: None),
    "cancel": lambda future: future.cancel(),
    "done": lambda future: future.done(),
}


@pytest.mark.usefixtures("many_switches")
@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_whoever_asks_at_whatever_moment_is_answered(ask: Ask) -> None:
    for _ in range(30):
        futures = [TaskFuture() for _ in range(100)]
        begun: list[bool] = []

        def resolve(futures: list[TaskFuture] = futures, begun: list[bool] = begun) -> None:
            for future in futures:
                if future.begin():
                    begun.append(True)
                    future.finish(1)

        thread = threading.Thread(target=resolve)
        thread.start()
        for future in futures:
            ask(future)
        thread.join(BOUND)
        assert not thread.is_alive()
        finished = [future for future in futures if not future.cancelled()]
        assert all(future.result(0) == 1 for future in finished)
        assert len(begun) == len(finished)


@pytest.mark.usefixtures("many_switches")
def test_callbacks_added_as_a_future_finishes_are_each_called_once() -> None:
    for _ in range(30):
        futures = [TaskFuture() for _ in range(100)]
        called: list[TaskFuture] = []

        def resolve(futures: list[TaskFuture] = futures) -> None:
            for future in futures:
                future.begin()
                future.finish(1)

        thread = threading.Thread(target=resolve)
        thread.start()
        for future in futures:
            future.add_done_callback(called.append)  # type: ignore[arg-type]
        thread.join(BOUND)
        assert sorted(map(id, called)) == sorted(map(id, futures))


ENDS: dict[str, Callable[[TaskFuture], object]] = {
    "finish": lambda future: (future.begin(), future.finish(7)),
    "set_result": lambda future: future.set_result(7),
    "set_exception": lambda future: future.set_exception(LookupError(7)),
    "cancel": lambda future: future.cancel(),
}


def outcome(future: TaskFuture, timeout: float | None) -> object:
    try:
        return future.result(timeout)
    except (LookupError, CancelledError) as error:
        return type(error)


@pytest.mark.usefixtures("_kind", "many_switches")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("timeout", [None, BOUND])
@pytest.mark.parametrize("end", ENDS)
def test_whoever_waits_is_woken_by_every_end(end: str, timeout: float | None, threads: int) -> None:
    expected = {"set_exception": LookupError, "cancel": CancelledError}.get(end, 7)
    for _ in range(200):
        future = TaskFuture()
        with ThreadPoolExecutor(threads) as pool:
            outcomes = [pool.submit(outcome, future, timeout) for _ in range(threads)]
            ENDS[end](future)
            assert [found.result(BOUND) for found in outcomes] == [expected] * threads


@pytest.mark.usefixtures("_kind")
def test_a_callback_that_raises_keeps_nobody_waiting() -> None:
    future = TaskFuture()
    future.add_done_callback(lambda _: sys.exit())
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(outcome, future, None)
        with pytest.raises(SystemExit):
            future.set_result(7)
        assert found.result(BOUND) == 7


@pytest.mark.usefixtures("_kind")
def test_a_wait_that_was_in_vain_leaves_the_future_as_it_was() -> None:
    future = TaskFuture()
    for timeout in (0, -1, 0.01, 1e-9):
        with pytest.raises(TimeoutError):
            future.result(timeout)
    future.begin()
    with pytest.raises(TimeoutError):
        future.result(0.01)
    future.finish(7)
    assert future.result(0) == 7
