"""Rows of the performance table: the methods of multiprocessing.Pool, of all that have them."""

from __future__ import annotations

from collections.abc import Callable

from measuring import Figures, Run, Target, Unit, Work, at_least, settle
from performance_pools import BILLIARD, OLD, POOL, Pool, Thunk
from work_tasks import nothing

POOLS = (POOL, OLD, BILLIARD, "mpire")


def _rate(run: Run, tasks: int, begin: Callable[[Pool, int], Thunk]) -> Figures:
    with run.warm_pool() as pool:
        begin(pool, tasks // 10)()
        settle()
        return run.rate(begin(pool, tasks), tasks)


def pool_apply_async(run: Run) -> Figures:
    tasks = run.size(10_000, 1000)
    return _rate(run, tasks, lambda pool, count: pool.many(nothing, [()] * count))


def pool_imap(run: Run) -> Figures:
    tasks = run.size(10_000, 1000)
    return _rate(run, tasks, lambda pool, count: pool.mapped(nothing, range(count), 1))


def pool_imap_unordered(run: Run) -> Figures:
    tasks = run.size(10_000, 1000)
    return _rate(run, tasks, lambda pool, count: pool.unordered(nothing, range(count), 1))


def pool_map_one(run: Run) -> Figures:
    tasks = run.size(10_000, 1000)
    return _rate(run, tasks, lambda pool, count: pool.listed(nothing, range(count), 1))


def pool_map_32(run: Run) -> Figures:
    tasks = run.size(100_000, 20_000)
    return _rate(run, tasks, lambda pool, count: pool.listed(nothing, range(count), 32))


def pool_map(run: Run) -> Figures:
    tasks = run.size(1_000_000, 100_000)
    return _rate(run, tasks, lambda pool, count: pool.listed(nothing, range(count), None))


def pool_imap_32(run: Run) -> Figures:
    tasks = run.size(100_000, 20_000)
    return _rate(run, tasks, lambda pool, count: pool.mapped(nothing, range(count), 32))


def _row(title: str, measure: Callable[[Run], Figures], target: Target) -> Work:
    return Work(title, Unit.RATE, measure, (target,), POOLS, reference=OLD, ours=POOL)


OF_POOLS = (
    _row("apply_async + get of 10,000 no-op tasks", pool_apply_async, at_least(1.5, OLD)),
    _row("imap, chunksize=1, no-op", pool_imap, at_least(1.5, OLD)),
    _row("imap_unordered, chunksize=1, no-op", pool_imap_unordered, at_least(1.5, OLD)),
    _row("Pool.map, chunksize=1, no-op", pool_map_one, at_least(1, OLD)),
    _row("Pool.map, chunksize=32, no-op", pool_map_32, at_least(1, OLD)),
    _row("Pool.map, default chunksize, no-op", pool_map, at_least(1, OLD)),
    _row("imap, chunksize=32, no-op", pool_imap_32, at_least(1, OLD)),
)
