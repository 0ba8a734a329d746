"""Tasks in the pool, awaited in an event loop."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from injection import lines
from light_tasks import end_at_three, run_until, square, wait_for
from waiting import BOUND, eventually

from prefork_executor import ExecutorView, PreforkExecutor, WorkerDied, shared, shared_executor
from prefork_executor.integrations._loops import submitted
from prefork_executor.integrations.asyncio import run


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2, start_method) as executor:
        yield executor


def fail(word: str) -> None:
    raise ValueError(word)


def hang(path: str) -> None:
    part = Path(path + ".part")
    part.write_text(str(os.getpid()))
    part.rename(path)
    time.sleep(3600)


async def until(path: Path) -> int:
    """The pid that a hanging task has written."""
    async with asyncio.timeout(BOUND):
        while not path.exists():
            await asyncio.sleep(0.005)
    return int(path.read_text())


# --- run_in_executor --------------------------------------------------------------------------


def test_run_in_executor_works(executor: PreforkExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(50)))

    assert asyncio.run(main()) == [n * n for n in range(50)]


def test_its_exceptions_are_raised_where_they_are_awaited(executor: PreforkExecutor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="sorry"):
            await loop.run_in_executor(executor, fail, "sorry")
        with pytest.raises(WorkerDied):
            await loop.run_in_executor(executor, os._exit, 3)
        assert await loop.run_in_executor(executor, square, 3) == 9

    asyncio.run(main())


def run_a_loop(n: int) -> int:
    async def main() -> int:
        await asyncio.sleep(0)
        return n

    return asyncio.run(main())


def test_a_task_may_run_a_loop_of_its_own(executor: PreforkExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, run_a_loop, n) for n in range(4)]
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_the_loop_goes_on_while_tasks_run(executor: PreforkExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        task = asyncio.create_task(run(executor, hang, str(tmp_path / "pid"), abort_on_cancel=True))
        await until(tmp_path / "pid")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# --- run --------------------------------------------------------------------------------------


def test_run_gives_the_result_or_raises(executor: PreforkExecutor) -> None:
    async def main() -> None:
        assert await run(executor, square, 3) == 9
        assert await run(executor, functools.partial(int, "11", base=2)) == 3
        assert await run(executor, int, "11", base=2) == 3
        assert await run(executor, int, "11", base=2, abort_on_cancel=True) == 3
        assert await run(executor.with_options(retries=1), lambda: 7) == 7
        with pytest.raises(ValueError, match="sorry"):
            await run(executor, fail, "sorry")
        with pytest.raises(TypeError, match="fn must be callable, not int"):
            await run(executor, 3)  # type: ignore[arg-type]

    asyncio.run(main())


@pytest.mark.parametrize("is_view", [False, True])
def test_cancelling_aborts_the_running_work_where_asked(
    executor: PreforkExecutor, tmp_path: Path, is_view: bool
) -> None:
    pool: PreforkExecutor | ExecutorView = executor.with_options(retries=3) if is_view else executor

    async def main() -> int:
        path = tmp_path / "pid"
        call = asyncio.create_task(run(pool, hang, str(path), abort_on_cancel=True))
        pid = await until(path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)
        # The others go on.
        assert await run(pool, square, 4) == 16
        return pid

    pid = asyncio.run(main())
    eventually(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("abort_on_cancel", [False, True])
def test_cancelling_takes_back_what_waits(tmp_path: Path, abort_on_cancel: bool) -> None:
    paths = [tmp_path / str(n) for n in range(20)]

    async def main() -> None:
        with PreforkExecutor(1) as executor:
            first = asyncio.create_task(
                run(executor, hang, str(tmp_path / "pid"), abort_on_cancel=True)
            )
            await until(tmp_path / "pid")
            touch = functools.partial(run, executor, Path.touch, abort_on_cancel=abort_on_cancel)
            calls = [asyncio.create_task(touch(path)) for path in paths]
            await asyncio.sleep(0)
            for task in (*calls[10:], first):
                task.cancel()
            await asyncio.wait([*calls, first])
            assert [task.cancelled() for task in calls] == [False] * 10 + [True] * 10

    asyncio.run(main())
    assert [path.exists() for path in paths] == [True] * 10 + [False] * 10


def test_without_being_asked_the_work_runs_on(executor: PreforkExecutor, tmp_path: Path) -> None:
    async def main() -> int:
        task = asyncio.create_task(run(executor, hang, str(tmp_path / "pid")))
        pid = await until(tmp_path / "pid")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    pid = asyncio.run(main())
    assert executor.stats().busy == 1
    assert psutil.pid_exists(pid)
    executor.kill_workers()


def test_the_first_failure_in_a_group_ends_the_others(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "pid"

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run(executor, hang, str(path), abort_on_cancel=True))
            await until(path)
            group.create_task(run(executor, fail, "sorry", abort_on_cancel=True))

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert [str(error) for error in caught.value.exceptions] == ["sorry"]
    eventually(lambda: not psutil.pid_exists(int(path.read_text())))


def test_a_shutdown_that_cancels_is_a_cancellation() -> None:
    async def main() -> None:
        executor = PreforkExecutor(1)
        calls = [asyncio.create_task(run(executor, time.sleep, 0.1)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(executor.shutdown, cancel_futures=True)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert ends[0] is None
        assert isinstance(ends[-1], asyncio.CancelledError)

    asyncio.run(main())


def test_a_stop_iteration_of_a_call_is_raised_as_a_coroutine_can(executor: PreforkExecutor) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            async with asyncio.timeout(BOUND):
                await run(executor, end_at_three, StopIteration, 3)
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio.run(main())


# --- a bounded backlog ------------------------------------------------------------------------


async def fill(executor: PreforkExecutor, gate: Path) -> list[asyncio.Task[int]]:
    """One task runs until the gate is there, and one waits, as many as may."""
    started = gate.with_name("started")
    runs = asyncio.create_task(run(executor, run_until, str(gate), str(started)))
    async with asyncio.timeout(BOUND):
        while not lines(started):
            await asyncio.sleep(0.005)
    waits = asyncio.create_task(run(executor, wait_for, str(gate)))
    async with asyncio.timeout(BOUND):
        while executor.stats().backlog < 1:
            await asyncio.sleep(0.005)
    return [runs, waits]


def test_calls_wait_for_room_in_turn_and_the_loop_goes_on(tmp_path: Path) -> None:
    gate, ended = tmp_path / "gate", []

    async def main() -> None:
        with PreforkExecutor(1, max_backlog=1) as executor:
            full = await fill(executor, gate)

            async def one(number: int) -> None:
                ended.append(await run(executor, abs, number))

            calls = [asyncio.create_task(one(number)) for number in range(20)]
            await asyncio.sleep(0)
            assert executor.stats().backlog == 1
            gate.touch()
            await asyncio.gather(*full, *calls)

    asyncio.run(main())
    assert ended == list(range(20))


def test_a_shutdown_ends_the_wait_for_room(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def main() -> None:
        executor = PreforkExecutor(1, max_backlog=1)
        full = await fill(executor, gate)
        call = asyncio.create_task(run(executor, abs, 1))
        await asyncio.sleep(0)
        executor.shutdown(wait=False)
        async with asyncio.timeout(BOUND):
            with pytest.raises(RuntimeError, match="after shutdown"):
                await call
        gate.touch()
        await asyncio.gather(*full)

    asyncio.run(main())


def test_who_found_no_room_goes_on_in_the_pool_that_follows(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    ended: list[int] = []

    class Signal(asyncio.Event):
        """Made when there was no room. Somebody else ends the shared pool at that moment."""

        def __init__(self) -> None:
            super().__init__()
            ended.append(1)
            shared.shutdown(wait=False)

        def set(self) -> bool:  # type: ignore[override]
            raise AssertionError("the pool that follows has room")

    async def main() -> None:
        executor = shared_executor(max_workers=1, max_backlog=1)
        full = await fill(executor, gate)
        async with asyncio.timeout(BOUND):
            future = await submitted(Signal, executor, abs, -7)
        assert ended == [1]
        assert future.result(BOUND) == 7
        gate.touch()
        await asyncio.gather(*full)

    try:
        asyncio.run(main())
    finally:
        gate.touch()
        shared.shutdown()


def test_a_loop_that_has_ended_leaves_its_room_to_others(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1, max_backlog=1) as executor:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(fill(executor, gate))
        left = loop.create_task(run(executor, abs, 1))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        waiting = [threading.Thread(target=executor.submit, args=(abs, n)) for n in range(3)]
        for thread in waiting:
            thread.start()
        gate.touch()
        for thread in waiting:
            thread.join(BOUND)
        assert not any(thread.is_alive() for thread in waiting)
        assert not left.done()
    coroutine = left.get_coro()
    assert coroutine is not None
    coroutine.close()  # Nobody will ever run it.
