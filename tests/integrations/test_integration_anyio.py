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
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from event_loops import LOOPS, are_gone, closed, every_loop_has_run, hang, loop, until
from injection import lines
from light_tasks import note, run_until, square, wait_at_zero, wait_for
from scripts import program_text
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied, shared, shared_executor
from prefork_executor.integrations.anyio import AsyncPool

__all__ = ["every_loop_has_run", "loop"]


def fail(word: str) -> None:
    raise ValueError(word) from KeyError("cause")


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
