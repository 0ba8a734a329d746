"""Tasks that need units of what the executor has, and where workers run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from injection import noted_pid
from light_tasks import run_until, square, wait_for
from waiting import BOUND, eventually

from prefork_executor import (
    PreforkExecutor,
    TaskAborted,
    TaskTimeout,
    WorkerDied,
    held_resources,
    worker_index,
)

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity"
)


def hold_alone(folder: str) -> tuple[int, ...]:
    """Take the lock of each unit that this task holds: it is free, if no other task has it."""
    with locked_units(folder) as units:
        return units


def hold_until(folder: str, gate: str, started: str) -> tuple[int, ...]:
    """As :func:`hold_alone`, with the locks held until the gate opens."""
    with locked_units(folder) as units:
        run_until(gate, started)
        return units


@contextlib.contextmanager
def locked_units(folder: str) -> Iterator[tuple[int, ...]]:
    units = held_resources()["gpu"]
    with contextlib.ExitStack() as files:
        for unit in units:
            file = files.enter_context(open(f"{folder}/unit{unit}", "w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield units


def big_and_held(data: bytes) -> tuple[int, dict[str, tuple[int, ...]]]:
    return len(data), held_resources()


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_a_task_is_told_which_units_are_its_own(start_method: str) -> None:
    with PreforkExecutor(2, start_method, resources={"gpu": 3, "licence": 1}) as executor:
        both = executor.with_options(resources={"gpu": 2, "licence": 1})
        assert both.submit(held_resources).result(BOUND) == {"gpu": (0, 1), "licence": (0,)}
        assert executor.submit(held_resources).result(BOUND) == {}
    assert held_resources() == {}


def test_no_two_tasks_hold_the_same_unit(tmp_path: Path) -> None:
    with PreforkExecutor(4, "fork", resources={"gpu": 2}, min_spare_workers=4) as executor:
        one, two = (executor.with_options(resources={"gpu": count}) for count in (1, 2))
        futures = [
            (two if i % 7 == 0 else one).submit(hold_alone, str(tmp_path)) for i in range(400)
        ]
        held = [future.result(BOUND) for future in futures]
    assert {units for i, units in enumerate(held) if i % 7 == 0} == {(0, 1)}
    assert {units for i, units in enumerate(held) if i % 7} == {(0,), (1,)}


def test_tasks_that_need_none_pass_those_that_wait_for_a_unit(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with PreforkExecutor(2, "fork", resources={"gpu": 1}, min_spare_workers=2) as executor:
        one = executor.with_options(resources={"gpu": 1})
        held = one.submit(hold_until, str(tmp_path), str(gate), str(started))
        eventually(started.exists)
        waiting = [one.submit(hold_alone, str(tmp_path)) for _ in range(100)]
        assert list(executor.map(square, range(50))) == [i * i for i in range(50)]
        assert not any(future.done() for future in waiting)
        gate.touch()
        assert held.result(BOUND) == (0,)
        assert {future.result(BOUND) for future in waiting} == {(0,)}


def test_a_task_that_needs_many_units_is_not_passed_by_those_that_need_few(tmp_path: Path) -> None:
    gates = [tmp_path / "gate0", tmp_path / "gate1"]
    with PreforkExecutor(3, "fork", resources={"gpu": 2}, min_spare_workers=3) as executor:
        one, two = (executor.with_options(resources={"gpu": count}) for count in (1, 2))
        started = tmp_path / "started"
        for gate in gates:
            one.submit(hold_until, str(tmp_path), str(gate), str(started))
        eventually(lambda: started.exists() and started.read_text().count("\n") == 2)
        order: list[str] = []
        both = two.submit(hold_alone, str(tmp_path))
        both.add_done_callback(lambda _: order.append("both"))
        later = one.submit(hold_alone, str(tmp_path))
        later.add_done_callback(lambda _: order.append("later"))
        gates[0].touch()
        assert executor.submit(square, 3).result(BOUND) == 9
        assert not later.done()
        gates[1].touch()
        assert both.result(BOUND) == (0, 1)
        assert later.result(BOUND) in [(0,), (1,)]
        assert order == ["both", "later"]


@pytest.mark.parametrize("end", ["kill", "abort", "timeout"])
def test_the_units_of_a_task_that_was_ended_are_free_when_its_worker_has_gone(
    tmp_path: Path, end: str
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with PreforkExecutor(2, "fork", resources={"gpu": 1}) as executor:
        one = executor.with_options(resources={"gpu": 1})
        limited = one.with_options(timeout=1.0) if end == "timeout" else one
        held = limited.submit(hold_until, str(tmp_path), str(gate), str(started))
        following = one.submit(hold_alone, str(tmp_path))
        if end == "kill":
            os.kill(noted_pid(started), signal.SIGKILL)
        elif end == "abort":
            eventually(started.exists)
            assert executor.abort(held)
        error = held.exception(BOUND)
        assert isinstance(
            error, {"kill": WorkerDied, "abort": TaskAborted, "timeout": TaskTimeout}[end]
        )
        assert following.result(BOUND) == (0,)


def test_a_task_that_runs_again_gets_a_unit_again(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with PreforkExecutor(2, "fork", resources={"gpu": 1}) as executor:
        view = executor.with_options(resources={"gpu": 1}, retries=1)
        held = view.submit(hold_until, str(tmp_path), str(gate), str(started))
        os.kill(noted_pid(started), signal.SIGKILL)
        eventually(lambda: started.read_text().count("\n") == 2)
        gate.touch()
        assert held.result(BOUND) == (0,)


def test_units_stay_taken_while_workers_that_are_being_ended_still_run(tmp_path: Path) -> None:
    """Their futures fail at once, but SIGTERM does not end these workers at once."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    with PreforkExecutor(2, "fork", ignore_sigterm, resources={"gpu": 1}) as executor:
        one = executor.with_options(resources={"gpu": 1})
        held = one.submit(hold_until, str(tmp_path), str(gate), str(started))
        eventually(started.exists)
        executor.terminate_workers()
        assert isinstance(held.exception(BOUND), BrokenProcessPool)
        following = one.submit(hold_alone, str(tmp_path))
        assert executor.submit(square, 3).result(BOUND) == 9
        assert not following.done()
        gate.touch()
        assert following.result(BOUND) == (0,)


def test_a_reload_keeps_units_apart(tmp_path: Path) -> None:
    with PreforkExecutor(3, "fork", resources={"gpu": 2}, min_spare_workers=3) as executor:
        one = executor.with_options(resources={"gpu": 1})
        futures: list[Future[Any]] = []
        for _ in range(5):
            futures += [one.submit(hold_alone, str(tmp_path)) for _ in range(40)]
            executor.reload().result(BOUND)
        assert {future.result(BOUND) for future in futures} == {(0,), (1,)}


def test_a_big_argument_travels_with_its_units(start_method: str) -> None:
    with PreforkExecutor(1, start_method, resources={"gpu": 1}) as executor:
        view = executor.with_options(resources={"gpu": 1})
        data = bytes(300_000)
        assert view.submit(big_and_held, data).result(BOUND) == (300_000, {"gpu": (0,)})


def test_no_workers_are_started_for_tasks_that_lack_a_unit(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with PreforkExecutor(32, "fork", resources={"gpu": 1}) as executor:
        one = executor.with_options(resources={"gpu": 1})
        one.submit(hold_until, str(tmp_path), str(gate), str(started))
        eventually(started.exists)
        waiting = [one.submit(hold_alone, str(tmp_path)) for _ in range(200)]
        eventually(lambda: executor.submit(square, 2).result(BOUND) == 4)
        assert len(executor.stats().workers) < 16
        gate.touch()
        assert {future.result(BOUND) for future in waiting} == {(0,)}


@pytest.mark.parametrize(
    ("resources", "error", "message"),
    [
        (["gpu"], TypeError, "resources must be a mapping of names to numbers, not list"),
        ({1: 1}, TypeError, "the names of resources must be strings, not int"),
        ({"": 1}, ValueError, "must not be empty"),
        ({"gpu": "1"}, TypeError, r"resources\['gpu'\] must be an int, not str"),
        ({"gpu": -1}, ValueError, r"resources\['gpu'\] must be at least"),
        ({"gpu": 3}, ValueError, r"resources\['gpu'\] \(3\) must not be above .* has \(2\)"),
        ({"tpu": 1}, ValueError, "the executor has no resource 'tpu'; it has gpu"),
    ],
)
def test_a_need_that_can_never_be_met_is_refused_by_its_name(
    resources: Any, error: type[Exception], message: str
) -> None:
    with (
        PreforkExecutor(1, resources={"gpu": 2}) as executor,
        pytest.raises(error, match=message),
    ):
        executor.with_options(resources=resources)


def test_resources_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(ValueError, match="resources are too many"):
        PreforkExecutor(1, resources={"core": 100_000})
    with pytest.raises(ValueError, match=r"resources\['gpu'\] must be at least 1, not 0"):
        PreforkExecutor(1, resources={"gpu": 0})


# --- CPUs ------------------------------------------------------------------------------------


def cpus_and_index(gate: str) -> tuple[int | None, set[int]]:
    wait_for(gate)
    return worker_index(), os.sched_getaffinity(0)


@needs_affinity
def test_workers_are_spread_over_the_cpus(start_method: str, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with PreforkExecutor(3, start_method, cpu_affinity="spread", start_workers=3) as executor:
        futures = [executor.submit(cpus_and_index, str(tmp_path / "gate")) for _ in range(3)]
        eventually(lambda: sum(worker.state == "busy" for worker in executor.stats().workers) == 3)
        (tmp_path / "gate").touch()
        for future in futures:
            index, own = future.result(BOUND)
            assert index is not None
            assert own == {cpus[index % len(cpus)]}
    assert os.sched_getaffinity(0) == set(cpus)


@needs_affinity
def test_workers_run_on_the_cpus_that_their_index_names() -> None:
    cpu = min(os.sched_getaffinity(0))
    with PreforkExecutor(1, "fork", cpu_affinity=[{cpu}, cpu]) as executor:
        assert executor.submit(os.sched_getaffinity, 0).result(BOUND) == {cpu}


@needs_affinity
@pytest.mark.parametrize(
    ("affinity", "error", "message"),
    [
        ("all", ValueError, 'cpu_affinity must be "spread" or a list'),
        (3, TypeError, 'cpu_affinity must be "spread" or a list of CPU sets, not int'),
        ([], ValueError, "the list is empty"),
        ([[]], ValueError, "an empty set of CPUs"),
        ([100_000], ValueError, "names CPU 100000, which this process may not use; it may use"),
        (["0"], TypeError, "a CPU of cpu_affinity must be an int, not str"),
        ([-1], ValueError, "a CPU of cpu_affinity must be at least 0"),
    ],
)
def test_cpus_that_are_none_are_refused(
    affinity: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PreforkExecutor(1, cpu_affinity=affinity)


def test_workers_are_nicer_than_their_caller(start_method: str) -> None:
    with PreforkExecutor(1, start_method, nice=3) as executor:
        assert executor.submit(os.nice, 0).result(BOUND) == min(19, os.nice(0) + 3)


@pytest.mark.parametrize(("nice", "error"), [(20, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_niceness_that_is_none_is_refused(nice: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="nice must be"):
        PreforkExecutor(1, nice=nice)


def test_threads_may_hold_and_ask_at_once(tmp_path: Path) -> None:
    with PreforkExecutor(4, "fork", resources={"gpu": 2}) as executor:
        one = executor.with_options(resources={"gpu": 1})
        found: list[tuple[int, ...]] = []

        def feed() -> None:
            found.extend(one.submit(hold_alone, str(tmp_path)).result(BOUND) for _ in range(100))

        threads = [threading.Thread(target=feed) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
        assert len(found) == 400
