"""Rows of the performance table: one task at a time, small and big."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

from measuring import BEST, Figures, Run, Unit, Work, all_but, at_most
from performance_pools import OLD, STANDARD, Thunk
from work_tasks import nothing, same, touch, touch_and_return

ARRAY = 16 * 2**20
DOUBLE = 8
BYTES = 2**20
BIG = 300 * 2**20
PAUSE = 0.001
"""Seconds between two small tasks."""


def round_trip(run: Run) -> Figures:
    with run.warm_pool() as pool:
        call = pool.one(nothing)
        for _ in range(100):
            call()
        return run.trip(call, run.size(1000, 200))


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
        (at_most(0.45, STANDARD), at_most(0.5, OLD)),
    ),
    Work(
        "16 MiB NumPy array as argument",
        Unit.TIME,
        array_argument,
        (at_most(0.3, BEST),),
    ),
    Work(
        "16 MiB NumPy array echoed",
        Unit.TIME,
        array_echo,
        (at_most(0.25, BEST),),
    ),
    Work(
        "1 MiB of bytes echoed",
        Unit.TIME,
        bytes_echo,
        (at_most(0.5, BEST),),
    ),
    Work(
        "submitting a small task beside arrays of 300 MiB, the longest",
        Unit.TIME,
        small_beside_big,
        (at_most(0.010, unit=Unit.TIME),),
        all_but("joblib", "bare socketpair"),
    ),
)
