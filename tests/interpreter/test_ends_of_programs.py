"""How whole programs end that use a pool: by Ctrl-C, by SIGKILL, by reaching their end,
in a fork. In each case soon, with no more noise than needed, and with nothing left.

Each program has a process group of its own, as at a terminal. Its processes are known by a
mark in their environment, whoever their parent is by then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from injection import is_alive, lines
from scripts import program_text, search_path
from waiting import BOUND, eventually

MARK = "PREFORK_EXECUTOR_TEST_PROGRAM"
PROLOGUE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""Whoever runs the suite may ignore Ctrl-C, and that is inherited."""


class Program:
    """A Python program, running."""

    def __init__(self, directory: Path, source: str, *args: str) -> None:
        self._mark = uuid.uuid4().hex
        self._errors = directory / "stderr"
        self._prints = directory / "stdout"
        self.started = directory / "started"
        path = directory / "program.py"
        path.write_text(PROLOGUE + textwrap.dedent(source))
        with self._errors.open("w") as errors, self._prints.open("w") as prints:
            self.process = subprocess.Popen(
                [sys.executable, str(path), *args, str(self.started)],
                env={**os.environ, "PYTHONPATH": search_path(), MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=prints,
                stderr=errors,
                start_new_session=True,
            )

    def at_work(self, *notes: str) -> None:
        """Wait until its tasks have noted all these."""
        eventually(
            lambda: set(notes) <= set(lines(self.started)) or self.process.poll() is not None,
            f"at work: {notes}",
        )
        assert self.process.poll() is None, self.errors

    def interrupt(self) -> None:
        """Ctrl-C: all processes of the group get the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def prints(self) -> str:
        return self._prints.read_text()

    def processes(self) -> list[psutil.Process]:
        """All that is left of it."""
        return [process for process in psutil.process_iter() if self._has_mark(process)]

    def _has_mark(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get(MARK) == self._mark and is_alive(process)
        return False

    def end(self) -> int:
        """Wait until it has ended and nothing of it is left. Returns its status."""
        status = self.process.wait(BOUND)
        eventually(lambda: not self.processes(), "nothing of it is left")
        return status

    def clean_up(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(BOUND)


Run = Callable[..., Program]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a program, and leaves nothing of it when the test fails."""
    programs: list[Program] = []

    def start(source: str, *args: str) -> Program:
        directory = tmp_path / str(len(programs))
        directory.mkdir()
        programs.append(Program(directory, source, *args))
        return programs[-1]

    yield start
    for program in programs:
        program.clean_up()


def record_seconds_since(at: float, request: pytest.FixtureRequest) -> None:
    request.node.user_properties.append(("seconds", round(time.monotonic() - at, 2)))


# --- Ctrl-C ---

MAP = """
    import sys, time
    from light_tasks import note
    from prefork_executor import PreforkExecutor

    def nap(number, seconds, started):
        note(started, "nap")
        time.sleep(seconds)

    def numbers(started):
        yield from range(10_000)
        note(started, "submitted")
        {then}

    if __name__ == "__main__":
        method, seconds, started = sys.argv[1], float(sys.argv[2]), sys.argv[3]
        with PreforkExecutor(2, method) as executor:
            options = [seconds] * 20_000, [started] * 20_000
            for _ in executor.map(nap, numbers(started), *options):
                pass
"""


def check_interrupted(program: Program, request: pytest.FixtureRequest) -> None:
    """Ctrl-C now ends it soon, and one traceback says why."""
    at = time.monotonic()
    program.interrupt()
    status = program.end()
    record_seconds_since(at, request)
    assert status == -signal.SIGINT
    assert program.errors.count("Traceback (most recent call last)") == 1, program.errors
    assert program.errors.endswith("KeyboardInterrupt\n")


def test_ctrl_c_ends_a_program_that_waits_for_a_map(
    start_method: str, run: Run, request: pytest.FixtureRequest
) -> None:
    program = run(MAP.format(then=""), start_method, "0.02")
    program.at_work("nap", "submitted")
    check_interrupted(program, request)


def test_ctrl_c_ends_a_program_whose_map_takes_its_arguments(
    run: Run, request: pytest.FixtureRequest
) -> None:
    """What it has submitted would run for two minutes."""
    program = run(MAP.format(then="time.sleep(600)"), "fork", "0.02")
    program.at_work("nap", "submitted")
    check_interrupted(program, request)


def test_ctrl_c_ends_a_program_whose_tasks_are_long(
    run: Run, request: pytest.FixtureRequest
) -> None:
    """Those that run are interrupted. Those that were sent ahead had better not begin."""
    program = run(MAP.format(then=""), "fork", "600")
    program.at_work("nap", "submitted")
    check_interrupted(program, request)


INITIALIZER = program_text("hanging_initializer")


def test_ctrl_c_ends_a_program_whose_workers_hang_in_their_initializer(
    start_method: str, run: Run, request: pytest.FixtureRequest
) -> None:
    program = run(INITIALIZER, start_method)
    program.at_work("here")
    at = time.monotonic()
    program.interrupt()
    status = program.end()
    record_seconds_since(at, request)
    assert status in (-signal.SIGINT, 1)
    assert "KeyboardInterrupt" in program.errors


IDLE = """
    import sys, time
    from light_tasks import note
    from prefork_executor import PreforkExecutor

    if __name__ == "__main__":
        executor = PreforkExecutor(3, sys.argv[1], min_spare_workers=2)
        print(executor.submit(pow, 2, 3).result(), flush=True)
        note(sys.argv[2], "here")
        time.sleep(600)
"""


def test_ctrl_c_ends_a_program_whose_pool_is_idle(start_method: str, run: Run) -> None:
    program = run(IDLE, start_method)
    program.at_work("here")
    program.interrupt()
    assert program.end() == -signal.SIGINT
    assert program.errors.count("Traceback (most recent call last)") == 1, program.errors


# --- SIGKILL ---

LONG_CALLS = program_text("long_calls_into_c")


def test_after_sigkill_nothing_is_left_though_workers_are_in_long_c_calls(
    start_method: str, run: Run, request: pytest.FixtureRequest
) -> None:
    program = run(LONG_CALLS, start_method)
    program.at_work("sum", "re", "nested")
    assert len(program.processes()) >= 7
    at = time.monotonic()
    program.process.kill()
    assert program.end() == -signal.SIGKILL
    record_seconds_since(at, request)


# --- the end of the program ---

NEVER_SHUT_DOWN = """
    import os, sys
    from prefork_executor import PreforkExecutor

    if __name__ == "__main__":
        executors = [PreforkExecutor(2, sys.argv[1], min_spare_workers=2) for _ in range(2)]
        for executor in executors:
            executor.submit(pow, 2, 3).result()
        {end}
"""


@pytest.mark.parametrize(
    ("end", "status", "complaint"),
    [("pass", 0, ""), ("sys.exit(3)", 3, ""), ("os._exit(4)", 4, ""), ("1 / 0", 1, "by zero")],
)
def test_a_program_may_end_without_a_shutdown(
    end: str, status: int, complaint: str, start_method: str, run: Run
) -> None:
    program = run(NEVER_SHUT_DOWN.format(end=end), start_method)
    assert program.end() == status
    assert complaint in program.errors
    assert bool(complaint) == bool(program.errors), program.errors


# --- forks of the program ---

FORKS = program_text("forks_of_the_program")


def test_a_fork_of_the_program_has_no_pool_and_harms_none(start_method: str, run: Run) -> None:
    program = run(FORKS, start_method)
    assert program.end() == 0
    printed = program.prints.splitlines()
    for call in ("submit", "map", "kill"):
        (line,) = [line for line in printed if line.startswith(call)]
        assert "this executor belongs to the process that created it" in line
    for line in ("stats 0", "child 5", "tasks 40425", "running 2", "end"):
        assert line in printed
    # Only warnings, and what multiprocessing, which knows no forks, says of processes of others.
    assert "prefork_executor" not in program.errors, program.errors
