"""What README.md and the pages claim has a proof. claims.toml and raw_claims.toml have the list."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import psutil
import pytest
from claims import Claim, claims
from light_tasks import wait_for
from scripts import run_script
from waiting import BOUND, eventually

from prefork_executor import Pool, PreforkExecutor, TaskTimeout, shared
from prefork_executor.raw import PreforkPool

ROOT = Path(__file__).parents[2]
CLAIMS = list(claims())
NOT_LISTED = {
    "api.md": "it has the docstrings",
    "design.md": "it is about the code",
    "troubleshooting.md": "it says what to do",
    "tutorial.md": "it has examples, which are run",
}
"""Pages without a claim of their own."""


@pytest.mark.parametrize("page", sorted({claim.page for claim in CLAIMS}))
def test_each_claim_of_a_page_is_made_there_and_its_proofs_exist(page: str) -> None:
    of_page = [claim for claim in CLAIMS if claim.page == page]
    assert [claim.says for claim in of_page if not claim.is_said()] == []
    assert {claim.says: claim.missing() for claim in of_page if claim.missing()} == {}


def test_a_claim_that_is_not_made_and_a_proof_that_does_not_exist_are_noticed() -> None:
    assert not Claim("README.md", "The pool never grows.", []).is_said()
    there = "test_claims.py::one_command_lists_them"
    gone = ["test_claims.py::no_such_test", "test_no_such_file.py", "docs/figures/none.json"]
    assert Claim("README.md", "", [there, *gone]).missing() == gone


def test_every_page_has_a_claim_or_a_reason_to_have_none() -> None:
    pages = {"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}
    listed = {claim.page for claim in CLAIMS} | {f"docs/{name}" for name in NOT_LISTED}
    assert pages == listed


def test_one_command_lists_them() -> None:
    command = [sys.executable, str(ROOT / "tests" / "docs" / "claims.py")]
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=BOUND, check=True
    ).stdout
    assert all(claim.says in printed for claim in CLAIMS)


# --- claims that no other test is about -----------------------------------------------------------


def test_the_import_refuses_a_system_without_fork() -> None:
    program = "import os; del os.fork; import prefork_executor"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND, check=False
    )
    assert "ImportError: prefork_executor needs a POSIX system with fork()" in done.stderr


def threads_of_the_supervisor() -> int:
    return len(os.listdir(f"/proc/{os.getppid()}/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_supervisor_has_one_thread(method: str) -> None:
    with PreforkExecutor(1, method) as executor:
        assert executor.submit(threads_of_the_supervisor).result(BOUND) == 1


def memory_that_backs(array: np.ndarray) -> str:  # type: ignore[type-arg]
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line
    raise LookupError(hex(address))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs memfds")
def test_a_large_argument_lies_in_memory_that_is_no_copy_of_the_workers() -> None:
    with PreforkExecutor(1) as executor:
        told = executor.submit(memory_that_backs, np.zeros(1 << 20)).result(BOUND)
    assert "memfd:" in told


def total(array: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(array.sum())


def test_a_large_array_is_copied_when_its_task_is_sent_and_a_small_one_at_submit(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1) as executor:
        blockers = [executor.submit(wait_for, str(gate)) for _ in range(10)]
        eventually(lambda: executor.stats().waiting, "there are more than can be sent ahead")
        large, small = np.zeros(1 << 16, "u1"), np.zeros(1 << 10, "u1")
        futures = [executor.submit(total, array) for array in (large, small)]
        large[:] = small[:] = 1
        gate.touch()
        assert [future.result(BOUND) for future in futures] == [1 << 16, 0]
        assert not any(blocker.exception() for blocker in blockers)


now = "before the start"


def what_it_is_now(_: object = None) -> str:
    return now


def test_workers_do_not_see_what_is_changed_in_a_module_after_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By any other start method they import the module for themselves.
    with PreforkExecutor(1, "fork", max_tasks_per_child=1) as executor:
        assert executor.submit(what_it_is_now).result(BOUND) == "before the start"
        monkeypatch.setattr(sys.modules[__name__], "now", "after it")
        assert set(executor.map(what_it_is_now, range(3))) == {"before the start"}


def test_from_3_13_on_no_handler_runs_in_a_computing_process_that_a_thread_has_forked() -> None:
    program = """
import os, signal, threading

heard, told = [], []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
ready, begun = os.pipe()
came, come = os.pipe()  # Where C notes a signal, whenever Python hears of it.
os.set_blocking(come, False)
os.set_blocking(came, False)
signal.set_wakeup_fd(come)

def note():
    try:
        return os.read(came, 1)
    except BlockingIOError:
        return b""

def run():
    if child := os.fork():
        os.read(ready, 1)
        os.kill(child, signal.SIGUSR1)
        told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return
    os.write(begun, b"x")
    while not note():
        pass
    for _ in range(1_000_000):
        pass
    os._exit(len(heard))

run()
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(told)
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=True)
    has_the_bug = sys.version_info >= (3, 13)
    assert done.stdout == ("[1, 0]\n" if has_the_bug else "[1, 1]\n")


def test_a_chunk_is_one_task_of_those_after_which_a_worker_is_replaced() -> None:
    with PreforkExecutor(1, max_tasks_per_child=2) as executor:
        pids = list(executor.map(pid_of_worker, range(20), chunksize=5))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10]


def pid_of_worker(_: object) -> int:
    return os.getpid()


def test_a_chunk_has_the_time_of_one_task(tmp_path: Path) -> None:
    never = str(tmp_path / "never")
    with PreforkExecutor(1, task_timeout=0.3) as executor:
        results = executor.map(wait_if, [0, 0, 1, 0], [never] * 4, chunksize=4)
        with pytest.raises(TaskTimeout):
            next(results)


def wait_if(waits: int, path: str) -> None:
    if waits:
        wait_for(path)


def test_what_map_returns_is_no_generator_but_its_iterator_is_one() -> None:
    with PreforkExecutor(1) as executor:
        results = executor.map(abs, range(3))
        assert not inspect.isgenerator(results)
        assert not any(hasattr(results, name) for name in ("send", "throw", "gi_frame"))
        assert inspect.isgenerator(iter(results))
        assert list(results) == [0, 1, 2]


def manager_of_a_task() -> int:
    global kept  # As what a program keeps in its worker.
    kept = multiprocessing.Manager()
    return int(kept._process.pid)


def is_kept() -> bool:
    return "kept" in globals()


def test_a_manager_and_globals_go_with_their_worker() -> None:
    with PreforkExecutor(1, max_tasks_per_child=2) as executor:
        manager = executor.submit(manager_of_a_task).result(BOUND)
        assert executor.submit(is_kept).result(BOUND)
        assert not executor.submit(is_kept).result(BOUND)
        eventually(lambda: not psutil.pid_exists(manager), "the manager ends")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_no_worker_is_started_for_tasks_that_memory_holds_back(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with PreforkExecutor(4, max_memory=100 << 20, idle_timeout=None) as executor:
        large = executor.with_options(memory=80 << 20)
        futures = [large.submit(wait_for, gate) for _ in range(4)]
        eventually(lambda: executor.stats().memory.held == 3, "three are held")  # type: ignore[union-attr]
        eventually(lambda: executor.stats().idle == 1, "the spare one is there")
        assert len(executor.stats().workers) == 2
        Path(gate).touch()
        assert all(future.result(BOUND) for future in futures)


def test_joblibs_pool_has_the_defaults_of_the_page() -> None:
    joblib = pytest.importorskip("joblib")
    import prefork_executor.integrations.joblib as integration

    page = (ROOT / "docs" / "joblib.md").read_text(encoding="utf-8")
    table = page[page.index("| option | default |") :]
    try:
        joblib.Parallel(2, backend="prefork")(joblib.delayed(abs)(x) for x in range(3))
        options = shared.shared_options()
        values = {**options, "mp_context": options["mp_context"].get_start_method()}
        for name in ("mp_context", "min_spare_workers", "idle_timeout", "preload"):
            value = values[name]
            said = f'`"{value}"`' if isinstance(value, str) else str(value)
            assert f"| `{name}` | {said}" in table
    finally:
        integration.shutdown()


def test_raw_options_have_the_defaults_of_the_page() -> None:
    page = (ROOT / "docs" / "raw.md").read_text(encoding="utf-8")
    table = page[page.index("| option | default | |") : page.index("What else is different")]
    defaults = PreforkPool.__init__.__kwdefaults__
    assert defaults
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]+) \|", table, re.MULTILINE)
    said = {}
    for names, cell in rows:
        *firsts, last = re.findall(r"`(\w+)`", names)
        values = [ast.literal_eval(value.strip("` ")) for value in cell.split(";")]
        said |= dict.fromkeys(firsts, values[0]) | {last: values[-1]}
    # These may be lowered. test_the_defaults_are_those_of_the_original has their values.
    may_be_lowered = {"min_spare_servers", "max_spare_servers", "start_servers"}
    assert said.keys() == defaults.keys()
    assert {name for name in said if said[name] != defaults[name]} == may_be_lowered


# --- claims about a Pool ----------------------------------------------------------------------


def test_a_map_of_a_pool_makes_four_chunks_for_each_worker() -> None:
    with Pool(2, maxtasksperchild=1) as pool:
        pids = pool.map(pid_of_worker, range(80))
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10] * 8


def refuse_to_begin() -> None:
    raise LookupError("no table")


def test_the_initializer_of_a_pool_may_raise_and_is_named() -> None:
    with Pool(1, refuse_to_begin) as pool:
        with pytest.raises(BrokenProcessPool, match=r"LookupError.*no table"):
            pool.apply(abs, (-1,))


def test_a_task_of_a_pool_may_exit() -> None:
    with Pool(1) as pool:
        with pytest.raises(SystemExit, match="3"):
            pool.apply(sys.exit, (3,))
        assert pool.apply(abs, (-1,)) == 1


def test_no_thread_may_use_a_pool_after_the_main_thread_has_ended(tmp_path: Path) -> None:
    program = """
        import threading
        from prefork_executor import Pool

        def use(pool):
            threading.main_thread().join()
            try:
                pool.apply(abs, (-1,))
            except ValueError as error:
                print(error)

        if __name__ == "__main__":
            pool = Pool(1)
            threading.Thread(target=use, args=(pool,)).start()
        """
    assert run_script(tmp_path, program) == "Pool not running\n"
