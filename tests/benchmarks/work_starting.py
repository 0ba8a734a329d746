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
from performance_pools import (
    BARE,
    FORKSERVER,
    OURS,
    OURS_BY_FORKSERVER,
    OURS_BY_SPAWN,
    SPAWN,
    STANDARD,
    WORKERS,
    Pool,
)
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


def cold_start_by_forkserver(run: Run) -> Figures:
    """The same, the forkserver included: the very first has to start it."""
    return cold_start(run)


def constructed(run: Run) -> Figures:
    """An executor that is made, and ended without a task. Not the first of this process."""
    run.kind.load()
    run.kind().close()
    return run.trip(lambda: run.kind().close(), run.size(200, 20))


def shut_down(run: Run) -> Figures:
    """Until nothing is left of a pool that has nothing to do."""
    taken = []
    for _ in range(run.size(5, 2)):
        with run.warm_pool() as pool:
            began = time.perf_counter()
            pool.close()
            taken.append(time.perf_counter() - began)
    return {"value": statistics.median(taken)}


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


def idle_memory_by_spawn(run: Run) -> Figures:
    return idle_memory(run)


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
        "cold start by forkserver",
        Unit.TIME,
        cold_start_by_forkserver,
        (at_most(0.5, FORKSERVER),),
        (OURS_BY_FORKSERVER, FORKSERVER),
        reference=FORKSERVER,
        ours=OURS_BY_FORKSERVER,
    ),
    Work(
        "shutdown of an idle pool",
        Unit.TIME,
        shut_down,
        (at_most(1, STANDARD),),
        all_but(BARE, "joblib"),
    ),
    Work(
        "an executor constructed and dropped",
        Unit.TIME,
        constructed,
        (at_most(1, STANDARD),),
        (OURS, STANDARD, FORKSERVER),
    ),
    Work(
        "import",
        Unit.TIME,
        imported,
        (at_most(1.1, STANDARD),),
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
    Work(
        "the same by spawn",
        Unit.BYTES,
        idle_memory_by_spawn,
        (at_most(0.5, SPAWN),),
        (OURS_BY_SPAWN, SPAWN),
        rounds=3,
        reference=SPAWN,
        ours=OURS_BY_SPAWN,
    ),
)
