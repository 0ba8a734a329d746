"""The rows of comparison.py about what travels: functions, arrays, errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import comparison_tasks as tasks
import psutil
from comparison_pools import (
    DASK,
    INTERPRETERS,
    JOBLIB,
    LOKY,
    MPIRE,
    OURS,
    PEBBLE,
    STANDARD,
    Cell,
    check,
    feature,
    no,
    yes,
)
from comparison_waiting import settled, settled_value
from notes import REASON, noted
from performance_pools import Pool

DATA, ERRORS = "data", "errors"

# --- data --------------------------------------------------------------------------------------

lambdas = feature("lambdas", "lambdas, closures, functions of a notebook", DATA)


def notebook_function() -> Callable[[int], int]:
    """Defined in __main__ after the pool has started."""
    namespace = vars(sys.modules["__main__"])
    exec("def in_a_cell(number):\n    return number + 3", namespace)
    cell: Callable[[int], int] = namespace["in_a_cell"]
    return cell


def runs_lambdas(pool: Pool) -> bool:
    """Both."""
    pool.submit(tasks.pid)()
    functions = [tasks.adder(3), notebook_function()]
    return all(settled_value(lambda f=f: pool.submit(f, 4)()) == 7 for f in functions)


@lambdas.on()
def a_lambda(kind: type[Pool]) -> Cell:
    return check(runs_lambdas(kind()), yes())


@lambdas.on(MPIRE)
def a_lambda_by_dill(kind: type[Pool]) -> Cell:
    from mpire import WorkerPool

    pool = kind()
    if runs_lambdas(pool):
        return yes()
    pool.pool = WorkerPool(2, keep_alive=True, use_dill=True)  # type: ignore[attr-defined]
    return check(runs_lambdas(pool), yes("`use_dill`"))


arrays = feature("arrays", "a big array as argument passes through no pipe or socket", DATA)
results = feature("results", "a big array as result passes through no pipe or socket", DATA)
COUNT = 8 * tasks.MIB
SIZE = 8 * COUNT


class Traffic:
    """Bytes that this process and those it has started read, by calls that count."""

    def __init__(self) -> None:
        self._before = self._now()

    def _now(self) -> dict[int, int]:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        found = {process.pid: process.io_counters().read_chars for process in processes}
        return {**found, 0: psutil.net_io_counters(pernic=True)["lo"].bytes_recv}

    def cell(self) -> Cell:
        """What has carried an array of SIZE."""
        spent = {pid: count - self._before.get(pid, 0) for pid, count in self._now().items()}
        spent.pop(0)
        if sum(spent.values()) >= SIZE:
            return no("through a pipe")
        return yes()

    def cell_of_sockets(self) -> Cell:
        """The same of a pool that uses TCP. Others' traffic counts as well."""
        return check(self._now()[0] - self._before[0] < SIZE, yes(), "through TCP")


NO_NUMPY = "NumPy cannot be imported there"
MEANS = {OURS: "a memory file", JOBLIB: "a file that is mapped"}


@arrays.on()
def an_array_as_argument(kind: type[Pool]) -> Cell:
    pool = kind()
    array = tasks.zeros(COUNT)
    pool.many(tasks.length, [(array[:10],)] * 4)()
    traffic = Traffic()
    assert pool.submit(tasks.length, array)() == COUNT
    cell = traffic.cell_of_sockets() if kind.name == DASK else traffic.cell()
    return cell._replace(detail=cell.detail or MEANS.get(kind.name, ""))


@results.on()
def an_array_as_result(kind: type[Pool]) -> Cell:
    pool = kind()
    pool.many(tasks.zeros, [(10,)] * 4)()
    traffic = Traffic()
    assert len(pool.submit(tasks.zeros, COUNT)()) == COUNT
    cell = traffic.cell_of_sockets() if kind.name == DASK else traffic.cell()
    return cell._replace(detail=cell.detail or MEANS.get(kind.name, ""))


@arrays.on(INTERPRETERS)
def a_view_as_argument(kind: type[Pool]) -> Cell:
    """Where NumPy cannot be imported, there is still a memoryview."""
    pool = kind()
    if settled_value(pool.submit(tasks.zeros, 10)) is not None:
        return an_array_as_argument(kind)
    data = bytearray(COUNT)
    pool.submit(tasks.fill, memoryview(data))()
    shared = "but a `memoryview` is shared" if data[-1:] == b"x" else ""
    return no(", ".join(filter(None, (NO_NUMPY, shared))))


@results.on(INTERPRETERS)
def an_array_of_an_interpreter(kind: type[Pool]) -> Cell:
    error = settled(kind().submit(tasks.zeros, 10)).exception()
    return no(NO_NUMPY) if isinstance(error, ImportError) else an_array_as_result(kind)


preload = feature("preload", "data is loaded once, and shared copy-on-write", DATA)


@preload.on()
def what_the_program_has_loaded(kind: type[Pool]) -> Cell:
    tasks.LOADED.append("by the program")
    inherited = kind().submit(tasks.what_is_loaded)() == ["by the program"]
    return check(inherited, yes("what your program has loaded, with fork only"))


@preload.on(OURS)
def preloaded(kind: type[Pool]) -> Cell:
    import functools

    pool = kind(preload=functools.partial(tasks.load, "loads"), min_spare_workers=2)
    pool.many(tasks.nap, [(0.3,)] * 4)()
    found = pool.submit(tasks.what_is_loaded)()
    return check(found == ["by preload"] and len(noted("loads")) == 1, yes("`preload`"))


@preload.on(MPIRE)
def shared_objects(_: type[Pool]) -> Cell:
    from mpire import WorkerPool

    shared = ["by the program"]
    with WorkerPool(2, shared_objects=shared) as pool:
        found = pool.map(second_of_first, [1, 2])
    return check(found == ["by the program"] * 2, yes("`shared_objects`, with fork only"))


def second_of_first(shared: list[str], _: int) -> str:
    """What mpire hands to each task."""
    return shared[0]


# --- errors and ends ---------------------------------------------------------------------------

frames = feature("frames", "an exception has its remote frames", ERRORS)


@frames.on()
def a_remote_traceback(kind: type[Pool]) -> Cell:
    error = settled(kind().submit(tasks.fail)).exception()
    assert error is not None
    name = tasks.fail_further_down.__name__
    if any(frame.name == name for frame in traceback.extract_tb(error.__traceback__)):
        return yes()
    text = "".join(traceback.format_exception(error))
    return no("as text" if name in text else "")


initializer = feature("initializer", "an initializer that fails: the error says why", ERRORS)


def says_why(kind: type[Pool]) -> Cell:
    """What the error of a task that could not run says."""
    called = settled(lambda: use_with_bad_initializer(kind))
    if not called.done():
        return no("hangs")
    error = called.exception()
    if error is None:
        return no("it is not called again, tasks run without it")
    text = "".join(traceback.format_exception(error))
    return check(REASON in text, yes())


def use_with_bad_initializer(kind: type[Pool]) -> Any:
    """Run a task in such a pool."""
    if kind.name == OURS:
        from prefork_executor import PreforkExecutor

        return PreforkExecutor(2, initializer=tasks.refuse).submit(tasks.pid).result()
    if kind.name == STANDARD:
        from concurrent.futures import ProcessPoolExecutor

        return ProcessPoolExecutor(2, initializer=tasks.refuse).submit(tasks.pid).result()
    if kind.name == INTERPRETERS:
        from concurrent.futures import InterpreterPoolExecutor

        # In a variable: a task of an executor that nobody refers to would hang.
        interpreters = InterpreterPoolExecutor(2, initializer=tasks.refuse)
        return interpreters.submit(tasks.pid).result()
    if kind.name == LOKY:
        import loky

        return loky.ProcessPoolExecutor(2, initializer=tasks.refuse).submit(tasks.pid).result()
    if kind.name == PEBBLE:
        import pebble

        return pebble.ProcessPool(2, initializer=tasks.refuse).schedule(tasks.pid).result()
    if kind.name == MPIRE:
        return kind().pool.apply(tasks.pid, worker_init=tasks.refuse)  # type: ignore[attr-defined]
    if kind.name == JOBLIB:
        import joblib

        with joblib.parallel_config("loky", initializer=tasks.refuse):
            return kind().one(tasks.pid)()
    from distributed import WorkerPlugin

    plugin: Any = WorkerPlugin()
    plugin.setup = tasks.refuse
    pool: Any = kind()
    pool.client.register_plugin(plugin)
    return pool.submit(tasks.pid)()


initializer.on()(says_why)
