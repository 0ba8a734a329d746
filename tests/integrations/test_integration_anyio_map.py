"""The maps of AsyncPool under asyncio, uvloop and trio."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from event_loops import are_gone, closed, every_loop_has_run, hang, loop, take, until
from injection import lines
from light_tasks import end_at_three, note, square, wait_at_zero

from prefork_executor import WorkerDied
from prefork_executor.integrations.anyio import AsyncPool

__all__ = ["every_loop_has_run", "loop"]


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ValueError(f"it was {number}")
    return number


def hang_at(bad: int, path: str, number: int) -> int:
    if number == bad:
        hang(path)
    return number


async def asynchronous(numbers: Any, pause: float = 0.0) -> AsyncIterator[int]:
    for number in numbers:
        await anyio.sleep(pause)
        yield number


SOURCES: dict[str, Callable[[Any], Any]] = {
    "iterable": lambda numbers: numbers,
    "iterator": iter,
    "async generator": asynchronous,
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_map_gives_results_in_order(loop: Any, source: str) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            results = pool.map(square, SOURCES[source](range(100)))
            assert [n async for n in results] == [n * n for n in range(100)]
            assert [n async for n in results] == []
            assert [n async for n in pool.map(square, SOURCES[source](range(0)))] == []

    loop(main)


@pytest.mark.parametrize("source", SOURCES)
def test_unordered_results_come_as_tasks_end(loop: Any, source: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        async with AsyncPool(2) as pool:
            wait = functools.partial(wait_at_zero, str(gate))
            came = []
            async for number in pool.map(wait, SOURCES[source](range(20)), ordered=False):
                came.append(number)
                if len(came) == 19:
                    gate.touch()
        assert came[-1] == 0
        assert sorted(came) == list(range(20))

    loop(main)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_not_read_ahead(loop: Any, source: str, ordered: bool) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    async def main() -> None:
        async with AsyncPool(2) as pool:
            endless = SOURCES[source](numbers())
            results = pool.map(square, endless, limit=3, ordered=ordered)
            await anyio.wait_all_tasks_blocked()
            assert read == []
            for taken in range(1, 20):
                await anext(results)
                await anyio.wait_all_tasks_blocked()
                assert len(read) <= 3 + taken
            await until(lambda: len(read) == 3 + taken)
            await results.aclose()
            assert len(read) == 3 + taken

    loop(main)


def test_results_come_while_the_source_waits(loop: Any) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            taken = anyio.Event()

            async def numbers() -> AsyncIterator[int]:
                yield 1
                yield 2
                await taken.wait()
                yield 3

            came = []
            async for number in pool.map(square, numbers(), limit=10):
                came.append(number)
                if number == 4:
                    taken.set()
            assert came == [1, 4, 9]

    loop(main)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_an_error_of_a_task_ends_the_map_and_its_tasks(
    loop: Any, source: str, ordered: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        came: list[int] = []
        async with AsyncPool(2) as pool:
            results = pool.map(
                functools.partial(fail_at, 3), SOURCES[source](range(1000)), ordered=ordered
            )
            with pytest.raises(ValueError, match="it was 3"):
                await take(results, came)
            assert await anext(results, None) is None
            assert pool.executor.stats().in_flight == 0
        assert 3 not in came
        if ordered:
            assert came == [0, 1, 2]

    loop(main)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_a_task_does_not_end_a_map_as_if_there_were_no_more(
    loop: Any, ordered: bool, error: type[BaseException]
) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            with pytest.raises(RuntimeError, match=error.__name__) as caught:
                async for _ in pool.map(
                    functools.partial(end_at_three, error), range(6), ordered=ordered
                ):
                    pass
            assert isinstance(caught.value.__cause__, error)

    loop(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_of_the_source_comes_after_the_results(loop: Any, ordered: bool) -> None:
    async def asynchronous_then_fails() -> AsyncIterator[int]:
        for number in range(5):
            yield number
        raise LookupError("no more") from KeyError("cause")

    def fails() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more") from KeyError("cause")

    async def main() -> None:
        async with AsyncPool(2) as pool:
            for source in (fails(), asynchronous_then_fails()):
                came: list[int] = []
                with pytest.raises(LookupError, match="no more") as caught:
                    await take(pool.map(square, source, ordered=ordered), came)
                assert sorted(came) == [0, 1, 4, 9, 16]
                assert isinstance(caught.value.__cause__, KeyError)
            assert await pool.run(square, 3) == 9

    loop(main)


def test_a_break_leaves_nothing_running(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    is_closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                await anyio.sleep(0)
                yield number
        finally:
            is_closed.append(True)

    async def main() -> None:
        async with AsyncPool(2) as pool:
            async for number in pool.map(functools.partial(hang_at, 2, str(path)), numbers()):
                if number == 1:
                    await until(lambda: lines(path))
                    break
            await until(lambda: pool.executor.stats().busy == 0)
            await until(lambda: is_closed)
            assert await pool.run(square, 3) == 9

    loop(main)
    assert are_gone(path)


def test_a_map_that_is_kept_goes_on_after_a_break_and_ends_with_the_block(
    loop: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with AsyncPool(2) as pool:
            results = pool.map(functools.partial(hang_at, 5, str(path)), range(100))
            async for number in results:
                if number == 2:
                    break
            assert await anext(results) == 3
            await until(lambda: lines(path))
        assert are_gone(path)
        assert await anext(results, None) is None

    loop(main)


def test_a_cancelled_map_has_ended_its_tasks(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with AsyncPool(2) as pool:
            with anyio.CancelScope() as scope:
                results = pool.map(functools.partial(hang, str(path)), itertools.count())
                async with anyio.create_task_group() as group:
                    group.start_soon(anext, results)
                    await until(lambda: len(lines(path)) == 2)
                    scope.cancel()
            assert pool.executor.stats().in_flight == 0
            assert await pool.run(square, 3) == 9

    loop(main)
    assert are_gone(path)


def test_several_tasks_may_take_results_of_one_map(loop: Any) -> None:
    async def main() -> None:
        came: list[int] = []

        async with AsyncPool(2) as pool, anyio.create_task_group() as group:
            results = pool.map(square, asynchronous(range(60)))
            for _ in range(3):
                group.start_soon(take, results, came)
        assert sorted(came) == [n * n for n in range(60)]

    loop(main)


def test_who_waits_for_a_map_that_another_ends_is_told(loop: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncPool(1) as pool, anyio.create_task_group() as group:
            results = pool.map(functools.partial(hang, str(tmp_path / "pids")), [1])
            group.start_soon(closed, results)
            await until(lambda: lines(tmp_path / "pids"))
            await results.aclose()

    loop(main)


def test_several_maps_share_a_pool(loop: Any) -> None:
    async def main() -> None:
        sums: list[int] = []

        async def add(pool: AsyncPool) -> None:
            sums.append(sum([n async for n in pool.map(square, asynchronous(range(30)), limit=2)]))

        async with AsyncPool(2) as pool, anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(add, pool)
        assert sums == [sum(n * n for n in range(30))] * 4

    loop(main)


def test_a_death_costs_its_own_item(loop: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            mark = str(tmp_path / "mark")
            results = pool.with_options(retries=1).map(
                functools.partial(die_at_first, mark), range(30)
            )
            assert [n async for n in results] == list(range(30))
            with pytest.raises(WorkerDied):
                await anext(pool.map(os._exit, [3]))

    loop(main)


def die_at_first(mark: str, number: int) -> int:
    if number == 7 and not os.path.exists(mark):
        note(mark, "")
        os._exit(1)
    return number
