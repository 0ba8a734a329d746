"""The rules of memory: each for itself, and in simulated pools."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from memory_simulator import BASE, MIB, Simulation, Task

from prefork_executor._client.memory_rules import (
    MAX_ENDED,
    MAX_PASSED,
    Idle,
    Judgement,
    Memory,
    Past,
    Request,
    Runner,
    Sight,
    choose,
    judge,
)
from prefork_executor._client.timings import Timing

GIB = 1024 * MIB


def runner(number: int, takes: int, peak: int | None = 0, **options: Any) -> Runner:
    options = {"since": number, "may_run_again": True, "function": "f", **options}
    return Runner(number=number, takes=takes * MIB, peak=_bytes(peak), **options)


def _bytes(size: int | None) -> int | None:
    return None if size is None else size * MIB


def sight(*runners: Runner, bound: int = 1000, idle: tuple[int, ...] = (), **options: Any) -> Sight:
    """Sizes in MiB; the system has 64 GiB, nearly all of it free. Base is 10."""
    waiting = [Idle(100 + place, size * MIB) for place, size in enumerate(idle)]
    options = {"sent": (), "others": 0, "has": 64 * GIB, "left": 60 * GIB, **options}
    return Sight(bound=bound * MIB, base=10 * MIB, runners=runners, idle=waiting, **options)


def begins(
    looked: Sight, *peaks: int | None, under_way: int | None = None, **options: Any
) -> int | None:
    """Which of the tasks with these peaks (MiB) begins."""
    options = {"may_probe": True, "passed": 0, "holds": False, **options}
    return choose(
        [peak if isinstance(peak, Request) else Request(_bytes(peak), "f") for peak in peaks],
        looked.offer(),
        options.pop("seen", {}),
        under_way=len(looked.runners) if under_way is None else under_way,
        **options,
    )


def twice(looked: Sight) -> Judgement:
    """What comes of the second of two looks that see the same."""
    first, memory = judge(looked, Memory())
    assert first.holds
    assert (first.end, first.fail, first.leave) == (None, None, ())
    return judge(looked, memory)[0]


class TestWhoBegins:
    def test_a_task_begins_that_fits_beside_what_is_expected(self) -> None:
        assert begins(sight(runner(1, 50, peak=400)), 500) == 0

    def test_a_task_waits_that_does_not(self) -> None:
        assert begins(sight(runner(1, 50, peak=600)), 500) is None

    def test_a_task_counts_with_what_it_takes_if_that_is_more_than_expected(self) -> None:
        assert begins(sight(runner(1, 800, peak=100)), 500) is None

    def test_the_first_begins_whatever_it_takes_if_nothing_is_under_way(self) -> None:
        assert begins(sight(), 5000) == 0
        assert begins(sight(idle=(2000,)), 5000, holds=True) == 0

    def test_what_an_idle_worker_holds_is_there_for_the_task_that_it_gets(self) -> None:
        # A model that its first task has loaded, say.
        assert begins(sight(runner(1, 450, peak=400), idle=(450,)), 440) == 0
        assert begins(sight(runner(1, 450, peak=400), idle=(450, 10)), 440) is None

    def test_what_is_on_its_way_counts(self) -> None:
        assert begins(sight(runner(1, 50, peak=400), sent=(400 * MIB,)), 500) is None

    def test_nothing_begins_beside_others_while_the_pool_is_above_its_bound(self) -> None:
        assert begins(sight(runner(1, 50)), 0, holds=True) is None

    def test_less_fits_if_the_system_has_less_left(self) -> None:
        left = {"has": 10 * GIB, "left": 10 * GIB // 50 + 300 * MIB}
        assert begins(sight(runner(1, 50), **left), 200) == 0
        assert begins(sight(runner(1, 50), **left), 400) is None

    def test_smaller_ones_pass_a_task_that_does_not_fit(self) -> None:
        assert begins(sight(runner(1, 50, peak=600)), 900, 800, 100) == 2

    def test_so_many_pass_it_and_no_more(self) -> None:
        looked = sight(runner(1, 50, peak=600))
        assert begins(looked, 900, 100, passed=MAX_PASSED) is None
        assert begins(looked, 900, 100, passed=MAX_PASSED - 1) == 1

    def test_those_that_take_nothing_always_do(self) -> None:
        assert begins(sight(runner(1, 50, peak=600)), 900, 100, 0, passed=MAX_PASSED) == 2

    def test_of_an_unknown_function_one_begins_at_a_look(self) -> None:
        looked = sight(runner(1, 50, peak=None))
        assert begins(looked, None) == 0
        assert begins(looked, None, may_probe=False) is None

    def test_an_unknown_task_needs_as_much_as_its_like_have_come_to(self) -> None:
        looked = sight(runner(1, 310, peak=None))
        assert begins(looked, None, seen={"f": 300 * MIB}) == 0
        looked = sight(runner(1, 410, peak=None))
        assert begins(looked, None, seen={"f": 400 * MIB}) is None

    def test_a_task_that_is_to_run_alone_waits_for_that(self) -> None:
        alone = Request(0, "f", alone=True)
        assert begins(sight(runner(1, 50)), alone) is None
        assert begins(sight(), alone) == 0

    def test_none_begins_beside_one_that_runs_alone(self) -> None:
        assert begins(sight(runner(1, 50)), 0, under_way=-1) is None

    def test_none_passes_one_that_is_to_run_alone(self) -> None:
        alone = Request(0, "f", alone=True)
        assert begins(sight(runner(1, 50)), alone, 0) is None

    def test_nothing_begins_of_nothing(self) -> None:
        assert begins(sight()) is None


class TestHowManyWorkersThereAre:
    def test_one_starts_while_nobody_knows_what_a_worker_takes(self) -> None:
        looked = sight()._replace(base=0)
        assert looked.fitting == 1
        assert looked._replace(other_workers=1, others=5 * MIB).fitting == 1

    def test_any_number_where_nobody_can_tell_what_they_take(self) -> None:
        assert sight(runner(1, 0))._replace(base=0).fitting == 0

    def test_as_many_more_as_fit_beside_what_is_expected(self) -> None:
        assert sight(runner(1, 10), bound=100).fitting == 1 + 90 // 11
        assert sight(runner(1, 10, 50), idle=(10,), bound=100).fitting == 2 + 30 // 11

    def test_one_starts_for_a_task_that_was_sent_if_that_fits(self) -> None:
        assert sight(runner(1, 10), sent=[60 * MIB], bound=100).fitting == 1 + 30 // 11
        assert sight(runner(1, 10), sent=[None, None], bound=160).fitting == 1 + 130 // 11

    def test_those_that_start_count_as_what_they_will_take(self) -> None:
        looked = sight(runner(1, 10), others=2 * MIB, other_workers=2, bound=100)
        assert looked.fitting == 3 + 70 // 11
        assert looked.offer().free == 70 * MIB

    def test_large_ones_leave_that_do_not_fit_and_small_ones_stay(self) -> None:
        large = sight(runner(1, 10, 60), idle=(10, 10), bound=85)
        assert large.fitting == 2
        small = sight(runner(1, 10, 600), idle=(10, 10), bound=605)
        assert small.fitting == 3

    def test_idle_ones_are_to_leave_as_soon_as_there_are_any(self) -> None:
        assert not sight(runner(1, 30), runner(2, 30), runner(3, 30), bound=85).is_crowded
        assert sight(runner(1, 30), runner(2, 30), idle=(30,), bound=85).is_crowded
        assert not sight(runner(1, 30), idle=(30,), bound=85).is_crowded

    def test_one_there_is_always(self) -> None:
        assert sight(runner(1, 500), bound=20).fitting == 1


class TestWhoEnds:
    def test_nobody_does_within_the_bound(self) -> None:
        assert judge(sight(runner(1, 500), runner(2, 400)), Memory())[0] == Judgement()

    def test_the_task_that_began_last_does_if_the_second_look_is_above_the_bound_too(self) -> None:
        assert twice(sight(runner(1, 600), runner(3, 300), runner(2, 300))).end == 3

    def test_a_look_within_the_bound_in_between_makes_it_the_first_again(self) -> None:
        above = sight(runner(1, 600), runner(2, 600))
        _, memory = judge(above, Memory())
        _, memory = judge(sight(runner(1, 100)), memory)
        assert judge(above, memory)[0].end is None

    def test_no_other_does_before_it_is_gone(self) -> None:
        looked = sight(runner(1, 600), runner(2, 600), runner(3, 600))
        memory, ended = Memory(), []
        for _ in range(10):
            judgement, memory = judge(looked, memory)
            ended.append(judgement.end)
        assert [end for end in ended if end] == [3]
        # It is gone, and that was not enough.
        looked = sight(runner(1, 600), runner(2, 600))
        judgement, memory = judge(looked, memory)
        assert judgement.end is None
        assert judge(looked, memory)[0].end == 2

    def test_none_does_that_may_not_run_again(self) -> None:
        last = runner(3, 400, may_run_again=False)
        assert twice(sight(runner(1, 600), runner(2, 300), last)).end == 2
        looked = sight(runner(1, 700, may_run_again=False), last)
        judgement = twice(looked)
        assert judgement.end is None
        assert "none may run again" in judgement.reason

    def test_none_does_that_has_added_nothing(self) -> None:
        assert twice(sight(runner(1, 600), runner(2, 600), runner(3, 10))).end == 2

    def test_a_single_task_does_not(self) -> None:
        idle = (10,) * 50
        judgement = twice(sight(runner(1, 900), idle=idle))
        assert (judgement.end, judgement.fail) == (None, None)

    def test_one_that_is_above_the_bound_by_itself_fails(self) -> None:
        assert twice(sight(runner(1, 1001))).fail == 1
        assert twice(sight(runner(1, 1001, may_run_again=False), runner(2, 100))).fail == 1

    def test_idle_workers_that_hold_memory_leave_first(self) -> None:
        judgement = twice(sight(runner(1, 500), runner(2, 270), idle=(10, 200, 200)))
        assert (judgement.end, judgement.leave) == (None, (101,))

    def test_they_leave_as_well_where_that_makes_room_for_a_task(self) -> None:
        looked = sight(runner(1, 300, peak=300), idle=(300, 300, 10))
        assert judge(looked, Memory(), None)[0].leave == ()
        assert judge(looked, Memory(), 50 * MIB)[0].leave == ()  # It fits.
        assert judge(looked, Memory(), 300 * MIB)[0].leave == (100,)
        assert judge(looked, Memory(), 600 * MIB)[0].leave == (100, 101)

    def test_the_same_comes_of_a_system_that_has_too_little_left(self) -> None:
        short = {"has": 10 * GIB, "left": 100 * MIB}
        assert twice(sight(runner(1, 100), runner(2, 50), **short)).end == 2

    def test_nothing_begins_while_the_system_stalls(self) -> None:
        judgement, _ = judge(sight(runner(1, 100), runner(2, 50), stalled=20.0), Memory())
        assert judgement.holds
        assert judgement.end is None


class TestWhatIsLearned:
    def after(self, *observed: tuple[int, int]) -> int | None:
        timing = Timing("f")
        for added, left in observed:
            timing.observe_peak(added, left)
        return timing.peak

    def test_nothing_is_known_at_first(self) -> None:
        assert self.after() is None

    def test_the_first_peak_is_taken_as_it_is(self) -> None:
        assert self.after((100, 0)) == 100

    def test_a_higher_one_counts_at_once_and_a_lower_one_by_and_by(self) -> None:
        assert self.after((100, 0), (500, 0)) == 500
        assert self.after((500, 0), (100, 0)) == 450

    def test_what_a_worker_had_left_may_have_been_needed_or_not(self) -> None:
        assert self.after((300, 0), (0, 500)) == 300
        assert self.after((300, 0), (400, 500)) == 400
        assert self.after((300, 0), (0, 100)) == 275
        assert self.after((0, 500)) == 500

    def test_a_task_that_was_ended_is_expected_to_take_twice_as_much_and_at_last_runs_alone(
        self,
    ) -> None:
        past = Past().after_end(100)
        assert Request.of(50, "f", past) == Request(200, "f")
        assert Request.of(None, "f", past) == Request(200, "f")
        for _ in range(MAX_ENDED - 1):
            past = past.after_end(100)
        assert Request.of(50, "f", past).alone


# --- simulated pools ----------------------------------------------------------------------------

SIZES = st.integers(0, 3000).map(lambda size: size * MIB)


@st.composite
def tasks(draw: st.DrawFn, *, is_known: bool = False) -> list[Task]:
    """Tasks of a few functions, of which each has its own sizes."""
    functions = draw(st.lists(st.tuples(SIZES, st.integers(1, 40)), min_size=1, max_size=4))
    found = []
    for _ in range(draw(st.integers(1, 40))):
        place = draw(st.integers(0, len(functions) - 1))
        most, ticks = functions[place]
        peak = draw(st.integers(0, most)) if most and not is_known else most
        rises = draw(st.integers(1, ticks))
        may_run_again = draw(st.booleans())
        name = f"f{place}"
        given = peak if is_known else None
        found.append(Task(name, peak, ticks, rises, may_run_again, given))
    return found


pools = {
    "bound": st.integers(100, 4000).map(lambda size: size * MIB),
    "workers": st.integers(1, 16),
    "leaves_behind": st.sampled_from([0.0, 0.3, 1.0]),
    "seed": st.integers(0, 9),
}
ENOUGH = 40 * 45 * 4
"""Ticks in which all tasks have ended, even if each ran alone as often as it may.

At every beginning the simulation checks that nothing begins beside others while the pool is above
its bound; and at every end that only such tasks are ended as may be."""


@settings(max_examples=60)
@given(tasks=tasks(), **pools)
def test_every_task_comes_to_an_end_and_none_is_ended_for_ever(
    tasks: list[Task], **pool: Any
) -> None:
    done = Simulation(tasks=tasks, **pool).run(ENOUGH)
    assert done.is_all_well()
    for task in tasks:
        assert task.runs <= 1 + MAX_ENDED
        if task.peak + BASE <= done.bound and not pool["leaves_behind"]:
            assert task.outcome == "done"
        if not task.may_run_again:
            assert task.runs == 1


@settings(max_examples=60)
@given(tasks=tasks(is_known=True), **pools)
def test_the_bound_holds_where_peaks_are_known(tasks: list[Task], **pool: Any) -> None:
    pool |= {"leaves_behind": 0.0}
    pool["bound"] = max(pool["bound"], 20 * BASE)
    alone = max([task.peak for task in tasks]) + pool["workers"] * BASE
    done = Simulation(tasks=tasks, **pool).run(ENOUGH)
    assert done.is_all_well()
    assert done.most <= max(done.bound, alone)
    if alone <= done.bound:
        assert (done.ended, done.failed) == (0, 0)


@settings(max_examples=60)
@given(
    tasks=tasks(),
    others=st.dictionaries(st.integers(1, 200), st.integers(0, 64).map(lambda n: n * GIB)),
    **pools,
)
def test_none_is_stuck_when_other_programs_take_the_memory(
    tasks: list[Task], others: dict[int, int], **pool: Any
) -> None:
    done = Simulation(tasks=tasks, has=64 * GIB, other_programs=others, **pool).run(ENOUGH)
    assert done.is_all_well()


def test_a_large_task_is_not_kept_waiting_by_a_stream_of_smaller_ones() -> None:
    small = [Task("small", 300 * MIB, 10, given=300 * MIB) for _ in range(200)]
    large = Task("large", 900 * MIB, 10, given=900 * MIB)
    done = Simulation(1000 * MIB, 8, [*small[:10], large, *small[10:]])
    begun_before = 0
    while not large.runs:
        done.tick()
        begun_before = sum(task.runs for task in small)
    assert begun_before <= 10 + MAX_PASSED


def test_functions_that_nobody_knows_fill_the_pool_within_as_many_looks() -> None:
    long = [Task("f", 50 * MIB, 1000) for _ in range(16)]
    done = Simulation(2000 * MIB, 16, long).run(20)
    assert len(done.running) == 16


def test_tasks_of_one_function_run_as_many_at_a_time_as_fit_once_it_is_known() -> None:
    many = [Task("f", 400 * MIB, 20) for _ in range(40)]
    done = Simulation(2000 * MIB, 8, many).run(ENOUGH)
    assert done.ended <= 4
    assert done.now <= 40 / 4 * 20 * 1.5


def test_tasks_of_unequal_sizes_all_end_well_within_the_time_of_one_after_another() -> None:
    sizes = [50, 100, 200, 400, 800, 1500, 60, 90]
    many = [Task("f", sizes[n % 8] * MIB, 20, rises=15) for n in range(40)]
    done = Simulation(1700 * MIB, 8, many).run(ENOUGH)
    assert all(task.outcome == "done" for task in many)
    assert done.now < 40 * 20
    assert done.growth_beyond() < 1500 * MIB
