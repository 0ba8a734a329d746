"""Signal handlers of the caller's that raise, as a timeout's do: the exception comes out of the
call that was interrupted, and no future, lock or pool is the worse for it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from injection import all_go_on, ended_at_once, pool_of
from light_tasks import square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor


class TooLate(Exception):
    pass


def strike(_signum: int, _frame: object) -> None:
    raise TooLate("the alarm")


class Strikes:
    """Handlers of all sorts."""

    def method(self, _signum: int, _frame: object) -> None:
        self.inner()

    def inner(self) -> None:
        raise TooLate("the alarm")

    def __call__(self, *_: object) -> None:
        raise TooLate("the alarm")


def strike_with_more(_more: str, *_: object) -> None:
    raise TooLate("the alarm")


HANDLERS: dict[str, Callable[..., object]] = {
    "function": strike,
    "lambda": lambda *arguments: strike(*arguments),
    "method": Strikes().method,
    "object": Strikes(),
    "partial": functools.partial(strike_with_more, "more"),
}


@pytest.fixture
def at_alarm() -> Iterator[Callable[[Callable[..., object]], object]]:
    """Sets the handler of the alarm."""
    old = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


class Alarms:
    """Is struck by the alarm while it is pickled; not in each pass, but in this one."""

    def __init__(self, at_pass: int) -> None:
        self.passes_left = at_pass

    def __getstate__(self) -> dict[str, int]:
        self.passes_left -= 1
        if self.passes_left == 0:
            signal.raise_signal(signal.SIGALRM)
        return {"passes_left": 0}


class HasNoLength:
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __length_hint__(self) -> int:
        signal.raise_signal(signal.SIGALRM)
        return 3


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_handler_raises_as_a_call_is_pickled_comes_out_of_submit(
    handler: str, at_alarm: Callable[..., object]
) -> None:
    at_alarm(HANDLERS[handler])
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        assert executor.submit(square, 2).result(BOUND) == 4
        with pytest.raises(TooLate, match="the alarm"):
            executor.submit(len, [Alarms(1)])
        all_go_on(executor)


@pytest.mark.parametrize("at_pass", [1, 2, 3])
def test_so_does_it_from_cloudpickle_and_from_the_search_for_what_cannot_be_pickled(
    at_pass: int, at_alarm: Callable[..., object]
) -> None:
    at_alarm(strike)
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        assert executor.submit(square, 2).result(BOUND) == 4
        alarms = Alarms(at_pass)
        with contextlib.suppress(TooLate):
            future = executor.submit(lambda *_: 1, alarms, sys._getframe())
            assert alarms.passes_left > 0, "it has not struck"
            assert "frame" in str(future.exception(BOUND))
        all_go_on(executor)


def test_and_what_its_own_pickling_raises_is_its_futures(at_alarm: Callable[..., object]) -> None:
    class Refuses:
        def __getstate__(self) -> Any:
            strike(signal.SIGALRM, None)

    at_alarm(strike)
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        assert "TooLate" in str(executor.submit(len, [Refuses()]).exception(BOUND))


def test_what_a_handler_raises_as_a_length_is_asked_for_comes_out_of_map(
    at_alarm: Callable[..., object],
) -> None:
    at_alarm(strike)
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        with pytest.raises(TooLate):
            list(executor.map(square, HasNoLength()))
        all_go_on(executor)


CALLS: dict[str, Callable[[PreforkExecutor, concurrent.futures.Future[Any]], object]] = {
    "result": lambda _, future: future.result(0.0005),
    "exception": lambda _, future: future.exception(0.0005),
    "done": lambda _, future: [future.done() or future.running() for _ in range(200)],
    "cancel": lambda _, future: future.cancel(),
    "callback": lambda _, future: [future.add_done_callback(bool) for _ in range(50)],
    "stats": lambda executor, _: executor.stats(),
    "abort": lambda executor, future: executor.abort(future),
    "submit": lambda executor, _: [executor.submit(square, i) for i in range(20)],
}


# Python itself swallows, and says so, what a handler raises within a weak reference's callback.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", CALLS)
def test_an_alarm_at_any_moment_leaves_nothing_locked(
    what: str, at_alarm: Callable[..., object]
) -> None:
    at_alarm(strike)
    chance = random.Random(what)
    with ended_at_once(pool_of(2, "fork")) as executor:
        struck = 0
        for _ in range(300):
            future = executor.submit(time.sleep, chance.choice([0.0, 0.001]))
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0006))
                with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
                    CALLS[what](executor, future)
                time.sleep(0.0007)
            except TooLate:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            ended = threading.Event()
            future.add_done_callback(lambda _, ended=ended: ended.set())  # type: ignore[misc]
            assert ended.wait(BOUND)
        assert struck
        eventually(lambda: executor.stats().in_flight == 0)
        all_go_on(executor)


def test_an_alarm_behind_the_acquire_of_a_conditions_lock_leaves_it_free(
    monkeypatch: pytest.MonkeyPatch, at_alarm: Callable[..., object]
) -> None:
    at_alarm(strike)
    enter = threading.Condition.__enter__
    armed: list[bool] = []

    def struck_enter(condition: threading.Condition) -> bool:
        entered = enter(condition)
        if armed and threading.get_ident() == threading.main_thread().ident:
            armed.clear()
            signal.raise_signal(signal.SIGALRM)
        return entered

    monkeypatch.setattr(threading.Condition, "__enter__", struck_enter)
    with ended_at_once(pool_of(2, "fork")) as executor:
        for call in ("result", "callback", "cancel"):
            future = executor.submit(time.sleep, 0.1)
            armed[:] = [True]
            with contextlib.suppress(TooLate, TimeoutError):
                CALLS[call](executor, future)
            armed.clear()
            concurrent.futures.wait([future], BOUND)
            assert future.done()
            all_go_on(executor)


def test_several_threads_wait_for_one_result_and_get_it() -> None:
    with ended_at_once(pool_of(2, "fork")) as executor:
        future = executor.submit(time.sleep, 0.2)
        got: list[object] = []
        threads = [
            threading.Thread(target=lambda: got.append(future.result(BOUND))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        with pytest.raises(TimeoutError):
            future.result(0.001)
        for thread in threads:
            thread.join(BOUND)
        assert got == [None] * 5


def test_threads_that_wait_for_a_future_hear_of_its_cancellation() -> None:
    with ended_at_once(pool_of(1, "fork")) as executor:
        blocking = [executor.submit(time.sleep, 0.5) for _ in range(4)]
        future = executor.submit(square, 3)
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                future.result(BOUND)
            except BaseException as error:
                caught.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert future.cancel()
        for thread in threads:
            thread.join(BOUND)
        assert [type(error) for error in caught] == [concurrent.futures.CancelledError] * 3
        concurrent.futures.wait(blocking, BOUND)
