"""A worker killed in the middle of each method of a Pool: ours, and multiprocessing's.

    python tests/benchmarks/pool_deaths.py

Each in a process of its own, which is ended with all it has started if it has said nothing
after BOUND seconds. The table goes to stdout; that of docs/reliability.md was made so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

BOUND = 10.0
"""Seconds after which a method hangs."""


def die_at_three(x: int) -> int:
    """A task."""
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return x


def drained(results: Any) -> str:
    """What an iterator gives to its end."""
    found = []
    while True:
        try:
            found.append(str(next(results)))
        except StopIteration:
            return ", ".join(found)
        except Exception as error:
            found.append(type(error).__name__)


def closed(pool: Any) -> str:
    pool.apply_async(die_at_three, (3,))
    pool.close()
    pool.join()
    return "returns"


ROWS = [(x,) for x in range(6)]
METHODS: dict[str, Callable[[Any], object]] = {
    "apply": lambda pool: pool.apply(die_at_three, (3,)),
    "apply_async, get": lambda pool: pool.apply_async(die_at_three, (3,)).get(),
    "map": lambda pool: pool.map(die_at_three, range(6), 1),
    "map_async, get": lambda pool: pool.map_async(die_at_three, range(6), 1).get(),
    "starmap": lambda pool: pool.starmap(die_at_three, ROWS, 1),
    "starmap_async, get": lambda pool: pool.starmap_async(die_at_three, ROWS, 1).get(),
    "imap": lambda pool: drained(pool.imap(die_at_three, range(6))),
    "imap, chunksize=2": lambda pool: drained(pool.imap(die_at_three, range(6), 2)),
    "imap_unordered": lambda pool: drained(pool.imap_unordered(die_at_three, range(6))),
    "close, join": closed,
}


def outcome(kind: str, method: str) -> str:
    """In the process itself."""
    if kind == "Pool":
        from prefork_executor import Pool

        pool: Any = Pool(2, context="fork")
    else:
        pool = multiprocessing.get_context("fork").Pool(2)
    try:
        said = str(METHODS[method](pool))
    except Exception as error:
        said = type(error).__name__
    return said if method == "close, join" else f"{said}; then {pool.apply(abs, (-1,))}"


def measured(kind: str, method: str) -> str:
    command = [sys.executable, "-W", "ignore", __file__, kind, method]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired:
        said = f"hangs ({BOUND:g} s)"
    everybody = [*psutil.Process().children(recursive=True)]
    for one in everybody:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    return said.strip()


def main() -> None:
    """A row a method; or, given a pool and a method, what comes of it."""
    if len(sys.argv) > 1:
        print(outcome(*sys.argv[1:]), flush=True)
        os._exit(0)
    print("| a worker is killed in | `Pool` | `multiprocessing.Pool` |\n|---|---|---|")
    for method in METHODS:
        cells = [measured(kind, method) for kind in ("Pool", "multiprocessing.Pool")]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
