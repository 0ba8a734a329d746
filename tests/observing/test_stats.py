"""`executor.stats()`: what it tells of a pool that is known from inside."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import psutil
import pytest
from injection import supervisor_of
from light_tasks import run_until, square
from waiting import BOUND, eventually

from prefork_executor import ExecutorStats, PreforkExecutor, WorkerDied, status
from prefork_executor._board import scoreboard as sb
from prefork_executor._board.counters import Counters
from prefork_executor._board.decisions import pack_decision, read_decision
from prefork_executor._board.reader import (
    BoardReader,
    percentiles,
    read_header,
)
from prefork_executor._board.scoreboard import Scoreboard, Slot
from prefork_executor._system.platform import FALLBACK
from prefork_executor._system.shared_files import shared_file
from prefork_executor.stats import PoolStats, Waits

MILLISECOND = 1_000_000


@contextlib.contextmanager
def opened_in_the_end(directory: Path) -> Iterator[Path]:
    """A gate that tasks wait for. Even if the test fails they do not wait for ever."""
    gate = directory / "gate"
    try:
        yield gate
    finally:
        gate.touch()


def blocked(executor: PreforkExecutor, gate: Path, count: int) -> list[object]:
    started = str(gate) + ".started"
    return [executor.submit(run_until, str(gate), started) for _ in range(count)]


def test_a_new_executor_has_nothing_to_tell() -> None:
    with PreforkExecutor(3) as executor:
        stats = executor.stats()
    assert stats == ExecutorStats(
        max_workers=3,
        workers=(),
        peak_workers=0,
        backlog=0,
        max_backlog=0,
        times_at_max=0,
        seconds_at_max=0.0,
        waits=Waits(None, None, None, 0),
        forks=0,
        retirements=0,
        deaths=0,
        other_deaths=0,
        decisions=(),
        start_cost=None,
        waiting=0,
        in_flight=0,
        finished=0,
    )


def test_the_backlog_is_what_no_worker_has_begun_and_its_maximum_stays(tmp_path: Path) -> None:
    with PreforkExecutor(2, "fork") as executor, opened_in_the_end(tmp_path) as gate:
        futures = blocked(executor, gate, 2)
        eventually(lambda: executor.stats().busy == 2)
        futures += [executor.submit(square, number) for number in range(50)]
        stats = executor.stats()
        assert (stats.backlog, stats.max_backlog) == (50, 50)
        assert stats.waiting + stats.in_flight == 52
        gate.touch()
        assert not wait(futures, BOUND).not_done  # type: ignore[arg-type]
        eventually(lambda: executor.stats().backlog == 0)
        assert executor.stats().max_backlog == 50


def test_the_maximum_of_the_backlog_is_seen_though_nobody_looks(tmp_path: Path) -> None:
    with PreforkExecutor(1, "fork") as executor, opened_in_the_end(tmp_path) as gate:
        executor.submit(square, 1).result(BOUND)
        futures = blocked(executor, gate, 1)
        futures += [executor.submit(square, number) for number in range(400)]
        gate.touch()
        assert not wait(futures, BOUND).not_done  # type: ignore[arg-type]
        assert 399 <= executor.stats().max_backlog <= 401


def test_waits_are_the_times_from_submission_to_beginning(tmp_path: Path) -> None:
    with PreforkExecutor(1, "fork") as executor, opened_in_the_end(tmp_path) as gate:
        futures = blocked(executor, gate, 1)
        eventually(lambda: executor.stats().busy == 1)
        first = executor.stats().waits
        assert first.samples == 1
        began = time.monotonic()
        futures += [executor.submit(square, number) for number in range(160)]
        submitted = time.monotonic()
        eventually(lambda: time.monotonic() - submitted > 0.3)
        opened = time.monotonic()
        gate.touch()
        assert not wait(futures, BOUND).not_done  # type: ignore[arg-type]
        waits = executor.stats().waits
        over = time.monotonic()
    assert 3 <= waits.samples <= 24, "one in several"
    assert waits.p50 is not None
    assert waits.p99 is not None
    assert opened - submitted - 0.05 <= waits.p50 <= waits.p99 <= over - began


def test_idle_workers_are_not_waited_for() -> None:
    with PreforkExecutor(2, "fork", start_workers=2, idle_timeout=None) as executor:
        for number in range(64):
            executor.submit(square, number).result(BOUND)
        waits = executor.stats().waits
    assert sb.WAITS <= waits.samples <= 64, "each was measured; of one worker the latest are kept"
    assert waits.p50 is not None
    assert waits.p50 < 0.1


def test_tasks_of_messages_of_several_are_measured_as_well() -> None:
    with PreforkExecutor(1, "fork") as executor:
        for future in [executor.submit(square, number) for number in range(8000)]:
            future.result(BOUND)
        waits = executor.stats().waits
    assert waits.samples == sb.WAITS, "the ring is full"


@pytest.mark.skipif(FALLBACK, reason="needs /proc")
def test_the_memory_of_a_worker_is_that_of_its_process() -> None:
    with PreforkExecutor(1, "fork") as executor:
        pid = executor.submit(os.getpid).result(BOUND)
        (worker,) = executor.stats().workers
        assert worker.pid == pid
        assert worker.memory == pytest.approx(psutil.Process(pid).memory_info().rss, rel=0.3)
        executor.submit(_grow, 64 * 2**20).result(BOUND)
        before = worker.memory
        assert before is not None
        # It is looked at again after a second.
        eventually(lambda: (executor.stats().workers[0].memory or 0) > before + 60 * 2**20)


_kept: list[bytes] = []


def _grow(size: int) -> None:
    _kept.append(b"x" * size)


def test_every_fork_is_alive_or_has_ended_in_one_way(tmp_path: Path) -> None:
    with (
        PreforkExecutor(4, "fork", idle_timeout=0.05, max_tasks_per_child=3) as executor,
        opened_in_the_end(tmp_path) as gate,
    ):
        assert list(executor.map(square, range(20))) == [n * n for n in range(20)]
        futures = blocked(executor, gate, 2)
        eventually(lambda: executor.stats().busy == 2)
        victim = next(w for w in executor.stats().workers if w.state == "busy")
        psutil.Process(victim.pid).kill()
        eventually(lambda: executor.stats().deaths == 1)
        gate.touch()
        assert not wait(futures, BOUND).not_done  # type: ignore[arg-type]

        def adds_up() -> bool:
            stats = executor.stats()
            ends = stats.retirements + stats.deaths + stats.other_deaths
            return stats.forks == len(stats.workers) + ends and stats.deaths == 1

        eventually(adds_up)
        eventually(lambda: executor.stats().retirements >= 5)
        assert executor.stats().other_deaths == 0
    assert executor.stats().forks >= 7, "it tells of the past when it has been shut down"
    assert executor.stats().workers == ()


def ends(stats: PoolStats) -> int:
    return stats.retirements + stats.deaths + stats.other_deaths


def test_every_fork_is_alive_or_has_ended_whenever_one_looks(start_method: str) -> None:
    """While workers come and go, after all were killed, after a supervisor's death and a
    shutdown; and whoever looks from outside sees the same."""
    looks: list[PoolStats] = []
    with PreforkExecutor(3, start_method, max_tasks_per_child=3) as executor:
        futures = [executor.submit(square, n) for n in range(90)]
        while not all(future.done() for future in futures):
            looks += [executor.stats(), status.read(os.getpid())]
        held = [executor.submit(time.sleep, BOUND) for _ in range(3)]
        eventually(lambda: executor.stats().busy == 3)
        executor.kill_workers()
        assert all(future.exception(BOUND) is not None for future in held)
        looks.append(executor.stats())
        eventually(lambda: executor.stats().deaths == 3)
        held = [executor.submit(time.sleep, BOUND) for _ in range(3)]
        eventually(lambda: executor.stats().busy == 3)
        supervisor_of(executor).kill()
        assert all(isinstance(future.exception(BOUND), WorkerDied) for future in held)
        looks.append(executor.stats())
        assert looks[-1].deaths == 6
        assert executor.submit(square, 3).result(BOUND) == 9
        counts = operator.attrgetter("forks", "retirements", "deaths", "other_deaths")
        # A worker may come or go between the two looks.
        eventually(lambda: counts(status.read(os.getpid())) == counts(executor.stats()))
    looks.append(executor.stats())
    assert looks[-1].workers == ()
    assert [look.forks for look in looks] == [len(look.workers) + ends(look) for look in looks]


def test_looking_ten_times_a_second_changes_no_result() -> None:
    looks: list[ExecutorStats] = []
    is_over = threading.Event()
    with PreforkExecutor(2, "fork") as executor:

        def look() -> None:
            while not is_over.wait(0.1):
                looks.append(executor.stats())

        poller = threading.Thread(target=look)
        poller.start()
        try:
            for _ in range(5):
                futures = [executor.submit(square, number) for number in range(2000)]
                assert [f.result(BOUND) for f in futures] == [n * n for n in range(2000)]
            eventually(lambda: len(looks) >= 3)
        finally:
            is_over.set()
            poller.join()
        assert executor.stats().finished == 10_000
    assert [stats.finished for stats in looks] == sorted(stats.finished for stats in looks)
    assert all(stats.backlog <= stats.max_backlog <= 2000 for stats in looks)


def test_a_snapshot_cannot_be_changed() -> None:
    with PreforkExecutor(1, "fork") as executor:
        executor.submit(square, 1).result(BOUND)
        eventually(lambda: executor.stats().workers[0].state == "idle")
        stats = executor.stats()
        for thing in (stats, stats.workers[0], stats.decisions[0], stats.waits):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(thing, dataclasses.fields(thing)[0].name, 1)
        assert stats.states == {"starting": 0, "idle": 1, "busy": 0, "leaving": 0}


# --- the parts of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 10, 99, 100, 101, 1000])
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(count: int) -> None:
    waits = sorted(random.Random(count).choices(range(10**9), k=count))
    found = percentiles(waits)
    assert found.samples == count
    for share, seconds in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert seconds is not None
        not_above = [wait for wait in waits if wait / 1e9 <= seconds]
        assert len(not_above) * 100 >= share * count
        below = [wait for wait in waits if wait / 1e9 < seconds]
        assert len(below) * 100 < share * count


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard(shared_file("prefork-test", Scoreboard.size_for(4)), 4)
    yield board
    board.close()


def test_a_wait_counts_for_a_minute(board: Scoreboard) -> None:
    board.words[sb.USED] = 4
    now = time.monotonic_ns()
    for place, age in enumerate((0, 59_000, 61_000, 10**6)):
        board.waits(place)[:2] = memoryview(
            bytearray((5 * MILLISECOND).to_bytes(8, "little") + bytes(8))
        ).cast("Q")
        board.waits(place)[1] = max(1, now - age * MILLISECOND)
    waits = BoardReader(board.copy, 4).waits(read_header(board.copy), now)
    assert waits == Waits(0.005, 0.005, 0.005, 2)


def test_the_ring_of_decisions_gives_the_latest_in_their_order(board: Scoreboard) -> None:
    reader = BoardReader(board.copy, 4)
    assert reader.decisions(read_header(board.copy)) == ()
    for number in range(3 * sb.DECISIONS_KEPT):
        board.write_decision(pack_decision(number, 1, 2, f"reason {number}"))
        found = reader.decisions(read_header(board.copy))
        last = [decision.workers for decision in found]
        assert last == list(range(max(0, number + 2 - sb.DECISIONS_KEPT), number + 1))
        assert found[-1].reason == f"reason {number}"


def test_a_long_reason_is_cut(board: Scoreboard) -> None:
    board.write_decision(pack_decision(1, 2, 3, "ä" * 200))
    (found,) = BoardReader(board.copy, 4).decisions(read_header(board.copy))
    assert (found.workers, found.started, found.retired) == (1, 2, 3)
    assert 40 < len(found.reason) < 100
    assert read_decision(bytes(sb.DECISION_BYTES)).reason == ""


def test_names_begin_again_when_the_table_is_full(board: Scoreboard) -> None:
    indices = [board.enter_name(f"name {n}") for n in range(sb.MAX_NAMES + 1)]
    assert indices[0] == 1
    assert max(indices) == sb.MAX_NAMES - 1
    assert indices[-2:] == [1, 2]
    reader = BoardReader(board.copy, 4)

    def shown(index: int) -> str | None:
        return reader.name_of(Slot(0, 1, 1, 0, sb.BUSY, 1, 1, 1, name=index))

    assert shown(1) == f"name {sb.MAX_NAMES - 1}"
    assert shown(3) == "name 2"
    assert shown(0) is None
    assert shown(sb.MAX_NAMES) is None


def test_a_long_name_is_cut_where_it_can_be(board: Scoreboard) -> None:
    index = board.enter_name("ß" * 200)
    slot = Slot(0, 1, 1, 0, sb.BUSY, 1, 1, 1, name=index)
    name = BoardReader(board.copy, 4).name_of(slot)
    assert name is not None
    assert name[:60] == "ß" * 60


def test_time_at_the_maximum_ends_with_a_pool_that_was_killed_there(board: Scoreboard) -> None:
    counters = Counters(board, 2)
    counters.forked(1)
    assert board.words[sb.FULL_SINCE] == 0
    counters.forked(2)
    assert board.words[sb.FULL_SINCE]
    Counters(board, 2)
    assert board.words[sb.FULL_SINCE] == 0
    assert board.words[sb.FULL_FOR] > 0
    assert board.words[sb.FULL_TIMES] == 1
