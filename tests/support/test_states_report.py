"""Every process that tests start is held against the table of a worker's states."""

from __future__ import annotations

from pathlib import Path

from light_tasks import square
from states_report import STATES_REPORT, take_states_report
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._board import scoreboard as sb
from prefork_executor._board import worker_states
from prefork_executor._board.scoreboard import Scoreboard
from prefork_executor._support import faults


def where_it_reports() -> str:
    return worker_states.report_to


def test_every_worker_that_the_tests_start_is_checked(start_method: str) -> None:
    with PreforkExecutor(1, start_method) as executor:
        assert executor.submit(where_it_reports).result(BOUND) == str(STATES_REPORT)


def say_leaving(board: Scoreboard, place: int) -> None:
    board.words[board.base(place) + sb.HOLDS] = sb.pack_holds(sb.LEAVING)


def test_a_worker_that_comes_into_a_state_as_it_may_not_ends_and_it_is_reported(
    tmp_path: Path,
) -> None:
    once = tmp_path / "once"

    def say_leaving_once(board: Scoreboard, place: int) -> None:
        if not once.exists():
            once.touch()
            say_leaving(board, place)

    with faults.injected("worker.woke", say_leaving_once):
        with PreforkExecutor(1, "fork") as executor:
            assert executor.submit(square, 3).result(BOUND) == 9
            eventually(lambda: executor.stats().workers[0].state == "idle")
            executor.submit(square, 4).result(BOUND)
    assert "WORKER_ASKS in state LEAVING of the worker in slot 0" in take_states_report()
