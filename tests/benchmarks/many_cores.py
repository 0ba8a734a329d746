"""How many cores one caller keeps busy: measured with few workers, predicted for many.

    python tests/benchmarks/many_cores.py [--rounds N]

No machine with 64 cores is needed. The tasks sleep, so a worker takes a core only for the pool's
own work, as on a machine that has a core for each worker. What limits the pool is then the caller:
it spends some microseconds of a CPU on each task, and its threads share one interpreter.

The model has two costs. ``worker`` is CPU seconds in the other processes a task. ``client`` is CPU
seconds in the caller's process a task, when it is saturated. (With less to do it costs more, since
it is woken for each outcome. That does not limit it: it then has time.) N workers do tasks of d
seconds. A worker needs d + worker seconds for one, and the caller ``client`` seconds. So there are
min(N / (d + worker), 1 / client) tasks a second, and d times as many cores are busy with them.

A caller is saturated by many workers with short tasks. Tasks of a millisecond or more have messages
of their own, so their cost is measured with a pool that always does so.

The runs with 2 to 16 workers tell how well the model holds on this machine. Where its CPUs are too
few for the caller and the workers together, it predicts too much; such runs have a star.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

from measuring import cpus, metered, settle
from performance_pools import ONE_BY_ONE, OURS, POOLS, STANDARD, Pool

DURATIONS = (0.0001, 0.001, 0.01)
"""Seconds that a task takes."""
WORKERS = (2, 4, 8, 16)
CORES = 64
OWN_MESSAGE = 0.001
"""Seconds from which on a task does not share its message with others."""
SECONDS = 1.5
"""How long a run takes, about."""
MOST_TASKS = 20_000
SHARE = 0.8
"""The share of this machine's CPUs above which a run says little about a larger machine."""


class Run(NamedTuple):
    """What one run has shown: cores that were busy, and CPU seconds a task."""

    busy: float
    client: float
    worker: float
    load: float


def rest(seconds: float) -> float:
    """The task. Returns how long it took, because short sleeps are longer than asked for."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


def run(kind: type[Pool], workers: int, duration: float) -> Run:
    """So many workers, with as many tasks as take about SECONDS."""
    tasks = min(MOST_TASKS, int(SECONDS * workers / duration))
    pool = kind(workers)
    try:
        pool.many(rest, [(duration,)] * (4 * workers + tasks // 10))()
        settle()
        lasted: list[float] = []
        figures = metered(lambda: lasted.extend(pool.many(rest, [(duration,)] * tasks)()))
    finally:
        pool.close()
    seconds, client, worker = (figures[name] for name in ("seconds", "client", "others"))
    load = (client + worker) / seconds / cpus()
    return Run(sum(lasted) / seconds, client / tasks, worker / tasks, load)


def predicted(client: float, worker: float, duration: float, workers: int) -> float:
    """Cores that are busy, by the model."""
    return duration * min(workers / (duration + worker), 1 / client)


def costs(name: str, duration: float, rounds: int) -> tuple[float, float]:
    """The two costs of a task of this length."""
    is_alone = name == OURS and duration >= OWN_MESSAGE
    kind = POOLS[ONE_BY_ONE if is_alone else name]
    saturated = [run(kind, WORKERS[-1], DURATIONS[0]) for _ in range(rounds)]
    usual = [run(POOLS[name], WORKERS[0], duration) for _ in range(rounds)]
    return (
        statistics.median(one.client for one in saturated),
        statistics.median(one.worker for one in usual),
    )


def main() -> None:
    """Measure, and print two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"| task | pool | {' | '.join(f'{n} workers' for n in WORKERS)} | {CORES} cores |")
    print(f"|{'---|' * (len(WORKERS) + 3)}")
    for duration in DURATIONS:
        for name in (OURS, STANDARD):
            client, worker = costs(name, duration, rounds)
            cells = []
            for workers in WORKERS:
                runs = [run(POOLS[name], workers, duration) for _ in range(rounds)]
                busy = statistics.median(one.busy for one in runs)
                star = "*" if max(one.load for one in runs) > SHARE else ""
                model = predicted(client, worker, duration, workers)
                cells.append(f"{busy:.1f}{star} ({model:.1f})")
            many = predicted(client, worker, duration, CORES)
            row = [f"{duration * 1e3:g} ms", f"{name} ({client * 1e6:.0f} + {worker * 1e6:.0f} µs)"]
            print(f"| {' | '.join([*row, *cells, f'{many:.1f}'])} |", flush=True)


if __name__ == "__main__":
    main()
