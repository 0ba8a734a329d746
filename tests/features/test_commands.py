"""What the client asks of its supervisor arrives, is carried out once, and is carried out
before what is asked or submitted next: while nobody reads the commands, while an answer to
an earlier one is on its way, while the supervisor is not ready yet."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import Running, all_go_on, ended_at_once, is_alive, lines, pool_of, supervisor_of
from light_tasks import note, run_until, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskAborted
from prefork_executor._client import phases
from prefork_executor._messages.wire import Kind
from prefork_executor._support import faults

MANY = 2000
"""Commands, more than a socket takes that nobody reads."""


@pytest.fixture(params=["terminate_workers", "kill_workers"])
def end(request: pytest.FixtureRequest) -> Callable[[PreforkExecutor], None]:
    """Both ways to end the workers."""
    return lambda executor: getattr(executor, request.param)()


# --- the socket is full ---------------------------------------------------------------------


@contextlib.contextmanager
def stopped(supervisor: psutil.Process) -> Iterator[None]:
    """While it is stopped."""
    supervisor.suspend()
    try:
        yield
    finally:
        supervisor.resume()


@contextlib.contextmanager
def killed_on_failure(supervisor: psutil.Process) -> Iterator[None]:
    """A test that fails does not wait for a supervisor that was not told to end."""
    try:
        yield
    except BaseException:
        supervisor.kill()
        raise


def fill_control(executor: PreforkExecutor) -> list[Future[None]]:
    """Ask a stopped supervisor for more than its socket takes."""
    reloads = [executor.reload() for _ in range(MANY)]
    assert executor._client._supervisors.current is not None
    assert executor._client._supervisors.current.has_unsent
    return reloads


def test_workers_are_ended_though_hundreds_of_commands_lie_before_that(
    start_method: str, end: Callable[[PreforkExecutor], None], tmp_path: Path
) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running = Running(executor, tmp_path)
        supervisor = supervisor_of(executor)
        with killed_on_failure(supervisor):
            with stopped(supervisor):
                reloads = fill_control(executor)
                end(executor)
                assert isinstance(running.future.exception(BOUND), BrokenProcessPool)
                later = executor.submit(square, 3)
            assert later.result(BOUND) == 9
            eventually(lambda: not is_alive(running.worker))
            assert [reload.result(BOUND) for reload in reloads] == [None] * MANY
        all_go_on(executor)


def test_a_pool_shuts_down_though_hundreds_of_commands_lie_before_that() -> None:
    with ended_at_once(pool_of(2, "fork")) as executor:
        supervisor = supervisor_of(executor)
        with killed_on_failure(supervisor):
            with stopped(supervisor):
                reloads = fill_control(executor)
                executor.shutdown(wait=False)
                # It is told as soon as nothing is left to do.
                eventually(lambda: executor._client._lifecycle.phase is phases.Phase.ENDING)
            assert executor.join(BOUND)
        assert all(reload.done() for reload in reloads)


def test_a_command_that_is_repeated_does_not_queue_up_behind_the_others(tmp_path: Path) -> None:
    with ended_at_once(pool_of(2, "fork")) as executor:
        running = Running(executor, tmp_path)
        with stopped(supervisor_of(executor)):
            fill_control(executor)
            handle: Any = executor._client._supervisors.current
            unsent = len(handle._unsent)
            executor.abort(running.future)
            eventually(
                lambda: executor._client._shared.deadlines._asked, "its end has been asked for"
            )
            first = dict(executor._client._shared.deadlines._asked)
            eventually(lambda: executor._client._shared.deadlines._asked != first, "and again")
            # And the sign that is expected of it, once.
            assert len(handle._unsent) <= unsent + 1
        assert isinstance(running.future.exception(BOUND), TaskAborted)
        all_go_on(executor)


# --- an answer that is on its way -------------------------------------------------------------


def test_the_answer_to_an_earlier_request_to_end_the_workers_does_not_stand_for_the_next(
    tmp_path: Path,
) -> None:
    """The second is made just as the answer to the first is read. What is submitted then
    would be taken, and taken along, by the worker that is there already."""
    stopped: list[psutil.Process] = []
    gate, started = tmp_path / "gate", tmp_path / "started"

    def end_again(kind: int) -> None:
        if kind == Kind.WORKERS_TOLD and not stopped:
            eventually(lambda: executor.stats().idle, "a new worker waits")
            supervisor.suspend()
            executor.kill_workers()
            stopped.append(supervisor)

    with (
        ended_at_once(pool_of(1, "fork")) as executor,
        faults.injected("client.heeds", end_again),
    ):
        supervisor = supervisor_of(executor)
        executor.kill_workers()
        eventually(lambda: stopped)
        try:
            eventually(lambda: not executor._client._requests.queue, "the second has been made")
            future = executor.submit(run_until, str(gate), str(started))
            stats = executor.stats()
            assert (stats.waiting, stats.in_flight) == (1, 0)
        finally:
            stopped[0].resume()
        eventually(lambda: lines(started))
        gate.touch()
        assert future.result(BOUND) == int(lines(started)[0])


# --- the supervisor is not ready ----------------------------------------------------------------


def preload_until(gate: str, begun: str) -> None:
    note(begun, "begun")
    while not Path(gate).exists():
        time.sleep(0.005)


def test_workers_may_be_ended_again_and_again_while_the_supervisor_preloads(
    start_method: str, end: Callable[[PreforkExecutor], None], tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    preload = functools.partial(preload_until, str(gate), str(begun))
    with ended_at_once(PreforkExecutor(2, start_method, preload=preload)) as executor:
        # More often than supervisors may die in a row before one was ready.
        try:
            for i in range(1, 6):
                future = executor.submit(square, i)
                eventually(lambda i=i: len(lines(begun)) == i, "a supervisor preloads")
                end(executor)
                assert isinstance(future.exception(BOUND), BrokenProcessPool)
        finally:
            gate.touch()
        all_go_on(executor)


def test_workers_whose_end_is_asked_for_as_they_start_take_along_nothing_submitted_later(
    tmp_path: Path,
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    ends: list[str] = []
    later: list[Future[int]] = []

    def wait() -> None:
        eventually(lambda: executor.stats().idle, "a worker waits")

    def submit() -> None:
        later.append(executor.submit(run_until, str(gate), str(started)))
        eventually(lambda: executor.stats().waiting or lines(started))

    def note_end(kind: int) -> None:
        if kind == Kind.WORKERS_TOLD:
            ends.append("done")

    with (
        ended_at_once(pool_of(1, "fork")) as executor,
        faults.injected("client.starts_supervisor", lambda: executor.kill_workers()),
        faults.injected("client.started_supervisor", wait),
        faults.injected("client.replaced_supervisor", submit),
        faults.injected("client.heeds", note_end),
    ):
        supervisor_of(executor).kill()
        eventually(lambda: "done" in ends and lines(started))
        gate.touch()
        assert later[0].result(BOUND) == int(lines(started)[-1])
        assert len(lines(started)) == 1
        all_go_on(executor)


# --- a worker that does not care for SIGTERM ------------------------------------------------------


def shrug_off(sign: str) -> None:
    def shrug(_signum: int, _frame: object) -> None:
        note(sign, "told")

    signal.signal(signal.SIGTERM, shrug)
    note(sign, "ready")
    while True:
        time.sleep(60)


def test_a_task_whose_own_handler_takes_no_notice_of_sigterm_is_killed_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool stays open, and has no room for another worker until then."""
    monkeypatch.setattr("prefork_executor._pool.leaving.LEAVE_WITHIN", 0.5)
    sign = tmp_path / "sign"
    with ended_at_once(pool_of(1, "fork")) as executor:
        future = executor.submit(shrug_off, str(sign))
        eventually(lambda: lines(sign) == ["ready"])
        worker = psutil.Process(executor.stats().workers[0].pid)
        executor.terminate_workers()
        assert isinstance(future.exception(BOUND), BrokenProcessPool)
        eventually(lambda: lines(sign) == ["ready", "told"])
        all_go_on(executor)
        assert not is_alive(worker)
