"""Ends that come in an unusual manner, or not at all."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from waiting import BOUND

from prefork_executor import PreforkExecutor, yell
from prefork_executor._pool import leaving


def leave_a_thread() -> int:
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def fail_with_work_left_for_the_end(witness: Path) -> None:
    def finish() -> None:
        time.sleep(0.1)
        witness.touch()

    multiprocessing.util.Finalize(None, finish, exitpriority=0)
    raise ValueError("error in initializer")


def test_the_host_waits_for_all_its_children_and_so_for_the_supervisor() -> None:
    yelled, go_on = threading.Event(), threading.Event()

    def hold_the_io_thread(_pid: int, _data: object) -> None:
        yelled.set()
        go_on.wait(BOUND)

    with PreforkExecutor(1, "fork", on_yell=hold_the_io_thread) as executor:
        executor.submit(yell, "now")
        assert yelled.wait(BOUND)
        (supervisor,) = multiprocessing.active_children()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        os.waitpid(supervisor.pid, 0)
        go_on.set()
        assert executor.submit(abs, -1).result(BOUND) == 1
    assert multiprocessing.active_children() == []


def test_an_executor_that_could_not_start_its_thread_can_be_used_later(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with PreforkExecutor(1, start_method) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(abs, -1)
        assert multiprocessing.active_children() == []
        assert executor.submit(abs, -1).result(BOUND) == 1


def test_a_recycled_worker_that_does_not_end_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "LEAVE_WITHIN", 0.1)
    with PreforkExecutor(1, "fork", max_tasks_per_child=1) as executor:
        first, second = executor.submit(leave_a_thread), executor.submit(os.getpid)
        assert first.result(BOUND) != second.result(BOUND)


def test_a_worker_whose_initializer_failed_ends_in_order(start_method: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    options = {"initializer": fail_with_work_left_for_the_end, "initargs": (witness,)}
    with PreforkExecutor(1, start_method, **options) as executor:
        with pytest.raises(BrokenProcessPool, match="error in initializer"):
            executor.submit(abs, -1).result(BOUND)
        assert witness.exists()


def test_a_worker_whose_initializer_failed_and_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        leave_a_thread()
        raise ValueError("error in initializer")

    monkeypatch.setattr(leaving, "LEAVE_WITHIN", 0.1)
    with PreforkExecutor(1, "fork", initializer=fail) as executor:
        with pytest.raises(BrokenProcessPool, match="error in initializer"):
            executor.submit(abs, -1).result(BOUND)
