"""The pool under asyncio, uvloop and trio: AsyncPool."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from injection import lines
from light_tasks import end_at_three, note, run_until, square, wait_at_zero, wait_for
from scripts import program_text
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied, shared, shared_executor
from prefork_executor.integrations.anyio import AsyncPool

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
Main = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module", autouse=True)
def _every_loop_has_run() -> None:
    """uvloop opens a pipe for the whole process when its first loop runs, and keeps it."""
    for options in LOOPS.values():
        anyio.run(anyio.sleep, 0, **options)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Runs a main function in an event loop."""

    async def bounded(main: Main) -> Any:
        with anyio.fail_after(BOUND):
            return await main()

    return lambda main: anyio.run(bounded, main, **LOOPS[request.param])


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await anyio.sleep(0.005)


def fail(word: str) -> None:
    raise ValueError(word) from KeyError("cause")


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ValueError(f"it was {number}")
    return number


def hang(path: str, number: int = 0) -> None:
    note(path, str(os.getpid()))
    time.sleep(3600)


def hang_at(bad: int, path: str, number: int) -> int:
    if number == bad:
        hang(path)
    return number


def are_gone(path: Path) -> bool:
    return not any(psutil.pid_exists(int(pid)) for pid in lines(path))


# --- run --------------------------------------------------------------------------------------


def test_run_gives_the_result_or_raises(loop: Any) -> None:
    async def main() -> None:
        async with AsyncPool(2) as pool:
            assert await pool.run(square, 3) == 9
            assert await pool.run(int, "11", base=2) == 3
            assert await pool.with_options(retries=1).run(lambda: 7) == 7
            with pytest.raises(ValueError, match="sorry") as caught:
                await pool.run(fail, "sorry")
            assert isinstance(caught.value.__cause__, KeyError)
            with pytest.raises(WorkerDied):
                await pool.run(os._exit, 3)
            with pytest.raises(TypeError, match="fn must be callable, not int"):
                await pool.run(3)  # type: ignore[arg-type]

    loop(main)


def test_many_run_in_a_task_group_and_the_loop_goes_on(loop: Any, tmp_path: Path) -> None:
    async def main() -> None:
        results: dict[int, int] = {}
        gate = tmp_path / "gate"

        async def one(pool: AsyncPool, number: int) -> None:
            results[number] = await pool.run(wait_at_zero, str(gate), number)

        async with AsyncPool(2) as pool, anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(one, pool, number)
            await until(lambda: len(results) == 49)
            gate.touch()
        assert results == {number: number for number in range(50)}

    loop(main)


def test_cancelling_aborts_the_call_and_waits_for_its_end(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with AsyncPool(1) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, hang, str(path))
                await until(lambda: lines(path))
                # What waits never begins.
                for _ in range(10):
                    group.start_soon(pool.run, note, str(tmp_path / "ran"), "")
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            assert pool.executor.stats().in_flight == 0
            assert await pool.run(square, 4) == 16

    loop(main)
    eventually(lambda: are_gone(path))
    assert not (tmp_path / "ran").exists()


def test_the_first_failure_in_a_group_ends_the_others(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with AsyncPool(2) as pool:
            async with anyio.create_task_group() as group:
                group.start_soon(pool.run, hang, str(path))
                await until(lambda: lines(path))
                group.start_soon(pool.run, fail, "sorry")

    with pytest.raises(ExceptionGroup) as caught:
        loop(main)
    assert [str(error) for error in caught.value.exceptions] == ["sorry"]
    assert are_gone(path)


def test_time_limits_of_the_loop_end_the_call(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with anyio.move_on_after(0.01) as scope:
                await pool.run(hang, str(path))
            assert scope.cancelled_caught
            assert await pool.run(square, 3) == 9

    loop(main)
    assert are_gone(path)


def test_a_storm_of_cancellations_loses_no_other_task(loop: Any, tmp_path: Path) -> None:
    async def main() -> None:
        results: list[int] = []

        async def one(pool: AsyncPool, number: int, patience: float) -> None:
            with anyio.move_on_after(patience):
                await pool.run(time.sleep, 0.01 if patience == BOUND else 3600)
                results.append(number)

        async with AsyncPool(2) as pool, anyio.create_task_group() as group:
            for number in range(60):
                is_patient = number % 3 == 0
                patience = BOUND if is_patient else random.uniform(0, 0.3)
                group.start_soon(one, pool, number, patience)
        assert sorted(results) == list(range(0, 60, 3))

    loop(main)


def test_a_full_backlog_is_awaited_and_the_loop_goes_on(loop: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        results: list[int] = []

        async def one(pool: AsyncPool, number: int) -> None:
            await pool.run(wait_for, str(gate))
            results.append(number)

        async with AsyncPool(1, max_backlog=2) as pool, anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(one, pool, number)
            await until(lambda: pool.executor.stats().backlog >= 2)
            for _ in range(20):  # Others wait meanwhile, and the loop goes on.
                await anyio.sleep(0.01)
                assert pool.executor.stats().waiting <= 2
            gate.touch()
            squares = pool.map(square, range(12), limit=12)
            assert [n async for n in squares] == [n * n for n in range(12)]
        assert sorted(results) == list(range(12))

    loop(main)


class Counted:
    """Counts how often it is pickled."""

    def __init__(self) -> None:
        self.times = 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.times += 1
        return int, ()


def test_a_call_that_waits_for_room_is_not_tried_over_and_over(loop: Any, tmp_path: Path) -> None:
    gate, started, counted = tmp_path / "gate", tmp_path / "started", Counted()

    async def main() -> None:
        async with AsyncPool(1, max_backlog=1) as pool, anyio.create_task_group() as group:
            group.start_soon(pool.run, run_until, str(gate), str(started))
            await until(lambda: lines(started))
            group.start_soon(pool.run, wait_for, str(gate))
            await until(lambda: pool.executor.stats().backlog == 1)
            group.start_soon(pool.run, square, counted)
            await until(lambda: counted.times == 1)
            await anyio.sleep(0.3)  # Whoever asks again and again asks several times meanwhile.
            assert counted.times == 1
            gate.touch()
        assert 2 <= counted.times <= 3  # The bell is rung when the first and the second task end.

    loop(main)


def test_calls_that_give_up_waiting_leave_their_room_to_others(loop: Any) -> None:
    async def main() -> None:
        results: list[int] = []

        async def one(pool: AsyncPool, number: int) -> None:
            is_patient = number % 3 == 0
            with anyio.move_on_after(BOUND if is_patient else random.uniform(0, 0.1)):
                results.append(await pool.run(square, number))

        async with AsyncPool(1, max_backlog=1) as pool:
            for _ in range(5):
                results.clear()
                async with anyio.create_task_group() as group:
                    for number in range(60):
                        group.start_soon(one, pool, number)
                assert {n * n for n in range(0, 60, 3)} <= set(results)

    loop(main)


# --- the block ----------------------------------------------------------------------------------


def test_the_block_waits_for_its_tasks_and_nothing_is_left(loop: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            async with AsyncPool(1) as pool:
                group.start_soon(pool.run, note, str(tmp_path / "ran"), "x")
                await anyio.wait_all_tasks_blocked()
            assert lines(tmp_path / "ran") == ["x"]
            with pytest.raises(RuntimeError, match="the AsyncPool has ended"):
                await pool.run(square, 1)
            with pytest.raises(RuntimeError, match="the AsyncPool has ended"):
                pool.map(square, [1])

    loop(main)


def test_an_error_in_the_block_ends_its_tasks_and_is_raised_as_it_is(
    loop: Any, tmp_path: Path
) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def hangs() -> None:
                with pytest.raises(Exception, match="hang"):
                    await pool.run(hang, str(path))

            async def block() -> None:
                async with pool:
                    group.start_soon(hangs)
                    results = pool.map(functools.partial(hang, str(path)), itertools.count())
                    group.start_soon(closed, results)
                    await until(lambda: lines(path))
                    raise LookupError("my own")

            pool = AsyncPool(1)
            with pytest.raises(LookupError, match="my own"):
                await block()

    loop(main)
    assert are_gone(path)


async def take(results: AsyncIterator[int], came: list[int]) -> None:
    async for number in results:
        came.append(number)
        await anyio.sleep(0)


async def closed(results: AsyncIterator[Any]) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await anext(results)


def test_a_cancelled_block_ends_its_tasks(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with AsyncPool(2) as pool, anyio.create_task_group() as group:
                group.start_soon(pool.run, hang, str(path))
                await until(lambda: lines(path))
                scope.cancel()
        assert scope.cancelled_caught

    loop(main)
    assert are_gone(path)


def test_it_must_be_in_use(loop: Any) -> None:
    async def main() -> None:
        pool = AsyncPool(1)
        with pytest.raises(RuntimeError, match="use it in `async with`"):
            await pool.run(square, 1)
        with pytest.raises(RuntimeError, match="use it in `async with`"):
            pool.map(square, [1])
        async with pool:
            pass
        with pytest.raises(RuntimeError, match="can be used once"):
            await pool.__aenter__()

    loop(main)


def test_an_executor_that_was_given_goes_on(loop: Any) -> None:
    async def main(executor: PreforkExecutor) -> None:
        async with AsyncPool(executor=executor) as pool:
            assert await pool.run(square, 3) == 9
            assert [n async for n in pool.map(square, range(5))] == [0, 1, 4, 9, 16]

    with PreforkExecutor(2) as executor:
        loop(functools.partial(main, executor))
        assert executor.submit(square, 4).result(BOUND) == 16
    try:
        loop(functools.partial(main, shared_executor(max_workers=2)))
        assert shared_executor().submit(square, 4).result(BOUND) == 16
    finally:
        shared.shutdown()


def test_the_repr_of_a_pool_has_that_of_its_executor() -> None:
    pool = AsyncPool(2)
    assert repr(pool) == f"<AsyncPool of {pool.executor!r}>"
    assert "not started, 2 workers at most" in repr(pool)


def test_bad_arguments_are_errors_at_the_call(loop: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        AsyncPool(0)
    with pytest.raises(TypeError, match="workers"):
        AsyncPool(workers=3)
    with PreforkExecutor(1) as executor:
        with pytest.raises(TypeError, match="max_workers, retries cannot be given with executor="):
            AsyncPool(2, executor=executor, retries=3)

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(TypeError, match="fn must be callable, not int"):
                pool.map(3, [])  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="source must be an iterable or an async iterable"):
                pool.map(square, 3)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="limit must be an int or None, not float"):
                pool.map(square, [], limit=1.5)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
                pool.map(square, [], limit=0)

    loop(main)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("times", [1, 5])
def test_ctrl_c_ends_the_program_and_its_tasks(name: str, times: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program_text("async_interrupted"))
    with subprocess.Popen(
        [sys.executable, "program.py", name],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        pids = [int(program.stdout.readline()) for _ in range(4)]
        for _ in range(times):
            program.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, told = program.communicate(timeout=BOUND)
    assert program.returncode in (1, -signal.SIGINT), told
    assert "KeyboardInterrupt" in told
    eventually(lambda: not any(map(psutil.pid_exists, pids)))


# --- map ----------------------------------------------------------------------------------------


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


def test_no_thread_is_left_and_none_waits(loop: Any) -> None:
    before = threading.active_count()

    async def main() -> int:
        async with AsyncPool(1) as pool:
            await pool.run(square, 1)
            return threading.active_count()

    # The pool's own, and nothing that waits for results.
    assert loop(main) == before + 1
    eventually(lambda: threading.active_count() == before)


def test_it_works_by_every_start_method(start_method: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncPool(1, mp_context=start_method) as pool:
            (tmp_path / "gate").touch()
            assert await pool.run(wait_for, tmp_path / "gate")
            assert await pool.run(run_until, str(tmp_path / "gate"), str(tmp_path / "started"))

    for options in LOOPS.values():
        anyio.run(main, **options)
