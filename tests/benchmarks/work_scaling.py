"""Rows of the performance table: a pool that grows and shrinks with what there is to do."""

from __future__ import annotations

import bisect
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arrivals
from arrivals import KEEP, MOST, SPARE, Arrivals, bursty, optimum, percentile
from measuring import Figures, Run, Unit, Work, at_most, settle
from performance_pools import FIXED, FORKSERVER, OLD, OURS, STANDARD, Pool
from work_tasks import nap_and_tell, nothing

BURST = 24
BURST_NAP = 1.0
IDLE_TIMEOUT = 2.0
PATIENCE = 30.0
"""Seconds after which a pool is taken never to shrink."""
SEED = 7
TRACE = 300
SAMPLE = 0.1
"""Seconds between two looks at the number of workers."""
BEGIN_IN = 0.1
HOUR = 3600.0


def wait_for(pool: Pool, workers: int) -> float | None:
    """When there were so many: seconds on the monotonic clock; None: never."""
    deadline = time.monotonic() + PATIENCE
    while pool.live() not in (workers, None):
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)
    return time.monotonic()


def burst(run: Run) -> Figures:
    """Seconds from the first submit to the beginning of the last task; and from the end
    of the last task until the pool is as small as before."""
    with run.pool(BURST, idle_timeout=IDLE_TIMEOUT) as pool:
        pool.one(nothing)()
        wait_for(pool, 1)
        settle()
        submitted = time.monotonic()
        last = max(pool.many(nap_and_tell, [(BURST_NAP,)] * BURST)())
        figures: Figures = {"value": last - submitted}
        if pool.live() is not None and (back_at := wait_for(pool, 1)) is not None:
            figures["back"] = back_at - last - BURST_NAP
    return figures


# --- the trace ---------------------------------------------------------------------------------


@dataclass
class Watch:
    """Looks at the number of workers, in a thread of its own, while the block runs."""

    pool: Pool
    otherwise: int
    moments: list[float] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            live = self.pool.live()
            self.moments.append(time.monotonic())
            self.workers.append(self.otherwise if live is None else live)
            if self._end.wait(SAMPLE):
                return

    def worker_seconds(self, seconds: float) -> float:
        """What the pool has cost in so many seconds, taken from a mean."""
        return statistics.mean(self.workers) * seconds


def submit_all(pool: Pool, tasks: Arrivals, start: float) -> tuple[list[float], list[Any]]:
    """Submit each when its time has come, whatever has become of the others."""
    submitted, results = [], []
    for moment, duration in tasks:
        if (delay := start + moment - time.monotonic()) > 0:
            time.sleep(delay)
        submitted.append(time.monotonic())
        results.append(pool.submit(nap_and_tell, duration))
    return submitted, results


def trace(run: Run) -> Figures:
    """Real time, real workers."""
    seconds = run.size(TRACE, 40)
    tasks = list(bursty(seconds, SEED, **_quicker(run)))
    with run.pool(MOST, idle_timeout=KEEP) as pool:
        pool.one(nothing)()
        wait_for(pool, MOST if run.kind.name == FIXED else SPARE)
        settle()
        start = time.monotonic() + BEGIN_IN
        with Watch(pool, MOST) as watch:
            submitted, results = submit_all(pool, tasks, start)
            begun = [result() for result in results]
    waits = [began - came for came, began in zip(submitted, begun, strict=True)]
    series = _series(start, seconds, submitted, begun, watch)
    return {**_of(waits, watch.worker_seconds(seconds), [(tasks, seconds)]), "series": series}


def _quicker(run: Run) -> dict[str, Any]:
    return {"quiet": (4.0, 8.0), "burst": (2.0, 4.0)} if run.quick else {}


def _of(waits: list[float], cost: float, parts: list[tuple[Arrivals, float]]) -> Figures:
    optimal = sum(optimum(tasks, seconds) for tasks, seconds in parts)
    bound = sum(optimum(tasks, seconds, keep=0.0) for tasks, seconds in parts)
    return {
        "value": percentile(waits, 0.99),
        "p50": percentile(waits, 0.5),
        "p999": percentile(waits, 0.999),
        "longest": max(waits),
        "mean": statistics.mean(waits),
        "tasks": len(waits),
        "worker_seconds": cost,
        "of_optimum": cost / optimal,
        "of_lower_bound": cost / bound,
    }


def _series(
    start: float, seconds: int, submitted: list[float], begun: list[float], watch: Watch
) -> dict[str, list[float]]:
    """The most of each second, for the figure."""
    begun = sorted(begun)
    waiting = [_count_until(submitted, t) - _count_until(begun, t) for t in submitted]
    return {
        "workers": _most_by_second(start, seconds, watch.moments, watch.workers),
        "waiting": _most_by_second(start, seconds, submitted, waiting),
    }


def _count_until(moments: list[float], moment: float) -> int:
    return bisect.bisect_right(moments, moment)


def _most_by_second(
    start: float, seconds: int, moments: Sequence[float], values: Sequence[int]
) -> list[float]:
    most = [0] * seconds
    for moment, value in zip(moments, values, strict=True):
        second = int(moment - start)
        if 0 <= second < seconds:
            most[second] = max(most[second], value)
    return [float(value) for value in most]


# --- the same, simulated ---------------------------------------------------------------------


def simulated_day(run: Run) -> Figures:
    """The regulator alone, an hour at a time, each with a load of its own."""
    return _simulated(run, arrivals.QUIET_RATE, 24)


def simulated_light_load(run: Run) -> Figures:
    """Bursts that need half of the workers, so that nothing has to wait in a fixed pool."""
    return _simulated(run, arrivals.QUIET_RATE * 2 / 3, 8)


def _simulated(run: Run, rate: float, hours: int) -> Figures:
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    from regulator_simulator import Simulation

    from prefork_executor._pool.regulator import Limits

    spare = MOST if run.kind.name == FIXED else SPARE
    limits = Limits(MOST, spare, MOST, spare, KEEP)
    seconds = HOUR / 6 if run.quick else HOUR
    seeds = range(run.size(hours, 1))
    parts = [(list(bursty(seconds, seed, rate=rate)), seconds) for seed in seeds]
    waits, cost = [], 0.0
    for tasks, _ in parts:
        pool = Simulation(limits, tasks).run(seconds)
        waits += pool.waits
        cost += pool.worker_seconds
    return _of(waits, cost, parts)


TRACE_TARGETS = (at_most(1.1, FIXED), at_most(1.3, figure="of_optimum"))
SETTING = f"at most {MOST} workers, idle_timeout {KEEP:g} s"
SCALING = (
    Work(
        "burst of 24 sleeping tasks at one idle worker: until the last begins",
        Unit.TIME,
        burst,
        (
            at_most(0.2, unit=Unit.TIME),
            at_most(IDLE_TIMEOUT + 2, figure="back", unit=Unit.TIME),
        ),
        (OURS, STANDARD, FORKSERVER, OLD),
        rounds=3,
    ),
    Work(
        f"bursty trace of five minutes ({SETTING}): p99 wait",
        Unit.TIME,
        trace,
        TRACE_TARGETS,
        (OURS, FIXED, STANDARD),
        rounds=1,
        bound=TRACE + 60,
        reference=FIXED,
        is_long=True,
    ),
    Work(
        f"the same, a day of it, the regulator alone, simulated ({SETTING}): p99 wait",
        Unit.TIME,
        simulated_day,
        TRACE_TARGETS,
        (OURS, FIXED),
        rounds=1,
        bound=1200,
        reference=FIXED,
        is_long=True,
    ),
    Work(
        "eight hours whose bursts need half of the workers, simulated: p99 wait",
        Unit.TIME,
        simulated_light_load,
        (TRACE_TARGETS[1],),
        (OURS, FIXED),
        rounds=1,
        bound=1200,
        reference=FIXED,
        is_long=True,
    ),
)
