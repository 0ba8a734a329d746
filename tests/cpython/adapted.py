"""What CPython's test cases need to run on PreforkExecutor, and our versions of
the tests that cannot be run as they are.

A class here goes before one of CPython's test cases in the bases of ours. Its
tests have names of their own, so that none of CPython's is overridden unseen.
Only imported where CPython's tests are installed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import unittest
import unittest.mock
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import psutil
import pytest
from test import support
from test.support.script_helper import assert_python_ok
from test.test_concurrent_futures import test_deadlock as deadlock
from test.test_concurrent_futures import test_process_pool as process_pool
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied

from . import tasks

support.SHORT_TIMEOUT = BOUND  # That of CPython's tests is half a minute.

MANY_TASKS = 5000
"""Submitted to a pool that stands still: several times what its task pipe holds."""


def pids_of(executor: PreforkExecutor, *, busy: bool = False) -> list[int]:
    """Its workers, or those that run a task."""
    workers = executor.stats().workers
    return [worker.pid for worker in workers if worker.state == "busy" or not busy]


def any_alive(pids: Iterable[int]) -> bool:
    return any(psutil.pid_exists(pid) for pid in pids)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails if the main thread is stuck in the block."""

    def fail(_signum: int, _frame: object) -> None:
        raise TimeoutError(f"stuck for {seconds:g} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class OnPrefork(unittest.TestCase):
    """Runs a test case of CPython's on PreforkExecutor.

    CPython's tearDown reaps children and waits a second for threads, and only
    warns of those it finds. Here they are a failure: the suite's own check
    comes after it, and would not see a child that was reaped.
    """

    executor_type = PreforkExecutor
    executor: PreforkExecutor
    ctx: str
    worker_count: int
    get_context: Callable[[], BaseContext]

    def setUp(self) -> None:
        support.environment_altered = False
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        assert not support.environment_altered, "left children or threads behind"

    def new_executor(self, max_workers: int, **options: Any) -> PreforkExecutor:
        """For a test that shuts it down itself."""
        return self.executor_type(max_workers, mp_context=self.get_context(), **options)

    @contextlib.contextmanager
    def ends_by_itself(self) -> Iterator[None]:
        """An executor that the block began to end has ended when it is left."""
        threads = threading.active_count()
        yield
        eventually(lambda: threading.active_count() <= threads)

    def run_script(self, script: str) -> tuple[str, str]:
        """What a Python that runs this script writes to stdout and to stderr."""
        header = f"""\
            from multiprocessing import get_context
            from prefork_executor import PreforkExecutor
            from test.test_concurrent_futures.test_shutdown import sleep_and_print
            context = get_context({self.ctx!r})
            def new_executor(*args, **options):
                return PreforkExecutor(*args, mp_context=context, **options)
            """
        _, out, err = assert_python_ok("-c", textwrap.dedent(header) + textwrap.dedent(script))
        return out.decode(), err.decode()


class WithSleepers(OnPrefork):
    """Tests that end while a task of theirs sleeps on. To wait for it would tell
    nothing more, and would be most of the time that these tests take."""

    def tearDown(self) -> None:
        self.executor.kill_workers()
        super().tearDown()


class FailingInitializer(OnPrefork):
    log_queue: Queue[Any] | None

    def setUp(self) -> None:
        super().setUp()
        self.executor = self.new_executor(
            self.worker_count, initializer=tasks.fail_and_log_to, initargs=(self.log_queue,)
        )

    def tearDown(self) -> None:
        super().tearDown()
        # unittest keeps the test case, and so its queue, beyond the leak check.
        self.log_queue, self.executor_kwargs = None, {}

    def test_failing_initializer_breaks_the_pool(self) -> None:
        future = self.executor.submit(tasks.never_called)
        with pytest.raises(BrokenExecutor, match="ValueError: error in initializer"):
            future.result(timeout=BOUND)
        with pytest.raises(BrokenExecutor, match="ValueError: error in initializer"):
            self.executor.submit(tasks.never_called)

    def test_failing_initializer_is_logged(self) -> None:
        self.executor.submit(tasks.never_called).exception(timeout=BOUND)
        assert self.log_queue is not None
        record = self.log_queue.get(timeout=BOUND)
        assert (record.name, record.levelname) == ("prefork_executor", "CRITICAL")
        assert "ValueError: error in initializer" in record.getMessage()

    def test_failing_initializer_leaves_no_resources(self) -> None:
        # In a process of its own, whose resource tracker says at its end what
        # was left to it.
        out, err = self.run_script("""
            from test.test_concurrent_futures.test_init import get_init_status, init_fail
            queue = context.Queue()
            with new_executor(2, initializer=init_fail, initargs=(queue,)) as executor:
                print(type(executor.submit(get_init_status).exception()).__name__)
            """)
        assert out.strip() == "BrokenProcessPool"
        assert "leaked" not in err


class Deadlock(OnPrefork):
    TIMEOUT = BOUND

    def _check_error(
        self, error: type[BaseException], func: Callable[..., Any], *args: Any, **_: Any
    ) -> None:
        """Replaces CPython's, through which most tests of this case go: a task must
        fail with this error. CPython's then only shuts down; ours must go on."""
        before = self.executor.submit(pow, 2, 4)
        failing = self.executor.submit(func, *args)
        behind = self.executor.submit(pow, 2, 5)
        with pytest.raises(error):
            failing.result(timeout=self.TIMEOUT)
        after = self.executor.submit(pow, 2, 6)
        results = [future.result(self.TIMEOUT) for future in (before, behind, after)]
        assert results == [16, 32, 64]

    _check_crash = _check_error  # Its name up to Python 3.13.

    def test_exit_at_task_unpickle_is_the_tasks_own_error(self) -> None:
        self._check_error(SystemExit, id, deadlock.ExitAtUnpickle())

    def test_error_at_task_unpickle_is_the_tasks_own_error(self) -> None:
        self._check_error(pickle.UnpicklingError, id, deadlock.ErrorAtUnpickle())

    def test_exit_during_result_unpickle_is_the_tasks_own_error(self) -> None:
        self._check_error(
            pickle.UnpicklingError, deadlock._return_instance, deadlock.ExitAtUnpickle
        )

    def test_error_during_result_unpickle_is_the_tasks_own_error(self) -> None:
        # CPython's class redirects the stderr of whoever unpickles it: of this process.
        self.addCleanup(setattr, sys, "stderr", sys.stderr)
        self._check_error(
            pickle.UnpicklingError, deadlock._return_instance, deadlock.ErrorAtUnpickle
        )

    def test_crash_with_big_data_costs_its_own_task_only(self) -> None:
        data = "a" * support.PIPE_MAX_SIZE
        crashing = [self.executor.submit(deadlock._crash_with_data, data) for _ in range(3)]
        sound = [self.executor.submit(len, data) for _ in range(3)]
        for future in crashing:
            assert isinstance(future.exception(BOUND), WorkerDied)
        assert [future.result(BOUND) for future in sound] == [len(data)] * 3

    def test_shutdown_after_a_failure_at_pickle(self) -> None:
        self.executor.submit(id, 42).result()
        failing = self.executor.submit(id, deadlock.ErrorAtPickle())
        self.executor.shutdown(wait=False)
        with pytest.raises(pickle.PicklingError):
            failing.result(timeout=BOUND)
        with within(BOUND):
            self.executor.shutdown(wait=True)

    def test_submit_does_not_wait_for_a_pool_that_stands_still(self) -> None:
        executor = self.new_executor(1)
        with executor:
            worker = executor.submit(os.getpid).result()
            os.kill(worker, signal.SIGSTOP)
            try:
                with within(BOUND):
                    futures = [executor.submit(int, number) for number in range(MANY_TASKS)]
            finally:
                os.kill(worker, signal.SIGCONT)
            results = [future.result(timeout=BOUND) for future in futures]
        assert results == list(range(MANY_TASKS))


class ProcessPool(OnPrefork):
    def test_a_map_times_out(self) -> None:
        results = self.executor.map(time.sleep, [0, 0, 600], timeout=0.5)
        with pytest.raises(TimeoutError):
            list(results)
        self.executor.kill_workers()

    def test_killed_worker_costs_its_own_task_only(self) -> None:
        killed = self.executor.submit(signal.pause)
        eventually(lambda: pids_of(self.executor, busy=True))
        (pid,) = pids_of(self.executor, busy=True)
        other = self.executor.submit(process_pool.mul, 6, 7)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool) as caught:
            killed.result(timeout=BOUND)
        death = caught.value
        assert isinstance(death, WorkerDied)
        assert (death.pid, death.signal) == (pid, signal.SIGKILL)
        assert other.result(BOUND) == 42
        assert self.executor.submit(pow, 2, 8).result(BOUND) == 256

    def test_traceback_has_the_workers_frames(self) -> None:
        source = "raise RuntimeError(123) # some comment"
        future = self.executor.submit(process_pool.ProcessPoolExecutorTest._test_traceback)
        error = future.exception(timeout=BOUND)
        assert type(error) is RuntimeError
        assert error is not None
        assert error.args == (123,)
        assert source in "".join(traceback.format_exception(error))
        with support.captured_stderr() as stderr:
            try:
                future.result()
            except RuntimeError:
                sys.excepthook(*sys.exc_info())
        assert source in stderr.getvalue()

    def test_saturation_by_blocked_tasks(self) -> None:
        semaphore = self.get_context().Semaphore(0)
        count = 15 * self.worker_count
        with self.new_executor(
            self.worker_count, initializer=tasks.keep, initargs=(semaphore,)
        ) as executor:
            futures = [executor.submit(tasks.acquire_kept) for _ in range(count)]
            eventually(lambda: len(pids_of(executor, busy=True)) == self.worker_count)
            for _ in range(count):
                semaphore.release()
            pids = {future.result(timeout=BOUND) for future in futures}
        assert len(pids) == self.worker_count
        assert executor.stats().peak_workers == self.worker_count

    def test_idle_worker_is_reused(self) -> None:
        with self.new_executor(4, min_spare_workers=0) as executor:
            for x, y in [(21, 2), (6, 7), (3, 14)]:
                assert executor.submit(process_pool.mul, x, y).result(BOUND) == 42
        assert executor.stats().peak_workers == 1

    def test_idle_workers_are_reused(self) -> None:
        for _ in range(5):
            pair = [self.executor.submit(process_pool.mul, 6, 7) for _ in range(2)]
            assert [future.result(BOUND) for future in pair] == [42, 42]
        # Two that work, and the spare one that an executor keeps if not told otherwise.
        assert self.executor.stats().peak_workers <= 3

    def test_max_tasks_per_child_under_every_start_method(self) -> None:
        with self.new_executor(1, max_tasks_per_child=3) as executor:
            pids = [executor.submit(os.getpid).result(BOUND) for _ in range(6)]
        assert pids == [pids[0]] * 3 + [pids[3]] * 3
        assert pids[0] != pids[3]
        assert executor.stats().peak_workers == 1

    def test_max_tasks_per_child_with_the_default_context(self) -> None:
        with self.executor_type(1, max_tasks_per_child=1) as executor:
            pids = [executor.submit(os.getpid).result(BOUND) for _ in range(2)]
        assert pids[0] != pids[1]

    def test_max_tasks_early_shutdown_under_fork(self) -> None:
        executor = self.new_executor(3, max_tasks_per_child=1)
        futures = [executor.submit(process_pool.mul, i, i) for i in range(6)]
        executor.shutdown()
        assert [future.result() for future in futures] == [0, 1, 4, 9, 16, 25]

    def test_max_tasks_per_child_with_tasks_waiting(self) -> None:
        for workers, most in ((1, 2), (2, 2)):
            with self.new_executor(workers, max_tasks_per_child=most) as executor:
                futures = [executor.submit(process_pool.mul, i, 2) for i in range(8)]
                assert [future.result(BOUND) for future in futures] == [*range(0, 16, 2)]

    def test_tasks_wait_for_new_workers_after_shutdown(self) -> None:
        with self.ends_by_itself():
            executor = self.new_executor(1, max_tasks_per_child=1)
            gate, futures = self.submit_gated(executor)
            executor.shutdown(wait=False)
            gate.touch()
            assert [future.result(BOUND) for future in futures] == [0, 1, 2]

    def test_tasks_wait_for_new_workers_when_nobody_refers_to_the_executor(self) -> None:
        with self.ends_by_itself():
            executor = self.new_executor(1, max_tasks_per_child=1)
            gate, futures = self.submit_gated(executor)
            reference = weakref.ref(executor)
            del executor
            eventually(lambda: gc.collect() >= 0 and reference() is None, "it is collected")
            gate.touch()
            assert [future.result(BOUND) for future in futures] == [0, 1, 2]

    def test_no_waiting_task_survives_kill_workers(self) -> None:
        with self.new_executor(1, max_tasks_per_child=1) as executor:
            _, futures = self.submit_gated(executor)
            executor.kill_workers()
            for future in futures:
                with pytest.raises((BrokenProcessPool, CancelledError)):
                    future.result(BOUND)

    def submit_gated(self, executor: PreforkExecutor) -> tuple[Path, list[Future[int]]]:
        """Three tasks that return 0, 1 and 2 once the gate is there. The first of them runs."""
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        started, gate = directory / "started", directory / "gate"
        futures = [executor.submit(tasks.pass_gate, started, gate, i) for i in range(3)]
        eventually(started.exists, "the first runs")
        return gate, futures

    def test_each_future_has_an_error_of_its_own(self) -> None:
        futures = [self.executor.submit(signal.pause) for _ in range(3)]
        eventually(lambda: len(pids_of(self.executor, busy=True)) == 3)
        for pid in pids_of(self.executor, busy=True):
            os.kill(pid, signal.SIGKILL)
        errors = [future.exception(BOUND) for future in futures]
        assert {type(error) for error in errors} == {WorkerDied}
        assert len({id(error) for error in errors}) == 3

    def test_death_says_the_exit_code(self) -> None:
        with pytest.raises(BrokenProcessPool, match="exited with status 99") as caught:
            self.executor.submit(os._exit, 99).result(BOUND)
        assert isinstance(caught.value, WorkerDied)
        assert caught.value.exitcode == 99

    def test_ended_workers_end_their_tasks(self) -> None:
        for end in ("terminate_workers", "kill_workers"):
            with self.new_executor(1) as executor:
                _, (running, *_) = self.submit_gated(executor)
                pids = pids_of(executor)
                getattr(executor, end)()
                with pytest.raises(BrokenProcessPool, match=end):
                    running.result(BOUND)
                eventually(lambda pids=pids: not any_alive(pids), "they end")

    def test_ended_workers_are_replaced(self) -> None:
        for end in ("terminate_workers", "kill_workers"):
            with self.new_executor(1) as executor:
                before = executor.submit(os.getpid).result(BOUND)
                getattr(executor, end)()
                assert executor.submit(os.getpid).result(BOUND) != before

    def test_no_thread_can_be_started(self) -> None:
        no_thread = RuntimeError("can't create new thread at interpreter shutdown")
        with unittest.mock.patch.object(threading.Thread, "start", side_effect=no_thread):
            with pytest.raises(RuntimeError, match="can't create new thread"):
                self.executor.submit(pow, 2, 8)
        assert self.executor.submit(pow, 2, 8).result(BOUND) == 256


class Shutdown(OnPrefork):
    expected = (5, 4, 3, 2, 1, 0, 1, 2, 3, 4)
    """What ``map(abs, range(-5, 5))`` gives."""

    def test_interpreter_waits_for_tasks(self) -> None:
        out, err = self.run_script("""
            executor = new_executor(5)
            executor.submit(sleep_and_print, 0.3, "apple")
            """)
        assert (out.strip(), err) == ("apple", "")

    def test_interpreter_waits_for_tasks_after_shutdown_without_wait(self) -> None:
        out, err = self.run_script("""
            executor = new_executor(3)
            executor.submit(sleep_and_print, 0.3, "apple")
            executor.shutdown(wait=False)
            """)
        assert (out.strip(), err) == ("apple", "")

    def test_submit_while_the_interpreter_ends(self) -> None:
        out, err = self.run_script("""
            import atexit
            @atexit.register
            def run_last():
                try:
                    executor.submit(id, None)
                except RuntimeError as error:
                    print(error)
            executor = new_executor(5)
            executor.submit(id, 42).result()
            """)
        assert "cannot schedule new futures" in out
        assert err == ""

    def test_shutdown_ends_after_a_cancel(self) -> None:
        executor = self.new_executor(1)
        executor.submit(int).result(BOUND)
        with within(BOUND):
            executor.submit(int).cancel()
            executor.shutdown(wait=True)

    def test_workers_end_with_shutdown(self) -> None:
        semaphore = self.get_context().Semaphore(0)
        executor = self.new_executor(5, initializer=tasks.keep, initargs=(semaphore,))
        futures = [executor.submit(tasks.acquire_kept) for _ in range(3)]
        eventually(lambda: len(pids_of(executor, busy=True)) == 3)
        pids = pids_of(executor)
        for _ in range(3):
            semaphore.release()
        executor.shutdown()
        assert not any_alive(pids)
        assert len({future.result() for future in futures}) == 3

    def test_workers_end_with_the_context_manager(self) -> None:
        with self.new_executor(5) as executor:
            assert tuple(executor.map(abs, range(-5, 5))) == self.expected
            pids = pids_of(executor)
        assert pids
        assert not any_alive(pids)

    def test_workers_end_after_shutdown_without_wait(self) -> None:
        with self.ends_by_itself():
            executor = self.new_executor(5)
            results, pids = self.start_map(executor)
            executor.shutdown(wait=False)
            eventually(lambda: not any_alive(pids))
        assert tuple(results) == self.expected

    def test_workers_end_when_nobody_refers_to_the_executor(self) -> None:
        with self.ends_by_itself():
            executor = self.new_executor(5)
            results, pids = self.start_map(executor)
            del executor
            support.gc_collect()
            eventually(lambda: not any_alive(pids))
        assert tuple(results) == self.expected

    def start_map(self, executor: PreforkExecutor) -> tuple[Iterator[int], list[int]]:
        """The map's results, and the pids of workers."""
        assert executor.submit(abs, -1).result(BOUND) == 1
        pids = pids_of(executor)
        assert pids
        return executor.map(abs, range(-5, 5)), pids
