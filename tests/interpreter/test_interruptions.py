"""What interrupts the executor in the caller's own process: callbacks that exit,
signal handlers that raise, finalizers and handlers that submit, forks elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from light_tasks import note, square
from waiting import eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._support import faults


def test_a_callback_that_exits_costs_no_other_future_its_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with PreforkExecutor(2) as executor:
        futures = [executor.submit(square, i) for i in range(50)]
        for future in futures[::7]:
            future.add_done_callback(lambda _: sys.exit(3) if _in_io_thread() else None)
        assert [future.result() for future in futures] == [i * i for i in range(50)]
        assert executor.submit(square, 3).result() == 9


def _in_io_thread() -> bool:
    return threading.current_thread().name == "prefork-executor-io"


def test_a_future_that_somebody_else_resolves_harms_no_other(tmp_path: Path) -> None:
    with PreforkExecutor(1) as executor:
        futures = [executor.submit(square, i) for i in range(200)]
        futures[-1].set_result(1)
        assert [future.result() for future in futures[:-1]] == [i * i for i in range(199)]
        assert executor.submit(square, 4).result() == 16


@pytest.mark.parametrize("moment", ["client.sends_task", "client.sent_task"])
def test_an_interrupt_as_a_task_is_sent_neither_loses_it_nor_runs_it_twice(
    moment: str, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"

    def interrupt() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)

    with PreforkExecutor(1) as executor:
        executor.submit(square, 1).result()
        with faults.injected(moment, interrupt), pytest.raises(KeyboardInterrupt):
            executor.submit(note, str(ran), "interrupted")
        assert executor.submit(square, 2).result() == 4
        eventually(lambda: ran.exists() and executor.stats().in_flight == 0)
    assert ran.read_text() == "interrupted\n"


# Python itself swallows, and says so, what a handler raises within a weak reference's callback.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_timeouts_handler_may_raise_anywhere_in_submit() -> None:
    class Late(Exception):
        pass

    def strike(_signum: int, _frame: object) -> None:
        raise Late

    old = signal.signal(signal.SIGALRM, strike)
    struck = 0
    try:
        with PreforkExecutor(2) as executor:
            executor.submit(square, 1).result()
            futures = []
            for i in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 * (i % 20 + 1))
                    futures.extend(executor.submit(square, i) for _ in range(10))
                    time.sleep(0.01)
                except Late:
                    struck += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            assert [future.exception() for future in futures] == [None] * len(futures)
            eventually(lambda: executor.stats().in_flight + executor.stats().waiting == 0)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert struck


def test_a_finalizer_that_submits_within_submit_does_not_deadlock() -> None:
    followed = []

    class Submits:
        def __init__(self, executor: PreforkExecutor) -> None:
            self.executor = executor

        def __del__(self) -> None:
            followed.append(self.executor.submit(square, 5))
            self.executor.stats()

    with PreforkExecutor(1) as executor:
        executor.submit(square, 1).result()
        victims = [Submits(executor)]
        # As a garbage collection would, with the lock held.
        with faults.injected("client.sends_task", victims.clear):
            assert executor.submit(square, 2).result() == 4
        assert followed[0].result() == 25


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_elsewhere_as_a_supervisor_starts_does_not_hide_its_death() -> None:
    children: list[int] = []

    def fork_in_another_thread() -> None:
        def fork() -> None:
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            children.append(pid)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()

    try:
        with PreforkExecutor(1, "fork") as executor:
            with faults.injected("client.starts_supervisor", fork_in_another_thread):
                assert executor.submit(square, 2).result() == 4
            assert children
            future = executor.submit(time.sleep, 600)
            # Not only busy: it may be so with the task before, whose result came first.
            eventually(lambda: [w.task for w in executor.stats().workers] == ["time.sleep"])
            supervisor = psutil.Process(executor.stats().workers[0].pid).parent()
            assert supervisor is not None
            supervisor.kill()
            with pytest.raises(WorkerDied):
                future.result(timeout=180)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_an_executor_made_before_a_fork_may_be_used_first_in_the_child() -> None:
    executor = PreforkExecutor(1)
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        # Daemonize: the process that made the executor's user ends at once.
        if os.fork() == 0:
            try:
                eventually(lambda: os.getppid() != middle)
                with executor:
                    time.sleep(0.1)
                    os.write(write_end, str(executor.submit(square, 6).result()).encode())
            finally:
                os._exit(0)
        os._exit(0)
    os.close(write_end)
    os.waitpid(middle, 0)
    assert os.read(read_end, 100) == b"36"
    os.close(read_end)
    executor.shutdown()


def test_integers_of_numpy_and_iterable_initargs_are_as_good() -> None:
    with PreforkExecutor(np.int64(2), None, square, [3]) as executor:
        assert executor.submit(square, 2).result() == 4
        assert type(executor.stats().max_workers) is int


def test_a_chunk_is_called_by_the_name_of_its_function() -> None:
    with PreforkExecutor(1) as executor:
        with pytest.raises(WorkerDied, match=r"held task posix\._exit"):
            list(executor.map(os._exit, [3], chunksize=2))
