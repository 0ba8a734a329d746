"""The table of a worker's states."""

from __future__ import annotations

import pytest
from states_report import take_states_report

from prefork_executor._board import worker_states
from prefork_executor._board.worker_states import TABLE, Event, State
from prefork_executor.errors import IllegalTransition


def leading(*first_words: str) -> set[tuple[State, State]]:
    """The pairs of states of which one follows the other by an event of these writers."""
    return {
        (state, after)
        for event, (before, after) in TABLE.items()
        if event.startswith(first_words)
        for state in before
    }


def test_each_event_has_a_row_and_can_come() -> None:
    assert list(TABLE) == [name for name in vars(Event) if name.isupper()]
    assert all(before for before, _ in TABLE.values())


def test_a_worker_never_frees_its_slot_nor_starts_again() -> None:
    assert {after for _, after in leading("WORKER", "CHILD")} == set(State) - {
        State.FREE,
        State.STARTING,
    }


def test_a_worker_holds_a_task_only_if_it_has_said_that_it_asks_for_one() -> None:
    assert {(before, after) for before, after in leading("WORKER") if after is State.BUSY} == {
        (State.TAKING, State.BUSY),
        (State.BUSY, State.BUSY),
    }


def test_a_worker_that_leaves_takes_nothing_more_while_a_raw_child_may_change_its_mind() -> None:
    assert {after for before, after in leading("WORKER") if before is State.LEAVING} == {
        State.LEAVING
    }
    assert (State.LEAVING, State.BUSY) in leading("CHILD")


@pytest.mark.parametrize("event", TABLE)
def test_what_the_table_has_is_legal_and_all_else_is_named_and_reported(event: str) -> None:
    for state in State:
        if state in TABLE[event][0]:
            worker_states.check(event, state, "a worker")
            continue
        with pytest.raises(IllegalTransition) as raised:
            worker_states.check(event, state, "a worker")
        assert f"{event} in state {state.name} of a worker; a bug" in str(raised.value)
        assert str(raised.value) in take_states_report()


def test_a_word_that_holds_no_state_is_named_by_its_number() -> None:
    with pytest.raises(IllegalTransition, match="WORKER_ASKS in state 9 of a worker"):
        worker_states.check(Event.WORKER_ASKS, 9, "a worker")
    take_states_report()
