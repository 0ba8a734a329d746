"""Named shared memory and semaphores outlive the workers that made or attached them.

Each test runs a program of its own, because a resource tracker that runs already, as it does
in this process, hides most of what can go wrong. A program must have nothing to complain of
at its end: trackers that do not know of each other do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import BOUND, program_text, run_script

COMMON = """
import logging, multiprocessing, os, signal, sys, time, warnings
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
import psutil
from prefork_executor import PreforkExecutor

METHOD, *REST = sys.argv[1:]
logging.getLogger("prefork_executor").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def make():
    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[0] = 42
    block.close()
    return block.name, os.getpid()

def attach(name):
    block = shared_memory.SharedMemory(name)
    value = block.buf[0]
    block.close()
    return value, os.getpid()

def kill_own_worker():
    os.kill(os.getpid(), signal.SIGKILL)

def use_up(name):
    value = attach(name)[0]
    block = shared_memory.SharedMemory(name)
    block.close()
    block.unlink()
    return value

def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)

def has_ended(pid):
    return not Path(f"/proc/{pid}").exists()

def is_tracker(process):
    try:
        # For a moment, a process that executes another program has no command line.
        eventually(lambda: process.cmdline() or process.status() == psutil.STATUS_ZOMBIE)
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # It has just ended.
        return False

def trackers():
    return [p.pid for p in psutil.Process().children(recursive=True) if is_tracker(p)]

OPTIONS = {
    "max_tasks_per_child": {"max_tasks_per_child": 1},
    "idle_timeout": {"min_spare_workers": 0, "idle_timeout": 0.01},
}

def let_leave(executor, way, pid):
    if way == "reload":
        executor.reload().result(60)
    elif way == "SIGKILL":
        executor.submit(kill_own_worker).exception(60)
    elif way == "kill_workers":
        executor.kill_workers()
    elif way == "supervisor":
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    eventually(lambda: has_ended(pid))
"""

WAYS = [
    *("max_tasks_per_child", "idle_timeout", "reload"),
    *("SIGKILL", "kill_workers", "supervisor", "shutdown"),
]


def run(directory: Path, method: str, program: str, *args: str) -> str:
    return run_script(directory, COMMON + program, method, *args)


@pytest.mark.parametrize("way", WAYS)
def test_a_block_that_a_task_has_made_outlives_its_worker(
    way: str, start_method: str, tmp_path: Path
) -> None:
    program = """
if __name__ == "__main__":
    (way,) = REST
    with PreforkExecutor(1, METHOD, **OPTIONS.get(way, {})) as executor:
        name, pid = executor.submit(make).result(60)
        if way != "shutdown":
            let_leave(executor, way, pid)
        eventually(lambda: len(trackers()) == 1)
    eventually(lambda: has_ended(pid))
    assert resource_tracker._resource_tracker._pid in trackers()
    print(use_up(name))
"""
    assert run(tmp_path, start_method, program, way) == "42\n"


@pytest.mark.parametrize("way", ["max_tasks_per_child", "SIGKILL"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_block_of_the_callers_outlives_workers_that_attached_it(
    way: str, is_first: bool, start_method: str, tmp_path: Path
) -> None:
    program = """
if __name__ == "__main__":
    way, is_first = REST
    name = make()[0] if is_first == "True" else None
    with PreforkExecutor(1, METHOD, **OPTIONS.get(way, {})) as executor:
        executor.submit(abs, -1).result(60)
        name = name or make()[0]
        value, pid = executor.submit(attach, name).result(60)
        let_leave(executor, way, pid)
        assert len(trackers()) == 1
    print(value, use_up(name))
"""
    assert run(tmp_path, start_method, program, way, str(is_first)) == "42 42\n"


def test_a_block_made_in_the_worker_of_a_nested_executor_outlives_both(
    start_method: str, tmp_path: Path
) -> None:
    program = """
def make_nested():
    with PreforkExecutor(1, METHOD) as executor:
        return executor.submit(make).result(60)

if __name__ == "__main__":
    with PreforkExecutor(1, METHOD, max_tasks_per_child=1) as executor:
        pid = executor.submit(os.getpid).result(60)
        name, inner = executor.submit(make_nested).result(60)
        eventually(lambda: has_ended(inner))
        assert len(trackers()) == 1
    print(use_up(name))
"""
    assert run(tmp_path, start_method, program) == "42\n"


def test_what_a_manager_of_the_callers_has_outlives_the_workers(
    start_method: str, tmp_path: Path
) -> None:
    program = """
def put(shared, queue, i):
    shared[i] = os.getpid()
    queue.put(i)

if __name__ == "__main__":
    with multiprocessing.get_context(METHOD).Manager() as manager:
        shared, queue = manager.dict(), manager.Queue()
        with PreforkExecutor(1, METHOD, max_tasks_per_child=1) as executor:
            for i in range(3):
                executor.submit(put, shared, queue, i).result(60)
        print(sorted(queue.get() for _ in range(3)), len(set(shared.values())))
"""
    assert run(tmp_path, start_method, program) == "[0, 1, 2] 3\n"


def test_a_semaphore_of_the_callers_outlives_the_workers_that_use_it(
    start_method: str, tmp_path: Path
) -> None:
    program = """
def keep(given):
    global semaphore
    semaphore = given

def acquire():
    return semaphore.acquire(timeout=0.01), os.getpid()

if __name__ == "__main__":
    semaphore = multiprocessing.get_context(METHOD).Semaphore(3)
    with PreforkExecutor(1, METHOD, keep, (semaphore,), max_tasks_per_child=1) as executor:
        got = [executor.submit(acquire).result(60) for _ in range(4)]
        executor.submit(kill_own_worker).exception(60)
        semaphore.release()
        print([is_got for is_got, _ in got], executor.submit(acquire).result(60)[0])
"""
    assert run(tmp_path, start_method, program) == "[True, True, True, False] True\n"


def test_what_nobody_has_unlinked_is_unlinked_when_the_program_ends(
    start_method: str, tmp_path: Path
) -> None:
    program = """
if __name__ == "__main__":
    with PreforkExecutor(1, METHOD, max_tasks_per_child=1) as executor:
        print(executor.submit(make).result(60)[0])
"""
    path = tmp_path / "script.py"
    path.write_text(COMMON + program)
    command = [sys.executable, str(path), start_method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=True)
    # Its standard error ends when the tracker does.
    assert "1 leaked shared_memory object" in done.stderr
    assert not (Path("/dev/shm") / done.stdout.strip()).exists()


# --- with fork, the tracker is started when somebody needs it -------------------------------


def test_a_pool_whose_tasks_share_no_memory_starts_no_tracker(tmp_path: Path) -> None:
    program = """
def tries():
    for _ in range(2):
        with PreforkExecutor(2, METHOD, max_tasks_per_child=1) as executor:
            list(executor.map(abs, range(5)))
            before = trackers()
        yield before + trackers()

if __name__ == "__main__":
    finders = list(sys.meta_path)
    print(*tries(), finders == sys.meta_path, resource_tracker._resource_tracker._fd)
    name, _ = make()
    print(len(trackers()), use_up(name))
"""
    assert run(tmp_path, "fork", program) == "[] [] True None\n1 42\n"


def test_a_program_that_has_not_imported_what_it_needs_for_shared_memory_shares_it_all_the_same(
    tmp_path: Path,
) -> None:
    program = program_text("late_shared_memory")
    assert run_script(tmp_path, program) == "42\n42\n"


def test_the_caller_and_several_pools_share_one_tracker(tmp_path: Path) -> None:
    program = """
if __name__ == "__main__":
    first, second = PreforkExecutor(1, METHOD), PreforkExecutor(1, METHOD)
    first.submit(abs, -1).result(60)
    second.submit(abs, -1).result(60)
    first.shutdown()
    names = [make()[0], second.submit(make).result(60)[0]]
    with PreforkExecutor(1, METHOD) as third:
        names.append(third.submit(make).result(60)[0])
    second.shutdown()
    print(len(trackers()), *map(use_up, names))
"""
    assert run(tmp_path, "fork", program) == "1 42 42 42\n"


def test_what_the_caller_alone_has_made_is_tracked_even_if_the_pool_ends_at_once(
    tmp_path: Path,
) -> None:
    program = """
if __name__ == "__main__":
    with PreforkExecutor(1, METHOD) as executor:
        executor.submit(abs, -1).result(60)
        name, _ = make()
    eventually(trackers)
    print(use_up(name))
"""
    assert run(tmp_path, "fork", program) == "42\n"


def test_a_process_that_the_caller_starts_beside_the_pool_shares_its_tracker(
    tmp_path: Path,
) -> None:
    program = """
def make_and_send(end):
    end.send(make())

if __name__ == "__main__":
    with PreforkExecutor(1, METHOD) as executor:
        executor.submit(abs, -1).result(60)
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context(METHOD).Process(target=make_and_send, args=(there,))
        process.start()
        name, _ = here.recv()
        process.join()
        eventually(trackers)
    print(len(trackers()), use_up(name))
"""
    assert run(tmp_path, "fork", program) == "1 42\n"


def test_an_executor_in_a_fork_of_a_process_that_has_one_has_a_tracker_too(tmp_path: Path) -> None:
    program = """
if __name__ == "__main__":
    with PreforkExecutor(1, METHOD) as executor:
        executor.submit(abs, -1).result(60)
        pid = os.fork()
        if not pid:
            with PreforkExecutor(1, METHOD, max_tasks_per_child=1) as own:
                name, worker = own.submit(make).result(60)
                eventually(lambda: has_ended(worker))
            print(use_up(name), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
"""
    assert run(tmp_path, "fork", program) == "42\n"
