"""What workers share of the main module under spawn and forkserver, and what they do not.

Each program opens something as its main module is imported. Under ProcessPoolExecutor every
worker has its own of that. Here as well; and where a module leaves nothing of the kind behind,
one import serves all workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest
from scripts import program_text, run_python, run_script
from waiting import BOUND

from prefork_executor import PreforkExecutor

CLEAN = pytest.mark.parametrize("method", ["forkserver", "spawn"])
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.environ.get("PREFORK_EXECUTOR_FALLBACK") == "1",
    reason="without /proc nothing is shared",
)

HEAD = """
import multiprocessing, os, socket, subprocess, sys, threading, time
from prefork_executor import PreforkExecutor

def note_import():
    with open("imports", "a") as file:
        print("x", file=file)

if __name__ != "__main__":
    note_import()
"""
TAIL = """
def task(number):
    time.sleep(0.05)
    return os.getpid(), look()

if __name__ == "__main__":
    with PreforkExecutor(2, sys.argv[1], start_workers=2, min_spare_workers=2) as executor:
        found = list(executor.map(task, range(8)))
        print(len({pid for pid, _ in found}), sorted({what for _, what in found}))
        print("; ".join(executor.stats().main_not_shared))
"""


def imports(directory: Path) -> int:
    return len((directory / "imports").read_text().split())


def run(directory: Path, method: str, source: str) -> tuple[str, str]:
    """What the tasks of two workers have seen, and what stood in the way of sharing."""
    seen, reasons = run_script(directory, HEAD + source + TAIL, method).splitlines()
    return seen, reasons


# --- where nothing is in the way --------------------------------------------------------------


@linux
@CLEAN
def test_one_import_of_main_serves_all_workers(method: str, tmp_path: Path) -> None:
    seen, reasons = run(tmp_path, method, "def look(): return 'fine'")
    assert (seen, reasons) == ("2 ['fine']", "")
    assert imports(tmp_path) == 1


# --- where something is -----------------------------------------------------------------------

THREAD = """
lock, beats = threading.Lock(), [0]
def beat():
    while True:
        with lock:
            beats[0] += 1
            time.sleep(0.02)
        time.sleep(0.001)
threading.Thread(target=beat, name="heartbeat", daemon=True).start()
def look():
    free = lock.acquire(timeout=30)
    if free:
        lock.release()
    before, end = beats[0], time.monotonic() + 30
    while beats[0] == before and time.monotonic() < end:
        time.sleep(0.01)
    return free and beats[0] > before
"""
FILE = """
file = open(__file__, "rb")
def look():
    file.seek(0)
    return len(file.read()) == os.path.getsize(__file__)
"""
CHILD = """
# It ends with the process that has started it, at the latest.
child = subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE)
if __name__ == "__main__":
    child.kill()
    child.wait()
def look():
    child.kill()  # Whose child it is, can wait for it.
    return child.wait(30) == -9
"""
CONNECTION = """
ends = socket.socketpair()
def look():
    word = b"%d" % os.getpid()
    ends[0].send(word)
    return ends[1].recv(100) == word
"""


@CLEAN
@pytest.mark.parametrize(
    ("source", "name"),
    [(THREAD, "heartbeat"), (FILE, "file"), (CHILD, "child"), (CONNECTION, "ends")],
    ids=["thread", "file", "child", "connection"],
)
def test_each_worker_has_its_own_of_what_cannot_be_shared(
    source: str, name: str, method: str, tmp_path: Path
) -> None:
    seen, reasons = run(tmp_path, method, source)
    assert seen == "2 [True]"
    assert imports(tmp_path) >= 2
    assert name in reasons or os.environ.get("PREFORK_EXECUTOR_FALLBACK")


# --- the option ---------------------------------------------------------------------------------

OPTION = """
held = socket.socketpair()
def task(_):
    time.sleep(0.05)
    return os.getpid()
if __name__ == "__main__":
    share = {"True": True, "False": False}.get(sys.argv[2], "auto")
    with PreforkExecutor(2, sys.argv[1], min_spare_workers=2, share_main=share) as executor:
        assert len(set(executor.map(task, range(8)))) <= 2
        print(executor.stats().main_not_shared)
"""


@linux
@CLEAN
def test_who_asks_for_it_shares_main_whatever_it_holds(method: str, tmp_path: Path) -> None:
    assert run_script(tmp_path, HEAD + OPTION, method, "True") == "()\n"
    assert imports(tmp_path) == 1


@CLEAN
def test_who_asks_for_it_has_main_imported_by_every_worker(method: str, tmp_path: Path) -> None:
    source = HEAD + OPTION.replace("held = socket.socketpair()", "")
    assert "share_main is False" in run_script(tmp_path, source, method, "False")
    assert imports(tmp_path) >= 1


def test_share_main_is_checked_where_it_is_given() -> None:
    with pytest.raises(TypeError, match='share_main must be "auto", True or False, not int'):
        PreforkExecutor(share_main=1)
    with pytest.raises(ValueError, match=r"share_main must be .*, not 'always'"):
        PreforkExecutor(share_main="always")


# --- other ways to run a program ----------------------------------------------------------------

BY_VALUE = """
import socket, sys
from prefork_executor import PreforkExecutor
ends = socket.socketpair()
def double(x): return 2 * x
if __name__ == "__main__":
    with PreforkExecutor(2, sys.argv[1]) as executor:
        print(sum(executor.map(double, range(10))))
"""


@CLEAN
@pytest.mark.parametrize("how", ["-c", "-m", "stdin"])
def test_programs_without_a_file_work_too(how: str, method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(BY_VALUE)
    args = {"-c": ["-c", BY_VALUE], "-m": ["-m", "program"], "stdin": ["-"]}[how]
    text = BY_VALUE if how == "stdin" else None
    assert run_python(tmp_path, *args, method, text=text) == "90\n"


@CLEAN
def test_an_import_of_main_that_fails_breaks_the_pool_and_says_why(
    method: str, tmp_path: Path
) -> None:
    source = program_text("failing_import_of_main")
    first, second = run_script(tmp_path, source, method).splitlines()
    assert first.endswith("LookupError: no such table")
    assert "the main module could not be imported" in first
    assert "the main module could not be imported in worker" in second


# --- preload ------------------------------------------------------------------------------------


def leave_a_thread() -> None:
    import threading

    threading.Thread(target=time.sleep, args=(60,), name="left-behind", daemon=True).start()


def test_a_thread_that_preload_leaves_is_an_error_that_names_it(start_method: str) -> None:
    with PreforkExecutor(2, start_method, preload=leave_a_thread) as executor:
        with pytest.raises(BrokenProcessPool, match=r"preload failed.*thread 'left-behind'"):
            executor.submit(abs, 1).result(BOUND)


PRELOADED = """
table = []
def load():
    table.append(os.getpid())
def look():
    return len(table), len(set(table))
"""


@CLEAN
def test_a_preload_that_is_called_runs_in_each_worker_if_main_cannot_be_shared(
    method: str, tmp_path: Path
) -> None:
    source = PRELOADED + "held = socket.socketpair()\n"
    tail = TAIL.replace("start_workers=2", "start_workers=2, preload=load")
    seen, _ = run_script(tmp_path, HEAD + source + tail, method).splitlines()
    assert seen == "2 [(1, 1)]"


@linux
@CLEAN
def test_modules_that_preload_names_are_shared_though_main_cannot_be(
    method: str, tmp_path: Path
) -> None:
    (tmp_path / "preloaded.py").write_text(
        "with open('preloads', 'a') as file:\n    print('x', file=file)\n"
    )
    source = "held = socket.socketpair()\ndef look(): return 'preloaded' in sys.modules"
    tail = TAIL.replace("start_workers=2", "start_workers=2, preload='preloaded'")
    seen, _ = run_script(tmp_path, HEAD + source + tail, method).splitlines()
    assert seen == "2 [True]"
    assert len((tmp_path / "preloads").read_text().split()) == 1


# --- ends ---------------------------------------------------------------------------------------

HANGING = program_text("hanging_preload")


def test_a_preload_that_hangs_outlives_no_caller(start_method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(HANGING)
    program = psutil.Popen(
        [sys.executable, str(tmp_path / "script.py"), start_method], stdout=-1, cwd=tmp_path
    )
    with program.stdout:
        assert program.stdout.readline() == b"begun\n"
        family = program.children(recursive=True)
        program.kill()
        program.wait()
        _, alive = psutil.wait_procs(family, timeout=BOUND)
        assert alive == []


KILLED = program_text("killed_template")


@linux
@CLEAN
@pytest.mark.parametrize("whom", ["forker", "above", "both"])
def test_a_pool_goes_on_whichever_of_its_processes_is_killed(
    whom: str, method: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, "script.py", method, whom],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND * 2,
        check=False,
    )
    assert done.stdout == "[]\nTrue\n", done.stderr
    assert "starting another" in done.stderr


HANDLERS = """
import signal, sys
from prefork_executor import PreforkExecutor

signal.signal(signal.SIGUSR2, print)

def are_handled():
    return [callable(signal.getsignal(n)) for n in (signal.SIGUSR1, signal.SIGUSR2)]

if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1], preload=["handles_usr1"]) as executor:
        print(executor.submit(are_handled).result(60))
"""


@CLEAN
def test_workers_have_the_handlers_that_preload_and_main_have_installed(
    method: str, tmp_path: Path
) -> None:
    (tmp_path / "handles_usr1.py").write_text("import signal; signal.signal(10, print)\n")
    assert run_script(tmp_path, HANDLERS, method) == "[True, True]\n"
