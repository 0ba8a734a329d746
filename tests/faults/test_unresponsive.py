"""Supervisors that do nothing: stopped by a signal, or by a debugger. They hold up nobody for more
than ten seconds or so, and nothing of a pool outlives its caller, whatever was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from scripts import program_text
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskTimeout
from prefork_executor._client import watchdog
from prefork_executor._system import processes

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.environ.get("PREFORK_EXECUTOR_FALLBACK") == "1",
    reason="needs pidfds and lifelines",
)


def parent() -> int:
    return os.getppid()


@contextmanager
def stopped_supervisor(start_method: str) -> Iterator[PreforkExecutor]:
    """A pool whose workers' parent has been stopped."""
    executor = PreforkExecutor(2, start_method, min_spare_workers=2)
    try:
        os.kill(executor.submit(parent).result(BOUND), signal.SIGSTOP)
        yield executor
    finally:
        executor.kill_workers()
        executor.shutdown()


@pytest.fixture
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller looks as often as ever before it gives a supervisor up, but sooner: within two
    seconds, not ten."""
    monkeypatch.setattr(watchdog, "LOOK_INTERVAL", 0.1)


# --- one that is stopped ------------------------------------------------------------------------


@pytest.mark.usefixtures("_impatience")
def test_a_stopped_supervisor_does_not_hold_up_a_time_limit(start_method: str) -> None:
    with stopped_supervisor(start_method) as executor:
        with pytest.raises(TaskTimeout):
            executor.with_options(timeout=0.1).submit(time.sleep, 600).result(BOUND)
        assert executor.submit(abs, -1).result(BOUND) == 1


@pytest.mark.usefixtures("_impatience")
def test_a_stopped_supervisor_does_not_hold_up_kill_workers(start_method: str) -> None:
    with stopped_supervisor(start_method) as executor:
        running = executor.submit(time.sleep, 600)
        workers = [psutil.Process(worker.pid) for worker in executor.stats().workers]
        executor.kill_workers()
        with pytest.raises(BrokenProcessPool):
            running.result(BOUND)
        assert executor.submit(abs, -1).result(BOUND) == 1
        assert psutil.wait_procs(workers, timeout=BOUND)[1] == []


@pytest.mark.usefixtures("_impatience")
def test_a_stopped_supervisor_does_not_hold_up_the_shutdown(start_method: str) -> None:
    with stopped_supervisor(start_method) as executor:
        executor.shutdown(wait=False)
        assert executor.join(BOUND)


def test_a_supervisor_that_goes_on_in_time_is_not_replaced(start_method: str) -> None:
    with stopped_supervisor(start_method) as executor:
        before = executor._client._supervisors.current
        supervisors = {psutil.Process(worker.pid).parent() for worker in executor.stats().workers}
        limited = executor.with_options(timeout=0.1).submit(time.sleep, 600)
        time.sleep(1)  # Not for the result: it is to be late.
        for supervisor in supervisors:
            supervisor.resume()
        with pytest.raises(TaskTimeout):
            limited.result(BOUND)
        assert executor._client._supervisors.current is before


# --- the caller's end -----------------------------------------------------------------------------

PROGRAM = program_text("long_tasks")


@pytest.mark.parametrize("what", ["supervisors", "workers", "all", "drops privileges"])
def test_nothing_of_the_pool_outlives_its_caller(
    what: str, start_method: str, tmp_path: Path
) -> None:
    if what == "drops privileges" and os.getuid() != 0:
        pytest.skip("only root can drop privileges")
    (tmp_path / "program.py").write_text(PROGRAM)
    args = [sys.executable, "program.py", start_method, what]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as program:
        assert program.stdout is not None
        above, _, workers = program.stdout.readline().partition(" - ")
        # The fork server is multiprocessing's, and ends by itself.
        servers = [pid for pid in map(int, above.split()) if is_fork_server(pid)]
        supervisors = [pid for pid in map(int, above.split()) if pid not in servers]
        busy = list(map(int, workers.split()))
        to_stop = {"supervisors": supervisors, "workers": busy, "all": supervisors + busy}
        family = [psutil.Process(pid) for pid in supervisors + busy]
        for pid in to_stop.get(what, []):
            os.kill(pid, signal.SIGSTOP)
        program.kill()
    _, alive = psutil.wait_procs(family, timeout=BOUND)
    assert alive == []


def is_fork_server(pid: int) -> bool:
    command = " ".join(psutil.Process(pid).cmdline())
    return "multiprocessing.forkserver" in command and psutil.Process(pid).ppid() != os.getpid()


# --- who ended it ---------------------------------------------------------------------------------


def test_supervisors_that_are_killed_before_they_are_ready_do_not_break_the_pool(
    tmp_path: Path,
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"

    def wait_for_gate() -> None:
        with begun.open("a") as file:
            print(os.getppid(), file=file)
        while not gate.exists():
            time.sleep(0.01)

    def supervisors() -> list[int]:
        return list(map(int, begun.read_text().split())) if begun.exists() else []

    with PreforkExecutor(1, "fork", preload=wait_for_gate) as executor:
        future = executor.submit(abs, -1)
        for count in range(1, 6):
            eventually(lambda count=count: len(supervisors()) == count, "a supervisor begins")
            os.kill(supervisors()[-1], signal.SIGKILL)
        gate.touch()
        assert future.result(BOUND) == 1


def test_a_stranger_who_has_a_workers_id_by_now_is_not_killed() -> None:
    with PreforkExecutor(1, "fork") as executor:
        executor.submit(abs, -1).result(BOUND)
        board = executor._client._channels.board.descriptor
        worker = psutil.Process(executor.stats().workers[0].pid)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            processes.wait_until_gone([stranger.pid, worker.pid], board, BOUND)
            assert stranger.poll() is None
            stranger.communicate(b"\n")
        assert psutil.wait_procs([worker], timeout=BOUND)[1] == []
