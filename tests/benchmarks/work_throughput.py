"""Rows of the performance table: as many tasks as possible."""

from __future__ import annotations

import random
import sys
import sysconfig
import time
from pathlib import Path

from measuring import Figures, Run, Unit, Work, all_but, at_least, at_most, metered, settle
from performance_pools import BARE, INTERPRETERS, OLD, ONE_BY_ONE, OURS, STANDARD, WORKERS
from work_tasks import loops_for, nap, nothing, spin

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = 2e-3
"""Seconds that a CPU task takes."""
CROWD = 500
CROWD_NAP = 0.1
IDEAL = CROWD / CROWD_NAP
LOOP = 25e-9
"""Seconds that a turn of an empty loop takes, about."""
TAIL = (50e-6, 0.2)
"""Seconds of the shortest and of the longest task whose lengths are very uneven."""


def no_op(run: Run) -> Figures:
    tasks = run.size(10_000, 1000)
    with run.warm_pool() as pool:
        pool.many(nothing, [()] * (tasks // 10))()
        settle()
        return run.rate(pool.many(nothing, [()] * tasks), tasks)


def map_one(run: Run) -> Figures:
    return _map(run, run.size(10_000, 1000), 1)


def map_chunks(run: Run) -> Figures:
    return _map(run, run.size(100_000, 20_000), 100)


def map_long_chunks(run: Run) -> Figures:
    return _map(run, run.size(2_000_000, 200_000), 10_000)


def _map(run: Run, items: int, chunksize: int) -> Figures:
    with run.warm_pool() as pool:
        pool.mapped(nothing, range(items // 10), chunksize)()
        settle()
        return run.rate(pool.mapped(nothing, range(items), chunksize), items)


def lambdas(run: Run) -> Figures:
    tasks = run.size(1000, 200)
    with run.warm_pool() as pool:
        pool.many(lambda: 1, [()] * (tasks // 10))()
        settle()
        return run.rate(pool.many(lambda: None, [()] * tasks), tasks)


def cpu(run: Run) -> Figures:
    """The share of both CPUs that the tasks themselves had."""
    tasks, loops = run.size(500, 200), loops_for(TASK)
    used = []
    with run.warm_pool() as pool:
        pool.many(spin, [(loops,)] * 20)()
        settle()
        thunk = pool.many(spin, [(loops,)] * tasks)
        figures = metered(lambda: used.extend(thunk()))
    seconds, cpu_seconds = figures["seconds"], figures["client"] + figures["others"]
    return {
        "value": sum(used) / (WORKERS * seconds),
        # Of the time that the pool had a CPU: whatever else the machine does.
        "of_cpu": sum(used) / cpu_seconds,
        "task_ms": sum(used) / tasks * 1e3,
        "seconds": seconds,
    }


def crowd(run: Run) -> Figures:
    """Many workers, most of them asleep."""
    tasks = run.size(20, 5) * CROWD
    with run.pool(CROWD) as pool:
        for _ in range(3):
            pool.many(nap, [(CROWD_NAP,)] * 2 * CROWD)()
            settle()
        figures = run.rate(pool.many(nap, [(CROWD_NAP,)] * tasks), tasks)
    return {**figures, "of_ideal": figures["value"] / IDEAL}


def heavy_tail(run: Run) -> Figures:
    """Seconds for tasks of which most are short, while a few have most of the work."""
    chance, (least, most) = random.Random(1), TAIL
    lengths = [min(most, least * chance.paretovariate(1.1)) for _ in range(run.size(10_000, 1000))]
    calls = [(round(length / LOOP),) for length in lengths]
    with run.warm_pool() as pool:
        pool.many(spin, [(round(least / LOOP),)] * 200)()
        settle()
        began = time.perf_counter()
        pool.many(spin, calls)()
        return {"value": time.perf_counter() - began}


def main_job(run: Run) -> Figures:
    """How many times faster than without a pool the README's main job is, or a part of it."""
    sys.path.insert(0, str(EXAMPLES))
    from survey_sources import source_files, survey

    paths = source_files(Path(sysconfig.get_path("stdlib")))[:: run.size(3, 10)]
    began = time.perf_counter()
    for path in paths:
        survey(path)
    alone = time.perf_counter() - began
    with run.pool() as pool:
        began = time.perf_counter()
        pool.mapped(survey, paths, 1)()
        return {"value": alone / (time.perf_counter() - began), "seconds": alone}


THROUGHPUT = (
    Work(
        "submit + result of 10,000 no-op tasks",
        Unit.RATE,
        no_op,
        (at_least(8, STANDARD), at_least(2.5, OLD), at_least(4, INTERPRETERS)),
    ),
    Work(
        "map, chunksize=1, no-op",
        Unit.RATE,
        map_one,
        (at_least(8, STANDARD), at_least(1.5, OLD)),
    ),
    Work(
        "map, chunksize=100, no-op",
        Unit.RATE,
        map_chunks,
        (at_least(4, STANDARD), at_least(1, OLD)),
    ),
    Work(
        "map, chunksize=10,000, no-op",
        Unit.RATE,
        map_long_chunks,
        (at_least(1.3, STANDARD),),
        all_but(BARE, "joblib", "deadpool"),
    ),
    Work(
        "a lambda submitted 1,000 times",
        Unit.RATE,
        lambdas,
        (at_least(4, "loky"),),
        tuple(name for name in (OURS, STANDARD, OLD, "loky", "pebble", "mpire", "deadpool")),
        bound=20.0,
        reference="loky",
    ),
    Work(
        "2 ms CPU tasks, share of both cores doing user work",
        Unit.SHARE,
        cpu,
        (at_least(0.96), at_least(1, STANDARD)),
        all_but(BARE, "joblib"),
    ),
    Work(
        "500 workers on tasks that sleep 100 ms",
        Unit.RATE,
        crowd,
        (at_least(0.9, figure="of_ideal"),),
        (OURS, STANDARD, OLD, "pebble"),
        rounds=3,
    ),
    Work(
        "the README's main job, as multiples of its speed without a pool",
        Unit.SHARE,
        main_job,
        (at_least(1.8), at_least(1, STANDARD)),
        all_but(BARE, "deadpool"),
        rounds=3,
    ),
    Work(
        "10,000 tasks of very uneven length (a heavy tail)",
        Unit.TIME,
        heavy_tail,
        (at_most(1.03, ONE_BY_ONE),),
        (OURS, ONE_BY_ONE, STANDARD, OLD),
        reference=ONE_BY_ONE,
    ),
)
