"""What a worker does that finds its caller gone: it ends, and has nothing to complain of.
Mostly its supervisor, or the kernel, ends it before it can; here the first is stopped, and
without Linux there is nothing of the second."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from injection import is_alive, lines
from scripts import program_text, search_path
from waiting import BOUND, eventually

PROGRAM = program_text("speaking_task")


@pytest.mark.parametrize("fallback", ["", "1"], ids=["linux", "fallback"])
@pytest.mark.parametrize("how", ["a result", "a big result", "yell"])
def test_a_worker_that_can_tell_nobody_of_its_task_ends_without_noise(
    how: str, fallback: str, tmp_path: Path
) -> None:
    program, started, gate, after, errors = (
        tmp_path / name for name in ("program.py", "started", "gate", "after", "errors")
    )
    program.write_text(PROGRAM)
    with errors.open("w") as stderr:
        caller = subprocess.Popen(
            [sys.executable, str(program), how, *map(str, (started, gate, after))],
            stderr=stderr,
            env={
                **os.environ,
                "PYTHONPATH": search_path(),
                "PREFORK_EXECUTOR_FALLBACK": fallback,
            },
        )
    processes: list[psutil.Process] = []
    try:
        eventually(lambda: lines(started))
        worker, supervisor = processes = [psutil.Process(int(p)) for p in lines(started)[0].split()]
        supervisor.suspend()
        caller.send_signal(signal.SIGKILL)
        caller.wait(BOUND)
        gate.touch()
        eventually(lambda: not is_alive(worker), "the worker ends by itself")
        # With a lifeline it may be ended before it could.
        assert lines(after) == ["spoke"] or not fallback
    finally:
        caller.kill()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    eventually(lambda: not any(map(is_alive, processes)))
    assert errors.read_text() == ""
