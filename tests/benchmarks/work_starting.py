"""Rows of the performance table: what a pool costs before it does anything."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import psutil
from measuring import NAP, Figures, Run, Unit, Work, all_but, at_most
from performance_pools import BARE, STANDARD, WORKERS, Pool
from work_tasks import nap, nothing

IMPORT = """
import time
began = time.perf_counter()
from {module} import {entry}
print(time.perf_counter() - began)
"""


def cold_start(run: Run) -> Figures:
    """Construct, submit, first result: the very first in this process, and the later."""
    run.kind.load()
    first, *later = [_start(run.kind) for _ in range(run.size(6, 3))]
    return {"value": first, "again": statistics.median(later)}


def _start(kind: type[Pool]) -> float:
    began = time.perf_counter()
    pool = kind()
    pool.one(nothing)()
    seconds = time.perf_counter() - began
    pool.close()
    return seconds


def imported(run: Run) -> Figures:
    """In fresh interpreters, one after the other, which find everything compiled."""
    with tempfile.TemporaryDirectory(prefix="performance-") as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _import(run.kind, environment)
        taken = [_import(run.kind, environment) for _ in range(run.size(5, 3))]
    return {"value": statistics.median(taken)}


def _import(kind: type[Pool], environment: dict[str, str]) -> float:
    code = IMPORT.format(module=kind.module, entry=kind.entry)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=environment)
    return float(done.stdout)


def idle_memory(run: Run) -> Figures:
    """What a worker that has done a few no-ops has for itself alone."""
    with run.warm_pool() as pool:
        pids = set(pool.mapped(nap, [NAP] * 2 * WORKERS, 1)())
        pool.mapped(nothing, range(100), 1)()
        time.sleep(NAP)
        private = [psutil.Process(pid).memory_full_info().uss for pid in pids]
    return {"value": statistics.mean(private), "workers": len(private)}


STARTING = (
    Work(
        "cold start: construct, submit, first result",
        Unit.TIME,
        cold_start,
        (at_most(1, STANDARD),),
        all_but(BARE),
    ),
    Work(
        "import",
        Unit.TIME,
        imported,
        (at_most(1.2, STANDARD),),
        all_but(BARE, "ProcessPoolExecutor (forkserver)"),
    ),
    Work(
        "private memory of an idle worker",
        Unit.BYTES,
        idle_memory,
        (at_most(1, STANDARD),),
        all_but(BARE),
        rounds=3,
    ),
)
