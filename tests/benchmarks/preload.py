"""What preload saves: the private memory of workers that all need the same table.

    python tests/benchmarks/preload.py [--workers N] [--megabytes N]

Needs the extra "bench", and Linux. The table is made by every worker's initializer, or
once, by ``preload``; it is a NumPy array, or a list of small Python objects of the same
size. Memory is the unique set size (psutil's ``uss``) of one worker, the mean of all: what
would be free again if that worker ended. It is read when the workers have started, when
each has collected its garbage, and when each has read every element. The table of
docs/preload.md goes to stdout; ten seconds, and about one gigabyte of memory with the
defaults.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from prefork_executor import PreforkExecutor

ROW = 8 * 1024
"""Numbers in a row of the array."""
OBJECT = 154
"""Bytes of a small list of two numbers, with the numbers and its place in the table."""
BOUND = 120.0
"""Seconds that the workers may take to meet."""

table: Any = None


def make_array(size: int) -> None:
    """The table as one array."""
    global table
    table = np.ones((size // (8 * ROW), ROW))


def make_objects(size: int) -> None:
    """The table as many Python objects: lists of an int and a float."""
    global table
    table = [[number, number / 2] for number in range(1000, 1000 + size // OBJECT)]


def read() -> float:
    """Every element, once. Who reads an object counts a reference to it, in the object."""
    return float(sum(sum(row) if isinstance(row, list) else row.sum() for row in table))


def private() -> int:
    """Bytes that this process shares with no other."""
    return int(psutil.Process().memory_full_info().uss)


def step(work: Callable[[], object], directory: Path, workers: int) -> int:
    """Do it, and wait until so many workers have, so that each does it once."""
    work()
    (directory / str(os.getpid())).touch()
    deadline = time.monotonic() + BOUND
    while len(list(directory.iterdir())) < workers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {workers} workers came to {directory}")
        time.sleep(0.01)
    return private()


STEPS: tuple[Callable[[], object], ...] = (int, gc.collect, read)
"""Nothing; collect; read."""


def measure(options: dict[str, Any], workers: int, directory: Path) -> Iterator[float]:
    """A worker's private bytes after each step."""
    fixed = {"min_spare_workers": workers, "idle_timeout": None}
    with PreforkExecutor(workers, **fixed, **options) as executor:
        for number, work in enumerate(STEPS):
            (place := directory / str(number)).mkdir(parents=True)
            steps = [executor.submit(step, work, place, workers) for _ in range(workers)]
            yield statistics.mean(one.result() for one in steps)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {options.workers} workers, MiB in each of them.\n")
    print("| table | made by | at the start | garbage collected | all read |")
    print("|---|---|---|---|---|")
    for kind, make in (("array", make_array), ("objects", make_objects)):
        load = functools.partial(make, options.megabytes * 2**20)
        ways: dict[str, dict[str, Any]] = {
            "`initializer`": {"initializer": load},
            "`preload`": {"preload": load},
            "`preload`, then `gc.unfreeze()`": {"preload": load, "initializer": gc.unfreeze},
        }
        for way, given in ways.items():
            with tempfile.TemporaryDirectory() as directory:
                found = list(measure(given, options.workers, Path(directory)))
            print(f"| {kind} | {way} |", " | ".join(f"{one / 2**20:.0f}" for one in found), "|")


if __name__ == "__main__":
    main()
