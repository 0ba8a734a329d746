"""A bound for the memory of all workers: what fits begins, what does not waits, and what is
ended runs again. The sizes are small, so that the suite takes little of the machine."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control_groups
import psutil
import pytest
from injection import Running, all_go_on, ended_at_once, linux
from light_tasks import square, wait_for
from memory_tasks import (
    MIB,
    keep,
    keep_from_the_start,
    read_mapped_until,
    take,
    take_until,
    take_when_both_are_there,
)
from waiting import BOUND, eventually

from prefork_executor import Pool, PreforkExecutor, TaskMemoryExceeded
from prefork_executor.executor import ExecutorView
from prefork_executor.stats import MemoryStats
from prefork_executor.status import read

TESTS = str(Path(control_groups.__file__).parent)


def memory_of(executor: PreforkExecutor) -> MemoryStats:
    memory = executor.stats().memory
    assert memory is not None
    return memory


def reasons(executor: PreforkExecutor) -> list[str]:
    found = [decision.reason for decision in executor.stats().decisions]
    return [reason for reason in found if reason.startswith("memory: ")]


def most_at_a_time(journal: Path) -> int:
    """How many ran at the same moment, of those that left notes in there."""
    notes = [line.split() for line in journal.read_text().splitlines()]
    running = most = 0
    for what, _, _ in sorted(notes, key=lambda fields: float(fields[2])):
        running += 1 if what == "begun" else -1
        most = max(most, running)
    return most


def run_as_many_as_fit(
    executor: PreforkExecutor | ExecutorView, stats: Callable[[], MemoryStats], directory: Path
) -> int:
    """Eight tasks of 60 MiB that end when two of them run and the others are held. How many ran
    at the same moment."""
    journal, gate = directory / "journal", directory / "gate"
    futures = [executor.submit(take_until, 60, str(journal), str(gate)) for _ in range(8)]

    def the_others_are_held() -> bool:
        begun = journal.read_text().count("begun") if journal.exists() else 0
        return begun >= 2 and begun + stats().held == 8

    eventually(the_others_are_held, "some run, and the others are held")
    gate.touch()
    assert [future.result(BOUND) for future in futures] == [60] * 8
    return most_at_a_time(journal)


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    made = PreforkExecutor(4, start_method, max_memory=200 * MIB, preload="memory_tasks")
    with ended_at_once(made):
        yield made
        all_go_on(made)


def test_as_many_run_at_a_time_as_fit(executor: PreforkExecutor, tmp_path: Path) -> None:
    large = executor.with_options(memory=60 * MIB)
    assert run_as_many_as_fit(large, lambda: memory_of(executor), tmp_path) <= 3
    assert memory_of(executor).ended == 0
    assert any("waits: it may add 60 MiB" in reason for reason in reasons(executor))


def test_what_a_function_takes_is_learned(executor: PreforkExecutor, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    alone = executor.submit(take_until, 60, str(tmp_path / "first"), str(tmp_path / "open"))
    assert alone.result(BOUND) == 60
    ((name, peak),) = memory_of(executor).peaks
    assert name == "memory_tasks.take_until"
    assert 58 * MIB <= peak < 70 * MIB
    assert run_as_many_as_fit(executor, lambda: memory_of(executor), tmp_path) <= 3
    assert memory_of(executor).ended == 0


def test_what_the_program_has_itself_does_not_count(tmp_path: Path) -> None:
    """Forked workers share it. If their part of these 500 MiB counted, no two tasks would fit."""
    of_the_program = bytearray(b"x") * (500 * MIB)
    made = PreforkExecutor(4, "fork", max_memory=200 * MIB, preload="memory_tasks")
    with ended_at_once(made) as executor:
        assert executor.submit(take, 60, 0).result(BOUND) == 60
        eventually(lambda: memory_of(executor).taken > 0, "it has been measured")
        assert memory_of(executor).taken < 150 * MIB
        large = executor.with_options(memory=60 * MIB)
        assert run_as_many_as_fit(large, lambda: memory_of(executor), tmp_path) <= 3
        assert memory_of(executor).exceeded == 0
    del of_the_program


@linux
def test_a_mapped_file_does_not_count_however_large_it_is(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    path, journal, gate = (str(tmp_path / name) for name in ("data", "journal", "gate"))
    skip_if_in_memory(tmp_path)
    with open(path, "wb") as file:
        file.truncate(300 * MIB)
    futures = [executor.submit(read_mapped_until, path, journal, gate) for _ in range(4)]

    def all_have_read_it() -> bool:
        return Path(journal).exists() and Path(journal).read_text().count("begun") == 4

    eventually(all_have_read_it, "all four run, and have read it")
    Path(gate).touch()
    assert [future.result(BOUND) for future in futures] == [300 * MIB // mmap.PAGESIZE] * 4
    assert memory_of(executor).exceeded == 0
    assert all(peak < 10 * MIB for _, peak in memory_of(executor).peaks)


def test_no_more_workers_start_than_fit(start_method: str, tmp_path: Path) -> None:
    """A worker that has loaded a model takes much, and its tasks add nothing to that."""
    gate = tmp_path / "gate"
    made = PreforkExecutor(
        *(8, start_method),
        max_memory=230 * MIB,
        preload="memory_tasks",
        initializer=keep_from_the_start,
        initargs=(60,),
    )
    with ended_at_once(made) as executor:
        futures = [executor.submit(wait_for, gate) for _ in range(12)]
        eventually(lambda: executor.stats().busy == 3, "as many work as fit")
        eventually(lambda: memory_of(executor).taken > 180 * MIB, "they have been measured")
        gate.touch()
        assert len({future.result(BOUND) for future in futures}) == 3
        assert memory_of(executor).taken <= 230 * MIB
        assert executor.stats().peak_workers == 3


def skip_if_in_memory(folder: Path) -> None:
    """Files of a tmpfs are shared memory."""
    mounts = {one.mountpoint: one.fstype for one in psutil.disk_partitions(all=True)}
    mounted = next(str(one) for one in (folder, *folder.parents) if str(one) in mounts)
    if mounts[mounted] in ("tmpfs", "ramfs"):
        pytest.skip("temporary files are in memory here")


def test_a_peak_is_seen_however_short_the_task_is(executor: PreforkExecutor) -> None:
    for _ in range(3):
        executor.submit(take, 30, 0).result(BOUND)
    # A worker may have a few megabytes left from its start, which the task uses first.
    assert memory_of(executor).peaks[0][1] >= 24 * MIB


def test_one_task_always_runs_whatever_it_may_take(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    # As much as the bound, and its worker takes something beside.
    full = executor.with_options(memory=200 * MIB)
    assert list(full.map(take, [10] * 4, [0.05] * 4, [str(journal)] * 4)) == [10] * 4
    assert most_at_a_time(journal) == 1


def test_tasks_that_take_nothing_are_not_held_by_one_that_waits(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    assert list(executor.map(square, range(100))) == [i * i for i in range(100)]
    running = Running(executor.with_options(memory=150 * MIB), tmp_path)  # type: ignore[arg-type]
    waits = executor.with_options(memory=150 * MIB).submit(take, 10, 0)
    assert list(executor.map(square, range(100))) == [i * i for i in range(100)]
    assert not waits.running()
    running.let_go()
    assert waits.result(BOUND) == 10


def test_a_task_that_is_held_is_cancelled_and_aborted_as_any_that_waits(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    large = executor.with_options(memory=150 * MIB)
    running = Running(large, tmp_path)  # type: ignore[arg-type]
    cancelled, aborted, last = (large.submit(take, 10, 0) for _ in range(3))
    eventually(lambda: memory_of(executor).held == 3, "all are held")
    seen = read(running.worker.pid)
    assert seen.held == 3
    assert any("waits: it may add 150 MiB" in decision.reason for decision in seen.decisions)
    assert cancelled.cancel()
    assert executor.abort(aborted)
    running.let_go()
    assert last.result(BOUND) == 10
    eventually(lambda: memory_of(executor).held == 0, "none is held")


def test_above_the_bound_nothing_new_begins(executor: PreforkExecutor, tmp_path: Path) -> None:
    assert executor.submit(square, 3).result(BOUND) == 9  # It is known to take nothing.
    journal, gate = str(tmp_path / "journal"), tmp_path / "gate"
    wrong = executor.with_options(memory=0)
    futures = [wrong.submit(take_when_both_are_there, 110, journal, str(gate)) for _ in range(2)]
    eventually(lambda: memory_of(executor).taken > 200 * MIB, "the bound is passed")
    later = executor.submit(square, 3)
    eventually(lambda: memory_of(executor).held == 1, "it is held")
    assert not later.running()
    gate.touch()
    assert [future.result(BOUND) for future in (*futures, later)] == [110, 110, 9]


def test_above_the_bound_the_last_is_ended_and_runs_again(
    executor: PreforkExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, gate = str(tmp_path / "journal"), tmp_path / "gate"
    wrong = executor.with_options(memory=0, retries=1)
    with caplog.at_level(logging.WARNING, "prefork_executor"):
        futures = [
            wrong.submit(take_when_both_are_there, 110, journal, str(gate)) for _ in range(2)
        ]
        eventually(lambda: executor.stats().deaths == 1, "one is ended")
        assert not any(future.done() for future in futures)
        gate.touch()
        assert [future.result(BOUND) for future in futures] == [110, 110]
    assert (memory_of(executor).ended, memory_of(executor).exceeded) == (1, 0)
    assert (tmp_path / "journal").read_text().splitlines() == ["begun"] * 3
    assert any("the task that began last is ended" in text for text in reasons(executor))
    assert "the task that began last is ended" in caplog.text


def test_without_retries_none_is_ended_and_it_is_said(
    executor: PreforkExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, gate = str(tmp_path / "journal"), tmp_path / "gate"
    wrong = executor.with_options(memory=0)
    with caplog.at_level(logging.WARNING, "prefork_executor"):
        futures = [
            wrong.submit(take_when_both_are_there, 110, journal, str(gate)) for _ in range(2)
        ]
        said = "none may run again"
        eventually(lambda: any(said in reason for reason in reasons(executor)), "it is said")
        gate.touch()
        assert [future.result(BOUND) for future in futures] == [110, 110]
    assert memory_of(executor).ended == executor.stats().deaths == 0
    assert "none may run again" in caplog.text


def test_a_task_that_is_too_large_alone_fails_and_nothing_else(executor: PreforkExecutor) -> None:
    retried = executor.with_options(retries=3)
    with pytest.raises(TaskMemoryExceeded) as caught:
        retried.submit(take, 230, 60.0).result(BOUND)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.task, error.bound) == ("memory_tasks.take", 200 * MIB)
    assert error.bytes > error.bound
    assert "more than max_memory" in str(error)
    assert memory_of(executor).exceeded == 1
    assert isinstance(error, MemoryError)


def test_idle_workers_that_hold_memory_leave_when_it_is_needed(tmp_path: Path) -> None:
    """Three hold 75 MiB beside what a worker takes, at most 23 MiB. So 155 more never fit beside
    them, and always do beside one of them."""
    journal = str(tmp_path / "journal")
    options = {"min_spare_workers": 0, "idle_timeout": None, "max_memory": 300 * MIB}
    made = PreforkExecutor(3, "forkserver", preload="memory_tasks", **options)
    with ended_at_once(made) as executor:
        kept = executor.with_options(memory=75 * MIB)
        futures = [kept.submit(keep, 75, journal, 3) for _ in range(3)]
        keepers = {future.result(BOUND) for future in futures}
        assert len(keepers) == 3
        running = Running(executor.with_options(memory=75 * MIB), tmp_path)  # type: ignore[arg-type]
        large = executor.with_options(memory=155 * MIB)
        assert large.submit(take, 60, 0).result(BOUND) == 60
        assert any("idle workers that hold memory leave" in reason for reason in reasons(executor))
        assert executor.stats().deaths == 0
        running.let_go()


def test_the_bound_may_be_a_part_of_what_there_is() -> None:
    whole, half = PreforkExecutor(1, max_memory=1.0), PreforkExecutor(1, max_memory=0.5)
    for made in (whole, half):
        assert made.submit(square, 3).result(BOUND) == 9
    bounds = [memory_of(made).bound for made in (whole, half)]
    assert bounds[1] == bounds[0] // 2 > 0
    whole.shutdown()
    half.shutdown()


def test_a_pool_of_processes_takes_it_as_well() -> None:
    with Pool(2, max_memory=150 * MIB) as pool:
        assert pool.map(take, [20] * 4) == [20] * 4
        memory = pool.stats().memory
        assert memory is not None
        assert memory.bound == 150 * MIB


def test_without_it_nothing_is_measured(executor: PreforkExecutor) -> None:
    with PreforkExecutor(1) as other:
        assert other.with_options(memory=1).submit(take, 20, 0).result(BOUND) == 20
        assert other.stats().memory is None


def test_a_recording_has_the_decisions(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with PreforkExecutor(4, max_memory=150 * MIB) as executor, executor.record(path):
        list(executor.with_options(memory=100 * MIB).map(take, [10] * 4, [0.1] * 4))
    assert "memory: memory_tasks.take waits" in path.read_text()


# --- in a control group ------------------------------------------------------------------------

in_group = pytest.mark.skipif(
    not control_groups.may_be_made(), reason="no control group can be made here"
)
IN_GROUP = """
    import json, os, sys
    sys.path.insert(0, {tests!r})
    with open({procs!r}, "w") as file:
        file.write(str(os.getpid()))
    from memory_tasks import MIB, offer_for_killing, take
    from prefork_executor import PreforkExecutor

    if __name__ == "__main__":
        {before}
        options = {{"max_memory": {bound}, "retries": {retries}}}
        with PreforkExecutor(4, "fork", offer_for_killing, **options) as executor:
            futures = [executor.submit(take, mib, 0.3) for mib in {sizes}]
            errors = [future.exception() for future in futures]
            memory = executor.stats().memory
            told = [getattr(error, "reason", "") if error else "done" for error in errors]
            by_others = executor.stats().deaths - memory.ended
            print(json.dumps([told, memory.bound, memory.peaks, by_others, memory.left]))
"""


def run_in_group(limit: int, *, before: str = "pass", **facts: object) -> list[Any]:
    """What a program prints that runs in a control group with so much memory: how its tasks
    ended, the bound, the peaks, the deaths of workers that the pool has not ended, and how much is
    left at the end. ``before``: what the program does first."""
    import json

    with control_groups.limited(limit) as folder:
        procs = f"{folder}/cgroup.procs"
        text = textwrap.dedent(IN_GROUP).format(tests=TESTS, procs=procs, before=before, **facts)
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, timeout=BOUND, check=False
        )
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout)
        return found


@linux
@in_group
def test_what_a_control_group_has_is_what_there_is() -> None:
    told, bound, _, deaths, _ = run_in_group(250 * MIB, bound=0.6, retries=1, sizes=[30] * 6)
    assert told == ["done"] * 6
    assert bound == int(0.6 * 250 * MIB)
    assert deaths == 0


@linux
@in_group
def test_what_the_control_group_has_left_counts_if_the_bound_is_above_it() -> None:
    told, bound, _, _, _ = run_in_group(200 * MIB, bound=2**40, retries=2, sizes=[40] * 8)
    assert told == ["done"] * 8
    assert bound == 2**40


@linux
@in_group
def test_files_that_the_program_has_read_more_than_once_leave_their_memory(tmp_path: Path) -> None:
    skip_if_in_memory(tmp_path)
    path = tmp_path / "data"
    reads = f"for _ in range(3): open({str(path)!r}, 'rb').read()"
    path.write_bytes(b"x" * 80 * MIB)
    with open(path, "rb") as file:  # So that the group's program is the first to have it.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    told, _, _, _, left = run_in_group(200 * MIB, before=reads, bound=0.8, retries=1, sizes=[5])
    assert told == ["done"]
    assert left > 130 * MIB


@linux
@in_group
def test_a_kill_by_the_system_is_a_lesson() -> None:
    told, _, peaks, deaths, _ = run_in_group(120 * MIB, bound=2**40, retries=0, sizes=[250])
    assert told == ["out of memory"]
    assert deaths == 1
    assert peaks[0][0] == "memory_tasks.take"
    assert peaks[0][1] > 50 * MIB
