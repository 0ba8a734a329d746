"""Runs one scenario of faults.py in a process of its own, and watches it from outside.

The scenario's process leads a process group and a session of its own. What it starts
and leaves behind becomes a child of ours, because we are a *subreaper*: so every
process that is left can be found, counted and ended, by its id.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from fault_stage import REST, Figures, Outcome, alive, eventually, since
from notes import REASON, noted

SCENARIOS = Path(__file__).with_name("fault_scenarios.py")
BOUND = 30.0
"""Seconds that a scenario may take. It bounds all its own waits; what it cannot bound
is a pool whose submit or constructor hangs."""
EXIT_WITHIN = 6.0
"""Seconds that the interpreter may take to end once the scenario is over."""
INTERRUPT_WITHIN = 12.0
"""Seconds that a program may take to end after Ctrl-C."""
LEFT_AFTER = (2.0, 10.0)
"""Seconds after a program's end at which what it left behind is counted."""
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Inherit the orphans of all processes that this one starts."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this system has no subreapers")


class Program:
    """One scenario at play.

    Args:
        pool: the pool's name.
        fault: the scenario's.
        directory: an empty one, for all that it writes.
    """

    def __init__(self, pool: str, fault: str, directory: Path) -> None:
        self.directory = directory
        self.errors = directory / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(SCENARIOS), pool, fault, str(directory)],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self._reaper = threading.Thread(target=self._reap_orphans)
        self._reaper.start()

    def figures(self) -> Figures:
        """What the scenario has handed in; nothing if it has not."""
        path = self.directory / "figures"
        figures: Figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return figures

    def is_ready(self) -> bool:
        """Wait until the fault may be injected from outside. False: it never may."""
        ready = self.directory / "ready"
        eventually(lambda: ready.exists() or self.has_ended(), BOUND)
        return ready.exists()

    def has_ended(self) -> bool:
        """Whether the process itself has."""
        return self.process.poll() is not None

    def wait_for_end(self) -> None:
        """As long as it may take."""
        written = self.directory / "figures"
        eventually(lambda: written.exists() or self.has_ended(), BOUND)
        eventually(self.has_ended, EXIT_WITHIN)

    def stop(self) -> None:
        """SIGKILL the process itself, if it still runs, and wait for that."""
        self.process.kill()
        self.process.wait()

    def stderr(self) -> list[str]:
        """The lines that it and its pool have written to it."""
        return self.errors.read_text(errors="replace").splitlines()

    def left(self) -> list[int]:
        """The processes that it has started, directly or not, and that still run,
        without those that a task has forked for itself."""
        not_the_pools = {self.process.pid, *noted(str(self.directory / "children"))}
        pids = [child.pid for child in psutil.Process().children(recursive=True)]
        return [pid for pid in pids if pid not in not_the_pools and alive(pid)]

    def end(self) -> None:
        """Kill it and all that it has started, until nothing of it is there."""
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.poll()
            time.sleep(0.01)
        self._reaper.join()

    def _reap_orphans(self) -> None:
        """At once, as init would: pools look whether a process is still there. Until
        there is nobody who could leave us another."""
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT):
                if ended.si_pid == self.process.pid:
                    time.sleep(0.01)  # Until whoever asks for its status has it.
                else:
                    os.waitpid(ended.si_pid, 0)


# --- what the one who measures does meanwhile --------------------------------------------------


def wait_for_end(program: Program) -> Figures:
    """Nothing. How it ends, and what is left two seconds later."""
    program.wait_for_end()
    ended_at = time.monotonic() if program.has_ended() else None
    program.stop()
    figures = program.figures()
    figures["orphans"] = _orphans(program)
    if "written_at" not in figures:
        outcome = Outcome.HANGS if ended_at is None else Outcome.CLIENT_ENDS
        return {"outcome": outcome, "status": program.process.returncode, **figures}
    written_at = figures.pop("written_at")
    return {**figures, "exit": None if ended_at is None else round(ended_at - written_at, 2)}


def _orphans(program: Program) -> int:
    eventually(lambda: not program.left(), LEFT_AFTER[0])
    return len(program.left())


def look_for_reason(program: Program) -> Figures:
    """Nothing; and then look whether stderr says why the initializer failed."""
    figures = wait_for_end(program)
    return {**figures, "told_on_stderr": any(REASON in line for line in program.stderr())}


def count_done(program: Program) -> Figures:
    """Nothing, either; and then count the tasks that were done."""
    figures = wait_for_end(program)
    done = len(noted(str(program.directory / "notes")))
    if figures.get("exit") is None:
        outcome = Outcome.HANGS
    else:
        outcome = Outcome.ALL_DONE if done == figures["of"] else Outcome.WORK_LOST
    return {"outcome": outcome, "done": done, **figures}


def kill_client(program: Program) -> Figures:
    """SIGKILL the program; count the processes of its pool that are left."""
    if not program.is_ready():
        return {"outcome": Outcome.SCENARIO_FAILED, "reason": "was never ready"}
    processes = len(program.left())
    program.stop()
    began = time.monotonic()
    left = {}
    for seconds in LEFT_AFTER:
        eventually(lambda: not program.left(), seconds - (time.monotonic() - began))
        left[f"left_{seconds:g}s"] = len(program.left())
    outcome = Outcome.LEFT if left["left_2s"] else Outcome.NOTHING_LEFT
    return {"outcome": outcome, "processes": processes, **left}


def interrupt(program: Program) -> Figures:
    """Press Ctrl-C: SIGINT to all of the program's process group."""
    if not program.is_ready():
        return {"outcome": Outcome.SCENARIO_FAILED, "reason": "was never ready"}
    # Until it waits: what comes just before Python waits for a lock is noticed after that only.
    time.sleep(REST)
    began = time.monotonic()
    os.killpg(program.process.pid, signal.SIGINT)
    ended = eventually(program.has_ended, INTERRUPT_WITHIN)
    seconds = since(began)
    program.stop()
    lines = program.stderr()
    outcome = Outcome.HANGS if not ended else Outcome.NOISY if lines else Outcome.QUIET
    figures = {"seconds": seconds if ended else None, "stderr_lines": len(lines)}
    return {"outcome": outcome, **figures, "orphans": _orphans(program)}


WATCHES: dict[str, Callable[[Program], Figures]] = {
    watch.__name__: watch
    for watch in (wait_for_end, look_for_reason, count_done, kill_client, interrupt)
}


def run(pool: str, fault: str, watch: str, directory: Path) -> Figures:
    """Play one scenario, and leave nothing of it. Its figures."""
    program = Program(pool, fault, directory)
    try:
        return WATCHES[watch](program)
    finally:
        program.end()
