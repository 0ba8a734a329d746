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
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
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


def busy_changes(arrivals: Arrivals, most: int) -> list[tuple[float, int]]:
    """When a pool that always has ``most`` workers has one more, or one less, busy."""
    free = [0.0] * most
    changes = []
    for moment, duration in arrivals:
        begin = max(moment, heapq.heappop(free))
        heapq.heappush(free, begin + duration)
        changes += [(begin, 1), (begin + duration, -1)]
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
) -> float:
    """The worker-seconds of the clairvoyant pool."""
    levels = [_Level(since=0.0) if place < spare else _Level() for place in range(most)]
    total, busy, there = 0.0, 0, spare
    for moment, change in busy_changes(arrivals, most):
        busy += change
        wanted = min(most, busy + spare)
        for level in levels[there:wanted]:
            gap = moment - level.until if level.until is not None else keep + 1
            total += gap if gap <= keep else 0.0
            level.since = moment
        for level in levels[wanted:there]:
            total += moment - (level.since or 0.0)
            level.until = moment
        there = wanted
    return total + sum(seconds - (level.since or 0.0) for level in levels[:there])


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
