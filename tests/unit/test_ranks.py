"""In which order waiting tasks begin: the rules of ranking.py, by themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork_executor._client.ranking import AGEING, Ranks


class Task:
    """One that waits."""

    def __init__(self, priority: int, order: int) -> None:
        self.priority = priority
        self.rank: float = priority
        self.order = order

    def raise_to(self, rank: float) -> None:
        self.rank = rank


def queue_of(priorities: list[int]) -> tuple[Ranks, list[Task]]:
    """Tasks of these priorities, submitted in this order."""
    ranks, waiting = Ranks(), list[Task]()
    ranks.count(waiting)
    for priority in priorities:
        submit(ranks, waiting, priority)
    return ranks, waiting


def submit(ranks: Ranks, waiting: list[Task], priority: int) -> Task:
    task = Task(priority, ranks.next_order())
    waiting.insert(ranks.place_at_end(priority), task)
    ranks.joined(priority)
    return task


def begin_next(ranks: Ranks, waiting: list[Task]) -> Task:
    task = waiting.pop(0)
    ranks.left(task.rank)
    ranks.begun(waiting)
    return task


priorities = st.lists(st.integers(-3, 3), max_size=60)


@given(priorities)
def test_waiting_tasks_stand_by_priority_and_then_in_the_order_of_their_submits(
    given_priorities: list[int],
) -> None:
    _, waiting = queue_of(given_priorities)
    assert [task.order for task in waiting] == [
        order
        for order, _ in sorted(enumerate(given_priorities, 1), key=lambda pair: (-pair[1], pair[0]))
    ]


@given(priorities)
def test_every_task_begins_once(given_priorities: list[int]) -> None:
    ranks, waiting = queue_of(given_priorities)
    tasks = set(waiting)
    begun = [begin_next(ranks, waiting) for _ in given_priorities]
    assert len(begun) == len(set(begun)) == len(tasks)
    assert set(begun) == tasks


@given(priorities)
def test_of_one_priority_the_first_submitted_begins_first(given_priorities: list[int]) -> None:
    ranks, waiting = queue_of(given_priorities)
    begun = [begin_next(ranks, waiting) for _ in given_priorities]
    for priority in set(given_priorities):
        orders = [task.order for task in begun if task.priority == priority]
        assert orders == sorted(orders)


@given(st.lists(st.integers(-3, 3), max_size=6), st.lists(st.integers(-3, 9), min_size=200))
def test_nothing_starves_however_many_higher_ones_keep_coming(
    before: list[int], later: list[int]
) -> None:
    ranks, waiting = queue_of(before)
    patient = submit(ranks, waiting, -4)
    for begun, priority in enumerate(later):
        if patient not in waiting:
            break
        assert begun <= AGEING * (len(before) + 1)
        submit(ranks, waiting, priority)
        begin_next(ranks, waiting)
    assert patient not in waiting


def test_not_even_if_each_that_comes_is_higher_than_all_before() -> None:
    ranks, waiting = queue_of([])
    patient = submit(ranks, waiting, 0)
    for priority in range(1, AGEING + 2):
        submit(ranks, waiting, priority)
        begin_next(ranks, waiting)
    assert patient not in waiting


@given(priorities, st.integers(0, 59))
def test_a_task_that_comes_back_is_the_first_of_its_priority(
    given_priorities: list[int], at: int
) -> None:
    ranks, waiting = queue_of(given_priorities)
    if not waiting:
        return
    task = waiting.pop(at % len(waiting))
    ranks.left(task.rank)
    waiting.insert(ranks.place_at_front(task.rank), task)
    ranks.joined(task.rank)
    peers = [other for other in waiting if other.priority == task.priority]
    assert peers[0] is task
    assert [other.rank for other in waiting] == sorted(
        (other.rank for other in waiting), reverse=True
    )
