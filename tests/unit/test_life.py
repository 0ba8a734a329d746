"""The phases of a client's life, without any process."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

import pytest

from prefork_executor._client.phases import NEXT, Event, Lifecycle, Phase
from prefork_executor.errors import IllegalTransition


def life_after(*events: Event) -> Lifecycle:
    lifecycle = Lifecycle()
    for event in events:
        lifecycle.after(event)
    return lifecycle


def test_a_pool_that_is_shut_down_finishes_its_tasks_then_its_processes() -> None:
    lifecycle = Lifecycle()
    phases = []
    for event in (Event.STARTED, Event.SHUTDOWN, Event.ALL_DONE, Event.ALL_CLOSED):
        lifecycle.after(event)
        phases.append(lifecycle.phase)
    assert phases == [Phase.OPEN, Phase.CLOSING, Phase.ENDING, Phase.ENDED]


def test_a_pool_that_was_never_started_has_ended_as_soon_as_it_is_shut_down() -> None:
    assert life_after(Event.SHUTDOWN, Event.NEVER_STARTED).phase is Phase.ENDED


def test_a_pool_that_a_handler_shut_down_as_it_started_still_closes_what_it_has() -> None:
    lifecycle = life_after(Event.SHUTDOWN, Event.NEVER_STARTED, Event.STARTED)
    assert lifecycle.phase is Phase.CLOSING


def test_a_shutdown_may_be_repeated_in_every_phase() -> None:
    assert {phase: NEXT[Event.SHUTDOWN][phase] for phase in Phase} == {
        Phase.OPEN: Phase.CLOSING,
        Phase.CLOSING: Phase.CLOSING,
        Phase.ENDING: Phase.ENDING,
        Phase.ENDED: Phase.ENDED,
    }


def test_no_phase_follows_the_last_but_when_a_handler_was_before_the_start() -> None:
    following = {event: NEXT[event].get(Phase.ENDED, Phase.ENDED) for event in Event}
    assert [event for event, phase in following.items() if phase is not Phase.ENDED] == [
        Event.STARTED
    ]


def test_what_cannot_happen_is_named() -> None:
    with pytest.raises(IllegalTransition, match="ALL_DONE in state OPEN of the client"):
        life_after(Event.ALL_DONE)


def test_only_an_open_pool_takes_tasks() -> None:
    life_after(Event.STARTED).check_open()
    with pytest.raises(RuntimeError, match="after shutdown"):
        life_after(Event.STARTED, Event.SHUTDOWN).check_open()


def test_a_broken_pool_tells_the_first_reason() -> None:
    lifecycle, cause = life_after(Event.STARTED), OSError("no more")
    lifecycle.break_off("the first", cause)
    lifecycle.break_off("the second", None)
    with pytest.raises(BrokenProcessPool, match="the first") as raised:
        lifecycle.check_open()
    assert raised.value.__cause__ is cause
    assert lifecycle.is_to_end


def test_a_copy_in_a_fork_says_whose_it_is_not() -> None:
    lifecycle = life_after(Event.STARTED)
    lifecycle.check_own()
    lifecycle.become_copy()
    assert lifecycle.phase is Phase.ENDED
    with pytest.raises(BrokenProcessPool, match="belongs to the process that created it"):
        lifecycle.check_own()
