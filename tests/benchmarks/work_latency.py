"""Rows of the performance table: one task at a time, small and big."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from typing import Any

from measuring import BEST, Figures, Run, Unit, Work, all_but, at_most
from performance_pools import FORKSERVER, INTERPRETERS, OLD, OURS, POOLS, STANDARD, Thunk
from work_tasks import nothing, same, touch, touch_and_return

ARRAY = 16 * 2**20
DOUBLE = 8
BYTES = 2**20
BIG = 300 * 2**20
TABLE = 100 * 10**6
"""Bytes of a table."""
BUSY = "import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
LOOP_LASTS = 80
"""Seconds after which a busy loop ends by itself, if it was not killed."""
FEW_POOLS = tuple(name for name in (OURS, STANDARD, FORKSERVER, INTERPRETERS, OLD) if name in POOLS)
PAUSE = 0.001
"""Seconds between two small tasks."""


def round_trip(run: Run) -> Figures:
    with run.warm_pool() as pool:
        call = pool.one(nothing)
        for _ in range(100):
            call()
        return run.trip(call, run.size(1000, 200))


def round_trip_beside_4(run: Run) -> Figures:
    return _round_trip_beside(run, 4)


def round_trip_beside_8(run: Run) -> Figures:
    return _round_trip_beside(run, 8)


def _round_trip_beside(run: Run, loops: int) -> Figures:
    """While programs that never wait have the CPUs, too."""
    command = [sys.executable, "-c", BUSY.format(seconds=LOOP_LASTS)]
    with contextlib.ExitStack() as stack:
        for _ in range(loops):
            stack.callback(subprocess.Popen(command).kill)
        return round_trip(run)


def array_argument(run: Run) -> Figures:
    return _array(run, touch)


def array_echo(run: Run) -> Figures:
    return _array(run, touch_and_return)


def _array(run: Run, fn: Any) -> Figures:
    """A new array each time: some pools remember the last."""
    import numpy

    with run.warm_pool() as pool:
        numbers = itertools.count()

        def anew() -> Thunk:
            array = numpy.full(ARRAY // DOUBLE, next(numbers), "d")
            return _and_look(pool.one(fn, array))

        run.trips(anew, 3)
        return run.trips(anew, run.size(10, 5))


def _and_look(thunk: Thunk) -> Thunk:
    """What came back must be there, too."""

    def look() -> None:
        result = thunk()
        if getattr(result, "ndim", 0):
            touch(result)

    return look


def bytes_echo(run: Run) -> Figures:
    with run.warm_pool() as pool:
        call = pool.one(same, os.urandom(BYTES))
        for _ in range(10):
            call()
        return run.trip(call, run.size(200, 30))


def small_arrays_echo(run: Run) -> Figures:
    import numpy

    with run.warm_pool() as pool:
        arrays = [numpy.full(4096 // DOUBLE, float(number)) for number in range(1000)]
        call = pool.one(same, arrays)
        for _ in range(3):
            call()
        return run.trip(call, run.size(50, 10))


def frame_echo(run: Run) -> Figures:
    import numpy
    import pandas

    numbers = numpy.arange(TABLE // DOUBLE, dtype="d").reshape(-1, 10)
    return _echo_each(run, pandas.DataFrame(numbers, columns=list("abcdefghij")))


def arrow_echo(run: Run) -> Figures:
    import numpy
    import pyarrow

    numbers = numpy.arange(TABLE // DOUBLE // 10, dtype="d")
    return _echo_each(run, pyarrow.table(dict.fromkeys("abcdefghij", numbers)))


def _echo_each(run: Run, thing: Any) -> Figures:
    with run.warm_pool() as pool:
        call = pool.one(same, thing)
        call()
        return run.trip(call, run.size(5, 2))


def small_beside_big(run: Run) -> Figures:
    """The longest that submitting a small task takes while another thread submits big arrays."""
    import numpy

    array = numpy.zeros(BIG // DOUBLE)
    is_over = threading.Event()
    taken: list[float] = []

    with run.warm_pool() as pool:

        def submit_small() -> None:
            while not is_over.is_set():
                began = time.perf_counter()
                result = pool.submit(nothing)
                taken.append(time.perf_counter() - began)
                result()
                time.sleep(PAUSE)

        thread = threading.Thread(target=submit_small)
        thread.start()
        try:
            for _ in range(run.size(5, 2)):
                pool.submit(touch, array)()
        finally:
            is_over.set()
            thread.join()
    return {"value": max(taken)}


LATENCY = (
    Work(
        "one task at a time, round trip",
        Unit.TIME,
        round_trip,
        (at_most(0.40, STANDARD), at_most(0.5, OLD), at_most(0.85, INTERPRETERS)),
    ),
    Work(
        "the same beside 4 busy loops",
        Unit.TIME,
        round_trip_beside_4,
        (at_most(1, STANDARD),),
        FEW_POOLS,
    ),
    Work(
        "the same beside 8 busy loops",
        Unit.TIME,
        round_trip_beside_8,
        (at_most(1, STANDARD),),
        FEW_POOLS,
    ),
    Work(
        "16 MiB NumPy array as argument",
        Unit.TIME,
        array_argument,
        (at_most(0.15, BEST),),
    ),
    Work(
        "16 MiB NumPy array echoed",
        Unit.TIME,
        array_echo,
        (at_most(0.10, BEST),),
    ),
    Work(
        "1 MiB of bytes echoed",
        Unit.TIME,
        bytes_echo,
        (at_most(0.35, BEST),),
    ),
    Work(
        "a list of 1,000 arrays of 4 kB echoed",
        Unit.TIME,
        small_arrays_echo,
        (at_most(0.5, BEST),),
    ),
    Work(
        "a pandas DataFrame of 100 MB echoed",
        Unit.TIME,
        frame_echo,
        (at_most(0.3, BEST),),
        all_but("bare socketpair"),
        rounds=3,
    ),
    Work(
        "an Arrow table of 100 MB echoed",
        Unit.TIME,
        arrow_echo,
        (at_most(0.3, BEST),),
        all_but("bare socketpair"),
        rounds=3,
    ),
    Work(
        "submitting a small task beside arrays of 300 MiB, the longest",
        Unit.TIME,
        small_beside_big,
        (at_most(0.010, unit=Unit.TIME),),
        all_but("joblib", "bare socketpair"),
    ),
)
