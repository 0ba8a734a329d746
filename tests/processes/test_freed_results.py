"""What a task has returned is the caller's alone: it is freed when he lets go of it, without the
garbage collector, and though the pool then has nothing to do.

Where threads have no GIL an object belongs to the thread that has made it. If that is not he,
it may take half as long again as he kept it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest
from light_tasks import BIG, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, yell

COUNT = 20
"""Results: of some, others are under way when they come."""


class Result:
    """What can be referred to weakly."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data


def small(_: object = None) -> Result:
    return Result()


def big(_: object = None) -> Result:
    return Result(bytearray(os.urandom(BIG)))  # type: ignore[arg-type]


def told() -> None:
    yell(Result())


class Failure(Exception):
    """An exception that is raised."""


def failing() -> None:
    raise Failure


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Nothing is freed but by the last who refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


Taker = Callable[[PreforkExecutor, Callable[..., Result]], list[Result]]


def one_by_one(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    return [executor.submit(fn).result(BOUND) for _ in range(COUNT)]


def many(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    futures = [executor.submit(fn) for _ in range(COUNT)]
    return [future.result(BOUND) for future in futures]


def when_all_are_there(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    futures = [executor.submit(fn) for _ in range(COUNT)]
    assert not wait(futures, BOUND).not_done
    return [future.result() for future in futures]


def mapped(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    return list(executor.map(fn, range(COUNT), timeout=BOUND))


def in_chunks(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    return list(executor.map(fn, range(COUNT), chunksize=5, timeout=BOUND))


def in_callbacks(executor: PreforkExecutor, fn: Callable[..., Result]) -> list[Result]:
    results: list[Result] = []
    for _ in range(COUNT):
        executor.submit(fn).add_done_callback(lambda future: results.append(future.result()))
    eventually(lambda: len(results) == COUNT, "all callbacks are called")
    return results


TAKERS = [one_by_one, many, when_all_are_there, mapped, in_chunks, in_callbacks]


def are_freed(references: list[weakref.ref[Any]]) -> bool:
    return not any(reference() for reference in references)


@pytest.mark.parametrize("fn", [small, big])
@pytest.mark.parametrize("take", TAKERS)
def test_results_are_freed_when_the_caller_lets_go_of_them(
    take: Taker, fn: Callable[..., Result]
) -> None:
    with PreforkExecutor(2) as executor:
        results = take(executor, fn)
        references: list[weakref.ref[Any]] = [weakref.ref(result) for result in results]
        assert len(references) == COUNT
        results.clear()
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_results_are_freed_under_every_start_method(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        references: list[weakref.ref[Any]] = [
            weakref.ref(result) for result in many(executor, small)
        ]
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_results_are_freed_while_the_run_is_recorded(tmp_path: Path) -> None:
    with PreforkExecutor(2) as executor, executor.record(tmp_path / "run.json"):
        references: list[weakref.ref[Any]] = [
            weakref.ref(result) for result in many(executor, small)
        ]
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_an_exception_is_freed_when_the_caller_lets_go_of_it() -> None:
    with PreforkExecutor(2) as executor:
        futures: list[Future[None]] = [executor.submit(failing) for _ in range(COUNT)]
        references = [weakref.ref(future.exception(BOUND)) for future in futures]
        assert all(isinstance(reference(), Failure) for reference in references)
        futures.clear()
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_what_was_yelled_is_freed_when_the_hook_lets_go_of_it() -> None:
    references: list[weakref.ref[Any]] = []
    hook = lambda _, data: references.append(weakref.ref(data))  # noqa: E731
    with PreforkExecutor(2, on_yell=hook) as executor:
        for future in [executor.submit(told) for _ in range(COUNT)]:
            future.result(BOUND)
        eventually(lambda: len(references) == COUNT, "all are heard")
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_an_argument_is_freed_when_the_caller_lets_go_of_it() -> None:
    with PreforkExecutor(2) as executor:
        arguments = [Result(bytearray(size)) for size in (1, BIG)]  # type: ignore[arg-type]
        futures = [executor.submit(len, [argument]) for argument in arguments]
        references: list[weakref.ref[Any]] = [weakref.ref(argument) for argument in arguments]
        arguments.clear()
        assert [future.result(BOUND) for future in futures] == [1, 1]
        eventually(lambda: are_freed(references), "nobody has kept them")


def test_a_result_that_was_kept_for_long_is_freed_soon_after() -> None:
    with PreforkExecutor(2) as executor:
        results = many(executor, small)
        references: list[weakref.ref[Any]] = [weakref.ref(result) for result in results]
        with contextlib.suppress(TimeoutError):
            Future[None]().result(2.0)  # Time passes, and the pool has nothing to do.
        results.clear()
        eventually(lambda: are_freed(references), "nobody has kept them")
        assert executor.submit(square, 2).result(BOUND) == 4
