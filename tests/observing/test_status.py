"""Pools seen from outside, by another process: real programs, watched by this one."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from raw_programs import KILL, Run, run
from status_programs import EXECUTOR, held_pool, seen
from waiting import eventually

from prefork_executor import status
from prefork_executor._board import scoreboard as sb
from prefork_executor._board.scoreboard import Scoreboard
from prefork_executor._system.platform import FALLBACK
from prefork_executor._system.shared_files import shared_file
from prefork_executor.errors import NoSuchPool, PoolEnded, SeveralPools, UnreadablePool

__all__ = ["run"]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


def pids() -> list[int]:
    """Of the processes that have pools."""
    return [pool.pid for pool in status.pools()]


# --- what is seen ----------------------------------------------------------------------------


def test_a_pool_looks_from_outside_as_it_does_from_inside(run: Run, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = run(
        f"""
        with PreforkExecutor(3, "fork", idle_timeout=None) as executor:
            futures = [executor.submit(hold, {str(gate)!r}) for _ in range(8)]
            until(lambda: executor.stats().busy == 3)
            # Told by message: it may take a moment longer.
            until(lambda: sum(d.started for d in executor.stats().decisions) == 3)
            say("own", own_stats(executor))
            wait_for({str(gate)!r})
        """,
        prelude=EXECUTOR,
    )
    (own,) = map(json.loads, program.hear("own"))
    program.hear("ready")
    pool = status.read(program.pid)
    assert (pool.pid, pool.kind, pool.max_workers) == (program.pid, "executor", 3)
    assert pool.supervisor in program.children()
    assert pool.command.endswith(".py")
    assert pool.states == {"starting": 0, "idle": 0, "busy": 3, "leaving": 0}
    assert [w.pid for w in pool.workers] == [w["pid"] for w in own["workers"]]
    assert {w.task for w in pool.workers} == {w["task"] for w in own["workers"]}
    assert {w.task for w in pool.workers} == {"__main__.hold"}
    assert (pool.backlog, pool.outstanding) == (own["backlog"], 8) == (5, 8)
    assert pool.max_backlog == own["max_backlog"]
    assert 5 <= pool.max_backlog <= 8
    for name in ("forks", "retirements", "deaths", "other_deaths", "times_at_max", "peak_workers"):
        assert getattr(pool, name) == own[name]
    eventually(lambda: status.read(program.pid).start_cost)
    inside = [tuple(decision.values()) for decision in own["decisions"]]
    for decision, (at, *rest) in zip(pool.decisions, inside, strict=True):
        assert [decision.workers, decision.started, decision.retired, decision.reason] == rest
        assert decision.time == pytest.approx(at, abs=1)
    assert pool.waits.samples >= 1
    gate.touch()
    assert program.wait() == 0


def test_a_workers_row_tells_its_memory_its_processor_time_and_its_age(
    run: Run, tmp_path: Path
) -> None:
    program = held_pool(run, tmp_path / "gate")
    pool = status.read(program.pid)
    for worker in pool.workers:
        process = psutil.Process(worker.pid)
        assert worker.memory is not None
        assert worker.memory == pytest.approx(process.memory_info().rss, rel=0.2)
        assert worker.cpu is not None
        assert worker.cpu <= sum(process.cpu_times()[:2])
        assert 0 < worker.in_state <= worker.age <= pool.time - pool.started + 0.1
    assert sorted(worker.slot for worker in pool.workers) == [0, 1, 2]


def test_each_worker_shows_the_function_it_runs_and_a_long_one_keeps_its_name(
    run: Run, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = run(
        f"""
        def short(_): pass
        with PreforkExecutor(2, "fork", idle_timeout=None) as executor:
            held = executor.submit(hold, {str(gate)!r})
            for _ in executor.map(short, range(5000)): pass
            wait_for({str(gate)!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    pool = seen(program.pid, lambda pool: pool.busy == 1 and pool.tasks_done == 5000)
    assert sorted(str(worker.task) for worker in pool.workers) == ["None", "__main__.hold"]


@pytest.mark.parametrize("functions", ["one", "one, other"])
def test_a_task_that_turns_out_long_in_a_message_of_several_has_its_own_name(
    run: Run, tmp_path: Path, functions: str
) -> None:
    gate = tmp_path / "gate"
    program = run(
        f"""
        gate = {str(gate)!r}
        def run(name, number):
            if number >= 500:
                say("runs", os.getpid(), name)
                hold(gate)
        def one(number): run("one", number)
        def other(number): run("other", number)
        functions = [{functions}]
        with PreforkExecutor(2, "fork", idle_timeout=None, start_workers=2) as executor:
            for future in [executor.submit(f, 0) for _ in range(500) for f in functions]:
                future.result()
            # By the time of the long ones many wait, and travel together.
            futures = [executor.submit(f, n) for n in range(550) for f in functions]
            wait_for(gate)
        """,
        prelude=EXECUTOR,
    )
    told = dict(line.split() for line in program.hear("runs", 2))
    pool = status.read(program.pid)
    assert {str(w.pid): w.task for w in pool.workers} == {
        pid: f"__main__.{name}" for pid, name in told.items()
    }
    gate.touch()
    assert program.wait() == 0


def test_what_has_ended_is_counted_by_how_it_ended(run: Run, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = held_pool(run, gate, tasks=2)
    program.expects_complaints = True
    pool = seen(program.pid, lambda pool: pool.busy == 2 and pool.idle == 1)
    busy = next(worker for worker in pool.workers if worker.state == "busy")
    idle = next(worker for worker in pool.workers if worker.state == "idle")
    os.kill(busy.pid, KILL)
    os.kill(idle.pid, KILL)
    pool = seen(program.pid, lambda pool: (pool.deaths, pool.other_deaths) == (1, 1))
    assert pool.retirements == 0
    # A spare, or two, are started in their place.
    pool = seen(
        program.pid,
        lambda pool: (
            pool.busy == 1 and pool.idle and pool.forks == len(pool.workers) + pool.retirements + 2
        ),
    )
    assert pool.forks in (4, 5)


def test_the_counts_outlive_a_supervisor(run: Run, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = held_pool(run, gate)
    program.expects_complaints = True
    with status.watch(program.pid) as watch:
        before = watch.read()
        assert before.supervisor is not None
        os.kill(before.supervisor, KILL)
        eventually(lambda: watch.read().supervisor != before.supervisor)
        eventually(lambda: watch.read().busy == 3)
        after = watch.read()
    assert (after.pid, after.deaths, after.forks) == (before.pid, 3, 6)
    assert after.outstanding == 5
    assert after.times_at_max == 2
    assert after.decisions[: len(before.decisions)] == before.decisions
    assert status.read(after.supervisor or 0).pid == before.pid


def test_the_time_at_the_maximum_stands_still_below_it(run: Run, tmp_path: Path) -> None:
    gate, gate_2 = tmp_path / "gate", tmp_path / "gate_2"
    program = run(
        f"""
        with PreforkExecutor(2, "fork", idle_timeout=0.1) as executor:
            for gate in ({str(gate)!r}, {str(gate_2)!r}):
                futures = [executor.submit(hold, gate) for _ in range(2)]
                [future.result() for future in futures]
                until(lambda: len(executor.stats().workers) == 1)
                say("shrunk")
                hold(gate + ".next")
        """,
        prelude=EXECUTOR,
    )
    for round_, path in enumerate((gate, gate_2), 1):
        eventually(lambda: program.pid in pids())
        first = seen(program.pid, lambda pool, n=round_: pool.times_at_max == n)
        second = seen(program.pid, lambda pool, t=first: pool.seconds_at_max > t.seconds_at_max)
        assert second.seconds_at_max - first.seconds_at_max <= second.time - first.time + 0.1
        path.touch()
        program.hear("shrunk", round_)
        still = status.read(program.pid)
        assert status.read(program.pid).seconds_at_max == still.seconds_at_max
        assert still.times_at_max == round_
        assert still.retirements == round_
        Path(f"{path}.next").touch()
    assert program.wait() == 0


def test_of_many_decisions_the_latest_are_kept(run: Run, tmp_path: Path) -> None:
    program = run(
        f"""
        with PreforkExecutor(2, "fork", max_tasks_per_child=1, idle_timeout=None) as executor:
            for number in range(100):
                executor.submit(abs, number).result()
            wait_for({str(tmp_path / "gate")!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    pool = seen(
        program.pid,
        lambda pool: pool.tasks_done == 100 and pool.forks == len(pool.workers) + pool.retirements,
    )
    assert 100 <= pool.forks <= 102
    assert len(pool.decisions) == sb.DECISIONS_KEPT - 1, "one may just be being written"
    assert all(decision.started and decision.reason for decision in pool.decisions)
    times = [decision.time for decision in pool.decisions]
    assert times == sorted(times)


def test_a_reload_is_among_the_decisions(run: Run, tmp_path: Path) -> None:
    program = run(
        f"""
        with PreforkExecutor(1, "fork") as executor:
            executor.submit(abs, 1).result()
            executor.reload().result()
            wait_for({str(tmp_path / "gate")!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    pool = status.read(program.pid)
    assert pool.generation == 1
    assert any("reload" in decision.reason for decision in pool.decisions)


# --- raw pools ----------------------------------------------------------------------------------


def test_a_raw_pool_is_seen_like_any_other_and_its_tasks_have_no_names(run: Run) -> None:
    program = run(
        """
        pf_init(min_spare_servers=1, max_spare_servers=2, start_servers=2, max_servers=4)
        whip(serve, (listen(),))
        """
    )
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        pool = seen(program.pid, lambda pool: pool.busy == 1 and pool.idle >= 1 and pool.forks >= 2)
        assert (pool.kind, pool.supervisor, pool.max_workers) == ("raw", program.pid, 4)
        assert (pool.min_spare, pool.max_spare) == (1, 2)
        assert {worker.task for worker in pool.workers} == {None}
        assert {worker.pid for worker in pool.workers} <= set(program.children())
        assert status.read(pool.workers[0].pid).pid == program.pid
        assert pool.decisions[0].started == 2
    pool = seen(program.pid, lambda pool: pool.tasks_done == 1 and pool.busy == 0)
    served = next(worker.pid for worker in pool.workers if worker.tasks_done)
    os.kill(served, KILL)
    pool = seen(
        program.pid,
        lambda pool: pool.other_deaths == 1 and served not in [w.pid for w in pool.workers],
    )
    assert pool.tasks_done == 1, "what the dead have done is not forgotten"
    assert pool.waits.samples == 0


# --- which one ----------------------------------------------------------------------------------


def test_a_pool_is_found_by_every_process_of_it_and_listed_once(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    pool = status.read(program.pid)
    assert pool.supervisor is not None
    for pid in (pool.supervisor, *(worker.pid for worker in pool.workers)):
        assert status.read(pid).pid == program.pid
    assert pids().count(program.pid) == 1


def test_of_several_pools_in_one_process_each_is_named_by_its_supervisor(
    run: Run, tmp_path: Path
) -> None:
    program = run(
        f"""
        executors = [PreforkExecutor(workers, "fork") for workers in (1, 2)]
        for executor in executors:
            executor.submit(abs, 1).result()
        wait_for({str(tmp_path / "gate")!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    with pytest.raises(SeveralPools, match="belongs to 2 pools") as several:
        status.read(program.pid)
    found = [status.read(pid) for pid in several.value.choices]
    assert sorted(pool.max_workers for pool in found) == [1, 2]
    assert {pool.pid for pool in found} == {program.pid}
    assert pids().count(program.pid) == 2


def test_a_worker_that_has_a_pool_itself_stands_for_neither(run: Run, tmp_path: Path) -> None:
    program = run(
        f"""
        gate = {str(tmp_path / "gate")!r}
        def outer():
            with PreforkExecutor(3, "fork") as executor:
                executor.submit(abs, 1).result()
                say("worker", os.getpid())
                hold(gate)
        with PreforkExecutor(1, "fork") as executor:
            executor.submit(outer).result()
        """,
        prelude=EXECUTOR,
    )
    (worker,) = map(int, program.hear("worker"))
    with pytest.raises(SeveralPools) as several:
        status.read(worker)
    found = {status.read(pid).max_workers: status.read(pid) for pid in several.value.choices}
    assert {number: pool.pid for number, pool in found.items()} == {1: program.pid, 3: worker}
    assert found[1].workers[0].pid == worker
    (tmp_path / "gate").touch()
    assert program.wait() == 0


def test_pools_are_listed_oldest_first(run: Run, tmp_path: Path) -> None:
    programs = [held_pool(run, tmp_path / "gate", tasks=1) for _ in range(3)]
    ours = [program.pid for program in programs]
    assert [pid for pid in pids() if pid in ours] == ours


def test_a_process_without_a_pool_is_told_from_one_that_there_is_not() -> None:
    with pytest.raises(NoSuchPool, match=f"process {os.getpid()} has no pool"):
        status.read(os.getpid())
    with pytest.raises(NoSuchPool, match="there is no process 4194304"):
        status.read(4194304)


def test_a_fork_of_the_users_process_has_no_pool(run: Run, tmp_path: Path) -> None:
    program = run(
        f"""
        gate = {str(tmp_path / "gate")!r}
        executor = PreforkExecutor(1, "fork")
        executor.submit(abs, 1).result()
        child = os.fork()
        if child == 0:
            say("child", os.getpid())
            hold(gate)
            os._exit(0)
        wait_for(gate)
        os.waitpid(child, 0)
        """,
        prelude=EXECUTOR,
    )
    (child,) = program.hear("child")
    program.expects_complaints = True  # Python warns of forks in a process with threads.
    with pytest.raises(NoSuchPool):
        status.read(int(child))
    assert status.read(program.pid).pid == program.pid
    (tmp_path / "gate").touch()
    program.wait()


# --- ends ---------------------------------------------------------------------------------------


def test_a_pool_that_is_shut_down_while_it_is_watched_has_ended(run: Run, tmp_path: Path) -> None:
    gate, end = tmp_path / "gate", tmp_path / "end"
    program = run(
        f"""
        with PreforkExecutor(2, "fork") as executor:
            executor.submit(hold, {str(gate)!r})
        wait_for({str(end)!r})
        """,
        prelude=EXECUTOR,
    )
    eventually(lambda: program.pid in pids())
    with status.watch(program.pid) as watch:
        eventually(lambda: watch.read().outstanding == 1)
        gate.touch()
        program.hear("ready")
        with pytest.raises(PoolEnded, match=f"the pool of process {program.pid} has ended"):
            watch.read()
    assert program.pid not in pids()
    with pytest.raises(NoSuchPool):
        status.read(program.pid)
    end.touch()
    assert program.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pool_whose_process_is_killed_has_ended(run: Run, tmp_path: Path, number: int) -> None:
    program = held_pool(run, tmp_path / "gate")
    with status.watch(program.pid) as watch:
        assert watch.read().busy == 3
        program.signal(number)
        program.process.wait()
        with pytest.raises(PoolEnded):
            watch.read()
        assert program.pid not in pids()
        with pytest.raises(NoSuchPool):
            status.read(program.pid)
    program.stop()


# --- what watching costs ------------------------------------------------------------------------


def blocks(pid: int) -> int:
    """512-byte blocks that the board of this process takes."""
    (found,) = {
        os.stat(path).st_blocks
        for path, _ in status._held_by(pid)  # The one place that knows how to find it.
    }
    return found


def test_watching_writes_nothing_and_takes_none_of_the_pools_memory(
    run: Run, tmp_path: Path
) -> None:
    program = held_pool(run, tmp_path / "gate")
    before, modified = blocks(program.pid), _board_bytes(program.pid)
    with status.watch(program.pid) as watch:
        for _ in range(50):
            watch.read()
    assert blocks(program.pid) == before
    assert before * 512 < 64 * 1024, "of a megabyte of room for names only what is used is there"
    assert _board_bytes(program.pid) == modified


def _board_bytes(pid: int) -> bytes:
    path, _ = next(status._held_by(pid))
    with open(path, "rb") as file:
        return file.read()


def test_a_pool_that_is_watched_all_the_time_loses_no_task(run: Run) -> None:
    program = run(
        """
        def square(x): return x * x
        with PreforkExecutor(2, "fork") as executor:
            executor.submit(abs, 1).result()
            say("open")
            looks, is_over = [], threading.Event()
            def poll():
                while not is_over.wait(0.01):
                    looks.append(executor.stats())
            poller = threading.Thread(target=poll)
            poller.start()
            for number in range(30_000):
                if number % 1000 == 0:
                    futures = []
                futures.append(executor.submit(square, number))
                if number % 1000 == 999:
                    first = number - 999
                    assert [f.result() for f in futures] == [
                        n * n for n in range(first, number + 1)
                    ]
            is_over.set()
            poller.join()
            assert looks
            say("done", executor.stats().finished, executor.stats().deaths)
            hold("/it/is/stopped")
        """,
        prelude=EXECUTOR,
    )
    program.hear("open")
    with status.watch(program.pid) as watch:
        while not program.said("done"):
            pool = watch.read()
            assert pool.outstanding <= 1000
            assert pool.deaths == pool.other_deaths == 0
        assert watch.read().tasks_done == 30_001
    assert program.said("done") == ["30001 0"]


# --- who may see what, and boards that are none ---------------------------------------------------


def test_other_users_pools_are_not_shown(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = held_pool(run, tmp_path / "gate")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert status.pools() == []
    with pytest.raises(UnreadablePool, match="belongs to another user"):
        status.read(program.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_not_believed_even_in_an_own_process(board: Scoreboard) -> None:
    os.fchown(board.descriptor, 54321, -1)
    with pytest.raises(UnreadablePool, match="is not this user's"):
        status.read(os.getpid())


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A board that this process holds, as if it had a pool."""
    board = Scoreboard(shared_file(sb.FILE_NAME, Scoreboard.size_for(4)), 4)
    board.introduce(sb.EXECUTOR, os.getpid(), min_spare=1, max_spare=4, idle_timeout=10.0)
    yield board
    board.close()


@pytest.mark.parametrize("timeout", [None, 0.0, 0.5, 1e9, "auto"])
def test_how_long_idle_workers_stay_is_seen_from_outside(board: Scoreboard, timeout: Any) -> None:
    board.introduce(sb.EXECUTOR, os.getpid(), min_spare=1, max_spare=4, idle_timeout=timeout)
    assert status.read(os.getpid()).idle_timeout == timeout


def test_a_board_of_another_version_is_called_so(board: Scoreboard) -> None:
    board.words[sb.LAYOUT] = 99
    theirs_and_ours = rf"layout 99, and this version reads {sb.LAYOUT_VERSION}\."
    with pytest.raises(UnreadablePool, match=rf"runs another version.*{theirs_and_ours}"):
        status.read(os.getpid())
    assert os.getpid() not in pids()
    assert any("layout 99" in str(error) for error in status.unreadable())


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (sb.SLOTS, 0),
        (sb.SLOTS, 2**40),
        (sb.SLOTS, 400),
        (sb.KIND, 7),
        (sb.CLIENT, 0),
        (sb.MAGIC, 1),
    ],
)
def test_a_board_that_contradicts_itself_is_refused(
    board: Scoreboard, word: int, value: int
) -> None:
    board.words[word] = value
    with pytest.raises(UnreadablePool):
        status.read(os.getpid())


@pytest.mark.skipif(FALLBACK, reason="here nothing keeps anybody from it")
def test_a_board_cannot_be_cut_short_or_lengthened(board: Scoreboard) -> None:
    for size in (100, Scoreboard.size_for(4) + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.descriptor, size)


def test_whatever_stands_on_a_board_reading_it_ends_well(board: Scoreboard) -> None:
    chance = random.Random(5)
    numbers = (0, 1, 2, 4, 255, 2**16, 2**32 - 1, 2**63, 2**64 - 1)
    with status.watch(os.getpid()) as watch:
        for _ in range(300):
            for word in range(len(board.words)):
                board.words[word] = chance.choice(numbers)
            start = board.sections.decisions
            board._bytes[start : start + 1000] = chance.randbytes(1000)
            for place in range(4):
                board.waits(place)[chance.randrange(64)] = chance.choice(numbers)
            watch.read()


def test_nothing_on_a_board_reaches_a_terminal_that_would_do_something_there(
    board: Scoreboard,
) -> None:
    words, base = board.words, board.base(0)
    words[base + sb.NAME] = board.enter_name("\x1b]0;evil\x07\n")
    words[base + sb.HOLDS] = sb.pack_holds(sb.BUSY, 7)
    words[base + sb.PID], words[sb.USED] = os.getpid(), 1
    board.write_decision(struct.pack("<qIIIH", 1, 1, 1, 0, 6) + b"\x1b[2Jxx")
    pool = status.read(os.getpid())
    assert pool.workers[0].task == "\ufffd]0;evil\ufffd\ufffd"
    assert pool.decisions[0].reason == "\ufffd[2Jxx"


# --- elsewhere ------------------------------------------------------------------------------------


@pytest.mark.skipif(FALLBACK, reason="is about this")
def test_a_pool_without_what_only_linux_has_is_seen_as_well(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFORK_EXECUTOR_FALLBACK", "1")
    gate = tmp_path / "gate"
    program = held_pool(run, gate)
    pool = seen(program.pid, lambda pool: pool.busy == 3)
    assert {worker.task for worker in pool.workers} == {"__main__.hold"}
    gate.touch()
    assert program.wait() == 0


def test_where_there_is_no_proc_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PROC", "/no-such-proc")
    with pytest.raises(status.StatusError, match="which this system does not have"):
        status.pools()
