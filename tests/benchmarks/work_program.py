"""One measurement in a process of its own.

    python work_program.py WORK POOL FILE [--quick]

The figures go to the file, whole or not at all. :func:`run` starts such a process, waits
for the file, and ends the process with all that it has started, by their ids: what is
left of it becomes a child of ours, because we are a *subreaper*.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measuring import Figures, Run, Work
from performance_pools import POOLS, UnsupportedError

PR_SET_CHILD_SUBREAPER = 36
ENDS_WITHIN = 5.0
"""Seconds that a process may take to end once it has handed in its figures."""
LONGEST_REASON = 100
"""Characters of an error's message that are kept."""


def become_subreaper() -> None:
    """Inherit the orphans of all processes that this one starts."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this system has no subreapers")


def run(work: Work, pool: str, quick: bool) -> Figures:
    """Measure once, in a fresh process of which nothing stays."""
    with tempfile.TemporaryDirectory(prefix="performance-") as directory:
        file = Path(directory) / "figures"
        command = [sys.executable, __file__, work.name, pool, str(file)]
        process = subprocess.Popen(
            [*command, *(["--quick"] if quick else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return _wait(process, file, work.bound)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], file: Path, bound: float) -> Figures:
    deadline = time.monotonic() + bound
    while not file.exists():
        if process.poll() is not None and not file.exists():
            return {"failed": f"the process ended with status {process.returncode}"}
        if time.monotonic() > deadline:
            return {"failed": f"hangs ({bound:g} s)"}
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDS_WITHIN)
    figures: Figures = json.loads(file.read_text(encoding="utf-8"))
    return figures


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and all that it has started, until nothing of it is there."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.poll()
        for child in children:
            if child.pid != process.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)
        time.sleep(0.005)
    process.poll()


def measure(work: Work, pool: str, quick: bool) -> Figures:
    """What comes of it in this process."""
    try:
        return work.measure(Run(POOLS[pool], quick))
    except UnsupportedError as error:
        return {"unsupported": str(error)}
    except BaseException as error:
        return {"failed": explain(error)}


def explain(error: BaseException) -> str:
    """In a few words."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if "pickle" in text or "Can't get local object" in text:
        return "cannot pickle it"
    return text[:LONGEST_REASON]


def main() -> None:
    """In the process itself."""
    from works import WORKS

    work, pool, file = sys.argv[1:4]
    figures = measure(WORKS[work], pool, "--quick" in sys.argv)
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(json.dumps(figures), encoding="utf-8")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
