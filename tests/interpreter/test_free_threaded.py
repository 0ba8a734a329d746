"""Where threads run at the same time, many of them on one executor: no result is lost, mixed up,
or told twice. Only where the interpreter is free-threaded; with the GIL other tests do."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait

import pytest
from light_tasks import square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._client.futures import TaskFuture

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
pytestmark = pytest.mark.skipif(HAS_GIL, reason="this Python has a GIL")

CLIENTS = 8
"""Threads at the same time: more than the machine has processors."""
TASKS = 400
"""Of each of them."""
Call = tuple[int, int]
"""What tells a call: the client's number and its own."""
Told = collections.Counter[str]


class Odd(Exception):
    """What a task raises."""


def echo(call: Call) -> Call:
    return call


def fail(call: Call) -> Call:
    raise Odd(call)


def in_threads(*bodies: Callable[[], object]) -> None:
    """Run all of them, from the same moment on; raise what one has raised."""
    barrier, errors = threading.Barrier(len(bodies)), list[BaseException]()

    def run(body: Callable[[], object]) -> None:
        try:
            barrier.wait(BOUND)
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def outcome(future: Future[Call], call: Call) -> str:
    """In a word; "wrong" and what, if it is another call's."""
    try:
        result = future.result(BOUND)
    except CancelledError:
        return "cancelled"
    except Odd as error:
        return "raised" if error.args == (call,) else f"wrong error: {error}"
    except WorkerDied:
        return "died"
    return "returned" if result == call else f"wrong result: {result}"


class Client:
    """One thread's calls, and how often it was told of the end of each."""

    def __init__(self, executor: PreforkExecutor, number: int) -> None:
        self.executor, self.number = executor, number
        self.outcomes: Told = collections.Counter()
        self.told: collections.Counter[int] = collections.Counter()
        self.watched = 0

    def go(self, fn: Callable[[Call], Call], cancels: bool) -> None:
        chance, futures = random.Random(self.number), []
        for i in range(TASKS):
            call = (self.number, i)
            future = self.executor.submit(fn, call)
            futures.append((future, call))
            if i % 3 == 0:
                self.watched += 1
                future.add_done_callback(lambda _, i=i: self.told.update([i]))
            if cancels and chance.random() < 0.5:
                future.cancel()
            if i % 4 == 0:
                # It reads its result by itself, perhaps, while others read theirs.
                outcome(future, call)
        self.outcomes.update(outcome(*pair) for pair in futures)
        eventually(lambda: self.told.total() >= self.watched, "all callbacks are called")


@pytest.mark.parametrize(
    ("fn", "cancels", "expected"),
    [
        (echo, False, {"returned"}),
        (fail, False, {"raised"}),
        (echo, True, {"returned", "cancelled"}),
    ],
    ids=["results", "exceptions", "cancels"],
)
def test_many_threads_submit_and_each_is_told_its_own(
    fn: Callable[[Call], Call], cancels: bool, expected: set[str], start_method: str
) -> None:
    with PreforkExecutor(2, start_method) as executor:
        clients = [Client(executor, number) for number in range(CLIENTS)]
        in_threads(*(lambda client=client: client.go(fn, cancels) for client in clients))
    outcomes = sum((client.outcomes for client in clients), collections.Counter[str]())
    assert set(+outcomes) == expected
    assert outcomes.total() == CLIENTS * TASKS
    for client in clients:
        assert set(client.told.values()) == {1}
        assert client.told.total() == client.watched


@contextlib.contextmanager
def workers_killed_all_the_time(executor: PreforkExecutor) -> Iterator[None]:
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.2):
            for worker in executor.stats().workers[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()


def test_every_future_ends_while_workers_are_killed(start_method: str) -> None:
    told: list[Told] = []

    def go(number: int) -> None:
        retrying = executor.with_options(retries=100)
        calls = [(number, i) for i in range(TASKS // 2)]
        futures = [(executor if i % 2 else retrying).submit(echo, (n, i)) for n, i in calls]
        pairs = zip(futures, calls, strict=True)
        told.append(collections.Counter(f"{call[1] % 2} {outcome(f, call)}" for f, call in pairs))

    with PreforkExecutor(2, start_method) as executor:
        executor.submit(square, 1).result(BOUND)
        with workers_killed_all_the_time(executor):
            in_threads(*(lambda number=number: go(number) for number in range(CLIENTS)))
    outcomes = sum(told, collections.Counter[str]())
    assert set(outcomes) <= {"0 returned", "1 returned", "1 died"}
    assert outcomes.total() == CLIENTS * (TASKS // 2)


@pytest.mark.parametrize("others", ["wait and cancel", "wait", "call back"])
def test_a_future_takes_its_steps_while_others_ask_for_everything(others: str) -> None:
    for _ in range(20):
        futures: list[Future[int]] = [TaskFuture() for _ in range(400)]
        told: collections.Counter[int] = collections.Counter()
        cancelled: dict[int, bool] = {}

        def step(futures: list[Future[int]] = futures) -> None:
            for i, future in enumerate(futures):
                if future.begin():  # type: ignore[attr-defined]
                    future.finish(i)  # type: ignore[attr-defined]
                else:
                    assert future.cancelled()

        def ask(futures: list[Future[int]] = futures) -> None:
            for i, future in enumerate(futures):
                with contextlib.suppress(CancelledError):
                    assert future.result(BOUND) == i

        def call_back(
            futures: list[Future[int]] = futures, told: collections.Counter[int] = told
        ) -> None:
            for i, future in enumerate(futures):
                future.add_done_callback(lambda _, i=i: told.update([i]))

        def cancel(
            futures: list[Future[int]] = futures, cancelled: dict[int, bool] = cancelled
        ) -> None:
            for i in range(0, len(futures), 5):
                cancelled[i] = futures[i].cancel()

        def wait_for_some(futures: list[Future[int]] = futures) -> None:
            for start in range(0, len(futures), 40):
                assert not wait(futures[start : start + 40], BOUND).not_done

        in_threads(
            step,
            ask,
            *{
                "wait and cancel": (ask, call_back, cancel, wait_for_some),
                "wait": (ask,),
                "call back": (call_back,),
            }[others],
        )
        assert all(future.done() for future in futures)
        assert {futures[i].cancelled() == said for i, said in cancelled.items()} <= {True}
        assert set(told.values()) <= {1}
        assert len(told) == (0 if others == "wait" else len(futures))
