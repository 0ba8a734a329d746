"""The client's books: windows, order, numbers. What a death in TAKING means is
in test_audit.py."""

from __future__ import annotations

import functools
import gc
import operator
import weakref
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefork_executor._board import scoreboard as sb
from prefork_executor._board.scoreboard import Slot
from prefork_executor._client.futures import TaskFuture
from prefork_executor._client.ledger import AHEAD, Ledger, Task
from prefork_executor._client.recovery import Recovery
from prefork_executor._client.task_states import (
    DONE,
    GIVEN_UP,
    IN_FLIGHT,
    NEXT,
    TO_END,
    TO_FAIL,
    WAITING,
    Event,
    State,
)
from prefork_executor._client.timings import FULL_WEIGHT, FULL_WEIGHT_NS, Timing
from prefork_executor._pickling.main_snapshot import MainSnapshot
from prefork_executor._server.settings import DEFAULT_OPTIONS
from prefork_executor.errors import IllegalTransition

MILLISECOND = 1_000_000


def some_function() -> None:
    pass


def new_task(ledger: Ledger, fn: Callable[..., Any] = some_function) -> Task:
    return Task(
        TaskFuture(), ledger.timing_of(fn), DEFAULT_OPTIONS, ([b"payload"], None), MainSnapshot({})
    )


def send(ledger: Ledger, task: Task) -> int:
    ledger.enqueue(task)
    assert ledger.waiting[0] is task
    number = ledger.number(task)
    ledger.send_next(task)
    return number


def send_all_there_is_room_for(
    ledger: Ledger, workers: int, fn: Callable[..., Any] = some_function
) -> int:
    sent = 0
    while ledger.has_room(workers) and sent < 100_000:
        send(ledger, new_task(ledger, fn))
        sent += 1
    return sent


# --- the window ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8, 100])
def test_tasks_of_unknown_duration_are_sent_two_a_worker_and_one_ahead(workers: int) -> None:
    assert send_all_there_is_room_for(Ledger(), workers) == AHEAD * workers + 1


def test_there_is_room_for_the_first_tasks_before_any_worker_is_ready() -> None:
    assert send_all_there_is_room_for(Ledger(), workers=0) == AHEAD + 1


def test_short_tasks_are_sent_further_ahead_the_shorter_they_are() -> None:
    sent = []
    for duration in (FULL_WEIGHT_NS, FULL_WEIGHT_NS // 4, FULL_WEIGHT_NS // 16, 1):
        ledger = Ledger()
        ledger.settle(send(ledger, new_task(ledger)), duration)
        sent.append(send_all_there_is_room_for(ledger, workers=1))
    most = (AHEAD + 1) * FULL_WEIGHT
    assert sent == [AHEAD + 1, 4 * (AHEAD + 1), 16 * (AHEAD + 1), most]


def test_what_is_resolved_makes_room() -> None:
    ledger = Ledger()
    numbers = [send(ledger, new_task(ledger)) for _ in range(3)]
    assert not ledger.has_room(1)
    ledger.settle(numbers[1], MILLISECOND)
    assert ledger.has_room(1)


def test_a_long_task_among_short_ones_raises_the_weight_at_once() -> None:
    timing = Timing("task")
    for _ in range(1000):
        timing.observe(1000)
    assert timing.weight == 1
    timing.observe(1000 * MILLISECOND)
    assert timing.weight == FULL_WEIGHT


def test_short_tasks_after_long_ones_lower_the_weight_little_by_little() -> None:
    timing, weights = Timing("task"), []
    timing.observe(FULL_WEIGHT_NS)
    for _ in range(60):
        timing.observe(1000)
        weights.append(timing.weight)
    assert weights == sorted(weights, reverse=True)
    assert (weights[0], weights[-1]) == (56, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=50))
def test_a_weight_is_always_between_one_unit_and_one(durations: list[int]) -> None:
    timing = Timing("task")
    for duration in durations:
        timing.observe(duration)
        assert 1 <= timing.weight <= FULL_WEIGHT
        assert timing.mean <= max(durations)


def test_a_task_that_died_says_nothing_of_the_duration() -> None:
    ledger = Ledger()
    task = new_task(ledger)
    ledger.settle(send(ledger, task), 0)
    assert task.timing.weight == FULL_WEIGHT


def test_a_task_weighs_in_the_window_what_it_weighed_when_it_was_sent() -> None:
    ledger = Ledger()
    first, second = (send(ledger, new_task(ledger)) for _ in range(2))
    ledger.settle(first, 1)
    ledger.settle(second, 1)
    assert send_all_there_is_room_for(ledger, workers=1) == (AHEAD + 1) * FULL_WEIGHT


# --- whose durations they are -----------------------------------------------------------------


def decorated(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args)

    return wrapper


@decorated
def first_decorated() -> None:
    pass


@decorated
def second_decorated() -> None:
    pass


class Adder:
    def __call__(self, x: int) -> int:
        return x

    def method(self) -> None:
        pass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (len, abs),
        (int, float),
        (str.upper, str.lower),
        (operator.add, operator.sub),
        (first_decorated, second_decorated),
        (Adder().method, Adder()),
        (functools.partial(len, ()), functools.partial(abs, 1)),
    ],
)
def test_different_functions_have_durations_and_names_of_their_own(one: Any, other: Any) -> None:
    ledger = Ledger()
    timings = ledger.timing_of(one), ledger.timing_of(other)
    assert timings[0] is not timings[1]
    assert timings[0].name != timings[1].name


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda: None,
        Adder,
        lambda: Adder().method,
        lambda: functools.partial(some_function),
        lambda: [].append,
        lambda: len,
    ],
)
def test_the_same_function_made_anew_has_the_durations_of_the_first(make: Any) -> None:
    ledger = Ledger()
    assert ledger.timing_of(make()) is ledger.timing_of(make())


def test_a_partial_of_a_function_is_that_function() -> None:
    ledger = Ledger()
    partial = functools.partial(functools.partial(some_function))
    assert ledger.timing_of(partial) is ledger.timing_of(some_function)
    assert ledger.timing_of(partial).name.endswith("some_function")


def test_the_books_keep_nothing_alive_that_a_function_is_bound_to() -> None:
    ledger, adder = Ledger(), Adder()
    alive = weakref.ref(adder)
    ledger.timing_of(adder.method)
    ledger.timing_of(adder)
    ledger.timing_of(functools.partial(adder.method, adder))
    del adder
    gc.collect()
    assert alive() is None


def test_an_object_that_answers_to_every_name_is_a_function_as_well() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return [name]

        def __call__(self) -> None:
            pass

    assert Ledger().timing_of(Proxy()).weight == FULL_WEIGHT


def test_durations_of_endlessly_many_functions_take_bounded_room() -> None:
    ledger = Ledger()
    for number in range(5000):
        ledger.timing_of(eval(f"lambda: {number}"))
    assert len(ledger._timings) <= 4096


# --- order, numbers, ends -----------------------------------------------------------------------


def test_tasks_that_come_back_are_the_next_to_be_sent_in_their_order() -> None:
    ledger = Ledger()
    tasks = [new_task(ledger) for _ in range(5)]
    numbers = [send(ledger, task) for task in tasks[:4]]
    ledger.enqueue(tasks[4])
    ledger.requeue([numbers[2], numbers[0], numbers[3]])
    assert list(ledger.waiting) == [tasks[0], tasks[2], tasks[3], tasks[4]]
    assert list(ledger.in_flight.values()) == [tasks[1]]


def test_what_was_resolved_does_not_come_back() -> None:
    ledger = Ledger()
    number = send(ledger, new_task(ledger))
    ledger.settle(number)
    ledger.requeue([number, 12345])
    assert not ledger.waiting


def test_a_task_is_resolved_once() -> None:
    ledger = Ledger()
    task = new_task(ledger)
    number = send(ledger, task)
    assert ledger.settle(number, MILLISECOND) is task
    assert ledger.settle(number, MILLISECOND) is None
    assert ledger.outstanding == 0


def test_only_what_was_never_sent_can_be_withdrawn() -> None:
    ledger = Ledger()
    sent, unsent = new_task(ledger), new_task(ledger)
    ledger.requeue([send(ledger, sent)])
    ledger.enqueue(unsent)
    assert ledger.take_unsent() == [unsent]
    assert list(ledger.waiting) == [sent]


class Books(RuleBasedStateMachine):
    """The ledger against lists: whatever happens in whatever order, every task is
    in one place, and the books say which."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.waiting: list[Task] = []
        self.in_flight: dict[int, Task] = {}
        self.dropped: set[Task] = set()
        self.condemned: set[Task] = set()
        self.numbers_used: list[int] = []

    @rule()
    def submit(self) -> None:
        task = new_task(self.ledger)
        self.ledger.enqueue(task)
        self.waiting.append(task)

    @precondition(lambda self: self.waiting)
    @rule(works=st.booleans())
    def send(self, works: bool) -> None:
        task = self.ledger.waiting[0]
        number = self.ledger.number(task)
        assert number not in self.numbers_used
        self.numbers_used.append(number)
        if works and task.state is not WAITING:
            assert self.ledger.dequeue() is task
            self.waiting.pop(0)
        elif works:
            self.ledger.send_next(task)
            self.in_flight[number] = self.waiting.pop(0)

    @precondition(lambda self: self.waiting)
    @rule()
    def cancel_the_next(self) -> None:
        assert self.ledger.dequeue() is self.waiting.pop(0)

    @precondition(lambda self: self.numbers_used)
    @rule(data=st.data(), duration=st.sampled_from([None, 0, 10, MILLISECOND]))
    def settle(self, data: st.DataObject, duration: int | None) -> None:
        number = data.draw(st.sampled_from(self.numbers_used))
        assert self.ledger.settle(number, duration) is self.in_flight.pop(number, None)

    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        numbers = data.draw(st.lists(st.sampled_from([*self.numbers_used, 0]), unique=True))
        back = [self.in_flight.pop(n) for n in sorted(numbers) if n in self.in_flight]
        self.waiting = back + self.waiting
        self.ledger.requeue(numbers)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def condemn(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(list(self.in_flight.values())))
        verdict = RuntimeError()
        self.ledger.condemn(task, verdict)
        assert task.verdict is verdict
        self.condemned.add(task)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def run_again(self, data: st.DataObject) -> None:
        """It is the next, whether it was to be ended or not."""
        number = data.draw(st.sampled_from(list(self.in_flight)))
        task = self.in_flight.pop(number)
        lost_runs = task.lost_runs
        self.ledger.run_again(number)
        assert (task.lost_runs, task.verdict) == (lost_runs + 1, None)
        self.waiting.insert(0, task)
        self.condemned.discard(task)

    @rule()
    def withdraw(self) -> None:
        gone = [task for task in self.waiting if not task.number and task.state is not GIVEN_UP]
        assert self.ledger.take_unsent() == gone
        self.waiting = [task for task in self.waiting if task not in gone]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Its place is kept, so the others are where they were."""
        task = data.draw(st.sampled_from(self.waiting))
        assert self.ledger.drop(task, RuntimeError()) == (task not in self.dropped)
        self.dropped.add(task)

    @rule()
    def clear(self) -> None:
        left = {*self.waiting, *self.in_flight.values()} - self.dropped
        assert set(self.ledger.clear()) == left
        self.waiting, self.in_flight = [], {}

    @invariant()
    def the_books_are_right(self) -> None:
        assert list(self.ledger.waiting) == self.waiting
        assert self.ledger.in_flight == self.in_flight
        waits = [self.state_of(task, WAITING, TO_FAIL) for task in self.waiting]
        assert [task.state for task in self.waiting] == waits
        flies = [self.state_of(task, IN_FLIGHT, TO_END) for task in self.in_flight.values()]
        assert [task.state for task in self.in_flight.values()] == flies
        backlog = [task for task in self.waiting if task not in self.dropped]
        assert self.ledger.backlog == len(backlog)
        assert self.ledger.outstanding == len(backlog) + len(self.in_flight)
        assert self.ledger.waiting_bytes == len(b"payload") * len(backlog)

    def state_of(self, task: Task, else_: State, if_condemned: State) -> State:
        if task in self.dropped:
            return GIVEN_UP
        return if_condemned if task in self.condemned else else_

    @invariant()
    def the_window_holds_what_is_in_flight(self) -> None:
        weight = sum(task.weight for task in self.in_flight.values())
        for workers in (1, 3):
            assert self.ledger.has_room(workers) == (weight < (AHEAD * workers + 1) * FULL_WEIGHT)


test_the_books_agree_with_a_simple_list_of_tasks = pytest.mark.timeout(120)(Books.TestCase)
Books.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# --- the states of a task -------------------------------------------------------------------------

STEPS: dict[str, Callable[[Ledger, Task], object]] = {
    "is sent": lambda ledger, task: send(ledger, task),
    "comes back": lambda ledger, task: ledger.requeue([task.number]),
    "is to end": lambda ledger, task: ledger.condemn(task, RuntimeError()),
    "is lost": lambda ledger, task: ledger.run_again(task.number),
    "is done": lambda ledger, task: ledger.settle(task.number),
    "is given up": lambda ledger, task: ledger.drop(task, RuntimeError()),
    "is passed over": lambda ledger, task: ledger.dequeue(),
    "is discarded": lambda ledger, task: ledger.discard([task]),
}


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("is sent", IN_FLIGHT),
        ("is sent, comes back", WAITING),
        ("is sent, is to end", TO_END),
        ("is sent, is to end, is to end", TO_END),
        ("is sent, is to end, comes back", TO_FAIL),
        ("is sent, is to end, comes back, is given up", GIVEN_UP),
        ("is sent, is to end, comes back, is passed over", DONE),
        ("is sent, is to end, is lost", WAITING),
        ("is sent, is to end, is done", DONE),
        ("is sent, is lost", WAITING),
        ("is sent, comes back, is given up", GIVEN_UP),
        ("is sent, is done, is done", DONE),
        ("is sent, is done, is given up", DONE),
        ("is sent, is discarded", DONE),
        ("is sent, comes back, is discarded, is given up", DONE),
    ],
)
def test_a_task_is_in_a_state_that_its_story_leads_to(story: str, state: State) -> None:
    ledger = Ledger()
    task = new_task(ledger)
    for step in story.split(", "):
        STEPS[step](ledger, task)
    assert task.state is state


@pytest.mark.parametrize("event", NEXT)
@pytest.mark.parametrize("state", State)
def test_a_task_goes_where_the_table_says_or_the_event_is_refused(event: str, state: State) -> None:
    task = in_state(state)
    if (following := NEXT[event].get(state)) is not None:
        task.after(event)
        assert task.state is following
        return
    with pytest.raises(IllegalTransition) as raised:
        task.after(event)
    assert task.state is state
    what = f"{event} in state {state.name} of task {task.name}, number {task.number}; a bug"
    assert what in str(raised.value)


def in_state(state: State) -> Task:
    """A task that has come there by the shortest way."""
    ways: list[list[str]] = [[]]
    for way in ways:
        task = new_task(Ledger())
        for event in way:
            task.after(event)
        if task.state is state:
            return task
        ways += [[*way, event] for event in NEXT if task.state in NEXT[event]]
    raise AssertionError


def test_a_task_that_is_done_stays_so() -> None:
    assert [event for event in NEXT if NEXT[event].get(DONE, DONE) is not DONE] == []


def test_every_task_in_the_books_can_be_discarded_whatever_has_gone_wrong() -> None:
    ledger = Ledger()
    tasks = [new_task(ledger) for _ in range(2)]
    for task in tasks:
        ledger.enqueue(task)
        task.after(Event.DISCARDED)
    with pytest.raises(IllegalTransition):
        ledger.dequeue()
    assert ledger.clear() == tasks[1:]


class Raised(Exception):
    """By a signal handler."""


class InterruptedTask(Task):
    """As if a signal handler raised just before its state changes for the first time."""

    was_interrupted = False

    def after(self, event: str) -> None:
        if not self.was_interrupted:
            self.was_interrupted = True
            raise Raised
        super().after(event)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_send_that_a_handler_has_interrupted_is_completed(is_told: bool) -> None:
    ledger = Ledger()
    payload: Any = ([b"payload"], None)
    task = InterruptedTask(
        TaskFuture(), ledger.timing_of(some_function), DEFAULT_OPTIONS, payload, MainSnapshot({})
    )
    other = new_task(ledger)
    ledger.enqueue(task)
    ledger.enqueue(other)
    number = ledger.number(task)
    with pytest.raises(Raised):
        ledger.send_next(task)
    if is_told:
        ledger.complete_send(task)
    ledger.recount()
    assert (task.state, ledger.in_flight) == (IN_FLIGHT, {number: task})
    assert (list(ledger.waiting), ledger.waiting_bytes) == ([other], other.size)
    assert ledger.settle(number) is task


# --- one recovery by itself -----------------------------------------------------------------------


def slot(place: int, state: int, *, task: int = 0, pid: int = 0) -> Slot:
    return Slot(place, pid or place + 1, 0, 0, state, task, 0, 0)


def test_tasks_named_by_busy_workers_are_no_suspects() -> None:
    recovery = Recovery([1, 2, 3], [slot(0, sb.BUSY, task=2), slot(1, sb.IDLE, task=3)])
    assert recovery.suspects == {1, 3}


def test_without_takers_one_look_is_enough() -> None:
    board = [slot(0, sb.BUSY, task=1), slot(1, sb.IDLE)]
    assert Recovery([1, 2], board).look(lambda: board)


@pytest.mark.parametrize(
    "later",
    [
        pytest.param([slot(0, sb.IDLE, task=5)], id="it found nothing"),
        pytest.param([slot(0, sb.BUSY, task=7)], id="it names its task"),
        pytest.param([slot(0, sb.TAKING, task=7)], id="it has taken and asks again"),
        pytest.param([slot(0, sb.TAKING, task=5, pid=99)], id="another has its slot"),
        pytest.param([], id="it died"),
    ],
)
def test_an_audit_waits_until_a_taker_has_left(later: list[Slot]) -> None:
    board = [slot(0, sb.TAKING, task=5)]
    recovery = Recovery([1, 2], board)
    assert not recovery.look(lambda: board)
    assert recovery.look(lambda: later)


def test_a_taker_that_names_a_suspect_clears_it() -> None:
    recovery = Recovery([1, 2], [slot(0, sb.TAKING)])
    recovery.look(lambda: [slot(0, sb.BUSY, task=1)])
    assert recovery.suspects == {2}


def test_one_reading_tells_who_has_left_and_what_it_got() -> None:
    readings = [[slot(0, sb.BUSY, task=1), slot(1, sb.TAKING)], [slot(1, sb.BUSY, task=2)]]
    recovery = Recovery([1, 2, 3], [slot(0, sb.TAKING), slot(1, sb.TAKING)])
    assert not recovery.look(lambda: readings.pop(0))
    assert recovery.look(lambda: readings.pop(0))
    # The first has finished with its task: what it has sent lies before the marker.
    assert recovery.suspects == {1, 3}


def test_a_worker_that_begins_to_take_after_the_pipe_was_emptied_is_not_waited_for() -> None:
    recovery = Recovery([1], [slot(0, sb.IDLE), slot(1, sb.TAKING)])
    assert recovery.look(lambda: [slot(0, sb.TAKING), slot(1, sb.IDLE)])
