"""``on_yell`` and done-callbacks run in the executor's own thread, which brings the results. A
callback may ask for what is there, and use the executor; what it could wait for in vain is
refused. And no lock of the executor's is held while a callback runs, whatever ended its future."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
from injection import Running, all_go_on, ended_at_once, supervisor_of
from light_tasks import die, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, yell


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with ended_at_once(PreforkExecutor(1, "fork")) as executor:
        executor.submit(square, 1).result(BOUND)
        yield executor


def in_callback(executor: PreforkExecutor, call: Callable[[], Any]) -> Any:
    """What a call returns, or raises, in a done-callback in the executor's thread."""
    came: list[Any] = []

    def callback(_: Future[Any]) -> None:
        try:
            came.append((threading.current_thread().name, call()))
        except Exception as error:
            came.append((threading.current_thread().name, error))

    future = executor.submit(time.sleep, 0.05)
    future.add_done_callback(callback)
    eventually(lambda: came, "the callback has run")
    thread, what = came[0]
    assert thread == "prefork-executor-io"
    return what


# --- waiting in vain -----------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, BOUND])
@pytest.mark.parametrize("method", ["result", "exception"])
def test_a_callback_is_refused_to_wait_for_another_task_of_its_pool(
    executor: PreforkExecutor, method: str, timeout: float | None, tmp_path: Path
) -> None:
    futures: list[Future[int]] = []

    def wait_for_a_new_task() -> object:
        futures.append(executor.submit(square, 3))
        return getattr(futures[0], method)(timeout)

    error = in_callback(executor, wait_for_a_new_task)
    assert isinstance(error, RuntimeError)
    assert "light_tasks.square" in str(error)
    assert "on_yell and done-callbacks run in the executor's own thread" in str(error)
    assert futures[0].result(BOUND) == 9
    all_go_on(executor)


def test_a_callback_is_refused_to_wait_for_a_map_or_a_reload(executor: PreforkExecutor) -> None:
    assert isinstance(in_callback(executor, lambda: list(executor.map(square, [1]))), RuntimeError)
    assert isinstance(in_callback(executor, lambda: executor.reload().result()), RuntimeError)
    all_go_on(executor)


def yields_and_waits(path: str) -> int:
    yell("message")
    while not os.path.exists(path):
        time.sleep(0.005)
    return 7


def test_on_yell_is_refused_to_wait_for_the_task_that_yells(tmp_path: Path) -> None:
    said: list[object] = []

    def on_yell(pid: int, data: object) -> None:
        try:
            eventually(lambda: futures)
            said.append(futures[0].result())
        except RuntimeError as error:
            said.append(str(error))
        (tmp_path / "go").touch()

    futures: list[Future[int]] = []
    with ended_at_once(PreforkExecutor(1, "fork", on_yell=on_yell)) as executor:
        futures.append(executor.submit(yields_and_waits, str(tmp_path / "go")))
        assert futures[0].result(BOUND) == 7
    assert len(said) == 1
    assert "test_callbacks.yields_and_waits is not done, and cannot become done" in str(said[0])


def test_a_callback_gets_what_is_there(executor: PreforkExecutor) -> None:
    done = executor.submit(square, 4)
    assert done.result(BOUND) == 16
    assert in_callback(executor, done.result) == 16
    assert in_callback(executor, done.exception) is None


def test_a_callback_may_ask_without_waiting(executor: PreforkExecutor) -> None:
    def ask() -> object:
        return executor.submit(square, 5).result(0)

    assert isinstance(in_callback(executor, ask), TimeoutError)


def test_a_callback_may_wait_for_another_executor(executor: PreforkExecutor) -> None:
    with PreforkExecutor(1, "fork") as other:
        assert in_callback(executor, lambda: other.submit(square, 6).result(BOUND)) == 36


# --- no lock is held -------------------------------------------------------------------------


class Watch:
    """Done-callbacks that have another thread use the executor, and wait for it."""

    def __init__(self, executor: PreforkExecutor) -> None:
        self._executor = executor
        self.seen: list[bool] = []

    def on(self, *futures: Future[Any]) -> None:
        for future in futures:
            future.add_done_callback(self._callback)

    def _callback(self, _: Future[Any]) -> None:
        # A lock that this thread holds is an obstacle for others only.
        other = threading.Thread(target=self._executor.stats)
        other.start()
        other.join(BOUND)
        self.seen.append(not other.is_alive())

    def free(self, count: int) -> bool:
        eventually(lambda: len(self.seen) >= count, f"{count} callbacks: {self.seen}")
        return all(self.seen)


def fail(_: object) -> None:
    raise LookupError


def _ends() -> dict[str, Callable[[PreforkExecutor, Running, Future[int]], object]]:
    return {
        "a result": lambda _, running, waiting: running.let_go(),
        "cancel": lambda _, running, waiting: (waiting.cancel(), running.let_go()),
        "abort": lambda executor, running, waiting: (
            executor.abort(waiting),
            executor.abort(running.future),
        ),
        "kill": lambda executor, *_: executor.kill_workers(),
        "a death": lambda _, running, waiting: running.worker.kill(),
        "the supervisor's death": lambda executor, *_: supervisor_of(executor).kill(),
        "shutdown": lambda executor, running, waiting: (
            executor.shutdown(wait=False, cancel_futures=True),
            running.let_go(),
        ),
    }


@pytest.mark.parametrize("end", _ends())
def test_no_lock_is_held_while_a_callback_runs(
    executor: PreforkExecutor, tmp_path: Path, end: str
) -> None:
    watch = Watch(executor)
    running = Running(executor, tmp_path)
    futures = [executor.submit(time.sleep, 0.001) for _ in range(40)]
    watch.on(running.future, *futures)
    _ends()[end](executor, running, futures[-1])
    assert watch.free(1 + len(futures))


def test_nor_where_a_task_fails(executor: PreforkExecutor, tmp_path: Path) -> None:
    watch = Watch(executor)
    running = Running(executor, tmp_path)
    futures = [
        executor.submit(fail, 1),
        executor.submit(square, threading.Lock()),
        executor.submit(die),
        *(executor.submit(bytes, 200_000) for _ in range(3)),
    ]
    watch.on(*(future for future in futures if not future.done()))
    running.let_go()
    assert watch.free(len(futures) - 1)


class SubmitsAsItTravels:
    """Uses the executor while that starts its pool, which then fails."""

    executor: PreforkExecutor
    watch: Watch

    def __reduce__(self) -> Any:
        self.watch.on(self.executor.submit(square, 2))
        raise ValueError("it does not travel")


def test_nor_where_the_pool_cannot_start() -> None:
    argument = SubmitsAsItTravels()
    with PreforkExecutor(1, "spawn", print, (argument,)) as executor:
        argument.executor, argument.watch = executor, Watch(executor)
        with pytest.raises(PicklingError):
            executor.submit(square, 1)
        assert argument.watch.free(1)


def test_nor_where_the_pool_breaks() -> None:
    with PreforkExecutor(1, "fork", signal.raise_signal, (signal.SIGKILL,)) as executor:
        watch = Watch(executor)
        futures = [executor.submit(square, i) for i in range(20)]
        watch.on(*futures)
        assert watch.free(len(futures))


# --- what is read together is told together ----------------------------------------------------


def test_who_waits_for_a_result_has_it_before_a_callback_of_a_later_one_runs(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    running = Running(executor, tmp_path)
    futures = [executor.submit(square, i) for i in range(200)]
    got, too_early = [0], list[int]()

    def wait_for_all() -> None:
        for i, future in enumerate(futures):
            assert future.result(BOUND) == i * i
            got[0] = i + 1

    def callback(count: int) -> None:
        try:
            eventually(lambda: got[0] >= count)
        except BaseException:
            too_early.append(count)

    for i in range(3, len(futures), 7):
        futures[i].add_done_callback(lambda _, count=i: callback(count))
    waiting = threading.Thread(target=wait_for_all)
    waiting.start()
    running.let_go()
    waiting.join(BOUND)
    assert (got, too_early) == ([200], [])
