"""Hours on a simulated pool: what comes of the regulator's rules. Those of a load that varies are
in test_varying_loads.py.

The maximum is checked at every event of every run (see regulator_simulator.py).
"""

from __future__ import annotations

import math

import pytest
from regulator_simulator import (
    HOUR,
    SLACK,
    START_UP,
    Simulation,
    at_random,
    burst,
    constant,
    exponential,
    pool_of,
)

from prefork_executor._pool.regulator import (
    FREE_CRASHES,
    MAX_BACKOFF,
    MIN_BACKOFF,
)

# --- convergence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "duration", "workers"),
    [(8.0, 0.4, 5), (10.0, 0.3, 5), (0.3, 0.05, 2), (2.5, 0.1, 2)],
)
def test_under_a_constant_load_the_pool_converges_and_decides_no_more(
    rate: float, duration: float, workers: int
) -> None:
    pool = Simulation(pool_of(16), constant(rate, duration, hours=1)).run(HOUR)
    assert pool.changes_after(30.0) == []
    assert pool.live_at(30.0) == workers
    assert max(pool.waits) < 2 * START_UP


@pytest.mark.parametrize("min_spare", [0, 1, 4])
@pytest.mark.parametrize("idle_timeout", [0.5, 10.0, None])
def test_after_its_last_task_a_pool_is_back_at_its_spares_and_never_looks_again(
    min_spare: int, idle_timeout: float | None
) -> None:
    limits = pool_of(16, min_spare, idle_timeout)
    pool = Simulation(limits, burst(16, duration=5.0, start=1.0)).run(60.0)
    assert pool.live == (min_spare if idle_timeout else 16)
    looks = len(pool.looks)
    pool.run(24 * HOUR)
    assert len(pool.looks) == looks


@pytest.mark.parametrize("idle_timeout", [0.5, 3.0, 10.0])
def test_idle_workers_are_gone_soon_after_their_timeout(idle_timeout: float) -> None:
    limits = pool_of(24, 2, idle_timeout)
    pool = Simulation(limits, burst(24, duration=30.0, start=1.0)).run(2 * 60.0)
    last_end = 1.0 + 30.0 + max(pool.waits)
    assert pool.changes[-1].at < last_end + idle_timeout + 2 * SLACK
    assert pool.live == 2


def test_a_saturated_pool_looks_once_in_an_idle_timeout() -> None:
    load = ((n * 1e-4, 5.0) for n in range(10_000))
    pool = Simulation(pool_of(8), load).run(HOUR)
    assert pool.live == 8
    saturated = [look for look in pool.looks if look > 1.0]
    assert len(saturated) <= HOUR / 10.0


# --- growth -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [1e-6, 15e-6, 1e-4, 1e-3, 2e-3])
def test_a_burst_of_24_long_tasks_has_24_workers_within_a_tenth_of_a_second(
    spacing: float,
) -> None:
    for seed in range(20):
        load = burst(24, duration=60.0, start=30.0, spacing=spacing)
        pool = Simulation(pool_of(24), load, seed=seed).run(30.0)
        assert (pool.live, pool.idle) == (1, 1)
        assert pool.run(30.1).live == 24
        assert max(pool.waits) < 0.1 + START_UP


@pytest.mark.parametrize("pause", [1e-5, 1e-4, 1e-3, 5e-3, 0.02])
def test_tasks_that_come_while_workers_start_are_noticed(pause: float) -> None:
    """The first task starts a worker; no bell rings for the others when it is ready."""
    first = burst(1, duration=60.0, start=1.0)
    others = burst(15, duration=60.0, start=1.0 + pause)
    pool = Simulation(pool_of(16), [*first, *others], start_up=(0.05, 0.05)).run(2.0)
    assert pool.live == 16


def test_a_burst_of_short_tasks_is_gone_before_many_workers_were_forked_for_it() -> None:
    pool = Simulation(pool_of(64), burst(300, duration=20e-6, start=1.0)).run(5.0)
    assert len(pool.waits) == 300
    assert len(pool.forks) <= 4


# --- crashes and failed forks -------------------------------------------------------------------


def most_forks(seconds: float, at_first: int) -> int:
    """What the backoff allows: those at first and the free ones, then one a wait."""
    forks, wait = at_first + FREE_CRASHES, MIN_BACKOFF
    while seconds > 0:
        forks, seconds = forks + 1, seconds - wait
        wait = min(MAX_BACKOFF, 2 * wait)
    return forks


@pytest.mark.parametrize("seconds", [60.0, HOUR, 24 * HOUR])
@pytest.mark.parametrize("min_spare", [1, 5, 24])
def test_a_crash_loop_forks_as_rarely_as_the_backoff_says(seconds: float, min_spare: int) -> None:
    limits = pool_of(24, min_spare)
    pool = Simulation(limits, crashes=lambda _: True).run(seconds)
    assert len(pool.forks) <= most_forks(seconds, at_first=min_spare)
    assert len(pool.forks) >= seconds / MAX_BACKOFF


def test_a_crash_loop_under_load_forks_hardly_more() -> None:
    load = burst(1000, duration=1.0, start=0.001)
    pool = Simulation(pool_of(24), load, crashes=lambda _: True).run(HOUR)
    ramp_until_the_first_crash = 1 + 2 + 4
    assert len(pool.forks) <= most_forks(HOUR, at_first=ramp_until_the_first_crash)


@pytest.mark.parametrize("end", [0.05, 1.0, 20.0, HOUR])
@pytest.mark.parametrize("min_spare", [1, 5])
def test_when_a_crash_loop_ends_the_pool_is_complete_after_one_wait(
    end: float, min_spare: int
) -> None:
    limits = pool_of(24, min_spare)
    pool = Simulation(limits, crashes=lambda now: now < end).run(end)
    # The waits doubled, so the last is about as long as all before it.
    wait = min(MAX_BACKOFF, end + 2 * MIN_BACKOFF)
    settling = 1.0 + SLACK
    pool.run(end + wait + settling + 2 * START_UP)
    assert pool.idle >= min_spare
    assert pool.changes_after(end + wait + settling + 2 * START_UP) == []


@pytest.mark.parametrize("seconds", [60.0, HOUR])
def test_failing_forks_are_tried_as_rarely_as_the_backoff_says(seconds: float) -> None:
    pool = Simulation(pool_of(24, 5), fork_fails=lambda _: True).run(seconds)
    assert seconds / MAX_BACKOFF <= len(pool.failed_forks) <= most_forks(seconds, at_first=5)


@pytest.mark.parametrize("end", [0.05, 1.0, 20.0, HOUR])
def test_when_forks_succeed_again_the_pool_is_complete_after_one_wait(end: float) -> None:
    load = burst(24, duration=2 * HOUR)
    pool = Simulation(pool_of(24, 5), load, fork_fails=lambda now: now < end).run(end)
    wait = min(MAX_BACKOFF, end + 2 * MIN_BACKOFF)
    assert pool.run(end + wait + 0.1).live == 24


def test_a_few_workers_that_die_now_and_then_are_replaced_at_once() -> None:
    load = at_random(lambda _: 8, exponential(0.4), hours=1)
    pool = Simulation(pool_of(16, 2), load, crashes=lambda now: math.sin(1000 * now) > 0.8)
    pool.run(1.1 * HOUR)
    assert pool.longest_lack < MIN_BACKOFF + SETTLED
    assert pool.live == 2


SETTLED = 1.0 + 3 * START_UP
