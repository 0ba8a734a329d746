"""The same program on one machine and on a Dask cluster. Only one line differs.

    python examples/dask_cluster.py                                   # a pool on this machine
    python examples/dask_cluster.py --scheduler tcp://127.0.0.1:8786  # the nodes of a cluster
    python examples/dask_cluster.py --local-cluster 2                 # a cluster on this machine

To make a cluster for trying it, run ``dask scheduler --host 127.0.0.1`` in one terminal and
``dask worker tcp://127.0.0.1:8786`` in another. The program throws darts at a circle to find
pi. One of its tasks kills its own process, which costs that task and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

from prefork_executor import PreforkExecutor, WorkerDied

BATCHES = 40
"""How many tasks: enough for a few nodes, and each long enough to be worth sending."""


def hits(seed: int, samples: int) -> int:
    """How many of this number of darts hit the circle."""
    throw = random.Random(seed).random
    return sum(throw() ** 2 + throw() ** 2 < 1.0 for _ in range(samples))


def crash() -> None:
    """Die, as from a bug in a C library."""
    os.kill(os.getpid(), signal.SIGSEGV)


@contextlib.contextmanager
def executor_for(options: argparse.Namespace) -> Iterator[Any]:
    """An executor: over a cluster if one was named, otherwise over this machine."""
    if options.local_cluster:
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=options.local_cluster, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster:
            options.scheduler, options.local_cluster = cluster.scheduler_address, None
            with executor_for(options) as executor:
                yield executor
    elif options.scheduler:
        from prefork_executor.integrations.dask import connect

        with connect(options.scheduler) as executor:
            yield executor
    else:
        with PreforkExecutor() as executor:
            yield executor


def estimate(executor: Executor, samples: int) -> float:
    """Pi, from this many darts in each task. This code does not know where the tasks run."""
    doomed = executor.submit(crash)
    counts = executor.map(hits, range(BATCHES), [samples] * BATCHES)
    pi = 4 * sum(counts) / (BATCHES * samples)
    try:
        doomed.result()
    except WorkerDied as death:
        print(f"One task was lost: {death}")
    return pi


def main(arguments: list[str] | None = None) -> int:
    """Run the example. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of the scheduler of a Dask cluster")
    parser.add_argument("--local-cluster", metavar="N", type=int, help="start N Dask workers here")
    parser.add_argument("--samples", type=int, default=500_000, help="darts in each task")
    options = parser.parse_args(arguments)
    with executor_for(options) as executor:
        began = time.perf_counter()
        pi = estimate(executor, options.samples)
        seconds = time.perf_counter() - began
    print(f"pi is about {pi:.4f}")
    print(f"{BATCHES} tasks in {seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
