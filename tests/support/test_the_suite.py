"""What the suite itself promises: it passes however it is started and whatever else the
machine does, and leaves nothing, even if it is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import leash
import psutil
import pytest
from belongings import Belongings
from injection import is_alive, lines
from namespaces import NAMESPACE, needs_namespace
from scripts import search_path
from waiting import BOUND, eventually

pytestmark = pytest.mark.skipif(not leash.IS_LINUX, reason="the leash is Linux's own")
PROJECT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts pytest on a test module of this source, under this suite's rules."""
    started: list[subprocess.Popen[str]] = []

    def start(
        source: str, *args: str, before: Sequence[str] = (), **options: object
    ) -> subprocess.Popen[str]:
        (tmp_path / "test_inner.py").write_text(textwrap.dedent(source))
        command = [*before, sys.executable, "-m", "pytest", "-c", str(PROJECT / "pyproject.toml")]
        command += ["-n", "0", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *args]
        environment = {**os.environ, "PYTHONPATH": search_path(PROJECT / "tests")}
        started.append(
            subprocess.Popen(  # type: ignore[call-overload]
                [*command, "-p", "conftest", str(tmp_path / "test_inner.py")],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                **options,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=BOUND)


def passed(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=2 * BOUND)
    assert process.returncode == 0, output


def ignore(*signals: signal.Signals) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def test_it_may_be_started_where_signals_are_ignored_or_blocked(start: Start) -> None:
    source = """
        import os, signal, subprocess, sys
        import pytest
        from waiting import BOUND

        def test_an_interrupt_is_heard():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

        @pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGALRM", "SIGUSR1"])
        def test_a_program_is_ended_by_a_signal(name):
            number = getattr(signal, name)
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            with subprocess.Popen(sleep) as program:
                program.send_signal(number)
                assert program.wait(BOUND) == -number
        """
    signals = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)
    passed(start(source, preexec_fn=lambda: ignore(*signals)))


def test_a_hangup_does_not_end_it_where_it_is_ignored(start: Start) -> None:
    source = """
        import os, signal

        def test_it_goes_on():
            os.kill(os.getpid(), signal.SIGHUP)
        """
    passed(start(source, preexec_fn=lambda: ignore(signal.SIGHUP)))


def test_what_another_program_has_in_shared_memory_is_no_fault_of_a_test(
    start: Start, tmp_path: Path
) -> None:
    source = f"""
        import os, time
        from waiting import eventually

        def test_another_program_makes_shared_memory_meanwhile():
            open({str(tmp_path / "running")!r}, "w").close()
            eventually(lambda: os.path.exists({str(tmp_path / "made")!r}))
        """
    inner = start(source)
    eventually((tmp_path / "running").exists, "the test runs")
    memory = SharedMemory(create=True, size=10)
    try:
        (tmp_path / "made").touch()
        passed(inner)
    finally:
        memory.close()
        memory.unlink()


def test_what_another_program_has_there_for_a_moment_is_none_either(start: Start) -> None:
    source = """
        import pytest

        @pytest.mark.parametrize("number", range(20))
        def test_nothing(number):
            pass
        """
    inner = start(source)
    deadline = time.monotonic() + 2 * BOUND
    blocks: list[SharedMemory] = []
    while inner.poll() is None and time.monotonic() < deadline:
        blocks.append(SharedMemory(create=True, size=10))
        time.sleep(0.001)  # Ten times that is less than it takes to look whose they are.
        for memory in blocks[:-10]:
            memory.close()
            memory.unlink()
        del blocks[:-10]
    for memory in blocks:
        memory.close()
        memory.unlink()
    passed(inner)


def test_what_this_run_has_in_shared_memory_counts() -> None:
    memory = SharedMemory(create=True, size=10)
    try:
        assert leash.of_others({memory.name}) == set()
    finally:
        memory.close()
        memory.unlink()


# --- named semaphores -----------------------------------------------------------------------------

MAKES_A_SEMAPHORE = """
import multiprocessing, os, signal, sys
from multiprocessing.resource_tracker import _resource_tracker

lock = multiprocessing.get_context("spawn").Lock()
if sys.argv[1] == "leave it":
    os.kill(_resource_tracker._pid, signal.SIGKILL)  # It would remove the semaphore.
print("sem." + lock._semlock.name.removeprefix("/"), flush=True)
if sys.argv[1] == "leave it":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


@contextlib.contextmanager
def semaphore_of_a_program(end: str, *, is_ours: bool) -> Iterator[str]:
    """The file of a semaphore that a program has made, of this run or of no test run at all."""
    environment = {n: value for n, value in os.environ.items() if is_ours or n != leash.MARK}
    with subprocess.Popen(
        [sys.executable, "-c", MAKES_A_SEMAPHORE, end],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        try:
            if end == "leave it":
                assert program.wait(BOUND) == -signal.SIGKILL
            assert os.path.exists(f"/dev/shm/{name}")
            yield name
        finally:
            if end == "leave it":
                os.unlink(f"/dev/shm/{name}")


def make_a_semaphore_and_die(connection: Connection) -> None:
    lock = multiprocessing.get_context("spawn").Lock()
    connection.send(lock._semlock.name)  # type: ignore[attr-defined]
    os.kill(os.getpid(), signal.SIGKILL)


def left_since(before: Belongings) -> list[object]:
    """What the suite would say that a test has left in shared memory."""
    return Belongings.now().beyond(before).get("shared memory", [])


@pytest.mark.parametrize("end", ["hold it", "leave it"])
def test_a_semaphore_of_another_program_is_no_fault_of_a_test(end: str) -> None:
    before = Belongings.now()
    with semaphore_of_a_program(end, is_ours=False):
        assert left_since(before) == []


def test_a_semaphore_that_a_program_of_a_test_holds_counts() -> None:
    before = Belongings.now()
    with semaphore_of_a_program("hold it", is_ours=True) as name:
        assert left_since(before) == [name]


def test_a_semaphore_that_a_killed_process_of_a_test_has_left_counts(start_method: str) -> None:
    context = multiprocessing.get_context(start_method)
    before = Belongings.now()
    ours, theirs = context.Pipe()
    process = context.Process(target=make_a_semaphore_and_die, args=(theirs,))
    process.start()
    name = ours.recv()
    process.join(BOUND)
    try:
        assert left_since(before) == [name.replace("/", "sem.")]
    finally:
        os.unlink(f"/dev/shm/{name.replace('/', 'sem.')}")
        resource_tracker.unregister(name, "semaphore")
        ours.close()
        theirs.close()
        process.close()


@pytest.mark.parametrize("processes", ["0", "1"], ids=["alone", "xdist"])
def test_nothing_of_it_is_left_when_it_is_killed(
    start: Start, tmp_path: Path, processes: str
) -> None:
    source = f"""
        import os, subprocess, sys, time
        from injection import lines
        from light_tasks import note, run_until
        from prefork_executor import PreforkExecutor

        STARTED = {str(tmp_path / "started")!r}

        def test_that_is_killed():
            note(STARTED, str(os.getpid()))
            if os.fork() == 0:
                os.setsid()
                note(STARTED, str(os.getpid()))
                time.sleep(600)
            sleep = f"import os, time; print(os.getpid(), flush=True); time.sleep(600)"
            with open(STARTED, "a") as file:
                subprocess.Popen([sys.executable, "-c", sleep], stdout=file, start_new_session=True)
            executors = [PreforkExecutor(1, method) for method in ("fork", "forkserver", "spawn")]
            for executor in executors:
                executor.submit(run_until, "never", STARTED)
            time.sleep(600)
        """
    inner = start(source, "-n", processes)
    started = tmp_path / "started"
    eventually(lambda: len(lines(started)) == 6 or inner.poll() is not None)
    everybody = [psutil.Process(int(line)) for line in lines(started)]
    assert len(everybody) == 6
    for process in list(everybody):
        with contextlib.suppress(psutil.NoSuchProcess):
            everybody += process.children(recursive=True)
    inner.kill()
    eventually(lambda: not any(map(is_alive, everybody)), "all have ended")


@needs_namespace
def test_it_may_be_the_first_process_of_a_container(start: Start) -> None:
    source = """
        import os, subprocess, sys
        import psutil
        from waiting import eventually

        def test_an_orphan_is_reaped():
            program = "import os; child = os.fork(); child and print(child)"
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
            eventually(lambda: not psutil.pid_exists(int(done.stdout)))
        """
    passed(start(source, before=NAMESPACE))
