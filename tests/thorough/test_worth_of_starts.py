"""Idle for as long as a start is worth: a simulated pool with idle_timeout="auto", whose starts
take from a millisecond to a minute."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regulator_simulator import (
    HOUR,
    Load,
    Simulation,
    at_random,
    burst,
    constant,
    exponential,
    heavy_tailed,
    periodic,
    pool_of,
    sawtooth,
)

from prefork_executor._pool.regulator import Limits


def played(
    load: Iterable[tuple[float, float]], limits: Limits, start: float, seconds: float
) -> Simulation:
    return Simulation(limits, load, start_up=(start, start)).run(seconds)


@pytest.mark.parametrize("start", [0.001, 0.1, 1.0, 10.0, 60.0])
def test_under_a_constant_load_it_comes_to_as_many_as_work_and_a_spare(start: float) -> None:
    pool = played(constant(8.0, 0.4, hours=1), pool_of(16, 1, "auto"), start, HOUR)
    assert pool.start_cost == pytest.approx(start)
    assert pool.changes_after(HOUR / 2) == []
    assert 4 <= pool.live <= 6


@pytest.mark.parametrize("start", [0.001, 0.1, 1.0, 10.0, 60.0])
def test_after_its_last_task_it_is_back_at_its_spares_and_never_looks_again(start: float) -> None:
    pool = played(burst(16, duration=90.0), pool_of(16, 1, "auto"), start, 2 * HOUR)
    assert pool.live == 1
    looks = len(pool.looks)
    assert len(pool.run(24 * HOUR).looks) == looks


def test_cheap_workers_are_gone_sooner_than_dear_ones() -> None:
    gone = []
    for start in (0.005, 1.0, 10.0):
        pool = played(burst(16, duration=90.0), pool_of(16, 1, "auto"), start, 2 * HOUR)
        gone.append(pool.changes[-1].at)
    assert gone == sorted(gone)
    assert gone[0] < 90.0 + 1.0
    assert gone[-1] > 90.0 + 100.0


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([0.001, 0.02, 0.3, 2.0, 30.0]),
    st.floats(0.1, 20.0),
    st.floats(0.01, 3.0),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_whatever_the_load_and_the_start_it_does_not_flap(
    start: float, rate: float, mean: float, spare: int, seed: int
) -> None:
    load = at_random(lambda _: rate, exponential(mean), 0.05, seed)
    pool = played(load, pool_of(12, spare, "auto"), start, 300.0)
    assert len(pool.forks) <= 1.5 * pool.starts_needed() + 12


def late(pool: Simulation, first: int = 0) -> float:
    """What 99 of a hundred tasks from this one on wait at most."""
    return statistics.quantiles(pool.waits[first:], n=100)[98]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_cheap_workers_the_trace_takes_few_and_its_tasks_hardly_wait(seed: int) -> None:
    pool = played(periodic(60.0, seed), pool_of(16, 1, "auto"), 0.005, 60.5)
    assert late(pool) < 0.0107, "ten milliseconds more than in a pool of fixed size"
    assert pool.worker_seconds < 3 * 88, "three times what one would who knows it"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dear_workers_are_there_for_the_next_burst(seed: int) -> None:
    tasks = list(periodic(60.0, seed))
    pool = played(tasks, pool_of(16, 1, "auto"), 1.0, 60.5)
    before = sum(moment < 15.0 for moment, _ in tasks)
    assert late(pool, before) < 0.150
    assert pool.worker_seconds < 16 * 60.5, "what a pool of fixed size takes"


def test_a_quarter_of_an_hour_of_the_trace_has_short_waits_with_its_first_burst() -> None:
    pool = played(periodic(900.0, 1), pool_of(16, 1, "auto"), 1.0, 900.0)
    assert late(pool) < 0.150
    assert pool.worker_seconds < 16 * 900


DAYS: dict[str, tuple[int, float, Callable[[], Load]]] = {
    "a trickle": (16, 12 * HOUR, lambda: at_random(lambda _: 0.1, exponential(1.0), 12)),
    "steady": (16, 12 * HOUR, lambda: at_random(lambda _: 0.2, exponential(4.0), 12)),
    "a day's rhythm": (
        32,
        24 * HOUR,
        lambda: at_random(sawtooth(0.01, 0.2, 24 * HOUR), exponential(10.0), 24),
    ),
    "a heavy tail": (32, 12 * HOUR, lambda: at_random(lambda _: 0.2, heavy_tailed(0.2, 600), 12)),
}


@pytest.mark.parametrize("start", [0.001, 0.1, 1.0, 10.0, 60.0])
@pytest.mark.parametrize("name", DAYS)
def test_it_never_costs_more_than_twice_what_one_costs_who_knows_the_day(
    name: str, start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second that a task waits costs as much as a worker's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from arrivals import clairvoyant, cost

    most, seconds, load = DAYS[name]
    tasks = list(load())
    pool = played(tasks, pool_of(most, 1, "auto"), start, seconds)
    least = clairvoyant(tasks, seconds, most=most, spare=1, start=start, weight=1.0)
    assert cost(pool.worker_seconds, pool.waits, 1.0) < 2 * least
