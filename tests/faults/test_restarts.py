"""Supervisors that end by themselves, again and again: they are replaced, more and more
rarely while that does not help, and nobody waits for it but the tasks."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from injection import all_go_on, ended_at_once, lines, pool_of, supervisor_of
from light_tasks import note, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._client import phases, restarts
from prefork_executor._client.restarts import Restarts
from prefork_executor._pool import regulator
from prefork_executor._support import faults


@pytest.fixture
def cause(tmp_path: Path) -> Iterator[Path]:
    """While this file is there, every forked supervisor dies as soon as it is ready, and
    says when in the file ``died``."""
    cause, died = tmp_path / "cause", tmp_path / "died"

    def die() -> None:
        if cause.exists():
            note(str(died), str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)

    with faults.injected("supervisor.waits", die):
        yield cause


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes every wait until the next supervisor as long as this."""

    def set_all(seconds: float) -> None:
        monkeypatch.setattr(regulator, "MIN_BACKOFF", seconds)
        monkeypatch.setattr(regulator, "MAX_BACKOFF", seconds)

    return set_all


def deaths(cause: Path) -> list[float]:
    return [float(line) for line in lines(cause.with_name("died"))]


def test_supervisors_that_end_soon_are_replaced_after_waits_that_double_until_the_cause_is_gone(
    cause: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ended_at_once(PreforkExecutor(2, "fork")) as executor:
        cause.touch()
        futures = [executor.submit(square, i) for i in range(20)]
        eventually(lambda: len(deaths(cause)) == 6)
        cause.unlink()
        assert [future.result(BOUND) for future in futures] == [i * i for i in range(20)]
        waits = [late - early for early, late in itertools.pairwise(deaths(cause))]
        # Two are free. A busy machine makes any wait longer.
        assert all(wait >= 0.1 * 2**i for i, wait in enumerate(waits[2:])), waits
        assert "supervisors in a row ended soon after their start; the last " in caplog.messages[-1]
        assert caplog.messages[-1].endswith("; starting another in 0.8 s")
        # It has been of use, so the row has ended.
        supervisor_of(executor).kill()
        eventually(lambda: caplog.messages[-1].endswith("SIGKILL; starting another"))
        all_go_on(executor)


def test_while_the_next_supervisor_is_awaited_tasks_wait_and_their_caller_does_not(
    cause: Path, pauses: Callable[[float], None]
) -> None:
    pauses(3600.0)
    executor = PreforkExecutor(2, "fork")
    cause.touch()
    futures = [executor.submit(square, 1)]
    eventually(lambda: len(deaths(cause)) == 3)
    eventually(lambda: executor._client._supervisors.restarts.timer.is_set, "the next has a time")
    futures += [executor.submit(square, i) for i in range(100)]
    assert executor.stats().waiting == 101
    assert executor.reload().result(BOUND) is None
    assert not any(future.done() for future in futures)
    executor.shutdown(wait=False, cancel_futures=True)
    eventually(lambda: all(future.cancelled() for future in futures[1:]))
    # Sent once, the first could not be cancelled any more.
    executor.kill_workers()
    assert isinstance(futures[0].exception(BOUND), BrokenProcessPool)
    assert executor.join(BOUND)
    assert len(deaths(cause)) == 3


def test_a_pool_that_awaits_its_next_supervisor_for_nothing_more_ends_at_once(
    cause: Path, pauses: Callable[[float], None]
) -> None:
    pauses(3600.0)
    executor = PreforkExecutor(2, "fork")
    executor.submit(square, 1).result(BOUND)
    cause.touch()
    supervisor_of(executor).kill()
    eventually(lambda: len(deaths(cause)) >= 2)
    eventually(lambda: executor._client._supervisors.restarts.timer.is_set, "the next has a time")
    executor.shutdown()
    assert executor.join(0)


def test_nobody_waits_while_another_supervisor_starts(
    start_method: str,
) -> None:
    starts: list[None] = []
    may_start = threading.Event()

    def wait() -> None:
        starts.append(None)
        assert may_start.wait(BOUND)

    with (
        ended_at_once(pool_of(2, start_method)) as executor,
        faults.injected("client.starts_supervisor", wait),
    ):
        supervisor_of(executor).kill()
        eventually(lambda: starts)
        done: list[Future[Any]] = []

        def use() -> None:
            done.extend(executor.submit(square, i) for i in range(100))
            done.append(executor.reload())
            assert executor.stats().waiting == 100
            done[0].cancel()

        user = threading.Thread(target=use, daemon=True)
        user.start()
        user.join(BOUND)
        is_through = not user.is_alive()
        may_start.set()
        assert is_through
        assert [future.result(BOUND) for future in done[1:-1]] == [i * i for i in range(1, 100)]
        assert done[0].cancelled()
        # Asked for before the supervisor had its channels, which it must get first.
        assert done[-1].result(BOUND) is None
        all_go_on(executor)
        assert len(starts) == 1


@contextlib.contextmanager
def start_fails(number: int, times: int = 10**9) -> Iterator[list[float]]:
    """A supervisor's start fails so often, with this error's number. When it was tried."""
    tries: list[float] = []

    def fail() -> None:
        tries.append(time.monotonic())
        if len(tries) <= times:
            raise OSError(number, os.strerror(number))

    with faults.injected("client.starts_supervisor", fail):
        yield tries


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE])
def test_a_supervisor_that_the_system_has_no_room_for_is_tried_again_after_waits_that_double(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with ended_at_once(pool_of(1, "fork")) as executor, start_fails(number, 3) as tries:
        supervisor_of(executor).kill()
        eventually(lambda: len(tries) >= 1)
        futures = [executor.submit(square, i) for i in range(5)]
        assert [future.result(BOUND) for future in futures] == [i * i for i in range(5)]
        waits = [late - early for early, late in itertools.pairwise(tries)]
        assert len(waits) == 3
        assert all(wait >= 0.1 * 2**i for i, wait in enumerate(waits)), waits
    assert "no other supervisor could be started" in caplog.text
    assert "trying again in 0.4 s" in caplog.text


def test_a_pool_without_a_supervisor_that_could_be_started_can_be_shut_down() -> None:
    with ended_at_once(pool_of(1, "fork")) as executor, start_fails(errno.EAGAIN) as tries:
        supervisor_of(executor).kill()
        eventually(lambda: len(tries) >= 2)
        future = executor.submit(square, 1)
        executor.shutdown(wait=True, cancel_futures=True)
        assert future.cancelled()


def test_one_that_there_is_never_room_for_breaks_the_pool_in_the_end(
    pauses: Callable[[float], None],
) -> None:
    pauses(0.01)
    with ended_at_once(pool_of(1, "fork")) as executor, start_fails(errno.EAGAIN) as tries:
        supervisor_of(executor).kill()
        eventually(lambda: len(tries) >= 1)
        with pytest.raises(BrokenProcessPool, match="no other supervisor could be started"):
            executor.submit(square, 1).result(BOUND)
        eventually(lambda: executor._client._lifecycle.phase is phases.Phase.ENDED)
        assert len(tries) == restarts.MAX_NOT_STARTED


def test_a_reload_that_is_asked_for_meanwhile_is_resolved() -> None:
    reloads: list[Future[None]] = []

    def fail_once() -> None:
        if not reloads:
            reloads.append(executor.reload())
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with (
        ended_at_once(pool_of(1, "fork")) as executor,
        faults.injected("client.starts_supervisor", fail_once),
    ):
        supervisor_of(executor).kill()
        eventually(lambda: len(reloads) == 1)
        assert reloads[0].result(BOUND) is None
        all_go_on(executor)


def test_forks_that_fail_leave_no_descriptor_open(
    pauses: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, tries, opened = os.fork, list[int](), list[int]()

    def refuse() -> int:
        if len(tries) == 4:
            return fork()
        tries.append(1)
        opened.append(len(os.listdir("/proc/self/fd")))
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    pauses(0.01)
    with ended_at_once(pool_of(1, "fork")) as executor:
        monkeypatch.setattr(os, "fork", refuse)
        supervisor_of(executor).kill()
        eventually(lambda: len(tries) == 4)
        all_go_on(executor)
    assert len(set(opened)) == 1


def test_a_supervisor_that_cannot_be_started_breaks_the_pool_and_says_why() -> None:
    with ended_at_once(pool_of(1, "fork")) as executor, start_fails(errno.ENOENT):
        supervisor_of(executor).kill()
        eventually(lambda: executor._client._lifecycle.phase is phases.Phase.ENDED)
        with pytest.raises(BrokenProcessPool, match="no other supervisor could be started"):
            executor.submit(square, 1)


# --- the rule ------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the rule takes for the time."""
    now = [1000.0]
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    return now


def pause(restarts: Restarts, clock: list[float], lived: float = 0.1, finished: int = 0) -> float:
    """The wait after one more supervisor, which was ready and has lived so long."""
    restarts.succeeded()
    clock[0] += lived
    restarts.ended("ended", finished)
    assert restarts.timer.due_at is not None
    return round(restarts.timer.due_at - clock[0], 3)


def test_waits_double_up_to_half_a_minute(clock: list[float]) -> None:
    restarts = Restarts()
    waits = [pause(restarts, clock) for _ in range(13)]
    assert waits == [0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]


@pytest.mark.parametrize("sound", [{"lived": 1.1}, {"finished": 1}])
def test_a_supervisor_that_has_lived_or_has_seen_a_task_end_is_the_first_of_a_new_row(
    sound: dict[str, Any], clock: list[float]
) -> None:
    restarts = Restarts()
    for _ in range(5):
        pause(restarts, clock)
    assert pause(restarts, clock, **sound) == 0
    finished = sound.get("finished", 0)
    assert [pause(restarts, clock, finished=finished) for _ in range(2)] == [0, 0.1]


def test_one_that_is_ended_on_purpose_is_no_failure(clock: list[float]) -> None:
    restarts = Restarts()
    for _ in range(20):
        restarts.forgive()
        assert restarts.ended("ended", 0) == ("the supervisor ended; starting another", False)


def test_three_in_a_row_that_were_never_ready_are_hopeless(clock: list[float]) -> None:
    restarts = Restarts()
    ends = [restarts.ended("exited with status 1", 0) for _ in range(3)]
    assert [is_hopeless for _, is_hopeless in ends] == [False, False, True]
    assert ends[-1][0] == (
        "3 supervisors in a row ended before they were ready; the last exited with status 1"
    )
