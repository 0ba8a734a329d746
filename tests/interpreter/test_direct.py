"""Who waits for the only task in flight reads its result by himself. Whatever else comes
meanwhile, or comes in between, is done as ever, and nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from injection import Running, all_go_on, ended_at_once, pool_of
from light_tasks import big, square
from strikes import Strike, handler_of_sigusr1
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskAborted, WorkerDied, yell
from prefork_executor._client import client, futures
from prefork_executor._client import direct as direct_module
from prefork_executor._support import faults
from prefork_executor._system import descriptors
from prefork_executor._system.platform import WAKES_ONE

LINES = {client.__file__, direct_module.__file__, futures.__file__}
needs_epoll = pytest.mark.skipif(not WAKES_ONE, reason="elsewhere nobody could say who is woken")
A_WHILE = 0.003
"""Seconds that a task takes, so that whoever waits for its result does so when it comes."""


def slow_square(x: int) -> int:
    time.sleep(A_WHILE)
    return x * x


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with ended_at_once(pool_of(1, "fork")) as executor:
        yield executor


@pytest.fixture
def direct() -> Iterator[list[bool]]:
    """Whether each message that a caller has read was done with by him."""
    taken: list[bool] = []
    with faults.injected("client.read_directly", taken.append):
        yield taken


# --- by himself, and when not -------------------------------------------------------------


@needs_epoll
def test_the_caller_reads_the_result_of_the_only_task(
    executor: PreforkExecutor, direct: list[bool]
) -> None:
    for i in range(50):
        assert executor.submit(slow_square, i).result(BOUND) == i * i
    assert direct.count(True) > 10
    assert executor.stats().in_flight == 0
    assert executor.stats().finished == 51


def fails(x: int) -> int:
    time.sleep(A_WHILE)
    raise LookupError(x)


def test_its_error_comes_as_ever(executor: PreforkExecutor) -> None:
    for i in range(20):
        with pytest.raises(LookupError, match=str(i)):
            executor.submit(fails, i).result(BOUND)
    all_go_on(executor)


class Broken:
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise LookupError("not here")


def broken() -> Broken:
    time.sleep(A_WHILE)
    return Broken()


def test_a_result_that_cannot_be_unpickled_is_told_as_ever(executor: PreforkExecutor) -> None:
    for _ in range(10):
        with pytest.raises(Exception, match="could not be unpickled in the caller's process"):
            executor.submit(broken).result(BOUND)
    all_go_on(executor)


gate = threading.Event()


class BrokenLater(Broken):
    """The I/O thread takes its time to find out that it cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse_later, ()


def _refuse_later() -> None:
    if threading.current_thread() is not threading.main_thread():
        gate.wait(BOUND)
    _refuse()


def broken_later() -> Broken:
    time.sleep(A_WHILE)
    return BrokenLater()


def test_who_waits_for_a_time_gets_a_timeout_while_it_is_found_out_that_a_result_is_broken(
    executor: PreforkExecutor,
) -> None:
    for _ in range(5):
        gate.clear()
        future = executor.submit(broken_later)
        with pytest.raises(TimeoutError):
            future.result(0.1)
        gate.set()
        with pytest.raises(Exception, match="could not be unpickled in the caller's process"):
            future.result(BOUND)


def test_big_results_and_small_ones_come_whole_in_turn(executor: PreforkExecutor) -> None:
    for i in range(20):
        assert executor.submit(big, i).result(BOUND) == big()
        assert executor.submit(slow_square, i).result(BOUND) == i * i


def speaking(x: int) -> int:
    yell(("first", x))
    time.sleep(A_WHILE)
    yell(("last", x))
    return x


def test_what_a_task_yells_is_heard_before_its_result() -> None:
    heard: list[Any] = []
    with PreforkExecutor(1, on_yell=lambda _pid, data: heard.append(data)) as executor:
        for i in range(30):
            assert executor.submit(speaking, i).result(BOUND) == i
            assert heard[-2:] == [("first", i), ("last", i)]


def test_the_death_of_its_worker_is_heard(executor: PreforkExecutor, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / str(i)).mkdir()
        running = Running(executor, tmp_path / str(i))
        timer = threading.Timer(0.05, running.worker.kill)
        timer.start()
        with pytest.raises(WorkerDied):
            running.future.result(BOUND)
        timer.join()
    all_go_on(executor)


@pytest.mark.parametrize("how", ["abort", "kill_workers", "terminate_workers"])
def test_another_thread_may_end_it(executor: PreforkExecutor, tmp_path: Path, how: str) -> None:
    running = Running(executor, tmp_path)
    args = (running.future,) if how == "abort" else ()
    timer = threading.Timer(0.05, getattr(executor, how), args)
    timer.start()
    with pytest.raises((BrokenProcessPool, TaskAborted)):
        running.future.result(BOUND)
    timer.join()
    all_go_on(executor)


def test_who_waits_for_a_time_gets_a_timeout_and_later_the_result(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = Running(executor, tmp_path)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            running.future.result(0.01)
    running.let_go()
    assert running.future.result(BOUND) == running.worker.pid


@needs_epoll
def test_a_message_that_has_woken_who_has_no_more_use_for_it_is_read_all_the_same(
    executor: PreforkExecutor,
) -> None:
    reader: Any = executor._client._direct
    future, real = executor.submit(slow_square, 3), reader._poller

    class Poller:
        def wait(self, timeout: float | None) -> list[int]:
            ready = real.wait(timeout)
            with contextlib.suppress(InvalidStateError):  # The I/O thread was quicker.
                future.set_result(5)
            return [*ready, reader._bell.read_end]

        close = real.close

    reader._poller = Poller()
    assert future.result(BOUND) in (5, 9)
    reader._poller = real
    eventually(lambda: executor.stats().in_flight == 0)
    all_go_on(executor)


@pytest.mark.parametrize("step", ["register", "fork"])
def test_after_a_start_that_failed_the_next_is_as_good(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = {"register": descriptors.Poller, "fork": os}[step]

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, fail)
            with pytest.raises(OSError, match="Too many open files"):
                executor.submit(square, 1)
        for i in range(20):
            assert executor.submit(slow_square, i).result(BOUND) == i * i
            with pytest.raises(LookupError):
                executor.submit(fails, i).result(BOUND)
        assert executor.submit(big).result(BOUND) == big()
        eventually(lambda: executor.stats().in_flight == 0)


def test_the_supervisors_death_is_noticed_meanwhile(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = Running(executor, tmp_path)
    supervisor = running.worker.parent()
    assert supervisor is not None
    timer = threading.Timer(0.05, supervisor.kill)
    timer.start()
    with pytest.raises(WorkerDied):
        running.future.result(BOUND)
    timer.join()
    all_go_on(executor)


def run_all(threads: list[threading.Thread], meanwhile: Callable[[], None] | None = None) -> None:
    for thread in threads:
        thread.start()
    if meanwhile is not None:
        meanwhile()
    for thread in threads:
        thread.join(BOUND)
    assert not any(thread.is_alive() for thread in threads)


def test_many_threads_that_each_wait_for_one_task_get_their_own() -> None:
    wrong: list[Any] = []
    with ended_at_once(pool_of(2, "fork")) as executor:

        def one_by_one(start: int) -> None:
            numbers = range(start, start + 200)
            got = ((i, executor.submit(square, i).result(BOUND)) for i in numbers)
            wrong.extend(pair for pair in got if pair[1] != pair[0] ** 2)

        run_all([threading.Thread(target=one_by_one, args=(1000 * k,)) for k in range(4)])
        assert executor.stats().in_flight == 0
    assert wrong == []


def test_several_threads_may_wait_for_the_same_task(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = Running(executor, tmp_path)
    got: list[int] = []

    def wait() -> None:
        got.append(running.future.result(BOUND))

    run_all([threading.Thread(target=wait) for _ in range(4)], running.let_go)
    assert got == 4 * [running.worker.pid]


def test_a_callback_that_is_added_while_somebody_waits_is_called_once(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    called: list[Any] = []
    running = Running(executor, tmp_path)

    def add_and_let_go() -> None:
        running.future.add_done_callback(called.append)
        running.let_go()

    timer = threading.Timer(0.05, add_and_let_go)
    timer.start()
    assert running.future.result(BOUND) == running.worker.pid
    timer.join()
    eventually(lambda: called)
    assert called == [running.future]


def test_an_executor_may_be_shut_down_while_somebody_waits(tmp_path: Path) -> None:
    with ended_at_once(pool_of(1, "fork")) as executor:
        running = Running(executor, tmp_path)
        timer = threading.Timer(0.05, lambda: (executor.shutdown(wait=False), running.let_go()))
        timer.start()
        assert running.future.result(BOUND) == running.worker.pid
        timer.join()
        assert executor.join(BOUND)


def test_an_executor_that_nobody_refers_to_ends_after_its_last_result(tmp_path: Path) -> None:
    executor = pool_of(1, "fork")
    thread = executor._client._thread
    assert thread is not None
    future = executor.submit(slow_square, 3)
    del executor
    assert future.result(BOUND) == 9
    thread.join(BOUND)
    assert not thread.is_alive()


def test_a_fork_of_the_program_reads_nothing_of_what_is_its_parents(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = Running(executor, tmp_path)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            running.future.result(0.2)
        os._exit(0)
    os.waitpid(pid, 0)
    running.let_go()
    assert running.future.result(BOUND) == running.worker.pid


# --- a signal handler at any line ----------------------------------------------------------


class Late(Exception):
    """What a handler raises."""


class Wait(NamedTuple):
    """One wait for a result, what it has raised, and whether a handler has come in between."""

    executor: PreforkExecutor
    future: Any
    error: BaseException | None
    has_struck: bool


def strike_at_every_line(
    executor_of: Callable[[], PreforkExecutor],
    handler: Callable[[PreforkExecutor], None],
    before: Callable[[Any], object] = lambda _future: None,
) -> Iterator[Wait]:
    """Wait for a result again and again, and call the handler a line later each time."""
    line, struck, missed = 0, 0, 0
    # On a busy machine a result may be there before anybody has waited for it: that is a line
    # missed, and not yet the last one.
    while missed < 5:
        line += 1
        executor, raised = executor_of(), None
        future = executor.submit(slow_square, 3)
        before(future)
        strike = Strike(line, LINES)
        with handler_of_sigusr1(lambda executor=executor: handler(executor)):
            try:
                with strike:
                    future.result(BOUND)
            except (Late, BrokenProcessPool) as error:
                raised = error
        struck += strike.has_struck
        missed = 0 if strike.has_struck else missed + 1
        yield Wait(executor, future, raised, strike.has_struck)
    assert struck > 20


def raise_late(_executor: PreforkExecutor) -> None:
    raise Late


def test_a_handler_may_raise_at_any_line_of_result_and_the_result_is_there_later(
    executor: PreforkExecutor,
) -> None:
    for wait in strike_at_every_line(lambda: executor, raise_late):
        assert isinstance(wait.error, Late) == wait.has_struck
        assert wait.future.result(BOUND) == 9
        eventually(lambda: executor.stats().in_flight == 0, bound=BOUND)
        assert executor._client._ledger._weight == 0
    all_go_on(executor)


HANDLERS: dict[str, Callable[[PreforkExecutor, Any], object]] = {
    "another's result": lambda executor, _: executor.submit(square, 5).result(BOUND),
    "another's exception": lambda executor, _: executor.submit(square, 5).exception(BOUND),
    "its result": lambda _, future: future.result(BOUND),
    "its exception": lambda _, future: future.exception(BOUND),
    "whether it is done": lambda _, future: future.done(),
    "the pool's statistics": lambda executor, _: executor.stats(),
}


@pytest.mark.parametrize("what", HANDLERS)
def test_a_handler_may_ask_for_anything_at_any_line_of_result(
    executor: PreforkExecutor, what: str
) -> None:
    got: list[object] = []
    asked: list[Any] = []

    def ask(executor: PreforkExecutor) -> None:
        got.append(HANDLERS[what](executor, asked[-1]))

    count = 0
    for wait in strike_at_every_line(lambda: executor, ask, asked.append):
        count += wait.has_struck
        assert wait.error is None
        assert wait.future.result(BOUND) == 9
    assert len(got) == count
    if "result" in what:
        assert set(got) <= {9, 25}
    eventually(lambda: executor.stats().in_flight == 0)
    eventually(lambda: executor._client._ledger._weight == 0)
    all_go_on(executor)


def test_a_handler_may_end_all_workers_and_raise_at_any_line_of_result(
    executor: PreforkExecutor,
) -> None:
    def end_and_raise(executor: PreforkExecutor) -> None:
        executor.kill_workers()
        raise Late

    for wait in strike_at_every_line(lambda: executor, end_and_raise):
        eventually(wait.future.done, bound=BOUND)
        eventually(lambda: executor.stats().in_flight == 0, bound=BOUND)
    all_go_on(executor)


CLOSES: dict[str, Callable[[PreforkExecutor], None]] = {
    "shutdown": lambda executor: executor.shutdown(wait=True),
    "kill_workers": lambda executor: executor.kill_workers(),
}


@pytest.mark.parametrize("how", CLOSES)
def test_a_handler_may_close_the_executor_at_any_line_of_result(how: str) -> None:
    for wait in strike_at_every_line(lambda: pool_of(1, "fork"), CLOSES[how]):
        eventually(wait.future.done, bound=BOUND)
        wait.executor.shutdown(wait=False)
        assert wait.executor.join(BOUND)


# In a weak reference's callback, for one, nothing is raised for anybody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_lose_nothing(executor: PreforkExecutor) -> None:
    def raise_late_now(_signum: int, _frame: object) -> None:
        raise Late

    old = signal.signal(signal.SIGALRM, raise_late_now)
    struck = 0
    try:
        for i in range(400):
            future = executor.submit(square, i)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 * (i % 40 + 1))
                future.result(BOUND)
                time.sleep(0.001)
            except Late:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert future.result(BOUND) == i * i
    finally:
        signal.signal(signal.SIGALRM, old)
    assert struck
    eventually(lambda: executor.stats().in_flight == 0)
    all_go_on(executor)
