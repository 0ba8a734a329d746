"""How a pool starts, and where: Python's default, forks of programs that have used the
fork server, executors within workers; and what else may be done to a worker."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
from scripts import program_text, run_script
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor


def test_the_default_start_method_is_pythons_own(tmp_path: Path) -> None:
    # In a program of its own: asking for the default fixes it.
    source = program_text("default_start_method")
    default = "forkserver" if sys.version_info >= (3, 14) else "fork"
    assert run_script(tmp_path, source).split() == [default, str(default == "fork")]


def test_a_timeout_that_a_program_sets_for_its_sockets_is_none_for_the_pool(
    tmp_path: Path, start_method: str
) -> None:
    source = f"""
        import socket, time
        socket.setdefaulttimeout(0.05)
        from prefork_executor import PreforkExecutor, yell

        def work(number):
            time.sleep(0.3)
            yell(bytes(100_000))
            return number

        if __name__ == "__main__":
            told = []
            hear = lambda pid, data: told.append(len(data))
            with PreforkExecutor(2, {start_method!r}, on_yell=hear) as executor:
                print(list(executor.map(work, range(4))))
                time.sleep(0.3)
                executor.reload()
                print(executor.submit(work, 4).result())
            print(told == [100_000] * 5)
    """
    assert run_script(tmp_path, source) == "[0, 1, 2, 3]\n4\nTrue\n"


FORKING_PROGRAM = """
    import gc, multiprocessing, os, traceback
    from concurrent.futures import ProcessPoolExecutor
    from prefork_executor import PreforkExecutor

    def keep(lock):
        global kept
        kept = lock

    def is_kept_lock_free():
        with kept:
            return True

    def use_executors(context):
        lock = context.Lock()
        with PreforkExecutor(2, context, keep, (lock,)) as executor:
            print(executor.submit(is_kept_lock_free).result(180), flush=True)
            print(sum(executor.map(abs, range(-100, 100))), flush=True)

    def in_a_fork(function, *args):
        pid = os.fork()
        if not pid:
            try:
                function(*args)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            gc.collect()  # Semaphores, which os._exit would leave to the resource tracker.
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    if __name__ == "__main__":
        multiprocessing.set_start_method("forkserver")
        with {executor}(1) as executor:
            assert executor.submit(pow, 2, 3).result() == 8
        for _ in range(2):
            in_a_fork(use_executors, multiprocessing.get_context())
        in_a_fork(in_a_fork, use_executors, multiprocessing.get_context("forkserver"))
        use_executors(multiprocessing.get_context())
    """


@pytest.mark.parametrize("executor", ["PreforkExecutor", "ProcessPoolExecutor"])
def test_forks_of_a_program_that_has_used_the_fork_server_use_executors(
    tmp_path: Path, executor: str
) -> None:
    """As with a server that preloads its application and forks its workers."""
    printed = run_script(tmp_path, FORKING_PROGRAM.replace("{executor}", executor))
    assert printed.split() == ["True", "10000"] * 4


NESTING_PROGRAM = program_text("nested_executors")


def test_executors_within_workers_leave_nothing(tmp_path: Path, start_method: str) -> None:
    results, left, *kept = run_script(tmp_path, NESTING_PROGRAM, start_method).splitlines()
    assert (results, left) == ("[0, 1, 4, 9]", "set()")
    for pid in " ".join(kept).split():
        eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), "the helpers end as well")


def sort_by_callback(numbers: list[int]) -> list[int]:
    """Through C and back: by libc's qsort, with a comparison in Python."""
    compared = ctypes.POINTER(ctypes.c_int)
    comparison = ctypes.CFUNCTYPE(ctypes.c_int, compared, compared)
    array = (ctypes.c_int * len(numbers))(*numbers)
    ctypes.CDLL(None).qsort(
        array, len(numbers), ctypes.sizeof(ctypes.c_int), comparison(lambda a, b: a[0] - b[0])
    )
    return list(array)


def test_c_may_call_back_in_workers(start_method: str) -> None:
    with PreforkExecutor(1, start_method) as executor:
        for numbers in ([3, 1, 2], [9, 8, 7, 6]):
            assert executor.submit(sort_by_callback, numbers).result(BOUND) == sorted(numbers)


def wait_for(mark: str) -> str:
    while mark not in os.environ:
        pass
    return os.environ[mark]


@pytest.mark.skipif(not hasattr(sys, "remote_exec"), reason="sys.remote_exec is new in 3.14")
def test_a_debugger_reaches_a_busy_and_an_idle_worker(tmp_path: Path, start_method: str) -> None:
    scripts = {}
    for mark in ("BUSY", "IDLE"):
        scripts[mark] = tmp_path / f"{mark}.py"
        scripts[mark].write_text(f"import os; os.environ[{mark!r}] = 'reached'")
    with PreforkExecutor(1, start_method) as executor:
        worker = executor.submit(os.getpid).result(BOUND)
        running = executor.submit(wait_for, "BUSY")
        eventually(lambda: executor.stats().busy == 1)
        sys.remote_exec(worker, scripts["BUSY"])  # type: ignore[attr-defined,unused-ignore]
        assert running.result(BOUND) == "reached"
        eventually(lambda: executor.stats().idle == 1)
        sys.remote_exec(worker, scripts["IDLE"])  # type: ignore[attr-defined,unused-ignore]
        # An idle worker waits in the system; its script runs as soon as it has a task.
        assert executor.submit(wait_for, "IDLE").result(BOUND) == "reached"
        assert executor.submit(os.getpid).result(BOUND) == worker


# --- SIGCHLD ---------------------------------------------------------------------------------

SIGCHLD_BLOCKED = program_text("sigchld_blocked")


@pytest.mark.parametrize("when", ["not running", "running, and hears", "running, and deaf"])
def test_a_program_that_blocks_sigchld_has_a_pool_that_ends(
    tmp_path: Path, start_method: str, when: str
) -> None:
    assert run_script(tmp_path, SIGCHLD_BLOCKED, start_method, when).split() == ["1", "2", "True"]
