"""``prefork-executor list``, ``status`` and ``trace``, run as commands of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from raw_programs import KILL, Run, run
from status_programs import EXECUTOR, command, held_pool, printed_json, seen
from waiting import BOUND, eventually

from prefork_executor import status
from prefork_executor.cli import _common, main
from prefork_executor.errors import NoSuchPool

__all__ = ["run"]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
HAS_PY_SPY = bool(shutil.which("py-spy")) or (Path(sys.executable).parent / "py-spy").exists()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only pools that tests of this file have started count: others may run on this machine."""
    everyone = status.pools
    monkeypatch.setattr(
        status, "pools", lambda: [pool for pool in everyone() if str(tmp_path) in pool.command]
    )
    monkeypatch.setattr(status, "unreadable", list)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_disk_that_is_full_is_named(run: Run, tmp_path: Path) -> None:
    held_pool(run, tmp_path / "gate")
    list_pools = [sys.executable, "-m", "prefork_executor", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            list_pools, stdout=full, stderr=subprocess.PIPE, text=True, timeout=BOUND, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "prefork-executor: cannot write the output: No space left on device\n"


def test_list_has_a_line_for_each_pool(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    done = command("list")
    assert done.returncode == 0
    head, *rows = done.stdout.splitlines()
    assert head.split() == [
        "PID",
        "SUPERVISOR",
        "KIND",
        "WORKERS",
        "BUSY",
        "BACKLOG",
        "AGE",
        "COMMAND",
    ]
    (row,) = (row for row in rows if row.split()[0] == str(program.pid))
    assert re.search(rf"{program.pid} +\d+  executor +3/3 +3 +5 .* m?s  .*\.py$", row)


def test_list_as_json_is_what_the_module_tells(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    (found,) = (pool for pool in printed_json("list", "--json") if pool["pid"] == program.pid)
    assert (found["kind"], found["backlog"], len(found["workers"])) == ("executor", 5, 3)


def test_list_says_so_if_there_is_no_pool(alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "no pool of this user is running\n"


def test_status_shows_the_pool_its_workers_and_the_latest_decisions(
    run: Run, tmp_path: Path
) -> None:
    program = held_pool(run, tmp_path / "gate")
    done = command("status", program.pid)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"executor of process {program.pid}: " in done.stdout
    assert "3 of 3: 0 starting, 0 idle, 3 busy, 0 leaving; peak 3" in done.stdout
    assert re.search(r"backlog +5; at most [5-8]\n", done.stdout)
    assert re.search(r"at maximum +once, ", done.stdout)
    assert re.search(r"a start takes +[\d.]+ m?s\n", done.stdout)
    rows = re.findall(r"^ *(\d+)  busy .*  __main__\.hold$", done.stdout, re.M)
    assert [int(row) for row in rows] == [w.pid for w in status.read(program.pid).workers]
    assert re.search(r"\d\d:\d\d:\d\d  0 workers, \+1: ", done.stdout)
    assert "  1 worker, +" in done.stdout, "the pool grew from one worker to three"


KEYS = {
    *("pid", "supervisor", "kind", "command", "started", "time", "max_workers", "min_spare"),
    *("max_spare", "idle_timeout", "workers", "states", "peak_workers", "backlog", "max_backlog"),
    *("outstanding", "tasks_done", "generation", "times_at_max", "seconds_at_max", "waits"),
    *("forks", "retirements", "deaths", "other_deaths", "decisions", "start_cost"),
    *("memory_bound", "memory_taken", "held", "memory_ended", "listeners"),
}
WORKER_KEYS = {
    *("pid", "state", "task", "in_state", "age", "tasks_done", "memory", "slot", "cpu"),
}


def test_the_keys_of_status_as_json_are_these(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    found = printed_json("status", program.pid, "--json")
    assert found.keys() == KEYS
    assert found["workers"][0].keys() == WORKER_KEYS
    assert found["waits"].keys() == {"p50", "p90", "p99", "samples"}
    assert found["decisions"][0].keys() == {"time", "workers", "started", "retired", "reason"}
    assert found["states"] == {"starting": 0, "idle": 0, "busy": 3, "leaving": 0}


def test_status_of_a_raw_pool_says_nothing_of_a_backlog(run: Run) -> None:
    program = run(
        """
        pf_init(min_spare_servers=1, max_spare_servers=2, start_servers=2, max_servers=4)
        whip(serve, (listen(),))
        """
    )
    program.hear("port")
    seen(program.pid, lambda pool: pool.idle == 2)
    done = command("status", program.pid)
    assert f"raw of process {program.pid}: " in done.stdout
    assert "2 of 4: 0 starting, 2 idle" in done.stdout
    assert "backlog" not in done.stdout


@pytest.mark.parametrize("name", ["status", "trace", "top"])
def test_a_pid_that_has_no_pool_is_said_to_have_none(name: str) -> None:
    own, beyond = os.getpid(), 4194304
    for pid, complaint in (
        (own, f"process {own} has no pool"),
        (beyond, f"there is no process {beyond}"),
    ):
        done = command(name, pid)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"prefork-executor: {complaint}")


@pytest.mark.parametrize("name", ["status", "trace", "top"])
def test_without_a_pid_it_is_the_only_pool_there_is(
    run: Run,
    tmp_path: Path,
    alone: None,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    assert main([name]) == 1
    assert capsys.readouterr().err == "prefork-executor: no pool of this user is running\n"
    program = held_pool(run, tmp_path / "gate")
    with _common.chosen(None) as watch:
        assert watch.read().pid == program.pid
    other = held_pool(run, tmp_path / "gate", tasks=1)
    assert main([name]) == 1
    told = capsys.readouterr().err
    for pool in status.pools():
        assert f"  {pool.supervisor}  {pool.command}\n" in told
        assert pool.pid in (program.pid, other.pid)


def test_what_is_not_shown_is_said(capsys: pytest.CaptureFixture[str], alone: None) -> None:
    error = status.UnreadablePool("it is of another version")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(status, "unreadable", lambda: [error])
        assert main(["list"]) == 0
        assert "not shown: it is of another version\n" in capsys.readouterr().out


# --- trace ---------------------------------------------------------------------------------------

NESTED = """
    gate = {gate!r}
    def inner():
        hold(gate)
    def outer():
        inner()
    with PreforkExecutor(2, "fork", idle_timeout=None, start_workers=2) as executor:
        future = executor.submit(outer)
        until(lambda: executor.stats().busy == 1)
        wait_for(gate)
"""


@pytest.mark.skipif(not HAS_PY_SPY, reason="py-spy is not installed")
def test_trace_shows_the_stack_of_each_busy_worker_down_to_the_task(
    run: Run, tmp_path: Path
) -> None:
    program = run(NESTED.format(gate=str(tmp_path / "gate")), prelude=EXECUTOR)
    program.hear("ready")
    busy = next(w for w in status.read(program.pid).workers if w.state == "busy")
    done = command("trace", program.pid)
    if "does not permit" in done.stdout:
        assert done.returncode == 1
        pytest.skip("the system does not permit it")
    assert (done.returncode, done.stderr) == (0, "")
    first, thread, *frames = done.stdout.splitlines()
    assert first.startswith(f"worker {busy.pid}, busy for ")
    assert first.endswith(" with __main__.outer:")
    assert "MainThread" in thread
    names = [frame.split()[0] for frame in frames]
    assert names == ["hold", "inner", "outer"]
    assert re.search(r"inner \(.*\.py:\d+\)", done.stdout)
    full = command("trace", program.pid, "--full").stdout
    assert "_serve" in full
    (tmp_path / "gate").touch()
    assert program.wait() == 0, "it goes on as if nothing had been"


@pytest.mark.skipif(not HAS_PY_SPY, reason="py-spy is not installed")
def test_trace_of_a_raw_pool_shows_the_stack_down_to_the_childs_code(run: Run) -> None:
    program = run(
        """
        def inner():
            pf_kid_busy()
            rest()
        def serve():
            inner()
        pf_init(max_servers=1)
        whip(serve)
        """
    )
    seen_busy(program.pid)
    done = command("trace", program.pid)
    if "does not permit" in done.stdout:
        pytest.skip("the system does not permit it")
    _, _, *frames = done.stdout.splitlines()
    assert [frame.split()[0] for frame in frames] == ["rest", "inner", "serve"]
    assert "_run_and_exit" in command("trace", program.pid, "--full").stdout


def seen_busy(pid: int) -> None:
    """Wait until there is the pool, and one of its workers is busy."""

    def is_busy() -> bool:
        try:
            return status.read(pid).busy == 1
        except NoSuchPool:
            return False

    eventually(is_busy)


def fake_py_spy(directory: Path, script: str) -> dict[str, str]:
    """An environment in which py-spy is this shell script."""
    path = directory / "bin" / "py-spy"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": str(path.parent)}


WITHOUT_NEIGHBOUR = (
    "import sys; sys.executable = '/nowhere/python'; "
    "from prefork_executor.cli import main; sys.exit(main(sys.argv[1:]))"
)


def traced(pid: int, environment: dict[str, str]) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NEIGHBOUR, "trace", str(pid)],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_trace_says_what_to_do_where_it_is_not_permitted_or_fails(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    denied = fake_py_spy(tmp_path, 'echo "Error: Permission Denied: sudo" >&2; exit 1')
    code, out, _ = traced(program.pid, denied)
    assert code == 1
    assert out.count("cannot be shown: the system does not permit it. Run this command") == 3
    (tmp_path / "bin" / "py-spy").write_text('#!/bin/sh\necho "Error: no luck" >&2; exit 1\n')
    code, out, _ = traced(program.pid, denied)
    assert (code, out.count("cannot be shown: Error: no luck")) == (1, 3)
    (tmp_path / "bin" / "py-spy").write_text("#!/bin/sh\necho garbage\n")
    code, out, _ = traced(program.pid, denied)
    assert (code, out.count("cannot be shown: ")) == (1, 3)
    nowhere = {"PATH": str(tmp_path / "empty")}
    code, out, complaint = traced(program.pid, nowhere)
    assert (code, out) == (1, "")
    assert "pip install 'prefork-executor[trace]'" in complaint


def test_trace_of_a_pool_at_rest_says_that_nobody_is_busy(run: Run, tmp_path: Path) -> None:
    program = run(
        f"""
        with PreforkExecutor(1, "fork") as executor:
            executor.submit(abs, 1).result()
            wait_for({str(tmp_path / "gate")!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    seen(program.pid, lambda pool: pool.idle == 1)
    assert command("trace", program.pid).stdout == "no worker is busy; workers: 1\n"


def test_a_pool_whose_process_was_killed_is_on_no_list(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    program.signal(KILL)
    program.process.wait()
    assert str(program.pid) not in command("list").stdout.split()
    assert command("status", program.pid).returncode == 1


# --- how figures are written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "-"), (0.0, "0 s"), (12e-6, "12 us"), (0.0012, "1.2 ms"), (0.25, "250 ms")),
        *((1.25, "1.2 s"), (59.9, "59.9 s"), (61, "1m01s"), (3700, "1h01m"), (90000, "1d01h")),
    ],
)
def test_times_are_written_for_people(seconds: float | None, text: str) -> None:
    assert _common.span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0B"), (999, "999B"), (1024, "1.0K"), (20 * 2**20, "20M"), (2**40, "1024G")],
)
def test_sizes_are_written_for_people(number: int | None, text: str) -> None:
    assert _common.size(number) == text
