"""``max_backlog``: submit waits while so many tasks wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from light_tasks import run_until, square, wait_for
from waiting import BOUND, eventually

from prefork_executor import BacklogFull, PreforkExecutor

LIMIT = 5


class Feeder(threading.Thread):
    """Submits for as long as it may, in a thread of its own."""

    def __init__(self, submit: Callable[[], Future[Any]], most: int = 10**6) -> None:
        super().__init__(daemon=True)
        self.futures: list[Future[Any]] = []
        self.error: BaseException | None = None
        self._submit = submit
        self._most = most
        self.start()

    def run(self) -> None:
        try:
            while len(self.futures) < self._most:
                self.futures.append(self._submit())
        except BaseException as error:
            self.error = error

    def waits(self, accepted: int) -> None:
        """Wait until so many tasks were accepted, and see that no more are."""
        eventually(lambda: len(self.futures) == accepted, "it feeds")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def executor(gate: Path, tmp_path: Path) -> Iterator[PreforkExecutor]:
    """A pool whose only worker is busy until the gate opens."""
    started = tmp_path / "started"
    with PreforkExecutor(1, "fork", max_backlog=LIMIT) as executor:
        executor.submit(run_until, str(gate), str(started))
        eventually(started.exists)
        yield executor
        gate.touch()


def test_submit_waits_until_there_is_room(executor: PreforkExecutor, gate: Path) -> None:
    feeder = Feeder(lambda: executor.submit(square, 3), most=50)
    feeder.waits(LIMIT)
    with pytest.raises(BacklogFull, match=r"5 tasks wait, as many as max_backlog allows") as full:
        executor.submit_nowait(square, 3)
    assert full.value.limit == LIMIT
    assert len(feeder.futures) == LIMIT, "it waits as long as nothing has begun"
    gate.touch()
    feeder.join(BOUND)
    assert [future.result(BOUND) for future in feeder.futures] == [9] * 50


def test_whatever_many_threads_submit_no_more_tasks_wait(tmp_path: Path) -> None:
    with PreforkExecutor(2, "fork", max_backlog=LIMIT) as executor:
        backlogs: list[int] = []

        def feed() -> Future[Any]:
            future = executor.submit(square, 4)
            backlogs.append(executor.stats().backlog)
            return future

        feeders = [Feeder(feed, most=500) for _ in range(4)]
        for feeder in feeders:
            feeder.join(BOUND)
            assert [future.result(BOUND) for future in feeder.futures] == [16] * 500
        # A worker that has ended a task, and has not begun the next, is not busy.
        assert max(backlogs) <= LIMIT + 2


def test_submit_nowait_takes_a_task_as_long_as_there_is_room(executor: PreforkExecutor) -> None:
    futures = [executor.submit_nowait(square, i) for i in range(LIMIT)]
    with pytest.raises(BacklogFull):
        executor.submit_nowait(square, 1)
    assert futures[0].cancel() or futures[0].running()


def test_without_a_limit_submit_nowait_is_submit() -> None:
    with PreforkExecutor(1, "fork") as executor:
        futures = [executor.submit_nowait(square, i) for i in range(300)]
        assert [future.result(BOUND) for future in futures] == [i * i for i in range(300)]


def test_a_done_callback_never_waits(executor: PreforkExecutor, gate: Path) -> None:
    more: list[Future[int]] = []

    def submit_many(_: object) -> None:
        more.extend(executor.submit(square, i) for i in range(4 * LIMIT))

    executor.submit(square, 1).add_done_callback(submit_many)
    gate.touch()
    eventually(lambda: len(more) == 4 * LIMIT)
    assert [future.result(BOUND) for future in more] == [i * i for i in range(4 * LIMIT)]


def test_a_signal_handler_that_raises_ends_the_wait_and_no_other(
    executor: PreforkExecutor, gate: Path
) -> None:
    class Interrupted(Exception):
        pass

    def handle(*_: object) -> None:
        raise Interrupted

    feeder = Feeder(lambda: executor.submit(square, 3), most=LIMIT + 20)
    feeder.waits(LIMIT)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Interrupted):
            executor.submit(square, 5)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    gate.touch()
    feeder.join(BOUND)
    assert len(feeder.futures) == LIMIT + 20


def test_who_waits_for_room_learns_of_the_shutdown(executor: PreforkExecutor, gate: Path) -> None:
    feeder = Feeder(lambda: executor.submit(square, 3))
    feeder.waits(LIMIT)
    executor.shutdown(wait=False)
    feeder.join(BOUND)
    assert isinstance(feeder.error, RuntimeError)
    gate.touch()
    assert [future.result(BOUND) for future in feeder.futures] == [9] * LIMIT


def test_who_waits_for_room_learns_that_the_pool_is_broken(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1, "fork", max_backlog=1, preload=_WaitThenFail(str(gate))) as executor:
        feeder = Feeder(lambda: executor.submit(square, 3))
        feeder.waits(1)
        gate.touch()
        feeder.join(BOUND)
        assert isinstance(feeder.error, BrokenProcessPool)


class _WaitThenFail:
    def __init__(self, gate: str) -> None:
        self._gate = gate

    def __call__(self) -> None:
        wait_for(self._gate)
        raise OSError("no database")


def test_map_goes_on_as_there_is_room(executor: PreforkExecutor, gate: Path) -> None:
    gate.touch()
    assert list(executor.map(square, range(200), chunksize=3)) == [i * i for i in range(200)]
    with executor.with_options(retries=1) as view:
        assert list(view.map(square, range(50))) == [i * i for i in range(50)]
