"""What a worker has set up for its end happens at its end, and nothing of other processes'."""

from __future__ import annotations

import atexit
import gzip
import logging
import logging.handlers
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from scripts import SUPPORT, program_text, run_script
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, yell
from prefork_executor._pool import leaving

kept: dict[str, Any] = {}
finalized = threading.Event()


class Anything:
    """Something that a weakref can refer to."""


def note(witness: Path, what: str) -> None:
    with witness.open("a") as file:
        file.write(f"{what}\n")


def notes(witness: Path) -> list[str]:
    return witness.read_text().splitlines() if witness.exists() else []


def note_after_the_finalizer(witness: Path) -> None:
    finalized.wait(BOUND)
    note(witness, "thread")


def finalize(witness: Path) -> None:
    note(witness, "finalizer")
    finalized.set()


def set_up_ends(directory: Path) -> int:
    """Returns the worker's process id."""
    witness = directory / "witness"
    threading.Thread(target=note_after_the_finalizer, args=(witness,)).start()
    atexit.register(note, witness, "atexit")
    kept["object"] = Anything()
    weakref.finalize(kept["object"], note, witness, "weakref.finalize")
    multiprocessing.util.Finalize(None, note, (witness, "Finalize"), exitpriority=1)
    kept["directory"] = tempfile.TemporaryDirectory(dir=directory)
    kept["file"] = (directory / "file").open("w")
    kept["file"].write("what was written")
    kept["packed"] = gzip.open(directory / "packed", "wt")  # noqa: SIM115
    kept["packed"].write("what was packed")
    target = logging.FileHandler(directory / "log")
    handler = logging.handlers.MemoryHandler(1000, target=target)
    logging.getLogger("ends").addHandler(handler)
    logging.getLogger("ends").warning("what was logged")
    return os.getpid()


def all_ends_are_met(directory: Path) -> None:
    done = notes(directory / "witness")
    assert done[:2] == ["finalizer", "thread"]
    assert done[2:] == ["atexit", "weakref.finalize", "Finalize"]
    assert sorted(path.name for path in directory.iterdir()) == ["file", "log", "packed", "witness"]
    assert (directory / "file").read_text() == "what was written"
    with gzip.open(directory / "packed", "rt") as file:
        assert file.read() == "what was packed"
    assert (directory / "log").read_text() == "what was logged\n"


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


PEACEFUL: dict[str, dict[str, Any]] = {
    "max_tasks_per_child": {"max_tasks_per_child": 1},
    "max_memory_per_child": {"max_memory_per_child": 1},
    "idle_timeout": {"min_spare_workers": 0, "idle_timeout": 0.01},
    "reload": {},
}


@pytest.mark.parametrize("way", PEACEFUL)
def test_all_that_a_worker_set_up_for_its_end_is_done_while_the_pool_goes_on(
    way: str, start_method: str, tmp_path: Path
) -> None:
    options = {"finalizer": finalize, "finalargs": (tmp_path / "witness",), **PEACEFUL[way]}
    with PreforkExecutor(1, start_method, **options) as executor:
        pid = executor.submit(set_up_ends, tmp_path).result(BOUND)
        if way == "reload":
            executor.reload().result(BOUND)
        eventually(lambda: has_ended(pid))
        all_ends_are_met(tmp_path)


def test_all_that_a_worker_set_up_for_its_end_is_done_at_shutdown(
    start_method: str, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    with PreforkExecutor(1, start_method, finalizer=finalize, finalargs=(witness,)) as executor:
        executor.submit(set_up_ends, tmp_path).result(BOUND)
    all_ends_are_met(tmp_path)


def test_all_that_a_worker_set_up_for_its_end_is_done_at_the_end_of_the_program(
    start_method: str, tmp_path: Path
) -> None:
    (tmp_path / "worker").mkdir()
    program = program_text("exit_hooks_of_workers")
    run_script(tmp_path, program, start_method, str(Path(__file__).parent), str(SUPPORT))
    all_ends_are_met(tmp_path / "worker")


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_files_and_log_handlers_of_the_main_module_lose_nothing(
    method: str, tmp_path: Path
) -> None:
    program = program_text("files_of_main")
    assert run_script(tmp_path, program, method) == "10 10\n"


def test_a_forked_worker_does_and_writes_nothing_of_what_is_the_callers(tmp_path: Path) -> None:
    program = program_text("exit_of_forked_workers")
    assert run_script(tmp_path, program) == "True  \n"
    done = notes(tmp_path / "witness")
    assert done[:4] == ["worker"] * 4
    assert sorted(done[4:]) == ["Finalize", "atexit", "weakref.finalize"]
    assert (tmp_path / "file").read_text() == "the caller's"
    assert (tmp_path / "log").read_text() == "the caller's\n"


# --- what goes wrong at an end ------------------------------------------------------------


def raise_system_exit() -> None:
    sys.exit("this is no end")


def set_up_failing_ends(directory: Path) -> None:
    set_up_ends(directory)
    atexit.register(raise_system_exit)
    kept["other"] = Anything()
    weakref.finalize(kept["other"], raise_system_exit)
    for priority in (-1, 2):
        multiprocessing.util.Finalize(None, raise_system_exit, exitpriority=priority)


class FailingHandler(logging.Handler):
    def flush(self) -> None:
        raise RuntimeError("no flush")


def finalize_and_fail(witness: Path) -> None:
    logging.getLogger("ends").addHandler(FailingHandler())
    finalize(witness)
    raise SystemExit(3)


def test_what_raises_at_an_end_keeps_nothing_else_from_being_done(
    start_method: str, tmp_path: Path
) -> None:
    options = {"finalizer": finalize_and_fail, "finalargs": (tmp_path / "witness",)}
    with PreforkExecutor(1, start_method, **options) as executor:
        executor.submit(set_up_failing_ends, tmp_path).result(BOUND)
    all_ends_are_met(tmp_path)


def fork_and_let_the_copy_return(*_: object) -> None:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)


def set_up_ends_that_fork(directory: Path) -> None:
    set_up_ends(directory)
    fork_and_let_the_copy_return()


def finalize_and_fork(witness: Path) -> None:
    finalize(witness)
    fork_and_let_the_copy_return()


def test_a_copy_that_somebody_forked_off_a_worker_does_nothing_of_it(
    start_method: str, tmp_path: Path
) -> None:
    options = {
        "initializer": fork_and_let_the_copy_return,
        "finalizer": finalize_and_fork,
        "finalargs": (tmp_path / "witness",),
    }
    with PreforkExecutor(1, start_method, **options) as executor:
        executor.submit(set_up_ends_that_fork, tmp_path).result(BOUND)
        assert len(executor.stats().workers) == 1
    all_ends_are_met(tmp_path)


# --- the finalizer ------------------------------------------------------------------------


def test_a_finalizer_may_travel_by_value_and_may_yell(start_method: str) -> None:
    heard = []
    options: dict[str, Any] = {
        "finalizer": lambda word: yell((word, os.getpid())),
        "finalargs": ("farewell",),
        "on_yell": lambda _pid, data: heard.append(data),
    }
    with PreforkExecutor(1, start_method, **options) as executor:
        pid = executor.submit(os.getpid).result(BOUND)
    assert heard == [("farewell", pid)]


def log_to(path: Path) -> None:
    logger = logging.getLogger("prefork_executor")
    logger.addHandler(logging.FileHandler(path))


def test_what_a_finalizer_raises_is_logged_and_that_is_all(
    start_method: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options: dict[str, Any] = {
        "initializer": log_to,
        "initargs": (log,),
        "finalizer": divmod,
        "finalargs": (1, 0),
    }
    with PreforkExecutor(1, start_method, max_tasks_per_child=1, **options) as executor:
        pid = executor.submit(os.getpid).result(BOUND)
        eventually(lambda: has_ended(pid))
        assert executor.submit(abs, -1).result(BOUND) == 1
    logged = log.read_text()
    assert f"the finalizer failed in worker {pid}\nTraceback" in logged
    assert "ZeroDivisionError" in logged


def test_a_finalizer_is_called_once_even_if_the_worker_never_had_a_task(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    options = {"finalizer": note, "finalargs": (witness, "finalizer")}
    with PreforkExecutor(3, "fork", start_workers=3, idle_timeout=None, **options) as executor:
        executor.submit(abs, -1).result(BOUND)
        eventually(lambda: len(executor.stats().workers) == 3)
    assert notes(witness) == ["finalizer"] * 3


def kill_own_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold(witness: Path) -> None:
    note(witness, "busy")
    time.sleep(BOUND)


def abort(executor: PreforkExecutor, witness: Path) -> None:
    future = executor.submit(hold, witness)
    eventually(lambda: notes(witness))
    executor.abort(future)


KILLS: dict[str, Callable[[PreforkExecutor, Path], object]] = {
    "kill_workers": lambda executor, _: executor.kill_workers(),
    "terminate_workers": lambda executor, _: executor.terminate_workers(),
    "SIGKILL": lambda executor, _: executor.submit(kill_own_worker).exception(BOUND),
    "abort": abort,
    "time limit": lambda executor, witness: executor.with_options(timeout=0.01).submit(
        hold, witness
    ),
}


def note_pid(witness: Path) -> None:
    note(witness, f"finalizer {os.getpid()}")


@pytest.mark.parametrize("way", KILLS)
def test_a_finalizer_is_not_called_in_a_worker_that_is_killed(way: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    options = {"finalizer": note_pid, "finalargs": (witness,), "idle_timeout": None}
    with PreforkExecutor(1, "fork", **options) as executor:
        pid = executor.submit(os.getpid).result(BOUND)
        KILLS[way](executor, witness)
        eventually(lambda: has_ended(pid))
    assert f"finalizer {pid}" not in notes(witness)


def fail() -> None:
    raise ValueError("no start")


def test_a_finalizer_is_not_called_if_the_initializer_failed(
    start_method: str, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    options = {"initializer": fail, "finalizer": note, "finalargs": (witness, "finalizer")}
    with PreforkExecutor(1, start_method, **options) as executor:
        with pytest.raises(BrokenProcessPool, match="no start"):
            executor.submit(abs, -1).result(BOUND)
    assert notes(witness) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finalizer": 3}, "finalizer must be callable or None, not int"),
        ({"finalargs": 3}, "finalargs must be iterable, not int"),
    ],
)
def test_a_bad_finalizer_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        PreforkExecutor(1, **options)


def test_a_finalizer_that_cannot_travel_is_named(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with PreforkExecutor(1, "spawn", finalizer=print, finalargs=(1, file)) as executor:
            with pytest.raises(Exception, match=r"finalargs\[1\]"):
                executor.submit(abs, -1)


def test_a_finalizer_that_takes_too_long_is_killed_with_its_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(leaving, "LEAVE_WITHIN", 0.1)
    with PreforkExecutor(1, "fork", finalizer=time.sleep, finalargs=(BOUND,)) as executor:
        pid = executor.submit(os.getpid).result(BOUND)
    assert has_ended(pid)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_what_main_has_left_for_its_end_is_done_in_every_process_that_has_imported_it(
    tmp_path: Path, start_method: str
) -> None:
    for folder in ("scratch", "imported", "ended"):
        (tmp_path / folder).mkdir()
    printed = run_script(
        tmp_path,
        """
        import atexit, os, sys, tempfile, threading
        from pathlib import Path
        from prefork_executor import PreforkExecutor

        scratch = tempfile.TemporaryDirectory(dir="scratch")
        atexit.register(lambda: Path("ended", str(os.getpid())).touch())
        Path("imported", str(os.getpid())).touch()

        if __name__ == "__main__":
            with PreforkExecutor(2, sys.argv[1]) as executor:
                assert executor.submit(os.getpid).result() != os.getpid()
            imported = {*os.listdir("imported")} - {str(os.getpid())}
            print(len(imported) > 0, imported == {*os.listdir("ended")}, os.listdir("scratch"))
            print([os.path.basename(scratch.name)])
        """,
        start_method,
    )
    told, own = printed.splitlines()
    assert told == f"True True {own}"
