"""The fixture `prefork_pool`: raw pools in child processes of a test."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from inner_pytest import NO_TIME, WITH_NO_TIME, Inner, inner, output
from waiting import BOUND, eventually

from prefork_executor.integrations.running_pool import RunningPool, Yell
from prefork_executor.pytest_plugin import PreforkPoolFactory
from prefork_executor.raw import pf_kid_accept, pf_kid_busy, pf_kid_exit, pf_kid_idle, pf_kid_yell

__all__ = ["inner"]

SMALL = {"min_spare_servers": 1, "start_servers": 1, "max_spare_servers": 2, "max_servers": 2}
"""Options of a pool that is quick to start."""
POOL = """
    from multiprocessing import shared_memory, resource_tracker
    import subprocess
    from prefork_executor.raw import *

    SMALL = dict(min_spare_servers=1, start_servers=1, max_spare_servers=2, max_servers=2)

    def stay():
        pf_kid_yell(os.getpid(), thaw=True)
        while True:
            time.sleep(0.01)

    def stay_for_ever():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stay()

    def note(name, pid):
        pathlib.Path(name).write_text(str(pid))
"""
"""What begins an inner module with raw pools."""


def rest() -> None:
    while True:
        time.sleep(0.01)


def say_hello(word: str) -> None:
    pf_kid_yell({"said": word}, thaw=True)
    rest()


def echo(listener: socket.socket) -> None:
    while taken := pf_kid_accept(listener):
        with taken[0] as connection:
            data = connection.recv(1024)
            connection.sendall(data)
        pf_kid_yell(len(data), thaw=True)


# --- what it offers -------------------------------------------------------------------------


def test_it_runs_a_pool_and_hears_its_children(prefork_pool: PreforkPoolFactory) -> None:
    pool = prefork_pool(say_hello, ("hello",), **SMALL)
    assert isinstance(pool, RunningPool)
    heard = pool.wait_for_yells(1)
    assert heard[0].data == {"said": "hello"}
    assert heard[0].exitcode is None
    assert psutil.Process(heard[0].pid).ppid() == pool.pid
    assert psutil.Process(pool.pid).ppid() == os.getpid()
    assert pool.yells[0] == heard[0]
    assert pool.exitcode is None


def test_it_serves_connections_on_a_listener_of_the_test(prefork_pool: PreforkPoolFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = prefork_pool(echo, (listener,), **SMALL)
        for word in (b"one", b"three"):
            with socket.create_connection(listener.getsockname(), timeout=BOUND) as connection:
                connection.sendall(word)
                assert connection.recv(1024) == word
        assert [heard.data for heard in pool.wait_for_yells(2)] == [3, 5]


def test_a_closure_may_serve_and_anything_may_be_yelled(prefork_pool: PreforkPoolFactory) -> None:
    base = 40

    def serve() -> None:
        pf_kid_yell(lambda n: base + n, thaw=True)
        pf_kid_yell(b"x" * 1_000_000, thaw=True)
        pf_kid_yell([1, 2])
        rest()

    heard = prefork_pool(serve, **SMALL).wait_for_yells(3)
    assert heard[0].data(2) == 42
    assert heard[1].data == b"x" * 1_000_000
    assert pickle.loads(heard[2].data) == [1, 2]


def test_an_exit_code_comes_with_the_last_yell(prefork_pool: PreforkPoolFactory) -> None:
    def serve() -> None:
        pf_kid_busy()
        pf_kid_idle()
        pf_kid_exit(7, "bye", thaw=True)

    heard = prefork_pool(serve, **SMALL).wait_for_yells(1)
    assert heard[0] == Yell(heard[0].pid, "bye", 7)


class OnlyThere:
    """Can be unpickled in the pool, but not in the test's process."""

    def __init__(self, home: int) -> None:
        self.home = home
        if os.getpid() == home:
            raise ValueError("not here")

    def __reduce__(self) -> Any:
        return OnlyThere, (self.home,)


def test_a_yell_that_cannot_be_unpickled_here_is_its_error(
    prefork_pool: PreforkPoolFactory,
) -> None:
    home = os.getpid()

    def serve() -> None:
        pf_kid_yell(OnlyThere(home), thaw=True)
        rest()

    heard = prefork_pool(serve, **SMALL).wait_for_yells(1)
    assert isinstance(heard[0].data, ValueError)


@pytest.mark.parametrize("in_main", [False, True])
def test_a_hook_of_the_users_is_called_as_well(
    prefork_pool: PreforkPoolFactory, tmp_path: Path, in_main: bool
) -> None:
    def hook(pid: int, data: object, exitcode: int | None) -> None:
        tmp_path.joinpath("heard").write_text(f"{pid} {data} {exitcode} {os.getpid()}")

    pool = prefork_pool(
        say_hello, ("hi",), child_data_hook=hook, data_hook_in_main=in_main, **SMALL
    )
    pid = pool.wait_for_yells(1)[0].pid
    eventually(lambda: tmp_path.joinpath("heard").exists())
    assert pool.stop() == 0
    *heard, hook_pid = tmp_path.joinpath("heard").read_text().rsplit(" ", 1)
    assert heard == [f"{pid} {{'said': 'hi'}} None"]
    assert (int(hook_pid) == pool.pid) == in_main


def test_reload_replaces_the_children(prefork_pool: PreforkPoolFactory) -> None:
    pool = prefork_pool(say_hello, ("hi",), **SMALL)
    old = pool.wait_for_yells(1)[0].pid
    pool.reload()
    assert pool.wait_for_yells(2)[-1].pid != old
    eventually(lambda: not psutil.pid_exists(old))


def test_stop_ends_it_all_and_gives_the_exit_code(prefork_pool: PreforkPoolFactory) -> None:
    pool = prefork_pool(say_hello, ("hi",), **SMALL)
    kid = pool.wait_for_yells(1)[0].pid
    assert pool.stop() == 0
    assert pool.stop() == 0
    assert pool.exitcode == 0
    assert not psutil.pid_exists(kid)
    assert not psutil.pid_exists(pool.pid)
    pool.reload()  # Nobody is there; that is no error.


def test_waiting_for_more_yells_than_come_says_how_many_came(
    prefork_pool: PreforkPoolFactory,
) -> None:
    pool = prefork_pool(say_hello, ("hi",), **{**SMALL, "max_servers": 1, "max_spare_servers": 1})
    pool.wait_for_yells(1)
    with pytest.raises(TimeoutError, match=r"1 of 2 yells had come after 0\.1 s"):
        pool.wait_for_yells(2, timeout=0.1)
    os.kill(pool.pid, signal.SIGKILL)
    with pytest.raises(TimeoutError, match="1 of 2 yells had come when the pool had ended"):
        pool.wait_for_yells(2, timeout=BOUND)
    assert pool.exitcode == -signal.SIGKILL


def test_several_pools_run_side_by_side(prefork_pool: PreforkPoolFactory) -> None:
    pools = [prefork_pool(say_hello, (word,), **SMALL) for word in "ab"]
    assert [pool.wait_for_yells(1)[0].data["said"] for pool in pools] == ["a", "b"]


@pytest.mark.parametrize(
    ("serve", "options", "error", "match"),
    [
        (3, {}, TypeError, "serve must be callable, not int"),
        (rest, {"max_server": 3}, TypeError, "no option 'max_server'"),
        (rest, {"max_servers": 0}, ValueError, "max_servers"),
        (rest, {"child_data_hook": 3}, TypeError, "child_data_hook must be callable, not int"),
    ],
)
def test_bad_input_is_raised_at_the_call(
    prefork_pool: PreforkPoolFactory,
    serve: Any,
    options: dict[str, Any],
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        prefork_pool(serve, **options)


# --- the end of a test ----------------------------------------------------------------------


def test_a_pool_ends_with_its_test(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    def test_it(prefork_pool):
        pool = prefork_pool(stay, **SMALL)
        note("kid", pool.wait_for_yells(1)[0].pid)
        note("main", pool.pid)

    def test_then():
        for name in ("kid", "main"):
            assert not os.path.exists("/proc/" + pathlib.Path(name).read_text())
    """,
    )
    inner.run().assert_outcomes(passed=2)


def test_a_pool_that_does_not_end_fails_its_test_by_name(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    def test_hangs(prefork_pool):
        pool = prefork_pool(stay_for_ever, **SMALL)
        note("kid", pool.wait_for_yells(1)[0].data)
        note("main", pool.pid)
        other = prefork_pool(stay, **SMALL)
        other.wait_for_yells(1)

    def test_after(prefork_pool):
        prefork_pool(stay, **SMALL).wait_for_yells(1)
    """,
    )
    result = inner.run(*WITH_NO_TIME)
    result.assert_outcomes(passed=2, errors=1)
    main, kid = inner.pid("main"), inner.pid("kid")
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_hangs*",
            f"prefork_pool (main process {main}) did not end within {NO_TIME} s; still alive:",
        ]
    )
    result.stdout.fnmatch_lines_random(
        [f"  its main process {main}", f"  process {kid}, which it has forked"]
    )
    report, _, _ = output(result).partition("short test summary info")
    assert report.count("did not end") == 1
    for pid in (main, kid):
        eventually(lambda pid=pid: not _lives(pid))


def test_what_a_child_has_started_and_left_is_named_and_killed(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    def leave():
        left = subprocess.Popen(["sleep", "3600"])
        away = os.fork()
        if not away:
            os.setsid()
            time.sleep(3600)
        pf_kid_yell((left.pid, away), thaw=True)
        while True:
            time.sleep(0.01)

    def test_leaves(prefork_pool):
        pool = prefork_pool(leave, max_servers=1)
        left, away = pool.wait_for_yells(1)[0].data
        note("left", left)
        note("away", away)
        with pytest.raises(TimeoutError, match="did not end within 0.5 s"):
            pool.stop(0.5)
        assert pool.exitcode == 0
    """,
    )
    result = inner.run(*WITH_NO_TIME)
    result.assert_outcomes(passed=1, errors=1)
    left, away = inner.pid("left"), inner.pid("away")
    result.stdout.fnmatch_lines_random(
        [f"  process {left}: sleep 3600", f"  process {away}, which it has forked"]
    )
    for pid in (left, away):
        eventually(lambda pid=pid: not _lives(pid))


def _lives(pid: int) -> bool:
    # Where nobody reaps orphans, they remain as zombies.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_shared_memory_that_is_left_fails_the_test_by_name(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    def allocate():
        memory = shared_memory.SharedMemory(create=True, size=100)
        resource_tracker.unregister(memory._name, "shared_memory")
        pf_kid_yell(memory.name, thaw=True)
        while True:
            time.sleep(0.01)

    def run(prefork_pool):
        return prefork_pool(allocate, max_servers=1).wait_for_yells(1)[0].data

    def test_leaves(prefork_pool):
        name = run(prefork_pool)
        pathlib.Path("name").write_text(name)

    def test_is_tidy(prefork_pool):
        memory = shared_memory.SharedMemory(run(prefork_pool))
        memory.close()
        memory.unlink()

    def test_then():
        os.unlink("/dev/shm/" + pathlib.Path("name").read_text())
    """,
    )
    result = inner.run()
    result.assert_outcomes(passed=3, errors=1)
    name = (inner.path / "name").read_text()
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves*",
            f"prefork_pool (*) left shared memory behind that no process uses: /dev/shm/{name}",
        ]
    )


def test_x_and_ctrl_c_leave_nothing(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    @pytest.mark.parametrize("how", [AssertionError, KeyboardInterrupt])
    def test_it(prefork_pool, how):
        pool = prefork_pool(stay_for_ever, **SMALL)
        note(how.__name__, pool.wait_for_yells(1)[0].data)
        raise how
    """,
    )
    failed = inner.run_with_no_time("-x", "-k", "AssertionError")
    failed.assert_outcomes(failed=1, errors=1)
    interrupted = inner.run_with_no_time("-k", "KeyboardInterrupt")
    assert interrupted.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in output(interrupted)
    for name in ("AssertionError", "KeyboardInterrupt"):
        eventually(lambda name=name: not _lives(inner.pid(name)))


def test_a_pool_ends_when_pytest_is_killed(inner: Inner) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs the kernel to kill orphans")
    inner.suite(
        POOL,
        """
    def test_it(prefork_pool):
        pool = prefork_pool(stay_for_ever, **SMALL)
        note("kid", pool.wait_for_yells(1)[0].data)
        os.kill(os.getpid(), signal.SIGKILL)
    """,
    )
    inner.run_apart()
    eventually(lambda: not _lives(inner.pid("kid")))


def test_what_children_print_and_the_pool_logs_reaches_capfd(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    def speak():
        print("a child speaks")
        raise ValueError("a child fails")

    def test_it(prefork_pool, capfd):
        pool = prefork_pool(speak, max_servers=1)
        heard = {"out": "", "err": ""}
        def all_is_heard():
            out, err = capfd.readouterr()
            heard["out"] += out
            heard["err"] += err
            return (
                "a child speaks" in heard["out"]
                and "ValueError: a child fails" in heard["err"]
                and "in a row died" in heard["err"]
            )
        until(all_is_heard)
    """,
    )
    inner.run_apart().assert_outcomes(passed=1)


def test_pools_run_under_xdist(inner: Inner) -> None:
    inner.suite(
        POOL,
        """
    @pytest.mark.parametrize("n", range(4))
    def test_it(prefork_pool, n):
        assert prefork_pool(stay, **SMALL).wait_for_yells(1)
    """,
    )
    inner.run_apart("-n", "2").assert_outcomes(passed=4)
