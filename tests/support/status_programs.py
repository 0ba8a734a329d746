"""Programs with pools, to be watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from raw_programs import Program, Run
from waiting import BOUND, eventually

from prefork_executor import status
from prefork_executor.status import PoolStatus

EXECUTOR = """
import dataclasses, json, os, signal, sys, threading, time
from prefork_executor import PreforkExecutor

signal.alarm(900)  # Whatever the test does, nothing stays for longer.

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def hold(gate):
    while not os.path.exists(gate):
        time.sleep(0.005)

def wait_for(gate):
    say("ready")
    hold(gate)

def until(condition):
    while not condition():
        time.sleep(0.005)

def own_stats(executor):
    return json.dumps(dataclasses.asdict(executor.stats()))
"""

HELD = """
gate = {gate!r}
with PreforkExecutor(3, "fork", idle_timeout=None) as executor:
    futures = [executor.submit(hold, gate) for _ in range({tasks})]
    until(lambda: executor.stats().busy == {busy})
    wait_for(gate)
"""


def held_pool(run: Run, gate: Path, tasks: int = 8) -> Program:
    """A program with a pool of 3 whose tasks wait until there is the gate."""
    source = HELD.format(gate=str(gate), tasks=tasks, busy=min(3, tasks))
    program = run(source, prelude=EXECUTOR)
    program.hear("ready")
    return program


def seen(pid: int, condition: Any) -> PoolStatus:
    """The pool's status when this has come true of it."""
    found: list[PoolStatus] = []

    def is_so() -> bool:
        found[:] = [status.read(pid)]
        return bool(condition(found[0]))

    eventually(is_so)
    return found[0]


def command(
    *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What the command prints, and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "prefork_executor", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
        env={**os.environ, "COLUMNS": "100", **(environment or {})},
    )


def printed_json(*arguments: object) -> Any:
    """What it prints, as JSON."""
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
