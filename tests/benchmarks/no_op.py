"""No-op tasks beside ProcessPoolExecutor and multiprocessing.Pool, in one run.

    python tests/benchmarks/no_op.py [--rounds N] [--tasks N] [--json FILE]

Every pool has two workers and does the same work; the pools take turns, so that
what else the machine does falls on all of them. What counts are the ratios of the
medians, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.pool
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefork_executor import PreforkExecutor

WORKERS = 2
OURS = "PreforkExecutor"


def no_op() -> None:
    """The task."""


def submit_many(executor: Executor, tasks: int) -> float:
    """Seconds from the first submit to the last result."""
    began = time.perf_counter()
    for future in [executor.submit(no_op) for _ in range(tasks)]:
        future.result()
    return time.perf_counter() - began


def apply_many(pool: multiprocessing.pool.Pool, tasks: int) -> float:
    """The same for multiprocessing.Pool."""
    began = time.perf_counter()
    for result in [pool.apply_async(no_op) for _ in range(tasks)]:
        result.get()
    return time.perf_counter() - began


def round_trip(call: Callable[[], object], times: int) -> float:
    """Median seconds of one task at a time."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(rounds: int, tasks: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by pool and work, one number a round."""
    with (
        PreforkExecutor(WORKERS) as ours,
        ProcessPoolExecutor(WORKERS) as theirs,
        multiprocessing.Pool(WORKERS) as pool,
    ):
        many: dict[str, Callable[[int], float]] = {
            OURS: lambda n: submit_many(ours, n),
            "ProcessPoolExecutor": lambda n: submit_many(theirs, n),
            "multiprocessing.Pool": lambda n: apply_many(pool, n),
        }
        one: dict[str, Callable[[], object]] = {
            OURS: lambda: ours.submit(no_op).result(),
            "ProcessPoolExecutor": lambda: theirs.submit(no_op).result(),
            "multiprocessing.Pool": lambda: pool.apply(no_op),
        }
        seconds: dict[str, dict[str, list[float]]] = {
            name: {"throughput": [], "round trip": []} for name in many
        }
        for name in many:
            many[name](tasks // 10)
        for _ in range(rounds):
            for name in many:
                seconds[name]["throughput"].append(many[name](tasks) / tasks)
                seconds[name]["round trip"].append(round_trip(one[name], tasks // 10))
    return seconds


def show(seconds: dict[str, dict[str, list[float]]], console: Console) -> None:
    """A table of medians and of how many times ours they take."""
    median = {
        name: {work: statistics.median(taken) for work, taken in by_work.items()}
        for name, by_work in seconds.items()
    }
    ours = median[OURS]
    table = Table("pool", "tasks/s", "ours is faster by", "round trip", "ours takes")
    for name, taken in median.items():
        table.add_row(
            name,
            f"{1 / taken['throughput']:,.0f}",
            f"{taken['throughput'] / ours['throughput']:.2f} x",
            f"{taken['round trip'] * 1e6:.0f} µs",
            f"{ours['round trip'] / taken['round trip']:.2f} x",
        )
    console.print(table)


def main() -> int:
    """Measure, show, and keep the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    seconds = measure(options.rounds, options.tasks)
    console = Console()
    console.print(f"Python {platform.python_version()}, {WORKERS} workers")
    show(seconds, console)
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
