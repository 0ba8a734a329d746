"""When tasks come, and the least that serving them can cost. Pure: no pool, no clock.

The trace: quiet spells, and bursts of BURST_FACTOR times their rate. Tasks come
independently of one another (a Poisson process) and run for TASK seconds. A pool of MOST
workers is what one would have for it: a burst keeps three quarters of them busy.

The clairvoyant optimum
-----------------------
What would a pool cost, in worker-seconds, that knows the trace beforehand and keeps our
promises? It has a worker for each task at once as long as there is room, ``spare`` idle
ones besides, and never more than ``most``. Of a worker that is of no use now it knows
when it will be of use again: if that is within ``keep`` seconds, it stays, because that
is what the user has said a worker's start is worth (idle_timeout); else it leaves at
once. With ``keep`` 0 workers come and go for nothing, within a task's length: no pool
that has to fork them can do that, but it is the lower bound of all.

What a start costs
------------------
Where the user has said nothing, the clairvoyant pool pays ``start`` worker-seconds for each
start, begins it so long before it is needed, and keeps a worker through every gap that is
shorter. It may also let tasks wait, if that is cheaper: of all numbers of workers it takes
the one whose :func:`cost` is the least, worker-seconds and ``weight`` times what tasks wait
(:func:`clairvoyant`). But it begins as every pool does, with nobody: its first worker is
ready after one start.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

QUIET_RATE = 12.0
BURST_FACTOR = 20.0
TASK = 0.05
QUIET, BURST = (20.0, 40.0), (5.0, 15.0)
"""Seconds of a spell, least and most."""
MOST, SPARE, KEEP = 16, 1, 2.0

Arrivals = Sequence[tuple[float, float]]
"""When each task comes and how long it runs, in seconds."""


def bursty(
    seconds: float,
    seed: int,
    *,
    rate: float = QUIET_RATE,
    quiet: tuple[float, float] = QUIET,
    burst: tuple[float, float] = BURST,
) -> Iterator[tuple[float, float]]:
    """Quiet spells and bursts in turn, until the time is up."""
    chance, now, is_burst = random.Random(seed), 0.0, False
    while now < seconds:
        end = min(seconds, now + chance.uniform(*(burst if is_burst else quiet)))
        factor = BURST_FACTOR if is_burst else 1.0
        while (now := now + chance.expovariate(rate * factor)) < end:
            yield now, TASK
        # What would have come after the end never comes: a Poisson process forgets.
        now, is_burst = end, not is_burst


def served(arrivals: Arrivals, ready: Iterable[float]) -> Iterator[tuple[float, float, float]]:
    """When each task comes, begins and ends in a pool whose workers are ready at these times,
    and stay."""
    free = sorted(ready)
    for moment, duration in arrivals:
        begin = max(moment, heapq.heappop(free))
        heapq.heappush(free, begin + duration)
        yield moment, begin, begin + duration


def busy_changes(arrivals: Arrivals, ready: Iterable[float]) -> list[tuple[float, int]]:
    """When the pool of :func:`served` has one more worker, or one less, busy."""
    changes = []
    for _, begin, end in served(arrivals, ready):
        changes += [(begin, 1), (end, -1)]
    return sorted(changes)


@dataclass
class _Level:
    """The worker that is there when so many are: since when, or until when it was."""

    since: float | None = None
    until: float | None = None


def optimum(
    arrivals: Arrivals,
    seconds: float,
    *,
    most: int = MOST,
    spare: int = SPARE,
    keep: float = KEEP,
    start: float = 0.0,
    in_use: int | None = None,
    ready: float = 0.0,
) -> float:
    """The worker-seconds of the clairvoyant pool.

    Args:
        arrivals: the tasks.
        seconds: how long it is looked at.
        most: workers at most.
        spare: idle workers that it has promised.
        keep: seconds for which it keeps a worker that is of no use.
        start: worker-seconds that a start costs.
        in_use: how many of its workers ever get tasks at once. None: all.
        ready: when the first of them may be.
    """
    levels = [_Level(since=0.0) if place < spare else _Level() for place in range(most)]
    total, busy, there = spare * start, 0, spare
    for moment, change in busy_changes(arrivals, [ready] * (in_use or most)):
        busy += change
        wanted = min(most, busy + spare)
        for level in levels[there:wanted]:
            gap = moment - level.until if level.until is not None else keep + 1
            total += gap if gap <= keep else start
            level.since = moment
        for level in levels[wanted:there]:
            total += moment - (level.since or 0.0)
            level.until = moment
        there = wanted
    return total + sum(seconds - (level.since or 0.0) for level in levels[:there])


def cost(worker_seconds: float, waits: Iterable[float], weight: float) -> float:
    """What a pool costs: its workers, and what its tasks wait."""
    return worker_seconds + weight * sum(waits)


def clairvoyant(
    arrivals: Arrivals, seconds: float, *, most: int, spare: int, start: float, weight: float
) -> float:
    """The least :func:`cost` of a pool that knows the tasks beforehand."""
    least = math.inf
    changes = busy_changes(arrivals, [start] * most)
    running = itertools.accumulate(change for _, change in changes)
    for in_use in range(max(running, default=1), 0, -1):
        workers = optimum(
            arrivals,
            seconds,
            most=most,
            spare=spare,
            keep=start,
            start=start,
            in_use=in_use,
            ready=start,
        )
        waits = [begin - moment for moment, begin, _ in served(arrivals, [start] * in_use)]
        found = cost(workers, waits, weight)
        if found > 1.5 * least:
            break  # The fewer there are, the longer tasks wait: it only gets worse.
        least = min(least, found)
    return least


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
