"""The caller's own code runs within the executor's: a signal handler in the middle of a
submit, a function that is no plain function, a logging handler, an interpreter that ends
while a pool starts. It may use the executor, and wait for it."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing.context
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import all_go_on, ended_at_once, pool_of
from light_tasks import square
from scripts import program_text
from strikes import Strike, handler_of_sigusr1
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._client import client, dispatch, phases, reloads, requests, supervisors
from prefork_executor._support import faults

# --- a signal handler within submit --------------------------------------------------

ROOMS = (client, dispatch, phases, reloads, requests, supervisors)
LINES = {str(room.__file__) for room in ROOMS}
Closes = Callable[[PreforkExecutor], None]
CLOSES: dict[str, Closes] = {
    "shutdown": lambda executor: executor.shutdown(wait=False),
    "shutdown and wait": lambda executor: executor.shutdown(wait=True),
    "shutdown and cancel": lambda executor: executor.shutdown(wait=True, cancel_futures=True),
    "kill_workers": lambda executor: executor.kill_workers(),
}


def submit_struck(executor: PreforkExecutor, strike: Strike) -> Future[int] | None:
    """A task's future; None: the handler was first, and the executor takes no task."""
    with contextlib.suppress(RuntimeError), strike:
        return executor.submit(square, 3)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 3)
    return None


@pytest.mark.parametrize("is_warm", [True, False], ids=["running", "not yet started"])
@pytest.mark.parametrize("how", CLOSES)
def test_a_signal_handler_may_close_the_executor_at_any_line_of_submit(
    how: str, is_warm: bool
) -> None:
    line, has_struck = 0, True
    while has_struck:
        line += 1 if is_warm else 3
        executor = PreforkExecutor(1, "fork", min_spare_workers=0)
        if is_warm:
            executor.submit(square, 1).result(BOUND)
        strike = Strike(line, LINES)
        with handler_of_sigusr1(lambda executor=executor: CLOSES[how](executor)):
            future = submit_struck(executor, strike)
        has_struck = strike.has_struck
        executor.shutdown(wait=False)
        eventually(lambda future=future: future is None or future.done(), f"line {line}", BOUND)
        assert executor.join(BOUND)
    assert line > 20


def test_a_signal_handler_may_submit_at_any_line_of_submit() -> None:
    with ended_at_once(pool_of(1, "fork")) as executor:
        line, has_struck = 0, True
        while has_struck:
            line += 1
            futures: list[Future[int]] = []
            strike = Strike(line, LINES)

            def submit_more(futures: list[Future[int]] = futures) -> None:
                # More than are sent at once.
                futures.extend(executor.submit(square, i) for i in range(20))

            with handler_of_sigusr1(submit_more), strike:
                future = executor.submit(square, 100)
            assert future.result(BOUND) == 10_000
            assert [future.result(BOUND) for future in futures] == [
                i * i for i in range(len(futures))
            ]
            has_struck = strike.has_struck
        assert line > 20


# --- an interrupt as the pool starts ---------------------------------------------------


def test_an_interrupt_as_the_io_thread_starts_leaves_nothing_and_the_executor_usable(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            signal.raise_signal(signal.SIGINT)

    executor = PreforkExecutor(1, start_method)
    with monkeypatch.context() as patch:
        patch.setattr(client.threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(square, 2)
    eventually(lambda: "prefork-executor-io" not in [t.name for t in threading.enumerate()])
    with executor:
        assert executor.submit(square, 3).result(BOUND) == 9


STARTS_AT_THE_END = program_text("start_at_exit")


def test_a_pool_that_starts_while_the_interpreter_ends_does_not_hold_it_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "program.py"
    path.write_text(STARTS_AT_THE_END)
    ran = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "cannot schedule new futures after interpreter shutdown\n"


# --- a function that is more than a function ---------------------------------------------


class Proxy:
    """Stands for a function that it asks a pool for. ``asked`` says for what."""

    def __init__(self, executor: PreforkExecutor) -> None:
        self.__dict__["executor"] = executor
        self.__dict__["asked"] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__code__", "__qualname__", "__module__"):
            raise AttributeError(name)
        self.asked.append(name)
        self.executor.submit(square, 2).result(BOUND)
        return getattr(square, name)

    def __call__(self, x: int) -> int:
        raise AssertionError("it travels as the function that it stands for")

    def __reduce__(self) -> str | tuple[Any, ...]:
        return getattr, (sys.modules[square.__module__], "square")


def test_a_function_that_waits_for_the_same_pool_when_it_is_asked_who_it_is_does_not_block_it() -> (
    None
):
    with ended_at_once(pool_of(2, "fork")) as executor:
        proxy = Proxy(executor)
        assert executor.submit(proxy, 5).result(BOUND) == 25
        assert proxy.asked
        assert list(executor.map(proxy, range(5))) == [0, 1, 4, 9, 16]


# --- a logging handler --------------------------------------------------------------------


class WaitsForAThread(logging.Handler):
    """Hands records to a thread that uses the executor, as one that ships them might."""

    def __init__(self, executor: PreforkExecutor) -> None:
        super().__init__()
        self.executor = executor
        self.has_ended: list[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        thread = threading.Thread(target=self.executor.submit, args=(square, 2))
        thread.start()
        thread.join(BOUND)
        self.has_ended.append(not thread.is_alive())


@pytest.fixture
def slow_log() -> Iterator[Callable[[PreforkExecutor], WaitsForAThread]]:
    logger = logging.getLogger("prefork_executor")
    handlers: list[WaitsForAThread] = []

    def install(executor: PreforkExecutor) -> WaitsForAThread:
        handlers.append(WaitsForAThread(executor))
        logger.addHandler(handlers[0])
        return handlers[0]

    yield install
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_logging_handler_may_wait_for_a_thread_that_submits_as_a_supervisor_is_replaced(
    slow_log: Callable[[PreforkExecutor], WaitsForAThread],
) -> None:
    with ended_at_once(pool_of(2, "fork")) as executor:
        handler = slow_log(executor)
        assert executor._client._supervisors.current is not None
        pid = executor._client._supervisors.current.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: handler.has_ended)
        assert all(handler.has_ended)
        all_go_on(executor)


def test_a_logging_handler_may_wait_for_a_thread_that_submits_as_junk_is_dropped(
    slow_log: Callable[[PreforkExecutor], WaitsForAThread],
) -> None:
    with ended_at_once(pool_of(1, "fork")) as executor:
        handler = slow_log(executor)
        worker = psutil.Process(executor.stats().workers[0].pid)
        worker.suspend()
        try:
            executor._client._channels.tasks.send(b"junk")
            # Takes back what is in the pipe, and finds that.
            executor.abort(executor.submit(square, 2))
            eventually(lambda: handler.has_ended)
        finally:
            worker.resume()
        assert all(handler.has_ended)
        all_go_on(executor)


@pytest.mark.parametrize(
    "point", ["client.starts_pool", "client.made_channels", "client.starts_supervisor"]
)
def test_what_a_handler_submits_while_the_first_submit_starts_the_pool_is_run(point: str) -> None:
    inner: list[Future[int]] = []

    def submit() -> None:
        inner.append(executor.submit(square, 3))

    with faults.injected(point, submit), PreforkExecutor(2, "fork") as executor:
        assert executor.submit(square, 2).result(BOUND) == 4
        assert inner[0].result(BOUND) == 9


def test_what_a_handler_submits_while_the_start_fails_fails_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = []

    def fail(*_: object, **__: object) -> None:
        inner.append(executor.submit(square, 3))
        raise OSError(errno.EMFILE, "no more descriptors")

    executor = PreforkExecutor(2, "fork")
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.context.ForkProcess, "start", fail)
        with pytest.raises(OSError, match="descriptors"):
            executor.submit(square, 2)
    with pytest.raises(BrokenProcessPool, match="could not be started"):
        inner[0].result(BOUND)
    with executor:
        assert executor.submit(square, 2).result(BOUND) == 4
