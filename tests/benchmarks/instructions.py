"""How many instructions a task costs the caller's process and the workers, counted by callgrind.

Seconds depend on what else a machine does. Instructions do not, and repeat to a few percent. So
they tell whether a change made a task dearer. Needs Linux and valgrind (Debian's package). Run it
with the Python and the package to be measured:

    python tests/benchmarks/instructions.py
    PYTHONPATH=../other-checkout python tests/benchmarks/instructions.py --work lambda

Each work runs twice, with few tasks and with many. The difference, divided by the number of tasks
that were added, is what one task costs: what a start costs cancels out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

FEW, MANY = 500, 2500
"""Tasks of the two runs."""
WORKERS = 2
TIMEOUT = 600
"""Seconds that one run may take: valgrind makes programs fifty times slower."""


def burst(executor: Executor, tasks: int) -> None:
    """All are submitted before the first result is taken."""
    for future in [executor.submit(abs, number) for number in range(tasks)]:
        future.result()


def trip(executor: Executor, tasks: int) -> None:
    """One at a time."""
    for number in range(tasks):
        executor.submit(abs, number).result()


def mapped(executor: Executor, tasks: int) -> None:
    """By map, a task an item."""
    for _ in executor.map(abs, range(tasks)):
        pass


def local(executor: Executor, tasks: int) -> None:
    """A lambda."""
    function = lambda number: number + 1  # noqa: E731
    for future in [executor.submit(function, number) for number in range(tasks)]:
        future.result()


WORKS: dict[str, Callable[[Executor, int], None]] = {
    "burst": burst,
    "trip": trip,
    "map": mapped,
    "lambda": local,
}


def run(work: str, tasks: int) -> None:
    """What runs under valgrind. Prints the process ids of the workers."""
    from prefork_executor import PreforkExecutor

    options = {"min_spare_workers": WORKERS, "idle_timeout": None}
    with PreforkExecutor(WORKERS, "fork", **options) as executor:  # type: ignore[arg-type]
        executor.submit(abs, 1).result()
        while len(executor.stats().workers) < WORKERS:
            time.sleep(0.01)
        WORKS[work](executor, tasks)
        print(*(worker.pid for worker in executor.stats().workers), flush=True)


def count(work: str, tasks: int) -> tuple[int, int]:
    """Instructions of a whole run: in the caller's process, and in the workers."""
    with tempfile.TemporaryDirectory() as directory:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/%p"]
        program = [sys.executable, __file__, "--run", work, str(tasks)]
        # Where sets and dicts lie, and with it how long a look-up takes, is the same in each run.
        done = subprocess.run(
            [*tool, *program],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            timeout=TIMEOUT,
            check=True,
        )
        workers = done.stdout.split()
        caller = done.stderr.split("==")[1]
        in_all = {file.name: _total(file) for file in Path(directory).iterdir()}
        return in_all[caller], sum(in_all.get(pid, 0) for pid in workers)


def _total(file: Path) -> int:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Counts, and prints a line for each work."""
    parser = argparse.ArgumentParser(description="Instructions a task, counted by callgrind.")
    parser.add_argument("--work", action="append", choices=WORKS, help="only this one")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is counted")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], int(arguments.run[1]))
        return
    for work in arguments.work or WORKS:
        for _ in range(arguments.rounds):
            few, many = count(work, FEW), count(work, MANY)
            caller, workers = (
                (more - less) / (MANY - FEW) for less, more in zip(few, many, strict=True)
            )
            print(f"{work:8} caller {caller:9,.0f}   workers {workers:9,.0f}", flush=True)


if __name__ == "__main__":
    main()
