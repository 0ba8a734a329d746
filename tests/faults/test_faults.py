"""Signals that reach a running pool from outside, and kills in the middle of sending
something big.

Deaths at every step of a worker's bookkeeping are in test_deaths.py, tasks that damage
their worker in test_faulty_tasks.py, what runs out (descriptors, memory, processes) in
test_scarcity.py, the ends of whole programs in test_ends_of_programs.py."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import numpy
import pytest
from injection import (
    Running,
    all_go_on,
    ended_at_once,
    idle_workers,
    in_worker,
    is_alive,
    lines,
    linux,
    lose_patience,
    pool_of,
    supervisor_of,
)
from light_tasks import BIG, big, die, noted, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied, yell
from prefork_executor._messages.wire import Kind
from prefork_executor._support import faults

# --- stopped processes ---


def test_while_an_idle_worker_is_stopped_the_others_do_the_work(start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        stopped = idle_workers(executor)[0]
        stopped.suspend()
        try:
            all_go_on(executor)
        finally:
            stopped.resume()
        all_go_on(executor)
        assert is_alive(stopped)


def test_a_stopped_workers_task_is_done_after_it_continues(
    start_method: str, tmp_path: Path
) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running = Running(executor, tmp_path)
        running.worker.suspend()
        running.let_go()
        try:
            all_go_on(executor)
            assert not running.future.done()
        finally:
            running.worker.resume()
        assert running.future.result(BOUND) == running.worker.pid


def test_a_pool_with_a_stopped_idle_worker_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_patience(monkeypatch)
    with ended_at_once(pool_of(2, "fork")) as executor:
        stopped = idle_workers(executor)[0]
        stopped.suspend()
        executor.shutdown(wait=False)
        assert executor.join(BOUND)
        assert not is_alive(stopped)


def test_a_worker_that_is_stopped_as_it_asks_for_the_next_task_does_not_hold_up_a_shutdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_patience(monkeypatch)
    armed = tmp_path / "armed"

    def stop_first(*_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            armed.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    with faults.injected("worker.asks", stop_first), ended_at_once(pool_of(2, "fork")) as executor:
        idle_workers(executor)
        armed.touch()
        # Woken by this, one of them stops; or, if the other took it, after it.
        assert executor.submit(square, 5).result(BOUND) == 25
        executor.submit(square, 6).result(BOUND)
        eventually(lambda: not armed.exists(), "one of them stops")
        executor.shutdown(wait=False)
        assert executor.join(BOUND)


def test_a_stopped_worker_that_is_to_retire_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_patience(monkeypatch)
    with ended_at_once(PreforkExecutor(2, "fork", idle_timeout=1.0, start_workers=2)) as executor:
        executor.submit(square, 1).result(BOUND)
        eventually(lambda: executor.stats().idle == 2)
        stopped = idle_workers(executor)
        for process in stopped:
            process.suspend()
        eventually(lambda: len(executor.stats().workers) == 1, "one of them is a spare, and stays")
        (left,) = filter(is_alive, stopped)
        left.resume()
        all_go_on(executor)


def test_a_worker_that_was_stopped_just_after_its_outcome_holds_up_no_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose_patience(monkeypatch)

    def stop(kind: int, *_: object) -> None:
        if kind == Kind.RESULT:
            os.kill(os.getpid(), signal.SIGSTOP)  # Its slot says that it is busy.

    with faults.injected("worker.sent", stop):
        executor = PreforkExecutor(1, "fork")
        assert executor.submit(square, 3).result(BOUND) == 9
        assert executor.stats().busy == 1
        executor.shutdown(wait=False)
        assert executor.join(BOUND)


def test_while_the_supervisor_is_stopped_its_workers_do_the_work(start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        supervisor = supervisor_of(executor)
        supervisor.suspend()
        try:
            all_go_on(executor)
        finally:
            supervisor.resume()
        all_go_on(executor)


@linux
def test_a_task_whose_wake_up_went_to_a_worker_that_was_stopped_is_run_by_another(
    tmp_path: Path,
) -> None:
    """A message wakes one worker of those that wait; here that one gets no further."""
    armed = tmp_path / "armed"

    def stop(*_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            armed.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)

    with faults.injected("worker.woke", stop), ended_at_once(pool_of(2, "fork")) as executor:
        processes = idle_workers(executor)
        armed.touch()
        future = executor.submit(square, 5)
        try:
            assert future.result(BOUND) == 25
        finally:
            for process in processes:
                process.resume()
    assert not armed.exists(), "one of them stopped"


# --- signals that end a process ---


def test_sigterm_to_an_idle_worker_costs_nothing(start_method: str) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        for process in idle_workers(executor):
            process.terminate()
            all_go_on(executor, 10)
        assert executor.stats().deaths == 0


def test_a_signal_that_ends_a_busy_worker_costs_its_task(start_method: str, tmp_path: Path) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running = Running(executor, tmp_path)
        running.worker.send_signal(signal.SIGUSR1)
        error = running.future.exception(BOUND)
        assert isinstance(error, WorkerDied)
        assert (error.signal, error.pid) == (signal.SIGUSR1, running.worker.pid)
        all_go_on(executor)


def test_a_kill_as_by_the_out_of_memory_killer_costs_one_task(
    start_method: str, tmp_path: Path
) -> None:
    with ended_at_once(pool_of(2, start_method)) as executor:
        running = Running(executor, tmp_path)
        running.worker.kill()
        error = running.future.exception(BOUND)
        assert isinstance(error, WorkerDied)
        assert (error.signal, error.exitcode) == (signal.SIGKILL, None)
        assert "SIGKILL" in str(error)
        all_go_on(executor)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGALRM, signal.SIGQUIT])
def test_a_supervisor_that_any_signal_ends_is_replaced(
    number: signal.Signals, tmp_path: Path
) -> None:
    with ended_at_once(pool_of(2, "fork")) as executor:
        running = Running(executor, tmp_path)
        queued = [executor.submit(noted, str(tmp_path / "ran"), str(i)) for i in range(20)]
        supervisor_of(executor).send_signal(number)
        assert isinstance(running.future.exception(BOUND), WorkerDied)
        done = [future.exception(BOUND) for future in queued]
        ran = lines(tmp_path / "ran")
        assert len(ran) == len(set(ran))
        assert all(error is None or isinstance(error, WorkerDied) for error in done)
        all_go_on(executor)


def ignore_all_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)


def test_workers_that_ignore_every_signal_end_at_shutdown(start_method: str) -> None:
    with ended_at_once(
        PreforkExecutor(2, start_method, ignore_all_signals, start_workers=2, idle_timeout=None)
    ) as executor:
        all_go_on(executor)
        executor.shutdown(wait=False)
        assert executor.join(BOUND)


# --- a kill in the middle of a big payload ---


def worker_dies(*_: object) -> None:
    """The caller comes to these points as well."""
    if in_worker():
        die()


def worker_dies_half_written(descriptor: int, view: memoryview, offset: int) -> None:
    if in_worker():
        os.pwrite(descriptor, view[: view.nbytes // 2], offset)
        die()


def yell_big() -> None:
    yell(bytes(BIG))


POINTS: dict[str, tuple[str, Callable[..., None]]] = {
    "no file yet": ("payload.makes_file", worker_dies),
    "half written": ("payload.writes", worker_dies_half_written),
    "written, not sent": ("payload.sends", worker_dies),
    "sent": ("payload.sent", worker_dies),
}


@pytest.fixture
def sends(request: pytest.FixtureRequest) -> Iterator[str]:
    """A forked pool's workers die at this point of sending a big message."""
    with faults.injected(*POINTS[request.param]):
        yield request.param


@pytest.mark.parametrize("sends", POINTS, indirect=True)
def test_a_kill_as_a_big_result_is_sent_costs_at_most_that_result(sends: str) -> None:
    with ended_at_once(PreforkExecutor(2, "fork")) as executor:
        futures = [executor.submit(big) for _ in range(3)]
        for future in futures:
            if sends == "sent":
                assert future.result(BOUND) == bytes(BIG)
            else:
                assert isinstance(future.exception(BOUND), WorkerDied)
        all_go_on(executor)


@pytest.mark.parametrize("sends", POINTS, indirect=True)
def test_a_kill_as_a_big_message_is_yelled_costs_one_task(sends: str) -> None:
    heard: list[object] = []
    with ended_at_once(
        PreforkExecutor(2, "fork", on_yell=lambda _pid, data: heard.append(data))
    ) as executor:
        assert isinstance(executor.submit(yell_big).exception(BOUND), WorkerDied)
        executor.submit(yell, "small").result(BOUND)
        all_go_on(executor)
    assert heard == ([bytes(BIG), "small"] if sends == "sent" else ["small"])


@pytest.mark.parametrize("point", ["payload.opens", "payload.opened"])
@pytest.mark.parametrize("argument", [numpy.zeros(BIG, "u1"), bytes(BIG)], ids=["mapped", "read"])
def test_a_kill_as_a_big_argument_is_mapped_or_read_costs_that_task(
    point: str, argument: Sized
) -> None:
    with (
        faults.injected(point, worker_dies),
        ended_at_once(PreforkExecutor(2, "fork")) as executor,
    ):
        futures = [executor.submit(len, argument) for _ in range(3)]
        for future in futures:
            assert isinstance(future.exception(BOUND), WorkerDied)
        all_go_on(executor)
