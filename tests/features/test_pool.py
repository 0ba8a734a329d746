"""`Pool`: what programs written for multiprocessing.Pool find, and what they gain."""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import multiprocessing
import multiprocessing.pool
import operator
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from typing import Any

import pytest
from light_tasks import (
    die,
    end_at_three,
    fail_at_three,
    noted,
    power,
    run_until,
    square,
    wait_at_zero,
)
from scripts import program_text, run_script
from waiting import BOUND, eventually

import prefork_executor.pool
from prefork_executor import Pool, PreforkExecutor, TaskAborted, TaskTimeout, WorkerDied, yell
from prefork_executor.integrations.progress import progress_map

FOREVER = 3600.0


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def die_at_three(x: int) -> int:
    if x == 3:
        die()
    return x


def raise_timeout(_: object = None) -> None:
    raise TimeoutError("of the task itself")


def make_lock() -> Any:
    return threading.Lock()


def begin_and_sleep(path: str) -> None:
    noted(path, "begun")
    time.sleep(FOREVER)


def add_to_global(x: int) -> int:
    return x + _added


_added = 0


def set_global(x: int) -> None:
    global _added
    _added = x


class Result:
    pass


def make_result(_: object) -> Result:
    return Result()


def all_of(results: Any) -> list[object]:
    """What an iterator gives, an error as its type, to the very end."""
    found: list[object] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:
            found.append(type(error))


# --- the same as multiprocessing.Pool -----------------------------------------------------------


def test_it_is_one(pool: Pool) -> None:
    assert isinstance(pool, multiprocessing.pool.Pool)
    result, several = pool.apply_async(square, (3,)), pool.map_async(square, [3])
    assert isinstance(result, multiprocessing.pool.AsyncResult)
    assert isinstance(several, multiprocessing.pool.MapResult)
    assert isinstance(pool.imap(square, []), multiprocessing.pool.IMapIterator)
    assert isinstance(pool.imap_unordered(square, []), multiprocessing.pool.IMapUnorderedIterator)


OF_A_POOL = (
    *("__init__", "apply", "apply_async", "map", "map_async", "starmap", "starmap_async"),
    *("imap", "imap_unordered", "close", "terminate", "join", "__enter__", "__exit__"),
)
OF_RESULTS = ("get", "wait", "ready", "successful", "next")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Pool", name) for name in OF_A_POOL]
    + [(kind, name) for kind in ("AsyncResult", "MapResult") for name in OF_RESULTS[:-1]]
    + [(kind, "next") for kind in ("IMapIterator", "IMapUnorderedIterator")],
)
def test_what_the_original_takes_is_taken(kind: str, name: str) -> None:
    ours, theirs = (
        [
            (parameter.name, parameter.default, parameter.kind)
            for parameter in inspect.signature(
                getattr(getattr(module, kind), name)
            ).parameters.values()
        ]
        for module in (prefork_executor.pool, multiprocessing.pool)
    )
    assert ours[: len(theirs)] == theirs
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    assert all(more[2] in by_name for more in ours[len(theirs) :])


PAIRS = [(x, x % 3) for x in range(20)]
METHODS: dict[str, Callable[[Any], object]] = {
    "apply": lambda pool: pool.apply(power, (2,), {"exponent": 5}),
    "apply_async": lambda pool: pool.apply_async(power, (2, 5)).get(BOUND),
    "map": lambda pool: pool.map(square, range(20)),
    "map of a generator": lambda pool: pool.map(square, iter(range(20))),
    "map, chunksize": lambda pool: pool.map(square, range(20), 3),
    "map of nothing": lambda pool: pool.map(square, []),
    "map of one": lambda pool: pool.map(square, [5], 100),
    "map_async": lambda pool: pool.map_async(square, range(20), 1).get(BOUND),
    "starmap": lambda pool: pool.starmap(power, PAIRS),
    "starmap, chunksize": lambda pool: pool.starmap(power, iter(PAIRS), chunksize=7),
    "starmap, uneven": lambda pool: pool.starmap(power, [(2, 3), [4]], chunksize=2),
    "starmap_async": lambda pool: pool.starmap_async(power, PAIRS, 1).get(),
    "imap": lambda pool: list(pool.imap(square, range(20))),
    "imap, chunksize": lambda pool: list(pool.imap(square, range(20), chunksize=3)),
    "imap of nothing": lambda pool: list(pool.imap(square, iter(()))),
    "imap_unordered": lambda pool: sorted(pool.imap_unordered(square, range(20))),
    "imap_unordered, chunksize": lambda pool: sorted(pool.imap_unordered(square, range(20), 3)),
    "imap with a failure": lambda pool: all_of(pool.imap(fail_at_three, range(6))),
}


@pytest.fixture(scope="module")
def of_the_original() -> dict[str, object]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = {name: method(pool) for name, method in METHODS.items()}
    pool.join()
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_what_the_original_gives(
    of_the_original: dict[str, object], pool: Pool, name: str
) -> None:
    assert METHODS[name](pool) == of_the_original[name]


def test_it_works_by_every_start_method(start_method: str) -> None:
    context = multiprocessing.get_context(start_method)
    with Pool(2, set_global, (5,), context=context) as pool:
        assert pool.map(add_to_global, range(10)) == list(range(5, 15))
        assert list(pool.imap(add_to_global, range(10), 2)) == list(range(5, 15))
        assert pool.apply(add_to_global, (1,)) == 6


def test_a_callback_is_called_before_the_result_is_ready(pool: Pool) -> None:
    called: list[object] = []
    pool.apply_async(square, (3,), callback=called.append).wait()
    pool.map_async(square, range(3), callback=called.append).wait()
    pool.starmap_async(power, [(2, 3)], callback=called.append).get()
    pool.apply_async(fail_at_three, (3,), callback=called.append).wait()
    assert called == [9, [0, 1, 4], [8]]


def test_an_error_callback_is_called_with_the_error(pool: Pool) -> None:
    called: list[BaseException] = []
    result = pool.apply_async(fail_at_three, (3,), error_callback=called.append)
    with pytest.raises(KeyError) as raised:
        result.get()
    pool.map_async(fail_at_three, range(9), error_callback=called.append, chunksize=1).wait()
    pool.map_async(fail_at_three, range(3), error_callback=called.append).wait()
    assert called[0] is raised.value
    assert [type(error) for error in called] == [KeyError, KeyError]


def test_a_callback_that_raises_holds_nothing_up(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    def complain(_: object) -> None:
        raise ValueError("no")

    assert pool.apply_async(square, (3,), callback=complain).get(BOUND) == 9
    assert pool.map_async(square, [3], callback=complain).get(BOUND) == [9]
    with pytest.raises(KeyError):
        pool.apply_async(fail_at_three, (3,), error_callback=complain).get(BOUND)
    assert pool.apply(square, (4,)) == 16
    assert "ValueError: no" in caplog.text


def test_a_callback_may_use_the_pool(pool: Pool) -> None:
    results: list[int] = []
    done = threading.Event()

    def go_on(result: int) -> None:
        results.append(result)
        if len(results) < 5:
            pool.apply_async(square, (result,), callback=go_on)
        else:
            done.set()

    pool.apply_async(square, (2,), callback=go_on)
    assert done.wait(BOUND)
    assert results == [4, 16, 256, 65536, 65536**2]


def test_a_result_says_how_it_stands(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    one = pool.apply_async(wait_at_zero, (str(gate), 0))
    several = pool.starmap_async(wait_at_zero, [(str(gate), x) for x in (1, 0, 2)], 1)
    for result in (one, several):
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        result.wait(0.01)
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout=0.01)
    eventually(lambda: several._number_left == 2)
    gate.touch()
    for result in (one, several):
        result.wait()
        assert result.ready()
        assert result.successful()
    failed = pool.map_async(fail_at_three, range(4))
    failed.wait(BOUND)
    assert not failed.successful()


def test_a_timeout_error_of_the_task_is_the_tasks_own(pool: Pool) -> None:
    with pytest.raises(TimeoutError, match="of the task itself"):
        pool.apply_async(raise_timeout).get(BOUND)
    with pytest.raises(TimeoutError, match="of the task itself"):
        pool.map(raise_timeout, [1])
    with pytest.raises(TimeoutError, match="of the task itself"):
        pool.imap(raise_timeout, [1]).next(BOUND)


def test_an_iterators_next_takes_a_timeout_and_goes_on(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = functools.partial(wait_at_zero, str(gate))
    for results in (pool.imap(task, [0, 1]), pool.imap(task, [0, 1], 2)):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.01)
    unordered = pool.imap_unordered(task, [0, 1])
    gate.touch()
    assert list(results) == [0, 1]
    assert sorted(unordered) == [0, 1]


def test_a_map_fails_when_all_of_its_tasks_have_ended(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    result = pool.map_async(run_or_fail, [("", ""), (str(gate), str(tmp_path / "started"))], 1)
    eventually((tmp_path / "started").exists)
    assert not result.ready()
    gate.touch()
    with pytest.raises(ZeroDivisionError):
        result.get(BOUND)


def run_or_fail(paths: tuple[str, str]) -> float:
    return run_until(*paths) if paths[0] else 1 / 0


def test_a_result_that_cannot_be_pickled_is_a_maybe_encoding_error(pool: Pool) -> None:
    called: list[Any] = []
    result = pool.apply_async(make_lock, error_callback=called.append)
    with pytest.raises(MaybeEncodingError, match="Error sending result: '<unlocked") as raised:
        result.get()
    assert "cannot pickle" in raised.value.exc
    assert raised.value.value.startswith("<unlocked _thread.lock")
    assert type(called[0]) is MaybeEncodingError
    for call in (pool.map, pool.imap):
        with pytest.raises(MaybeEncodingError):
            list(call(make_lock_for, [1]))
    assert pool.apply(square, (3,)) == 9


def make_lock_for(_: object) -> Any:
    return threading.Lock()


class Stubborn:
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot pickle")


def test_an_argument_that_cannot_be_pickled_raises_what_pickle_raised(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="cannot pickle") as raised:
        pool.map(square, [Stubborn()] * 10)
    assert "light_tasks.square cannot be sent to a worker" in "".join(raised.value.__notes__)
    with pytest.raises(RuntimeError):
        pool.apply(square, (Stubborn(),))
    with pytest.raises(RuntimeError):
        next(pool.imap(square, [Stubborn()]))
    assert pool.apply(square, (3,)) == 9


def broken_iterable() -> Iterator[int]:
    yield from range(3)
    raise KeyError("the iterable")


def test_an_iterable_that_raises_does_so_at_its_place(pool: Pool) -> None:
    with pytest.raises(KeyError, match="the iterable"):
        pool.map(square, broken_iterable())
    assert all_of(pool.imap(square, broken_iterable())) == [0, 1, 4, KeyError]
    assert all_of(pool.imap(square, broken_iterable(), 2)) == [0, 1, KeyError]
    unordered = all_of(pool.imap_unordered(square, broken_iterable()))
    assert sorted(map(str, unordered)) == sorted(map(str, [0, 1, 4, KeyError]))


def test_it_closes_and_joins(pool: Pool) -> None:
    results = [pool.apply_async(square, (x,)) for x in range(50)]
    iterator = pool.imap(square, range(50))
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    pool.close()
    pool.join()
    assert [result.get(0) for result in results] == list(iterator)
    for use in (pool.apply, pool.apply_async, pool.imap, pool.map):
        with pytest.raises(ValueError, match="Pool not running"):
            use(square, [1])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass


def test_an_imap_whose_results_nobody_takes_is_run(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "noted"
    pool.imap_unordered(functools.partial(noted, str(path)), map(str, range(1000)))
    pool.imap(functools.partial(noted, str(path)), map(str, range(1000)), buffersize=1000)
    gc.collect()
    pool.close()
    pool.join()
    assert len(path.read_text().split()) >= 1000


def test_join_does_not_wait_for_whoever_takes_the_results(pool: Pool) -> None:
    results = pool.imap(square, range(100), buffersize=3)
    pool.close()
    pool.join()
    assert list(results) == [x * x for x in range(100)]


def test_terminate_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    pool = Pool(2)
    running = pool.apply_async(begin_and_sleep, (str(path),))
    mapped = pool.map_async(time.sleep, [FOREVER] * 1000, chunksize=1)
    iterator = pool.imap(time.sleep, itertools.repeat(FOREVER))
    eventually(path.exists)
    processes = pool._pool
    pool.terminate()
    pool.join()
    assert all(process.exitcode is not None for process in processes)
    for result in (running, mapped):
        with pytest.raises(Exception):  # noqa: B017, PT011 - there, they would wait for ever
            result.get(BOUND)
    assert RuntimeError in all_of(iterator)


def test_a_callback_may_terminate_the_pool(tmp_path: Path) -> None:
    begun, terminated = tmp_path / "begun", threading.Event()
    pool = Pool(2)

    def give_up(_: object) -> None:
        pool.terminate()
        terminated.set()

    running = pool.apply_async(begin_and_sleep, (str(begun),))
    eventually(begun.exists)
    pool.apply_async(fail_at_three, (3,), error_callback=give_up)
    assert terminated.wait(BOUND)
    pool.join()
    with pytest.raises(BrokenProcessPool):
        running.get(BOUND)


def test_terminate_waits_for_no_iterable() -> None:
    arrived = threading.Event()

    def one_and_then_nothing() -> Iterator[int]:
        yield 3
        arrived.wait(BOUND)

    pool = Pool(1)
    results = pool.imap(square, one_and_then_nothing())
    assert next(results) == 9
    pool.terminate()
    pool.join()
    with pytest.raises(RuntimeError, match="terminated before all of the iterable"):
        next(results)
    assert not arrived.is_set()
    arrived.set()
    eventually(lambda: not any("feeder" in thread.name for thread in threading.enumerate()))


def test_with_terminates() -> None:
    with Pool(1) as pool:
        pool.apply_async(time.sleep, (FOREVER,))
    assert pool._state == multiprocessing.pool.TERMINATE


def test_a_pool_that_nobody_has_closed_is_warned_of() -> None:
    pool = Pool(1)
    pool.terminate()
    pool._state = multiprocessing.pool.RUN
    pools = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        pools.clear()


@pytest.mark.parametrize("method", ["map_async", "imap", "imap_unordered"])
def test_a_pool_that_nobody_refers_to_ends_when_its_work_is_done(method: str) -> None:
    pools = [Pool(1)]
    processes = pools[0]._pool
    results = getattr(pools[0], method)(square, [3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pools.clear()
        assert list(results.get(BOUND) if method == "map_async" else results) == [9]
        eventually(lambda: not processes[0].is_alive())


@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
def test_ctrl_c_ends_the_wait_for_results(method: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def interrupt() -> None:
        eventually(begun.exists)
        os.kill(os.getpid(), signal.SIGINT)

    with Pool(2) as pool:
        processes = pool._pool
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            list(getattr(pool, method)(begin_and_sleep, [str(begun)] * 10, 1))
    eventually(lambda: not any(process.is_alive() for process in processes))


def map_in_a_pool(_: object) -> list[int]:
    with Pool(2) as pool:
        return pool.map(square, range(3))


def test_a_task_may_have_a_pool_of_its_own(pool: Pool) -> None:
    assert pool.apply(map_in_a_pool, (None,)) == [0, 1, 4]


def test_programs_read_what_they_know() -> None:
    with Pool(3, maxtasksperchild=5) as pool:
        pids = {process.pid for process in pool._pool}
        assert len(pids) == pool._processes == 3
        assert pool._state == multiprocessing.pool.RUN
        assert all(process.is_alive() for process in pool._pool)
        assert "state=RUN" in repr(pool)
        pool.map(square, range(100), chunksize=1)
        eventually(lambda: pids.isdisjoint(process.pid for process in pool._pool))


def test_its_workers_are_there_from_the_beginning_and_stay(pool: Pool) -> None:
    pids = {process.pid for process in pool._pool}
    for _ in range(20):
        pool.map(square, range(10))
    assert {process.pid for process in pool._pool} == pids
    assert len(pids) == 2


def test_it_refuses_what_the_original_refuses() -> None:
    for processes in (0, -1):
        with pytest.raises(ValueError, match="Number of processes must be at least 1"):
            Pool(processes)
    for most in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            Pool(1, maxtasksperchild=most)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer must be callable"):
        Pool(1, 3)  # type: ignore[arg-type]


def test_it_refuses_bad_arguments_at_the_call(pool: Pool) -> None:
    with pytest.raises(ValueError, match="Chunksize must be 1"):
        pool.imap(square, [], 0)
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        pool.map(square, [1], 0)
    with pytest.raises(ValueError, match="buffersize"):
        pool.imap(square, [], buffersize=0)
    with pytest.raises(TypeError, match="func must be callable, not int"):
        pool.imap(3, [])  # type: ignore[arg-type]


def test_it_cannot_be_pickled(pool: Pool) -> None:
    with pytest.raises(NotImplementedError):
        pool.apply(square, (pool,))


def test_ignored_signals_are_those_at_its_construction() -> None:
    # The idiom by which programs keep Ctrl-C from their workers.
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Pool(1, context="fork") as pool:
            signal.signal(signal.SIGUSR1, before)
            assert pool.apply(signal.getsignal, (signal.SIGUSR1,)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_program_that_ends_ends_its_pools(tmp_path: Path) -> None:
    source = program_text("pool_at_exit")
    assert run_script(tmp_path, source) == "False\n"


def test_what_tasks_have_printed_is_not_lost_with_the_pool(tmp_path: Path) -> None:
    source = """
        from prefork_executor import Pool

        if __name__ == "__main__":
            with Pool(2) as pool:
                pool.map(print, ["said"] * 20, 1)
            pool = Pool(2)
            pool.map(print, ["said"] * 20, 1)
        """
    assert run_script(tmp_path, source).count("said") == 40


def test_a_fork_of_the_program_leaves_the_pool_alone(tmp_path: Path) -> None:
    source = program_text("pool_and_fork")
    assert run_script(tmp_path, source) == "2\n"


def test_importing_the_package_imports_no_pool(tmp_path: Path) -> None:
    source = """
        import sys, prefork_executor
        assert "multiprocessing.pool" not in sys.modules
        from prefork_executor import Pool
        print(Pool.__name__)
        """
    assert run_script(tmp_path, source) == "Pool\n"


# --- deaths -------------------------------------------------------------------------------------


def test_a_death_costs_its_own_task(pool: Pool) -> None:
    dying = pool.apply_async(die)
    with pytest.raises(WorkerDied):
        dying.get(BOUND)
    with pytest.raises(WorkerDied):
        pool.apply(die)
    assert pool.apply(square, (3,)) == 9


@pytest.mark.parametrize("chunksize", [1, 2, None])
def test_a_death_in_a_map_costs_the_map(pool: Pool, chunksize: int | None) -> None:
    called: list[BaseException] = []
    for call in (
        lambda: pool.map(die_at_three, range(6), chunksize),
        lambda: pool.map_async(die_at_three, range(6), chunksize, error_callback=called.append).get(
            BOUND
        ),
        lambda: pool.starmap(die_at_three, [(x,) for x in range(6)], chunksize),
    ):
        with pytest.raises(WorkerDied):
            call()
    assert [type(error) for error in called] == [WorkerDied]
    assert pool.map(die_at_three, range(3)) == [0, 1, 2]


def test_a_death_in_an_imap_costs_its_item(pool: Pool) -> None:
    died: list[object] = [0, 1, 2, WorkerDied, 4, 5]
    assert all_of(pool.imap(die_at_three, range(6))) == died
    assert sorted(map(str, all_of(pool.imap_unordered(die_at_three, range(6))))) == sorted(
        map(str, died)
    )
    assert all_of(pool.imap(die_at_three, range(6), 2)) == [0, 1, WorkerDied, 4, 5]


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_a_stop_iteration_of_a_task_does_not_end_an_imap(
    pool: Pool, name: str, chunksize: int
) -> None:
    results = getattr(pool, name)(
        functools.partial(end_at_three, StopIteration), range(6), chunksize
    )
    with pytest.raises(RuntimeError, match="a task raised StopIteration") as caught:
        list(results)
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_death_is_seen_in_its_processes(pool: Pool) -> None:
    before = {process.pid for process in pool._pool}
    with pytest.raises(WorkerDied):
        pool.apply(die)
    eventually(lambda: {process.pid for process in pool._pool} != before)


# --- what only this one can ---------------------------------------------------------------------


def test_lambdas_work(pool: Pool) -> None:
    assert pool.map(lambda x: x + 1, range(3)) == [1, 2, 3]
    assert list(pool.imap(lambda x: x + 1, range(3), 2)) == [1, 2, 3]
    assert pool.apply(lambda: 3) == 3
    assert pool.apply(lambda: lambda: 4)() == 4


def test_it_can_be_elastic() -> None:
    with Pool(4, idle_timeout=0.05) as pool:
        assert len(pool._pool) == 1
        pool.map(time.sleep, [0.2] * 8, 1)
        assert pool.stats().peak_workers == 4
        eventually(lambda: len(pool._pool) == 1)


def test_time_limits_and_retries_are_for_tasks_of_a_view(pool: Pool) -> None:
    hurried = pool.with_options(timeout=0.2, retries=1)
    with pytest.raises(TaskTimeout):
        hurried.apply(time.sleep, (FOREVER,))
    eventually(lambda: pool.stats().deaths == 2, "each of its runs has ended a worker")
    assert all_of(hurried.imap(time.sleep, [0, FOREVER, 0])) == [None, TaskTimeout, None]
    assert pool.apply(square, (3,)) == 9
    hurried.close()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(square, (3,))
    pool.join()


def test_results_can_be_aborted(pool: Pool) -> None:
    one = pool.apply_async(time.sleep, (FOREVER,))
    several = pool.map_async(time.sleep, [FOREVER] * 4, 1)
    iterator = pool.imap(time.sleep, itertools.repeat(FOREVER))
    assert pool.abort(one)
    assert pool.abort(several)
    assert pool.abort(iterator)
    for result in (one, several):
        with pytest.raises(TaskAborted):
            result.get(BOUND)
        assert not pool.abort(result)
    assert set(all_of(iterator)) == {TaskAborted}
    assert pool.apply(square, (3,)) == 9


def test_an_imap_can_be_aborted_whose_iterable_raises_then(pool: Pool) -> None:
    gate = threading.Event()

    def one_and_then_an_error() -> Iterator[float]:
        yield FOREVER
        gate.wait(BOUND)
        raise KeyError("the iterable")

    results = pool.imap(time.sleep, one_and_then_an_error())
    eventually(lambda: pool.stats().in_flight)
    assert pool.abort(results)
    gate.set()
    assert all_of(results) == [TaskAborted, KeyError]


def test_tasks_may_yell() -> None:
    heard: list[object] = []
    with Pool(1, on_yell=lambda _, data: heard.append(data)) as pool:
        pool.map(yell, range(3))
    assert heard == [0, 1, 2]


def test_it_is_counted_and_recorded(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with pool.record(path):
        pool.map(square, range(10), 1)
    assert pool.stats().finished == 10
    assert "square" in path.read_text()


class Bar:
    def __init__(self) -> None:
        self.n = 0.0

    def update(self, n: float) -> None:
        self.n += n

    def close(self) -> None:
        pass


def test_there_are_progress_bars(pool: Pool) -> None:
    bar = Bar()
    assert list(progress_map(pool.executor, square, [2, 3], bar=bar)) == [4, 9]
    assert bar.n == 2
    for results in (pool.imap(square, range(5)), pool.imap_unordered(square, range(5), 2)):
        assert operator.length_hint(results) == 5
        next(results)
        assert operator.length_hint(results) == 4
    assert operator.length_hint(pool.imap(square, (x for x in range(5))), -1) == -1


# --- endless iterables --------------------------------------------------------------------------


class Numbers:
    """Counts, and knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read = number
            yield number


METHODS_OF_ITERATORS = ("imap", "imap_unordered")


@pytest.mark.parametrize("method", METHODS_OF_ITERATORS)
@pytest.mark.parametrize("chunksize", [1, 10])
def test_a_buffersize_bounds_what_is_read(pool: Pool, method: str, chunksize: int) -> None:
    numbers = Numbers()
    results = getattr(pool, method)(square, numbers, chunksize, buffersize=5)
    taken = list(itertools.islice(results, 100))
    # One task is under way from the iterable to the pool, and one from the pool to us.
    assert numbers.read <= 100 + 7 * chunksize
    assert len(taken) == 100
    time.sleep(0.05)
    assert numbers.read <= 100 + 7 * chunksize
    results.close()
    assert list(results) == []


@pytest.mark.parametrize("method", METHODS_OF_ITERATORS)
def test_an_endless_iterable_is_read_little_ahead_of_the_workers(
    pool: Pool, method: str, tmp_path: Path
) -> None:
    numbers = Numbers()
    gate = tmp_path / "gate"
    results = getattr(pool, method)(
        functools.partial(run_until, str(gate)), map(str, (tmp_path / "n" for _ in numbers))
    )
    eventually(lambda: numbers.read >= 7)
    time.sleep(0.05)
    assert numbers.read < 20
    gate.touch()
    next(results)
    results.close()


@pytest.mark.parametrize("method", METHODS_OF_ITERATORS)
@pytest.mark.parametrize("buffersize", [None, 50])
def test_one_slow_task_leaves_no_other_worker_idle(
    pool: Pool, method: str, buffersize: int | None, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    task = functools.partial(wait_at_zero, str(gate))
    results = getattr(pool, method)(task, itertools.count(), buffersize=buffersize)
    # All that the buffer has room for, while the first task is at work.
    eventually(lambda: pool.stats().finished >= (49 if method == "imap" else 40))
    gate.touch()
    assert 0 in results
    results.close()


def test_an_iterable_may_wait_for_the_results(pool: Pool) -> None:
    more = [1, 2, 3]
    arrived = threading.Semaphore(1)

    def one_after_the_other() -> Iterator[int]:
        for number in more:
            assert arrived.acquire(timeout=BOUND)
            yield number

    found = []
    for result in pool.imap(square, one_after_the_other()):
        found.append(result)
        arrived.release()
    assert found == [1, 4, 9]


@pytest.mark.parametrize("method", METHODS_OF_ITERATORS)
def test_closing_the_iterator_cancels_the_rest(method: str, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Pool(1) as pool:
        task = functools.partial(run_until, str(gate))
        results = getattr(pool, method)(task, itertools.repeat(str(started)))
        eventually(started.exists)
        results.close()
        gate.touch()
        pool.close()
        pool.join()
    assert len(started.read_text().split()) < 4


def test_an_iterator_with_a_buffersize_that_is_gone_cancels_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "noted"
    with Pool(1) as pool:
        results = pool.imap(
            functools.partial(noted, str(path)), itertools.repeat("x"), buffersize=3
        )
        next(results)
        del results
        gc.collect()
        pool.close()
        pool.join()
    assert 1 <= len(path.read_text().split()) <= 5


def test_results_that_nobody_can_take_are_not_kept(pool: Pool) -> None:
    numbers = Numbers()
    results = pool.imap_unordered(make_result, numbers)
    next(results)
    del results
    gc.collect()
    before = numbers.read
    eventually(lambda: numbers.read > before + 8_000)
    kept = sum(isinstance(thing, Result) for thing in gc.get_objects())
    assert kept < 3000
    pool.terminate()


# --- over an executor that exists ---------------------------------------------------------------


def test_it_works_over_an_executor_which_it_leaves_open() -> None:
    with PreforkExecutor(2) as executor:
        with Pool(executor=executor) as pool:
            assert pool._processes == 2
            for name, method in METHODS.items():
                assert method(pool) is not None, name
        assert executor.submit(square, 3).result() == 9
        pool = Pool(executor=executor.with_options(timeout=BOUND))
        result = pool.apply_async(square, (4,))
        pool.close()
        pool.join()
        assert result.get(0) == 16


def test_terminate_ends_only_tasks_of_its_own(tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    with PreforkExecutor(2) as executor:
        other = executor.submit(run_until, str(gate), str(tmp_path / "other"))
        with Pool(executor=executor) as pool:
            own = pool.apply_async(begin_and_sleep, (str(begun),))
            mapped = pool.map_async(time.sleep, [FOREVER] * 100, 1)
            fed = pool.imap(time.sleep, itertools.repeat(FOREVER))
            eventually(begun.exists)
        for result in (own, mapped):
            with pytest.raises(TaskAborted):
                result.get(BOUND)
        assert {*all_of(fed)} >= {RuntimeError}
        gate.touch()
        assert other.result(BOUND)


def test_terminate_ends_what_an_imap_has_running(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with PreforkExecutor(1) as executor:
        with Pool(executor=executor) as pool:
            results = pool.imap(begin_and_sleep, itertools.repeat(str(begun)))
            eventually(begun.exists)
        assert set(all_of(results)) >= {TaskAborted, RuntimeError}
        assert executor.submit(square, 3).result(BOUND) == 9


def test_any_executor_will_do() -> None:
    with ThreadPoolExecutor(2) as threads, Pool(executor=threads) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        assert sorted(pool.imap_unordered(square, range(5))) == [0, 1, 4, 9, 16]


def test_what_is_the_executors_cannot_be_given_beside_it() -> None:
    with PreforkExecutor(1) as executor:
        with pytest.raises(TypeError, match="initializer, retries cannot be given with executor="):
            Pool(2, square, executor=executor, retries=3)
        with Pool(7, executor=executor) as pool:
            assert pool._processes == 7


# --- CPython's own difference --------------------------------------------------------------------


def test_an_exception_has_its_remote_frames(pool: Pool) -> None:
    with pytest.raises(KeyError) as raised:
        pool.apply(fail_at_three, (3,))
    assert raised.traceback[-1].name == "fail_at_three"
