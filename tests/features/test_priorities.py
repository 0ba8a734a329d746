"""Tasks with a higher priority begin first, and nothing starves."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from injection import noted_pid
from light_tasks import noted, run_until, square
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskAborted
from prefork_executor._client.ranking import AGEING


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While this is missing, the tasks that are given it run on."""
    return tmp_path / "gate"


@pytest.fixture
def executor(gate: Path, tmp_path: Path) -> Iterator[PreforkExecutor]:
    """A pool whose only worker is busy until the gate opens."""
    with PreforkExecutor(1, "fork") as executor:
        started = tmp_path / "started"
        executor.submit(run_until, str(gate), str(started))
        eventually(started.exists)
        yield executor
        gate.touch()


def open_gate(executor: PreforkExecutor, gate: Path) -> None:
    """Open it once the pool has put what was submitted in order. What is asked of a pool it does
    in turn, so then it has also aborted a task."""
    last = executor.with_options(priority=-99).submit(square, 1)
    assert executor.abort(last)
    assert isinstance(last.exception(BOUND), TaskAborted)
    gate.touch()


def order_of(log: Path) -> list[str]:
    return log.read_text().split()


def test_of_the_tasks_that_wait_those_with_the_highest_priority_begin_first(
    executor: PreforkExecutor, gate: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for name, priority in [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", 7)]:
        executor.with_options(priority=priority).submit(noted, str(log), name)
    open_gate(executor, gate)
    executor.shutdown()
    assert order_of(log) == ["f", "c", "e", "a", "d", "b"]


def test_a_task_passes_even_those_that_lie_in_the_pipe_already(
    executor: PreforkExecutor, gate: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = executor.submit(noted, str(log), "first")
    eventually(first.running, "it has been sent ahead")
    executor.with_options(priority=1).submit(noted, str(log), "urgent")
    open_gate(executor, gate)
    executor.shutdown()
    assert order_of(log) == ["urgent", "first"]


def test_nothing_starves(executor: PreforkExecutor, gate: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for number in range(3):
        executor.submit(noted, str(log), f"low{number}")
    urgent = executor.with_options(priority=9)
    for number in range(5 * AGEING):
        urgent.submit(noted, str(log), f"high{number}")
    open_gate(executor, gate)
    executor.shutdown()
    order = order_of(log)
    places = [order.index(f"low{number}") for number in range(3)]
    assert places == sorted(places)
    assert all(later - earlier <= AGEING for earlier, later in itertools.pairwise(places))
    assert places[0] <= AGEING
    high = [name for name in order if name.startswith("high")]
    assert high == [f"high{number}" for number in range(5 * AGEING)], "each in its turn"


def test_map_has_priorities_too(executor: PreforkExecutor, gate: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(lambda: list(executor.map(noted, [str(log)] * 9, "abcdefghi")))
        eventually(lambda: executor.stats().backlog == 9)
        urgent = executor.with_options(priority=1).map(noted, [str(log)] * 3, "xyz")
        open_gate(executor, gate)
        assert list(urgent) == ["x", "y", "z"]
        assert slow.result(BOUND) == list("abcdefghi")
    assert order_of(log)[:3] == ["x", "y", "z"]


def test_what_can_still_be_cancelled_is_so_in_any_priority(
    executor: PreforkExecutor, gate: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    futures: list[Future[Any]] = [
        executor.with_options(priority=number % 3).submit(noted, str(log), str(number))
        for number in range(30)
    ]
    cancelled = {number for number, future in enumerate(futures) if number % 2 and future.cancel()}
    assert cancelled
    open_gate(executor, gate)
    executor.shutdown()
    assert sorted(map(int, order_of(log))) == sorted(set(range(30)) - cancelled)


def test_a_task_that_runs_again_keeps_its_priority(tmp_path: Path) -> None:
    with PreforkExecutor(1, "fork") as executor:
        gate, started, log = tmp_path / "gate", tmp_path / "started", tmp_path / "log"
        urgent = executor.with_options(priority=1, retries=1)
        again = urgent.submit(run_until, str(gate), str(started))
        pid = noted_pid(started)
        for number in range(5):
            executor.submit(noted, str(log), f"low{number}")
        executor.with_options(priority=2).submit(noted, str(log), "higher")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: started.read_text().count("\n") == 2, "it runs again")
        open_gate(executor, gate)
        again.result(BOUND)
        executor.shutdown()
        assert order_of(log) == ["higher", *(f"low{number}" for number in range(5))]


@pytest.mark.parametrize("priority", ["1", 1.5, None, True])
def test_a_priority_that_is_no_int_is_refused(priority: Any) -> None:
    with PreforkExecutor(1) as executor, pytest.raises(TypeError, match="priority must be an int"):
        executor.with_options(priority=priority)


def test_thousands_of_tasks_of_many_priorities_are_all_run() -> None:
    with PreforkExecutor(2, "fork") as executor:
        views = [executor.with_options(priority=priority) for priority in range(-3, 4)]
        futures = [views[i % 7].submit(square, i) for i in range(7000)]
        assert [future.result(BOUND) for future in futures] == [i * i for i in range(7000)]
