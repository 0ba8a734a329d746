"""Tasks that were sent and have not begun come back, and are sent again: before those that
were sent after them if the client knows it in time, once, and whatever happens to the worker
or the socket just then."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from injection import batches_sent, ended_at_once, lines, pool_of, supervisor_of
from light_tasks import note, wait_for
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._board import scoreboard
from prefork_executor._client import batches as batches_module
from prefork_executor._support import faults

MANY = 300
WARM_UP = 20


def step(ran: str, i: int, gate: str = "") -> int:
    """Short, and on record; or, with a gate, it runs until that is there; or it dies."""
    note(ran, str(i))
    if gate == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif gate:
        wait_for(gate)
    return i


@pytest.fixture
def batches() -> Iterator[list[int]]:
    with batches_sent() as sizes:
        yield sizes


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # On a busy machine, too, these tasks travel together, and none is found to be slow: then
    # the rest of its message is recalled, which is another matter.
    for limit in ("BATCHABLE_NS", "MAX_SPAN_NS", "SLOW_AFTER"):
        monkeypatch.setattr(batches_module, limit, 10**12)
    return tmp_path / "ran"


def one_worker(**options: Any) -> PreforkExecutor:
    """A pool whose one worker has run WARM_UP tasks, so that it is known how long they take."""
    executor = pool_of(1, "fork", **options)
    for i in range(WARM_UP - 1):
        assert executor.submit(step, os.devnull, i).result(BOUND) == i
    return executor


def submit_together(
    executor: PreforkExecutor, ran: Path, count: int, gates: dict[int, str]
) -> list[Future[int]]:
    """These tasks, of which none is sent before they are all there: in full messages. Until
    then the pipe seems to be full."""

    def refuse(*_: object) -> None:
        raise BlockingIOError

    with (
        faults.injected("client.sends_task", refuse),
        faults.injected("client.sends_batch", refuse),
    ):
        return [executor.submit(step, str(ran), i, gates.get(i, "")) for i in range(count)]


def numbers(ran: Path) -> list[int]:
    return [int(line) for line in lines(ran)]


# --- in their order -------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once the client has been told of tasks that came back."""
    path = tmp_path / "told"
    with faults.injected("client.took_back", path.touch):
        yield path


def test_what_a_worker_gives_back_at_its_last_task_is_run_before_what_lay_in_the_pipe(
    batches: list[int], ran: Path, told: Path
) -> None:
    # Its last task is amid the first message after the warming up.
    with (
        faults.injected("worker.leaves", lambda: wait_for(str(told))),
        ended_at_once(one_worker(max_tasks_per_child=WARM_UP + 5)) as executor,
    ):
        futures = submit_together(executor, ran, MANY, {})
        assert [future.result(BOUND) for future in futures] == list(range(MANY))
        assert told.exists(), "tasks have come back"
    # Only the first worker has waited until the client knew.
    two_workers = 5 + WARM_UP + 5
    assert numbers(ran)[:two_workers] == list(range(two_workers))
    assert sorted(numbers(ran)) == list(range(MANY))


def test_what_came_after_a_task_that_died_is_run_before_what_lay_in_the_pipe(
    batches: list[int], ran: Path, told: Path
) -> None:
    def wait_until_told() -> None:
        if lines(ran):  # The one that there was has died.
            wait_for(str(told))

    with (
        faults.injected("worker.starts", wait_until_told),
        ended_at_once(one_worker()) as executor,
    ):
        futures = submit_together(executor, ran, MANY, {100: "die"})
        errors = [future.exception(BOUND) for future in futures]
        assert isinstance(errors.pop(100), WorkerDied)
        assert not any(errors)
        assert told.exists(), "tasks have come back"
    assert numbers(ran) == list(range(MANY))


# --- a signal just then ------------------------------------------------------------------


def test_a_kill_as_a_worker_gives_tasks_back_costs_none_of_them(
    batches: list[int], ran: Path
) -> None:
    gate, struck = ran.with_name("gate"), ran.with_name("struck")

    def die_first(_number: int, _count: int) -> None:
        if not struck.exists():
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        faults.injected("worker.gives_back", die_first),
        ended_at_once(one_worker()) as executor,
    ):
        futures = submit_together(executor, ran, 100, {0: str(gate)})
        eventually(lambda: lines(ran), "the first of a message runs")
        reload = executor.reload()
        board = executor._client._channels.board
        eventually(lambda: board.read(0).retire, "the worker is to leave")
        gate.touch()
        assert [future.result(BOUND) for future in futures] == list(range(100))
        assert reload.result(BOUND) is None
        assert struck.exists()
    assert sorted(numbers(ran)) == list(range(100))


def test_a_request_to_end_a_task_that_comes_late_does_not_hit_the_next_of_its_message(
    batches: list[int], ran: Path
) -> None:
    gates = {i: ran.with_name(f"gate {i}") for i in (0, 1)}
    with ended_at_once(one_worker()) as executor:
        futures = submit_together(executor, ran, 100, {i: str(gates[i]) for i in gates})
        eventually(lambda: lines(ran), "the first of a message runs")
        supervisor = supervisor_of(executor)
        supervisor.suspend()
        try:
            executor.abort(futures[0])
            eventually(
                lambda: executor._client._shared.deadlines._asked, "its end has been asked for"
            )
            gates[0].touch()
            eventually(lambda: numbers(ran) == [0, 1], "the next one runs")
            worker = executor.stats().workers[0].pid
        finally:
            supervisor.resume()
        # Carried out after that request, and seen from here.
        executor.reload()
        words = executor._client._channels.board.words
        eventually(lambda: words[scoreboard.GENERATION] == 1)
        assert [w.pid for w in executor.stats().workers if w.state == "busy"] == [worker]
        gates[1].touch()
        assert [future.result(BOUND) for future in futures] == list(range(100))
    assert numbers(ran) == list(range(100))


def test_the_signal_that_ends_a_task_which_ends_just_then_does_not_hit_the_next_of_its_message(
    batches: list[int], ran: Path
) -> None:
    """Between the supervisor's last look and its signal the task ends, and the worker has
    all the time that it wants to go on."""
    gates = {i: ran.with_name(f"gate {i}") for i in (0, 1)}
    moved, survived = ran.with_name("moved"), ran.with_name("survived")

    def dawdle(_task: int) -> None:
        gates[0].touch()
        wait_for(str(moved))

    def say_so() -> None:
        if lines(ran) == ["0"]:
            moved.touch()

    def wait_for_the_signal(_number: int, _count: int) -> None:
        wait_for(str(survived), 10)
        survived.touch()

    with (
        faults.injected("supervisor.ends_task", dawdle),
        faults.injected("worker.named_next", say_so),
        faults.injected("worker.gives_back", wait_for_the_signal),
        ended_at_once(one_worker()) as executor,
    ):
        futures = submit_together(executor, ran, 100, {i: str(gates[i]) for i in gates})
        eventually(lambda: lines(ran), "the first of a message runs")
        executor.abort(futures[0])
        eventually(moved.exists)
        gates[1].touch()
        assert [future.result(BOUND) for future in futures] == list(range(100))
    assert sorted(numbers(ran)) == list(range(100))
    assert not survived.exists(), "the signal came as the worker gave back the rest"


def test_the_signal_that_ends_a_task_and_comes_as_the_next_is_named_does_not_cost_that(
    batches: list[int], ran: Path
) -> None:
    """The worker has named it, and has seen that it is not to begin it."""
    gate = ran.with_name("gate")
    named, survived = ran.with_name("named"), ran.with_name("survived")

    def dawdle(_task: int) -> None:
        gate.touch()
        wait_for(str(named))

    def wait_for_the_signal() -> None:
        if lines(ran) == ["0"]:
            named.touch()
            wait_for(str(survived), 10)
            survived.touch()

    with (
        faults.injected("supervisor.ends_task", dawdle),
        faults.injected("worker.named_next", wait_for_the_signal),
        ended_at_once(one_worker()) as executor,
    ):
        futures = submit_together(executor, ran, 100, {0: str(gate)})
        eventually(lambda: lines(ran), "the first of a message runs")
        executor.abort(futures[0])
        assert [future.exception(BOUND) for future in futures] == [None] * 100
    assert sorted(numbers(ran)) == list(range(100))
    assert not survived.exists(), "the signal came before the worker took the name back"


# --- a system that has no room -------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize("in_flight", [True, False], ids=["others in flight", "none in flight"])
def test_a_message_that_the_system_has_no_room_for_is_sent_later_and_its_tasks_run_once(
    number: int, in_flight: bool, ran: Path
) -> None:
    refused: list[int] = []

    def refuse(_first: int, count: int) -> None:
        if len(refused) < 20:
            refused.append(count)
            raise OSError(number, os.strerror(number))

    with ended_at_once(one_worker()) as executor, faults.injected("client.sends_batch", refuse):
        if in_flight:
            futures = [executor.submit(step, str(ran), i) for i in range(MANY)]
        else:
            futures = submit_together(executor, ran, MANY, {})
        assert [future.result(BOUND) for future in futures] == list(range(MANY))
        assert len(refused) == 20
        assert max(refused) > 3, "they would have travelled together"
    assert numbers(ran) == list(range(MANY))
