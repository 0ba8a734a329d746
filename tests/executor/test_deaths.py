"""What dies, and what that costs: faults injected into real processes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import is_alive, lines, supervisor_of
from light_tasks import note, square
from scripts import program_text, search_path
from waiting import eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._board import scoreboard as sb
from prefork_executor._server import worker as worker_module


def noted_task(path: str, number: int) -> int:
    note(path, str(number))
    return number


def note_and_hang(path: str) -> None:
    note(path, str(os.getpid()))
    while True:
        time.sleep(1)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def segfault() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


def abort() -> None:
    faulthandler.disable()
    os.abort()


# --- a worker's death costs the task it held and nothing else ---


@pytest.mark.parametrize(
    ("fn", "args", "exitcode", "signal_number"),
    [
        (kill_self, (signal.SIGKILL,), None, signal.SIGKILL),
        (kill_self, (signal.SIGTERM,), None, signal.SIGTERM),
        (os._exit, (3,), 3, None),
        (os._exit, (0,), 0, None),
        (segfault, (), None, signal.SIGSEGV),
        (abort, (), None, signal.SIGABRT),
    ],
)
def test_a_death_fails_its_own_task_and_says_how(
    fn: Callable[..., object], args: tuple[Any, ...], exitcode: int | None, signal_number: int
) -> None:
    with PreforkExecutor(2) as executor:
        future = executor.submit(fn, *args)
        with pytest.raises(WorkerDied) as caught:
            future.result()
        assert (caught.value.exitcode, caught.value.signal) == (exitcode, signal_number)
        assert caught.value.pid > 0
        assert fn.__name__ in str(caught.value)
        assert list(executor.map(square, range(20))) == [i * i for i in range(20)]


def test_deaths_among_many_tasks_cost_only_their_own(start_method: str) -> None:
    with PreforkExecutor(3, start_method) as executor:
        futures = [
            executor.submit(os._exit, 1) if i % 20 == 0 else executor.submit(square, i)
            for i in range(200)
        ]
        for i, future in enumerate(futures):
            if i % 20 == 0:
                assert isinstance(future.exception(), WorkerDied)
            else:
                assert future.result() == i * i


def test_the_death_of_an_idle_worker_costs_nothing() -> None:
    with PreforkExecutor(2) as executor:
        for i in range(20):
            assert executor.submit(square, i).result() == i * i
            eventually(lambda: executor.stats().idle)
            for worker in executor.stats().workers:
                if worker.state == "idle":
                    # The one killed before may still be on the board.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, signal.SIGKILL)


def test_sys_exit_in_a_task_is_its_exception_and_no_death() -> None:
    with PreforkExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        with pytest.raises(SystemExit):
            executor.submit(sys.exit, 3).result()
        assert executor.submit(os.getpid).result() == pid


# --- a kill at every step of a worker's bookkeeping ---


def die_once(flag: str) -> None:
    """The first to come here dies; the others go on."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def inject(step: str, flag: str) -> None:
    """As an initializer: make this worker die once, at one step of its loop."""
    worker = worker_module.Worker
    if step == "before asking":
        original_wait = worker._wait_for_work

        def wait_for_work(self: Any) -> bool:
            woken = original_wait(self)
            die_once(flag)
            return woken

        worker._wait_for_work = wait_for_work  # type: ignore[method-assign]
    elif step == "taken, not named":
        original_serve = worker._serve

        def serve(self: Any, packet: Any) -> None:
            assert self._channels.board.read(self._seat.slot).state == sb.TAKING
            die_once(flag)
            original_serve(self, packet)

        worker._serve = serve  # type: ignore[method-assign]
    elif step == "named, not begun":
        original_outcome = worker._outcome

        def outcome(self: Any, packet: Any) -> Any:
            die_once(flag)
            return original_outcome(self, packet)

        worker._outcome = outcome  # type: ignore[method-assign]
    else:
        original_send = worker._send_outcome

        def send_outcome(self: Any, *args: Any) -> None:
            if step == "run, not sent":
                die_once(flag)
            original_send(self, *args)
            if step == "sent, still busy":
                die_once(flag)

        worker._send_outcome = send_outcome  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("step", "lost"),
    [
        ("before asking", 0),
        ("taken, not named", 0),
        ("named, not begun", 1),
        ("run, not sent", 1),
        ("sent, still busy", 0),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_kill_at_any_step_loses_only_what_had_begun(
    step: str, lost: int, workers: int, start_method: str, tmp_path: Path
) -> None:
    ran, flag = tmp_path / "ran", tmp_path / "flag"
    with PreforkExecutor(workers, start_method, inject, (step, str(flag))) as executor:
        if step == "before asking":
            # A worker has to be waiting, or none will be woken.
            executor.submit(square, 1).result()
            eventually(lambda: executor.stats().idle or flag.exists())
        futures = [executor.submit(noted_task, str(ran), i) for i in range(60)]
        errors = [future.exception() for future in futures]
        # It holds a task from its name on until the mark IDLE, also if that has been answered.
        was_busy = int(step not in ("before asking", "taken, not named"))
        eventually(lambda: executor.stats().deaths == was_busy)
    assert flag.exists(), "the fault was not injected"
    dead = [error for error in errors if error is not None]
    assert len(dead) == lost
    assert all(isinstance(error, WorkerDied) for error in dead)
    counts = [lines(ran).count(str(i)) for i in range(60)]
    assert max(counts) == 1, "a task ran twice"
    not_run = counts.count(0)
    assert not_run == (lost if step == "named, not begun" else 0)


# --- the supervisor's death ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_the_supervisors_death_another_goes_on_with_the_queue(
    start_method: str, tmp_path: Path
) -> None:
    started, ran = tmp_path / "started", tmp_path / "ran"
    with PreforkExecutor(2, start_method) as executor:
        running = [executor.submit(note_and_hang, str(started)) for _ in range(2)]
        eventually(lambda: len(lines(started)) == 2)
        queued = [executor.submit(noted_task, str(ran), i) for i in range(30)]
        supervisor_of(executor).kill()
        for future in running:
            with pytest.raises(WorkerDied):
                future.result()
        assert [future.result() for future in queued] == list(range(30))
        assert sorted(map(int, lines(ran))) == list(range(30))
        assert executor.submit(square, 4).result() == 16


def test_the_supervisors_death_while_idle_costs_no_task() -> None:
    with PreforkExecutor(2) as executor:
        for i in range(5):
            assert executor.submit(square, i).result() == i * i
            eventually(lambda: executor.stats().workers)
            supervisor = supervisor_of(executor)
            pool = [supervisor, *supervisor.children()]
            supervisor.kill()
            eventually(lambda members=pool: not any(map(is_alive, members)))


# --- the end of the user's process ---

CALLER = program_text("killed_caller")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_of_the_pool_is_left_when_the_callers_process_is_killed(
    start_method: str, end: signal.Signals, tmp_path: Path
) -> None:
    script, started = tmp_path / "caller.py", tmp_path / "started"
    script.write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": search_path(Path(__file__).parent)}
    caller = subprocess.Popen(
        [sys.executable, str(script), start_method, str(started)], env=environment
    )
    eventually(lambda: len(lines(started)) == 3)
    processes = psutil.Process(caller.pid).children(recursive=True)
    assert len(processes) >= 4
    caller.send_signal(end)
    caller.wait()
    eventually(lambda: not any(is_alive(process) for process in processes))


# --- supervisors and workers that cannot start ---


def die_at_once() -> None:
    """Called where it is unpickled: in a worker, before that is ready."""
    os._exit(9)


class DeadlyWhenUnpickled:
    """An argument that ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return die_at_once, ()


def test_an_argument_that_ends_every_worker_breaks_the_pool_and_says_so() -> None:
    with PreforkExecutor(1, "spawn", square, (DeadlyWhenUnpickled(),)) as executor:
        future = executor.submit(square, 1)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="workers in a row died"):
            future.result()


def test_a_task_that_forks_and_returns_in_both_is_answered_once() -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(fork_and_return).result() in ("parent", "child")
        for i in range(20):
            assert executor.submit(square, i).result() == i * i


def fork_and_return() -> str:
    if os.fork() == 0:
        return "child"
    os.wait()
    return "parent"


def test_a_task_that_was_lost_to_a_death_does_not_count_as_finished() -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(square, 2).result() == 4
        assert executor.submit(sys.exit, 3).exception() is not None
        assert executor.submit(os._exit, 3).exception() is not None
        # The dead one's record is in the books before its future is told.
        assert (executor.stats().finished, executor.stats().deaths) == (2, 1)
