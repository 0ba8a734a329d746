"""The regulator's rules, each for whatever counts and whatever went before.

A case is a short history of looks, so that the memory is one that the regulator
itself could have; the rules are checked at the last of them. What comes of the
rules over hours of load is in test_regulator_simulation.py and test_varying_loads.py.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regulator_simulator import pool_of

from prefork_executor._pool.regulator import (
    FIRST_DWELL,
    FORESIGHT,
    FREE_CRASHES,
    MAX_BACKOFF,
    MAX_DOUBT,
    MAX_DWELL,
    MAX_RAMP,
    MIN_BACKOFF,
    MIN_DWELL,
    MIN_LOOK_INTERVAL,
    RAMP_INTERVAL,
    RAMP_REST,
    STARTS_WORTH,
    WORKS_WORTH,
    Counts,
    Decision,
    Life,
    Limits,
    Memory,
    learn,
    regulate,
)

MOST = 70
"""Workers in a case: more than twice the largest step."""
TICK = 1.001 * RAMP_INTERVAL
"""Seconds between two looks of a ramp: a timer is never early."""


class Case(NamedTuple):
    """One look, what it saw and what came of it. ``memory`` is from before it."""

    counts: Counts
    limits: Limits
    memory: Memory
    decision: Decision
    after: Memory

    @property
    def room(self) -> int:
        return self.limits.max_workers - self.counts.live

    @property
    def lack(self) -> int:
        """Spares that lack under the minimum."""
        return self.limits.min_spare - self.counts.spares

    @property
    def wanted(self) -> int:
        """Workers that lack for every waiting task, and the spares besides."""
        return self.counts.backlog + self.lack

    @property
    def foreseen(self) -> int:
        """Workers that may lack when those started now are ready."""
        return FORESIGHT * self.counts.backlog + self.lack

    @property
    def held(self) -> bool:
        return self.counts.now < self.after.held_until

    @property
    def freed(self) -> int:
        """Places of workers that have ended since a fork failed: only crashes hold these."""
        if self.counts.now < self.after.crashes.until:
            return 0
        return max(0, self.after.live_at_failure - self.counts.live)


sized = st.integers(1, MOST)
few = st.integers(0, 20)
failed = st.sampled_from([0, 0, 0, 0, 1, 2, 40])
seconds = st.sampled_from([0.0, 0.004, RAMP_INTERVAL, 0.3, 2.0, 60.0])
timeouts = st.one_of(st.none(), st.just("auto"), seconds)
start_costs = st.none() | st.sampled_from([0.0, 0.001, 0.3, 1.0, 60.0, 1e4])
readings = st.fixed_dictionaries(
    {
        "starting": st.integers(0, 5),
        "idle": few,
        "busy": few,
        "leaving": st.integers(0, 3),
        "backlog": st.sampled_from([0, 0, 1, 3, 50, 10**6]),
        "outstanding": st.none() | st.integers(0, 60),
        "crashes": failed,
        "forks": st.sampled_from([0, 0, 1, 5]),
        "failed_forks": failed,
        "settled": st.booleans(),
        "start_cost": start_costs,
    }
)
tiredness = st.tuples(few, st.none() | seconds)
histories = st.lists(st.tuples(readings, tiredness, seconds), min_size=1, max_size=4)
limits_of_pools = st.builds(
    lambda most, spare, more, start, timeout: Limits(
        max_workers=most,
        min_spare=min(spare, most),
        max_spare=min(spare + more, most),
        start_workers=min(start, most),
        idle_timeout=timeout,
    ),
    *(sized, st.integers(0, 8), few, sized, timeouts),
)


def look(
    limits: Limits, now: float, reading: dict[str, Any], tired: int, later: float | None
) -> Counts:
    counts = Counts(now, **reading)
    if limits.idle_timeout is None:
        return counts
    idle_next = None if later is None else now + later
    return counts._replace(idle_long=min(tired, counts.idle), idle_next=idle_next)


def live_through(limits: Limits, history: list[Any]) -> Case:
    memory, now = Memory(), 1000.0
    for reading, tired, gap in history:
        now += gap
        counts, before = look(limits, now, reading, *tired), memory
        decision, memory = regulate(counts, limits, before)
    return Case(counts, limits, before, decision, memory)


cases = st.builds(live_through, limits_of_pools, histories)


def whatever_the_counts(test: Callable[[Case], None]) -> Callable[[], None]:
    """The test for a hundred cases."""
    return settings(max_examples=100, deadline=None)(given(cases)(test))


def ask(limits: Limits, memory: Memory, **counts: Any) -> tuple[Decision, Memory]:
    return regulate(Counts(**counts), limits, memory)


BEGUN = Memory(begun=True)


# --- bounds -----------------------------------------------------------------------------


@whatever_the_counts
def test_live_workers_never_exceed_the_maximum(case: Case) -> None:
    assert case.decision.start >= 0
    assert case.decision.start <= max(0, case.room)


@whatever_the_counts
def test_nothing_retires_below_the_spares_kept_ready(case: Case) -> None:
    assert 0 <= case.decision.retire <= case.counts.idle
    if case.decision.retire:
        assert case.counts.spares - case.decision.retire >= case.limits.min_spare


@whatever_the_counts
def test_nothing_retires_while_tasks_wait(case: Case) -> None:
    assert not (case.counts.backlog and case.decision.retire)


@whatever_the_counts
def test_no_decision_both_starts_and_retires(case: Case) -> None:
    assert not (case.decision.start and case.decision.retire)


@whatever_the_counts
def test_every_decision_that_changes_something_has_a_reason(case: Case) -> None:
    if case.decision.start or case.decision.retire:
        assert case.decision.reason


@whatever_the_counts
def test_the_same_look_gives_the_same_decision(case: Case) -> None:
    again = regulate(case.counts, case.limits, case.memory)
    assert again == (case.decision, case.after)


# --- growth -----------------------------------------------------------------------------


@whatever_the_counts
def test_spares_lacking_under_the_minimum_are_started_at_once(case: Case) -> None:
    if not case.held and not case.memory.on_probation and not case.after.on_probation:
        assert case.decision.start >= min(case.room, case.lack)


@whatever_the_counts
def test_growth_is_capped_at_the_lack(case: Case) -> None:
    first = case.limits.start_workers - case.counts.live if not case.memory.begun else 0
    assert case.decision.start <= max(0, case.foreseen, first)
    if not case.counts.start_cost or case.counts.backlog <= case.memory.backlog:
        assert case.decision.start <= max(0, case.wanted, first), "nothing is to be foreseen"


@whatever_the_counts
def test_growth_by_backlog_is_at_most_the_ramps_step(case: Case) -> None:
    first = case.limits.start_workers - case.counts.live if not case.memory.begun else 0
    assert case.decision.start <= max(case.memory.step, case.lack, first)
    assert 1 <= case.after.step <= MAX_RAMP


@whatever_the_counts
def test_within_the_ramps_interval_nothing_is_started_for_a_backlog(case: Case) -> None:
    if case.memory.begun and case.counts.now - case.memory.last_growth < RAMP_INTERVAL:
        assert case.decision.start <= max(0, case.lack)


@pytest.mark.parametrize("most", [1, 2, 24, 100, 1000])
def test_a_burst_of_long_tasks_doubles_the_steps_until_all_have_a_worker(most: int) -> None:
    limits, memory, busy, steps = pool_of(most), BEGUN, 1, []
    for moment in range(200):
        decision, memory = ask(limits, memory, now=moment * TICK, busy=busy, backlog=most - busy)
        if not decision.start:
            break
        assert decision.check_in == RAMP_INTERVAL or busy + decision.start == most
        steps.append(decision.start)
        busy += decision.start
    assert busy == most
    assert all(b <= min(2 * a, MAX_RAMP) for a, b in itertools.pairwise(steps))
    assert len(steps) <= math.log2(MAX_RAMP) + 2 + most / MAX_RAMP


def test_after_a_rest_the_next_burst_begins_with_one_worker() -> None:
    limits, memory = pool_of(100), BEGUN
    for moment in range(4):
        _, memory = ask(limits, memory, now=moment * TICK, idle=1, backlog=50)
    assert memory.step == 16
    later = 3 * TICK + RAMP_REST + 0.001
    decision, _ = ask(limits, memory, now=later, idle=1, backlog=50)
    assert decision.start == 1


def test_at_first_the_workers_to_start_with_are_started_at_once() -> None:
    decision, memory = ask(Limits(8, 1, 8, 5, None), Memory(), now=0.0)
    assert decision.start == 5
    assert ask(Limits(8, 1, 8, 5, None), memory, now=1.0, idle=2)[0].start == 0


# --- shrinking --------------------------------------------------------------------------


def test_idle_workers_above_the_most_spares_retire_at_once() -> None:
    decision, _ = ask(Limits(8, 1, 3, 1, None), BEGUN, now=0.0, idle=5)
    assert decision.retire == 2
    assert "5 spares" in decision.reason


def test_no_more_start_than_there_is_memory_for_and_idle_ones_beyond_that_leave() -> None:
    limits = Limits(8, 1, 8, 1, None)
    few = Counts(0.0, busy=2, backlog=5)
    assert limits.fitting(0, few) == limits.fitting(8, few) == limits
    assert ask(limits.fitting(3, few), BEGUN, now=0.0, busy=2, backlog=5)[0].start == 1
    assert ask(limits.fitting(2, few), BEGUN, now=0.0, busy=2, backlog=5)[0].start == 0
    many = Counts(0.0, busy=2, idle=2)
    assert ask(limits.fitting(3, many), BEGUN, now=0.0, busy=2, idle=2)[0].retire == 1


def test_tired_workers_retire_down_to_the_spares_kept_ready() -> None:
    decision, _ = ask(pool_of(8, min_spare=2), BEGUN, now=0.0, idle=6, idle_long=6)
    assert decision.retire == 4
    assert "10 s" in decision.reason


def test_the_spares_of_the_busiest_moment_stay_when_others_go_idle() -> None:
    # One has never been of use: it is the spare of the moment when all others were.
    decision, _ = ask(pool_of(8), BEGUN, now=0.0, idle=3, busy=1, idle_long=1)
    assert decision.retire == 0
    decision, _ = ask(pool_of(8), BEGUN, now=0.0, idle=3, busy=1, idle_long=2)
    assert decision.retire == 1


def test_an_idle_timeout_of_none_retires_nobody() -> None:
    decision, _ = ask(pool_of(8, idle_timeout=None), BEGUN, now=0.0, idle=8)
    assert (decision.retire, decision.check_in) == (0, None)


def test_an_idle_timeout_of_zero_does_not_make_a_busy_pool_look_all_the_time() -> None:
    decision, _ = ask(pool_of(8, idle_timeout=0.0), BEGUN, now=0.0, idle=1, busy=7)
    assert decision.check_in == MIN_LOOK_INTERVAL


# --- what a start is worth ----------------------------------------------------------------

AUTO = pool_of(8, idle_timeout="auto")
costs = st.floats(0.0, 1e5)
lives = st.builds(Life, st.floats(0.0, 1e7), st.floats(0.0, 1e7))


@given(costs, lives)
def test_a_worker_may_be_idle_for_what_its_start_is_worth_within_the_bounds(
    start_cost: float, life: Life
) -> None:
    dwell = AUTO.dwell(start_cost, life)
    assert dwell is not None
    assert MIN_DWELL <= dwell <= MAX_DWELL
    assert dwell <= max(MIN_DWELL, STARTS_WORTH * start_cost)
    assert dwell >= min(MAX_DWELL, start_cost), "no shorter than its start took"


@given(costs, costs, lives)
def test_the_more_a_start_costs_the_longer_a_worker_may_be_idle(
    one: float, other: float, life: Life
) -> None:
    cheap, dear = sorted((one, other))
    assert (AUTO.dwell(cheap, life) or 0) <= (AUTO.dwell(dear, life) or 0)


@given(costs, lives, st.floats(0.0, 1e5))
def test_work_earns_idleness_and_idleness_spends_it(
    start_cost: float, life: Life, more: float
) -> None:
    dwell = AUTO.dwell(start_cost, life) or 0
    worked = AUTO.dwell(start_cost, life._replace(worked=life.worked + more)) or 0
    idled = AUTO.dwell(start_cost, life._replace(idled=life.idled + more)) or 0
    assert idled <= dwell <= worked


def test_a_worker_that_works_enough_stays_as_long_as_its_start_is_worth() -> None:
    busy, hardly = Life(worked=1.0, idled=WORKS_WORTH - 15.0), Life(worked=1.0, idled=19.0)
    assert AUTO.dwell(1.0, busy) == STARTS_WORTH
    assert AUTO.dwell(1.0, hardly) == 1.0


def test_as_long_as_no_start_was_seen_a_worker_stays_for_some_seconds() -> None:
    assert AUTO.dwell(None) == FIRST_DWELL


@given(start_costs, lives, st.none() | st.floats(0.0, 1e6))
def test_a_timeout_that_the_user_gives_holds_whatever_a_start_costs(
    start_cost: float | None, life: Life, timeout: float | None
) -> None:
    assert pool_of(8, idle_timeout=timeout).dwell(start_cost, life) == timeout


@given(st.lists(st.floats(0.0, 1e4), min_size=1))
def test_what_is_known_of_starts_lies_between_the_cheapest_and_the_dearest(
    took: list[float],
) -> None:
    known = None
    for one in took:
        known = learn(known, one)
    assert known is not None
    assert min(took) * (1 - 1e-9) <= known <= max(took) * (1 + 1e-9)


def test_what_is_known_of_starts_follows_them_within_a_dozen() -> None:
    known = learn(None, 30.0)
    for _ in range(12):
        known = learn(known, 1.0)
    assert known == pytest.approx(1.0, abs=1.0)


def test_a_backlog_that_grows_is_expected_to_grow_on_while_workers_start() -> None:
    dear: list[int] = []
    cheap: list[int] = []
    for start_cost, started in ((1.0, dear), (0.001, cheap)):
        limits, memory = pool_of(64), BEGUN
        for number in range(12):
            seen = {
                "busy": 2,
                "backlog": number,
                "starting": sum(started),
                "start_cost": start_cost,
            }
            decision, memory = ask(limits, memory, now=number * TICK, **seen)
            started.append(decision.start)
    assert sum(cheap) == 12
    assert sum(dear) == 12 + 11


def test_a_backlog_that_shrinks_is_not_expected_to_grow() -> None:
    _, memory = ask(pool_of(64), BEGUN, now=0.0, busy=2, backlog=9, start_cost=60.0)
    seen = {"busy": 2, "starting": 9, "backlog": 8, "start_cost": 60.0}
    decision, _ = ask(pool_of(64), memory, now=0.1, **seen)
    assert decision.start == 0


# --- reasons ------------------------------------------------------------------------------


@whatever_the_counts
def test_a_reason_has_its_numbers_and_nouns_agree(case: Case) -> None:
    reason = case.decision.reason
    assert not re.search(r"\b1 (tasks|workers|spares|times)\b", reason)
    assert not re.search(r"\b(0|[2-9]|\d{2,}) (task|worker|spare|time)\b", reason)


@pytest.mark.parametrize(
    ("limits", "seen", "reason"),
    [
        (AUTO, {"busy": 1, "backlog": 1}, "1 task waiting, 0 idle"),
        (AUTO, {"busy": 1, "backlog": 2}, "2 tasks waiting, 0 idle"),
        (AUTO, {"busy": 1}, "0 idle, 1 lacking"),
        (Limits(8, 0, 0, 0, None), {"idle": 1}, "1 spare, more than the 0 allowed"),
        (
            AUTO,
            {"idle": 3, "idle_long": 2, "start_cost": 0.0123},
            "2 idle for longer than a start of 12.3 ms is worth",
        ),
        (
            AUTO,
            {"idle": 3, "idle_long": 2, "start_cost": 30.0},
            "2 idle for longer than a start of 30 s is worth",
        ),
        (AUTO, {"idle": 3, "idle_long": 2}, "2 idle for over 10 s"),
        (AUTO, {"failed_forks": 1}, "fork failed 1 time in a row; starting none for now"),
    ],
)
def test_a_decision_says_why_in_plain_words(
    limits: Limits, seen: dict[str, Any], reason: str
) -> None:
    decision, _ = ask(limits, BEGUN, now=0.0, **seen)
    assert decision.reason == reason


# --- when to look again -------------------------------------------------------------------


@whatever_the_counts
def test_the_next_look_is_never_in_the_past(case: Case) -> None:
    assert case.decision.check_in is None or case.decision.check_in >= 0


@whatever_the_counts
def test_what_lacks_while_there_is_room_is_looked_at_again_within_the_ramps_interval(
    case: Case,
) -> None:
    missing = min(case.room, case.wanted) - case.decision.start
    if missing > 0:
        check_in = case.decision.check_in
        assert check_in is not None
        assert check_in <= (MAX_BACKOFF if case.held else RAMP_INTERVAL)


@whatever_the_counts
def test_workers_that_may_grow_tired_are_looked_at_again(case: Case) -> None:
    counts, timeout = case.counts, case.limits.dwell(case.counts.start_cost)
    workers = counts.spares + counts.busy + case.decision.start
    if timeout is not None and workers > case.limits.min_spare and not case.held:
        assert case.decision.check_in is not None
        assert case.decision.check_in <= max(timeout, MIN_LOOK_INTERVAL)


def test_a_pool_at_rest_does_not_look() -> None:
    decision, _ = ask(pool_of(8), BEGUN, now=0.0, idle=1, outstanding=0)
    assert decision == Decision(enough=0)


def test_where_nobody_counts_tasks_their_number_makes_nobody_look() -> None:
    decision, _ = ask(pool_of(8), BEGUN, now=0.0, idle=1)
    assert decision == Decision()


def test_a_pool_that_is_busy_to_the_last_worker_looks_only_for_the_tired() -> None:
    decision, _ = ask(pool_of(4), BEGUN, now=0.0, busy=4, backlog=996, outstanding=1000)
    assert decision == Decision(check_in=10.0)


# --- doubt ------------------------------------------------------------------------------


@whatever_the_counts
def test_a_number_of_tasks_that_suffices_would_start_nobody(case: Case) -> None:
    enough = case.decision.enough
    if enough is None or case.decision.start or case.decision.retire:
        return
    assert case.counts.outstanding is not None
    exact = case.counts._replace(
        outstanding=enough,
        backlog=max(0, min(enough, case.counts.busy + case.counts.spares) - case.counts.busy),
        crashes=0,
        failed_forks=0,
    )
    assert case.counts.outstanding <= enough
    # As if no more waited than before. What a growing backlog will need is a matter of foresight:
    # as long as the workers are enough, the client need not wake the pool for that.
    steady = case.after._replace(backlog=exact.backlog)
    if case.counts.outstanding < enough and not case.after.on_probation:
        assert regulate(exact, case.limits, steady)[0].start == 0


@whatever_the_counts
def test_one_task_more_than_suffices_is_never_ignored(case: Case) -> None:
    if case.decision.enough is None or case.decision.start or case.decision.retire:
        return
    outstanding = case.decision.enough + 1
    more = case.counts._replace(outstanding=outstanding, crashes=0, failed_forks=0)
    decision, memory = regulate(more, case.limits, case.after)
    held = more.now < memory.held_until
    soon = decision.check_in is not None and decision.check_in <= MAX_DOUBT
    assert held or soon or decision.start


@whatever_the_counts
def test_whoever_does_not_ring_is_not_needed(case: Case) -> None:
    """Without a number that rings there is no room, or a look is due anyway."""
    if case.decision.enough is None and case.counts.outstanding is not None:
        full = case.counts.live + case.decision.start >= case.limits.max_workers
        soon = case.decision.check_in is not None and case.decision.check_in <= RAMP_INTERVAL
        assert full or case.held or soon


def test_a_task_that_no_reading_shows_makes_the_pool_look_again() -> None:
    # The one worker has taken the task and still counts as idle.
    decision, memory = ask(pool_of(8), BEGUN, now=0.0, idle=1, outstanding=1)
    assert (decision.start, decision.check_in) == (0, RAMP_INTERVAL)
    decision, _ = ask(pool_of(8), memory, now=RAMP_INTERVAL, busy=1, outstanding=1)
    assert decision.start == 1


def test_a_doubt_that_lasts_is_looked_at_less_and_less_often() -> None:
    memory, now, looks = BEGUN, 0.0, 0
    while now < 10.0:
        decision, memory = ask(pool_of(8), memory, now=now, idle=2, outstanding=5)
        assert decision.check_in is not None
        assert RAMP_INTERVAL <= decision.check_in <= MAX_DOUBT
        now, looks = now + decision.check_in, looks + 1
    assert looks < 10.0 / MAX_DOUBT + 8


def test_tasks_too_short_to_be_seen_wake_the_pool_twice_in_the_ramps_interval_at_most() -> None:
    memory, now, looks = BEGUN, 0.0, 0
    while now < 1.0:
        decision, memory = ask(pool_of(8), memory, now=now, idle=1, outstanding=0)
        # Each rings as soon as it may, and is gone when the pool looks.
        decision, memory = ask(pool_of(8), memory, now=now + 1e-4, idle=1, outstanding=0)
        assert decision.enough is None
        assert decision.check_in is not None
        now, looks = now + decision.check_in, looks + 2
    assert looks <= 2.2 / RAMP_INTERVAL


def test_a_new_doubt_begins_with_a_short_wait() -> None:
    _, memory = ask(pool_of(8), BEGUN, now=0.0, idle=2, outstanding=5)
    _, memory = ask(pool_of(8), memory, now=50.0, idle=2, outstanding=0)
    decision, _ = ask(pool_of(8), memory, now=99.0, idle=2, outstanding=5)
    assert decision.check_in == RAMP_INTERVAL


# --- crashes and failed forks -----------------------------------------------------------


@whatever_the_counts
def test_a_held_pool_starts_nobody_and_says_why_and_when(case: Case) -> None:
    if case.held and not case.decision.start:
        if min(case.room, case.wanted) > 0 and case.freed:
            assert case.decision.check_in is not None
            assert case.decision.check_in <= RAMP_INTERVAL, "only the ramp has it wait"
        elif min(case.room, case.wanted) > 0:
            assert case.decision.reason
            assert case.decision.check_in == case.after.held_until - case.counts.now
    elif case.counts.now < case.after.held_until:
        # On probation the start itself begins the next wait.
        assert case.decision.start == 1


@whatever_the_counts
def test_no_wait_is_longer_than_the_longest(case: Case) -> None:
    assert case.after.held_until - case.counts.now <= MAX_BACKOFF


@whatever_the_counts
def test_on_probation_workers_are_started_one_at_a_time(case: Case) -> None:
    if case.after.on_probation:
        assert case.decision.start <= 1


def crash_loop(limits: Limits, seconds: float, memory: Memory = BEGUN) -> Iterator[float]:
    """When each worker is started of which every one crashes at once."""
    now, crashes = 0.0, 0
    while now < seconds:
        decision, memory = ask(limits, memory, now=now, crashes=crashes, forks=crashes)
        crashes = decision.start
        yield from [now] * crashes
        assert crashes or decision.check_in
        now += 0.001 if crashes else decision.check_in or 0.0


def test_the_first_crashes_are_replaced_at_once_and_the_others_wait_twice_as_long_each() -> None:
    starts = list(crash_loop(pool_of(8), 60.0))
    waits = [b - a for a, b in itertools.pairwise(starts)]
    assert waits[:FREE_CRASHES] == pytest.approx([0.001] * FREE_CRASHES)
    expected = [MIN_BACKOFF * 2**n for n in range(len(waits) - FREE_CRASHES)]
    assert waits[FREE_CRASHES:] == pytest.approx(expected, abs=0.002)


def test_a_crash_loop_of_a_day_costs_one_fork_for_each_longest_wait() -> None:
    day = 86400.0
    assert len(list(crash_loop(pool_of(8), day))) == pytest.approx(day / MAX_BACKOFF, abs=12)


def test_a_burst_that_crashes_as_one_costs_the_shortest_wait() -> None:
    limits = pool_of(64, min_spare=32)
    decision, memory = ask(limits, BEGUN, now=0.0, crashes=32, forks=32)
    assert decision.check_in == pytest.approx(MIN_BACKOFF)
    decision, _ = ask(limits, memory, now=0.05, crashes=5)
    assert decision.check_in == pytest.approx(MIN_BACKOFF - 0.05)


def test_a_worker_that_settles_ends_the_row_and_all_that_lacks_is_started() -> None:
    limits = pool_of(8, min_spare=4)
    _, memory = ask(limits, BEGUN, now=0.0, crashes=100)
    decision, memory = ask(limits, memory, now=0.01, idle=1, settled=True)
    assert decision.start == 3
    decision, _ = ask(limits, memory, now=0.02, idle=3, crashes=1)
    assert decision.start == 1, "the next crash is the first of a new row"


def test_a_worker_that_settled_before_the_crash_does_not_excuse_it() -> None:
    _, memory = ask(pool_of(8), BEGUN, now=0.0, crashes=FREE_CRASHES + 1, settled=True)
    assert memory.held_until == MIN_BACKOFF


def test_failed_forks_wait_from_the_first_on() -> None:
    now, memory, waits = 0.0, BEGUN, []
    for _ in range(12):
        decision, memory = ask(pool_of(8), memory, now=now, failed_forks=1)
        assert "fork failed" in decision.reason
        assert decision.check_in is not None
        waits.append(decision.check_in)
        now += decision.check_in
        decision, memory = ask(pool_of(8), memory, now=now)
        assert decision.start == 1
    expected = [min(MAX_BACKOFF, MIN_BACKOFF * 2**n) for n in range(12)]
    assert waits == pytest.approx(expected)


def test_the_place_of_a_worker_that_has_ended_is_taken_though_forks_have_failed() -> None:
    """There was room for it a moment ago."""
    limits, now, memory = pool_of(8, min_spare=0), 0.0, BEGUN
    for _ in range(6):
        decision, memory = ask(limits, memory, now=now, busy=3, backlog=9, failed_forks=1)
        assert decision.start == 0
        now += decision.check_in or 0.0
        decision, memory = ask(limits, memory, now=now, busy=3, backlog=9)
        assert decision.start == 1
    decision, memory = ask(limits, memory, now=now, busy=3, backlog=9, failed_forks=1)
    assert decision.check_in == MIN_BACKOFF * 2**6
    decision, memory = ask(limits, memory, now=now + 1, busy=2, backlog=9)
    assert decision.start == 1
    decision, _ = ask(limits, memory, now=now + 1.1, starting=1, busy=2, backlog=9)
    assert decision.start == 0, "no more than have ended"


def test_a_worker_that_ended_before_the_look_at_a_failed_fork_is_replaced_as_well() -> None:
    seen = {"busy": 2, "backlog": 9, "failed_forks": 1, "live_at_failure": 3}
    decision, _ = ask(pool_of(8, min_spare=0), BEGUN, now=0.0, **seen)
    assert decision.start == 1


def test_a_crash_loop_waits_whatever_has_become_of_forks() -> None:
    limits = pool_of(8, min_spare=4)
    seen = {"crashes": FREE_CRASHES + 1, "failed_forks": 1, "live_at_failure": 3}
    decision, _ = ask(limits, BEGUN, now=0.0, **seen)
    assert (decision.start, decision.check_in) == (0, MIN_BACKOFF)


def test_a_fork_that_succeeds_ends_the_row_of_those_that_failed() -> None:
    limits = pool_of(8, min_spare=4)
    decision, memory = ask(limits, BEGUN, now=0.0, failed_forks=4)
    assert (decision.start, decision.check_in) == (0, MIN_BACKOFF)
    decision, memory = ask(limits, memory, now=MIN_BACKOFF)
    assert (decision.start, decision.check_in) == (1, RAMP_INTERVAL)
    decision, memory = ask(limits, memory, now=MIN_BACKOFF + RAMP_INTERVAL, starting=1, forks=1)
    assert decision.start == 3
    assert not memory.on_probation
