"""Rows of the performance table: one task at a time, small and big."""

from __future__ import annotations

import itertools
import os
from typing import Any

from measuring import BEST, Figures, Run, Unit, Work, at_most
from performance_pools import OLD, STANDARD, Thunk
from work_tasks import nothing, same, touch, touch_and_return

ARRAY = 16 * 2**20
DOUBLE = 8
BYTES = 2**20


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
)
