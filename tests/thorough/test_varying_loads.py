"""Hours of a load that varies on a simulated pool: no flapping, no lack."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from regulator_simulator import (
    HOUR,
    SLACK,
    START_UP,
    Load,
    Simulation,
    at_random,
    bursts,
    exponential,
    heavy_tailed,
    pool_of,
    sawtooth,
)

from prefork_executor._pool.regulator import RAMP_INTERVAL, Limits

VARYING: dict[str, tuple[Limits, Callable[[], Load]]] = {
    "steady": (pool_of(16), lambda: at_random(lambda _: 8, exponential(0.4), hours=1)),
    "many spares": (pool_of(32, 4), lambda: at_random(lambda _: 8, exponential(0.4), hours=1)),
    "trickle": (pool_of(8), lambda: at_random(lambda _: 0.3, exponential(0.1), hours=8)),
    "bursts of 20x": (
        pool_of(32),
        lambda: at_random(bursts(0.5, 20, 300, 0.1), exponential(1.0), hours=2),
    ),
    "heavy tail": (pool_of(32), lambda: at_random(lambda _: 4, heavy_tailed(0.05, 600), hours=2)),
    "overload": (
        pool_of(8),
        lambda: at_random(bursts(4, 4, 1200, 0.25), exponential(1.0), hours=1),
    ),
    "sawtooth, slow": (pool_of(32), lambda: at_random(sawtooth(2, 12, 60), exponential(1), 1)),
    "sawtooth, as slow as the timeout": (
        pool_of(32),
        lambda: at_random(sawtooth(2, 6, 20), exponential(1.0), hours=1),
    ),
    "sawtooth, quick": (pool_of(32), lambda: at_random(sawtooth(2, 6, 2), exponential(1), 1)),
    "short timeout": (
        pool_of(16, 1, 1.0),
        lambda: at_random(lambda _: 2, exponential(1.0), hours=0.5),
    ),
    "short tasks": (pool_of(16), lambda: at_random(lambda _: 200, exponential(0.005), 0.05)),
    "auto, steady": (
        pool_of(16, 1, "auto"),
        lambda: at_random(lambda _: 8, exponential(0.4), hours=1),
    ),
    "auto, bursts of 20x": (
        pool_of(32, 1, "auto"),
        lambda: at_random(bursts(0.5, 20, 300, 0.1), exponential(1.0), hours=2),
    ),
    "auto, heavy tail": (
        pool_of(32, 1, "auto"),
        lambda: at_random(lambda _: 4, heavy_tailed(0.05, 600), hours=1),
    ),
}


@pytest.fixture(scope="module", params=VARYING)
def varied(request: pytest.FixtureRequest) -> Simulation:
    """A pool after hours of a load that varies."""
    limits, load = VARYING[request.param]
    return Simulation(limits, load()).run(9 * HOUR)


def test_the_pool_changes_little_more_than_the_load_itself_makes_it(varied: Simulation) -> None:
    starts = sum(change.start for change in varied.changes)
    retirements = sum(change.retire for change in varied.changes)
    assert starts <= 1.05 * varied.starts_needed() + 2
    assert retirements <= starts


def test_spares_lack_for_no_longer_than_a_step_of_the_ramp(varied: Simulation) -> None:
    assert varied.longest_lack < RAMP_INTERVAL + SLACK


def test_tasks_wait_for_a_worker_to_start_at_most_while_there_is_room(
    varied: Simulation,
) -> None:
    demand = max(outstanding for _, outstanding in varied.demand)
    if demand + varied.limits.min_spare <= varied.limits.max_workers:
        assert max(varied.waits) < RAMP_INTERVAL + START_UP + SLACK


def test_the_pool_looks_a_few_times_a_change_and_in_a_timeout(varied: Simulation) -> None:
    quiet = 9 * HOUR / (varied.limits.dwell(varied.start_cost) or math.inf)
    assert len(varied.looks) <= quiet + 5 * len(varied.changes) + 0.005 * len(varied.waits)


def test_it_comes_to_rest(varied: Simulation) -> None:
    assert varied.live == varied.limits.min_spare
