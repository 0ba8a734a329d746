"""What a row of the performance table is: its work, its targets, its unit; and the meters.

A work is measured in a process of its own for each pool and each round. So it may do
what it likes to it, and what hangs can be ended.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from performance_pools import GENERAL, OURS, STANDARD, WORKERS, Pool, Thunk
from work_tasks import nap, nothing

Figures = dict[str, Any]
"""``value`` is what is compared. ``unsupported`` or ``failed`` instead of it say why
there is none."""

BEST = "the best peer"
NAP = 0.05
"""Seconds that a task must take for all workers to get one."""
REST = 0.1
"""Seconds in which a pool that has nothing to do comes to rest."""


class Unit(enum.Enum):
    """What a work's value counts, and how it is written."""

    RATE = "tasks/s"
    TIME = "seconds"
    SHARE = "share"
    BYTES = "bytes"

    @property
    def more_is_better(self) -> bool:
        """Whether it is."""
        return self in (Unit.RATE, Unit.SHARE)

    def write(self, value: float) -> str:
        """In few digits."""
        if self is Unit.RATE:
            return f"{value:,.0f}/s"
        if self is Unit.SHARE:
            return f"{value:.3f}"
        if self is Unit.BYTES:
            return f"{value / 2**20:.1f} MiB"
        return _write_seconds(value)


def _write_seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"


@dataclass(frozen=True)
class Target:
    """What is to be reached: a ratio to a pool's figure, or a figure of our own.

    Attributes:
        factor: the bound of it.
        is_most: whether it is the most that is allowed, or else the least.
        than: the other pool's name, or BEST; None: our own figure is meant.
        figure: which of the figures.
        unit: how a figure of our own is written.
    """

    factor: float
    is_most: bool
    than: str | None = None
    figure: str = "value"
    unit: Unit = Unit.SHARE

    def holds(self, measured: float) -> bool:
        """Whether it is reached."""
        return measured <= self.factor if self.is_most else measured >= self.factor

    def __str__(self) -> str:
        sign = "≤" if self.is_most else "≥"
        if self.than is None:
            return f"{sign} {self.unit.write(self.factor)}"
        return f"{sign} {self.factor:g} x {self.than}"


def at_least(factor: float, than: str | None = None, figure: str = "value") -> Target:
    """A figure of which more is better."""
    return Target(factor, False, than, figure)


def at_most(
    factor: float, than: str | None = None, figure: str = "value", unit: Unit = Unit.SHARE
) -> Target:
    """One of which less is."""
    return Target(factor, True, than, figure, unit)


class Run:
    """One measurement: which pool, and how thoroughly."""

    def __init__(self, kind: type[Pool], quick: bool) -> None:
        self.kind = kind
        self.quick = quick

    def size(self, full: int, quick: int) -> int:
        """How many, or how long."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def pool(self, workers: int = WORKERS, **options: Any) -> Iterator[Pool]:
        """A pool that has not begun yet."""
        pool = self.kind(workers, **options)
        try:
            yield pool
        finally:
            pool.close()

    @contextlib.contextmanager
    def warm_pool(self, workers: int = WORKERS, **options: Any) -> Iterator[Pool]:
        """A pool all of whose workers run, and have nothing to do."""
        with self.pool(workers, **options) as pool:
            pool.mapped(nap, [NAP] * 2 * workers, 1)()
            pool.one(nothing)()
            settle()
            yield pool

    def rate(self, thunk: Thunk, tasks: int) -> Figures:
        """Tasks a second, and what a task costs in microseconds of a CPU."""
        figures = metered(thunk)
        seconds = figures["seconds"]
        return {"value": tasks / seconds, "seconds": seconds, **_each(figures, tasks)}

    def trip(self, thunk: Thunk, times: int) -> Figures:
        """Median seconds of a call, one after the other, and what one costs."""
        taken: list[float] = []
        figures = metered(lambda: taken.extend(_time_each(thunk, times)))
        return {"value": statistics.median(taken), **_each(figures, times)}

    def trips(self, thunk: Callable[[], Thunk], times: int) -> Figures:
        """The same for what is made anew each time, which is not counted."""
        all_figures = [metered(thunk()) for _ in range(times)]
        costs = {who: sum(figures[who] for figures in all_figures) for who in ("client", "others")}
        value = statistics.median(figures["seconds"] for figures in all_figures)
        return {"value": value, **_each(costs, times)}


def _time_each(thunk: Thunk, times: int) -> list[float]:
    taken, clock = [], time.perf_counter
    for _ in range(times):
        began = clock()
        thunk()
        taken.append(clock() - began)
    return taken


def settle() -> None:
    """Leave nothing to do that came before."""
    gc.collect()
    time.sleep(REST)


def _each(figures: Figures, times: int) -> Figures:
    return {f"{who}_us": figures[who] / times * 1e6 for who in ("client", "others")}


def metered(thunk: Thunk) -> Figures:
    """Seconds that a call took, those of a CPU in this process, and those in its
    descendants."""
    others, client, began = others_cpu(), time.process_time(), time.perf_counter()
    thunk()
    seconds = time.perf_counter() - began
    client = time.process_time() - client
    return {"seconds": seconds, "client": client, "others": others_cpu() - others}


def others_cpu() -> float:
    """Seconds of a CPU that the descendants of this process have had, as far as they
    live; to the nanosecond, where times(2) counts hundredths of a second."""
    return sum(map(_cpu_of, psutil.Process().children(recursive=True)))


def _cpu_of(process: psutil.Process) -> float:
    total = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


@dataclass(frozen=True)
class Work:
    """A row of the table.

    Attributes:
        title: what the table calls it.
        unit: of its value.
        measure: does it once, with one pool.
        targets: what is to be reached.
        pools: those that are measured.
        rounds: how often at most; None: as often as is asked for.
        bound: seconds that one measurement may take, the start of the process included.
        reference: the pool that the figures show the others as multiples of.
        is_long: whether it is left out if nobody asks for it by name.
        ours: the pool of ours that is compared with the others.
    """

    title: str
    unit: Unit
    measure: Callable[[Run], Figures]
    targets: tuple[Target, ...] = ()
    pools: tuple[str, ...] = GENERAL
    rounds: int | None = None
    bound: float = 90.0
    reference: str = STANDARD
    is_long: bool = False
    ours: str = OURS

    @property
    def name(self) -> str:
        """What the command calls it."""
        return self.measure.__name__


def all_but(*names: str) -> tuple[str, ...]:
    """The pools that can do it."""
    return tuple(name for name in GENERAL if name not in names)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
