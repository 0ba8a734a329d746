"""One pool for the whole program: who gets it, whose options win, and what one user's end or
error costs the others."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import Running, lines
from light_tasks import note, run_until, square, wait_for
from scripts import program_text, run_script
from waiting import BOUND, eventually

from prefork_executor import (
    BacklogFull,
    PreforkExecutor,
    SharedExecutor,
    TaskAborted,
    TaskTimeout,
    held_resources,
    shared,
    shared_executor,
    yell,
)

CPUS = PreforkExecutor()._max_workers


@pytest.fixture(autouse=True)
def _nothing_is_shared(leaves_nothing_behind: None) -> Iterator[None]:
    yield
    shared_executor().kill_workers()  # If a test has failed, its tasks may be endless.
    shared.shutdown()


def processes_of(executor: Any) -> set[int]:
    return {worker.pid for worker in executor.stats().workers}


# --- the same for all -------------------------------------------------------------------------


def test_all_users_have_the_same_pool() -> None:
    one, other = shared_executor(max_workers=2), shared_executor()
    assert one.executor is other.executor
    assert one.submit(square, 3).result(BOUND) == 9
    assert other.submit(square, 4).result(BOUND) == 16
    assert processes_of(one) == processes_of(other)
    assert one.stats().finished == 2


def test_it_is_an_executor_like_any_other() -> None:
    executor = shared_executor(max_workers=2)
    assert isinstance(executor, PreforkExecutor)
    assert isinstance(executor, ProcessPoolExecutor)
    assert executor._max_workers == 2
    assert list(executor.map(square, range(100))) == [n * n for n in range(100)]
    assert list(executor.map(square, range(9), buffersize=2, chunksize=2))[-1] == 64
    assert list(executor.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]
    with pytest.raises(TypeError, match="fn must be callable, not int"):
        executor.submit(3)  # type: ignore[arg-type]
    executor.start()
    executor.reload().result(BOUND)


def test_nothing_is_started_before_there_is_a_task() -> None:
    executor = shared_executor()
    executor.with_options(retries=1)
    assert executor._executor_manager_thread is None


def test_it_may_be_shut_down_and_made_anew() -> None:
    executor = shared_executor(max_workers=2)
    executor.submit(square, 1).result(BOUND)
    before = processes_of(executor)
    shared.shutdown()
    assert not any(map(psutil.pid_exists, before))
    assert shared.shared_options() == {}
    # Who kept it has another pool, with the options that he named.
    assert executor.submit(square, 5).result(BOUND) == 25
    assert executor._max_workers == 2


# --- options ------------------------------------------------------------------------------------


def test_options_that_a_call_does_not_name_are_as_others_have_named_them() -> None:
    one = shared_executor(max_workers=3, idle_timeout=60.0)
    pool = one.executor
    for options in ({}, {"max_workers": 3}, {"idle_timeout": 60.0}, {"min_spare_workers": 1}):
        assert shared_executor(**options).executor is pool
    other = shared_executor(max_tasks_per_child=100)
    assert other.executor is one.executor is not pool
    assert one._max_workers == 3
    assert one._max_tasks_per_child == 100
    assert shared_executor(max_workers=3, idle_timeout=60.0).executor is other.executor


def test_the_latest_who_names_an_option_wins() -> None:
    one = shared_executor(max_workers=3)
    other = shared_executor(max_workers=4)
    assert one._max_workers == other._max_workers == 4
    assert shared.shared_options() == {"max_workers": 4}


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({}, {"max_workers": None}),
        ({"max_workers": None}, {"max_workers": CPUS}),
        ({"mp_context": "spawn"}, {"mp_context": multiprocessing.get_context("spawn")}),
        ({"initargs": [1, 2]}, {"initargs": (1, 2)}),
        ({"preload": ["json"]}, {"preload": ("json",)}),
        ({}, {"retries": 3, "task_timeout": 5}),
        ({"initializer": print}, {"initializer": print}),
    ],
    ids=range(7),
)
def test_options_that_mean_the_same_are_the_same(one: Any, same: Any) -> None:
    pool = shared_executor(**one).executor
    assert shared_executor(**{**one, **same, "retries": 0, "task_timeout": None}).executor is pool


def test_limits_that_contradict_earlier_ones_replace_them() -> None:
    shared_executor(max_workers=8, min_spare_workers=4, idle_timeout=60.0)
    executor = shared_executor(max_workers=2)
    assert shared.shared_options() == {"max_workers": 2, "idle_timeout": 60.0}
    assert executor._max_workers == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"workers": 3},
            TypeError,
            "shared_executor.. has no option 'workers'; there are cpu_a",
        ),
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 2.0}, TypeError, "max_workers must be an int, not float"),
        ({"max_tasks_per_child": "x"}, TypeError, "max_tasks_per_child must be an int, not str"),
        ({"initargs": 3}, TypeError, "initargs must be iterable, not int"),
        ({"preload": [3]}, TypeError, "preload must hold module names, not int"),
        ({"task_timeout": -1}, ValueError, "task_timeout must be above 0 seconds"),
        ({"retries": -1}, ValueError, "retries must be at least 0"),
        ({"max_workers": 2, "min_spare_workers": 3}, ValueError, "min_spare_workers .3. must not"),
    ],
    ids=str,
)
def test_bad_options_are_errors_at_the_call_and_change_nothing(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for before in ({}, {"max_workers": 2}):
        pool = shared_executor(**before).executor
        named = shared.shared_options()
        with pytest.raises(error, match=message):
            shared_executor(**options)
        assert shared_executor().executor is pool
        assert shared.shared_options() == named
        shared.shutdown()


def test_limits_of_tasks_are_each_users_own(tmp_path: Path) -> None:
    hurried, other = shared_executor(task_timeout=0.05, max_workers=2), shared_executor()
    gate = str(tmp_path / "gate")
    waits = other.submit(wait_for, gate)
    with pytest.raises(TaskTimeout):
        hurried.submit(wait_for, gate).result(BOUND)
    (tmp_path / "gate").touch()
    assert waits.result(BOUND)
    view = other.with_options(timeout=0.05)
    assert isinstance(view, SharedExecutor)
    with pytest.raises(TaskTimeout):
        view.submit(time.sleep, BOUND).result(BOUND)
    with pytest.raises(ValueError, match="timeout must be above 0"):
        other.with_options(timeout=0)


def test_all_that_a_task_may_ask_for_can_be_asked_for(tmp_path: Path) -> None:
    executor = shared_executor(max_workers=1, resources={"gpu": 1}, max_backlog=2)
    view = executor.with_options(resources={"gpu": 1}, priority=2)
    assert view.submit(held_resources).result(BOUND) == {"gpu": (0,)}
    assert executor.submit(square, executor.submit(square, 2)).result(BOUND) == 16
    with pytest.raises(ValueError, match="gpus"):
        executor.with_options(resources={"gpus": 1})
    running = Running(executor, tmp_path)
    with pytest.raises(BacklogFull):
        list(map(executor.submit_nowait, [square] * 10, range(10)))
    running.let_go()


def test_bounds_of_memory_that_contradict_earlier_ones_replace_those_alone() -> None:
    shared_executor(max_workers=2, max_memory_per_child=2**40)
    shared_executor(max_memory=2**30)
    assert shared.shared_options() == {"max_workers": 2, "max_memory": 2**30}


# --- another pool -------------------------------------------------------------------------------


def test_a_pool_that_is_replaced_finishes_its_tasks_and_ends(tmp_path: Path) -> None:
    executor = shared_executor(max_workers=1)
    running = Running(executor, tmp_path)
    waiting = [executor.submit(noted_pid, tmp_path / "ran", n) for n in range(20)]
    old = processes_of(executor)
    other = shared_executor(max_workers=2)
    # Nobody waits for the old tasks.
    assert executor.submit(os.getpid).result(BOUND) not in old
    assert other.submit(square, 2).result(BOUND) == 4
    assert not running.future.done()
    running.let_go()
    assert running.future.result(BOUND) in old
    assert {future.result(BOUND) for future in waiting} == old
    assert lines(tmp_path / "ran") == [str(n) for n in range(20)]
    eventually(lambda: not any(map(psutil.pid_exists, old)), "the old pool ends")


def noted_pid(path: Path, number: int) -> int:
    note(str(path), str(number))
    return os.getpid()


def test_a_task_in_a_pool_that_was_replaced_can_be_aborted(tmp_path: Path) -> None:
    executor = shared_executor(max_workers=1)
    running = Running(executor, tmp_path)
    shared_executor(max_workers=2)
    assert executor.abort(running.future)
    with pytest.raises(TaskAborted):
        running.future.result(BOUND)
    assert not executor.abort(running.future)


def test_abort_refuses_what_is_not_a_task_of_it() -> None:
    executor = shared_executor(max_workers=1)
    with pytest.raises(TypeError, match="future must be a Future"):
        executor.abort(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this executor's"):
        executor.abort(concurrent.futures.Future())


def test_the_pool_that_one_holds_on_to_takes_his_tasks(tmp_path: Path) -> None:
    held = shared_executor(max_workers=1).executor
    held.submit(square, 1).result(BOUND)
    before = processes_of(held)
    shared_executor(max_workers=2).submit(square, 1).result(BOUND)
    assert held.submit(os.getpid).result(BOUND) in before


def test_a_map_goes_on_in_the_pool_that_replaces_its_own() -> None:
    results = shared_executor(max_workers=1).map(os_pid_of, range(40), buffersize=2)
    first = next(results)
    shared_executor(max_workers=2)
    rest = list(results)
    assert [number for number, _ in [first, *rest]] == list(range(40))
    assert rest[-1][1] != first[1]


def os_pid_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def test_hooks_for_yells_are_kept_over_pools() -> None:
    heard: list[int] = []
    executor = shared_executor(max_workers=1)
    executor.add_yell_hook(int, lambda _, number: heard.append(number))
    executor.submit(yell, 1).result(BOUND)
    shared_executor(max_workers=2)
    executor.submit(yell, 2).result(BOUND)
    assert heard == [1, 2]


def test_many_threads_ask_and_submit_and_no_task_is_lost_nor_run_twice(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def use(mine: int) -> None:
        try:
            futures = []
            for turn in range(8):
                executor = shared_executor(max_workers=1 + (mine + turn) % 3)
                futures += [executor.submit(noted_pid, tmp_path / str(mine), n) for n in range(5)]
                futures += executor.submit_all((square, n) for n in range(5))
            for future in futures:
                future.result(BOUND)
            executor.shutdown()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    assert failures == []
    for number in range(4):
        assert sorted(lines(tmp_path / str(number))) == sorted([*"01234"] * 8)
    del threads
    eventually(lambda: len(io_threads()) == 1, "the others end")


def io_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefork-executor-io"]


# --- one user's end -----------------------------------------------------------------------------


def test_who_shuts_down_waits_for_his_own_tasks_and_leaves_the_others(tmp_path: Path) -> None:
    other = shared_executor(max_workers=2)
    running = Running(other, tmp_path)
    with shared_executor() as mine:
        futures = [mine.submit(square, n) for n in range(20)]
    assert all(future.done() for future in futures)
    assert not running.future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        mine.submit(square, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        mine.map(square, [1])
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        mine.with_options(retries=1).submit(square, 1)
    assert other.submit(square, 3).result(BOUND) == 9
    running.let_go()
    assert running.future.result(BOUND)


def test_who_cancels_at_his_shutdown_cancels_nothing_of_others(tmp_path: Path) -> None:
    other, mine = shared_executor(max_workers=1), shared_executor()
    running = Running(other, tmp_path)
    theirs = [other.submit(square, n) for n in range(20)]
    futures = [mine.submit(square, n) for n in range(20)]
    mine.shutdown(wait=False, cancel_futures=True)
    running.let_go()
    assert [future.result(BOUND) for future in theirs] == [n * n for n in range(20)]
    assert mine.join(BOUND)
    assert any(future.cancelled() for future in futures)


def test_a_view_ends_with_the_one_it_is_of() -> None:
    executor = shared_executor(max_workers=1)
    view = executor.with_options(retries=1)
    future = view.submit(time.sleep, 0.1)
    executor.shutdown()
    assert future.done()
    again = shared_executor()
    again.with_options(retries=2).shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        again.submit(square, 1)


def test_ctrl_c_in_a_with_block_ends_the_users_own_tasks(tmp_path: Path) -> None:
    other = shared_executor(max_workers=2)
    running = Running(other, tmp_path)
    mine = shared_executor()
    future = mine.submit(run_until, str(tmp_path / "never"), str(tmp_path / "mine"))
    eventually(lambda: lines(tmp_path / "mine"))
    with pytest.raises(KeyboardInterrupt), mine:
        raise KeyboardInterrupt
    assert isinstance(future.exception(BOUND), TaskAborted)
    running.let_go()
    assert running.future.result(BOUND)


def test_a_callback_may_shut_down() -> None:
    executor = shared_executor(max_workers=1)
    told = threading.Event()

    def end(_: object) -> None:
        executor.submit(square, 2)
        executor.shutdown()
        told.set()

    executor.submit(square, 1).add_done_callback(end)
    assert told.wait(BOUND)
    assert shared_executor().submit(square, 3).result(BOUND) == 9


def test_what_has_ended_is_not_kept() -> None:
    executor = shared_executor(max_workers=1)
    for future in [executor.submit(square, n) for n in range(50)]:
        future.result(BOUND)
    eventually(lambda: not executor._unfinished)


# --- errors -----------------------------------------------------------------------------------


def test_the_call_after_a_broken_pool_has_another(tmp_path: Path) -> None:
    options: Any = {"initializer": os.listdir, "initargs": (tmp_path / "there",)}
    other, executor = shared_executor(), shared_executor(**options)
    with pytest.raises(BrokenProcessPool, match=r"initializer failed.*No such file"):
        executor.submit(square, 1).result(BOUND)
    eventually(lambda: executor._broken)
    # Until somebody asks again, all are told why.
    with pytest.raises(BrokenProcessPool, match="initializer failed"):
        other.submit(square, 1)
    assert shared_executor().submit(square, 2).result(BOUND) == 4
    assert other.submit(square, 3).result(BOUND) == 9
    (tmp_path / "there").mkdir()
    assert shared_executor(**options).submit(square, 4).result(BOUND) == 16


def test_a_pool_that_somebody_has_shut_down_by_itself_is_replaced() -> None:
    executor = shared_executor(max_workers=1)
    executor.submit(square, 1).result(BOUND)
    executor.executor.shutdown()
    assert executor.submit(square, 2).result(BOUND) == 4
    assert executor._max_workers == 1


# --- forks and ends -----------------------------------------------------------------------------


def test_a_fork_has_a_pool_of_its_own_with_the_users_options(tmp_path: Path) -> None:
    printed = run_script(tmp_path, program_text("shared_and_fork"))
    assert printed.splitlines() == ["child: 9, own pool, 3", "parent: 16, same pool, 3"]


def test_a_task_may_use_a_shared_pool_which_is_its_workers_own() -> None:
    executor = shared_executor(max_workers=1, mp_context="fork")
    outer, inner = executor.submit(pids_of_nested).result(BOUND)
    assert len({outer, inner, executor.submit(os.getpid).result(BOUND)}) == 2
    assert outer != inner


def pids_of_nested() -> tuple[int, int]:
    try:
        return os.getpid(), shared_executor(max_workers=1).submit(os.getpid).result(BOUND)
    finally:
        shared.shutdown()


def test_the_program_finishes_all_shared_work_before_it_ends(tmp_path: Path) -> None:
    printed = run_script(tmp_path, program_text("shared_at_exit"))
    assert printed.splitlines() == [
        "at exit: cannot schedule new futures after interpreter shutdown"
    ]
    assert sorted(lines(tmp_path / "ran"), key=int) == [str(n) for n in range(30)]


def test_asking_costs_little_and_so_does_submitting() -> None:
    executor, plain = shared_executor(max_workers=1), shared_executor().executor
    list(executor.map(square, range(100)))
    ask = functools.partial(shared_executor, max_workers=1)
    pool = executor.executor
    for _ in range(1000):
        ask()
    assert executor.executor is pool is plain
