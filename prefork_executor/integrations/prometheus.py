"""Executors and raw pools as Prometheus metrics, read when they are asked for.

    from prometheus_client import REGISTRY, start_http_server

    REGISTRY.register(ExecutorCollector(thumbnails=executor))
    start_http_server(8000)

Counting costs the pool nothing between two scrapes. A raw pool's main process must not have
threads, so its metrics are served by another process, with a :class:`PoolCollector`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prefork_executor import ExecutorStats, MemoryStats, PreforkExecutor, status
from prefork_executor.errors import StatusError
from prefork_executor.stats import PoolStats
from prefork_executor.status import PoolStatus

from ._extras import needed

with needed("prometheus", "prometheus_client"):
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

__all__ = ["ExecutorCollector", "PoolCollector"]

STATES = ("starting", "idle", "busy", "leaving")
"""What a worker does. Taking a task lasts microseconds, and counts as idle."""


def _longest(stats: PoolStats) -> float:
    return max((row.in_state for row in stats.workers if row.state == "busy"), default=0.0)


_GAUGES: dict[str, tuple[str, Callable[[ExecutorStats], float | None]]] = {
    "workers_max": ("The largest number of workers allowed.", lambda stats: stats.max_workers),
    "workers_peak": ("The largest number of workers so far.", lambda stats: stats.peak_workers),
    "tasks_waiting": ("Tasks not yet sent to a worker.", lambda stats: stats.waiting),
    "tasks_in_flight": ("Tasks sent and not yet resolved.", lambda stats: stats.in_flight),
    "longest_task_seconds": ("How long the longest-running task has run.", _longest),
    "start_seconds": ("How long a worker takes to start.", lambda stats: stats.start_cost),
}
_COUNTERS: dict[str, tuple[str, Callable[[ExecutorStats], float | None]]] = {
    "tasks_finished": ("Tasks that have returned or raised.", lambda stats: stats.finished),
    "worker_deaths": ("Workers that died with a task.", lambda stats: stats.deaths),
}
_MEMORY_GAUGES: dict[str, tuple[str, Callable[[MemoryStats], float]]] = {
    "memory_bound_bytes": ("Memory that all workers may take.", lambda memory: memory.bound),
    "memory_taken_bytes": ("Memory that all workers take.", lambda memory: memory.taken),
    "memory_left_bytes": ("Memory that is left.", lambda memory: memory.left),
    "tasks_held": ("Tasks that wait for memory.", lambda memory: memory.held),
}
_MEMORY_COUNTERS: dict[str, tuple[str, Callable[[MemoryStats], float]]] = {
    "tasks_ended_for_memory": ("Runs ended above max_memory.", lambda memory: memory.ended),
    "tasks_too_large": ("Tasks that alone took too much memory.", lambda memory: memory.exceeded),
}


_POOL_GAUGES: dict[str, tuple[str, Callable[[PoolStatus], float]]] = {
    "pool_workers_max": ("The largest number of workers allowed.", lambda pool: pool.max_workers),
    "pool_workers_peak": ("The largest number of workers so far.", lambda pool: pool.peak_workers),
    "pool_backlog": ("Tasks or connections that wait.", lambda pool: pool.backlog),
    "pool_longest_busy_seconds": ("How long the busiest worker has been busy.", _longest),
    "pool_seconds_at_max": ("How long the pool has been at its limit.", lambda p: p.seconds_at_max),
}
_POOL_COUNTERS: dict[str, tuple[str, Callable[[PoolStatus], float]]] = {
    "pool_tasks_done": ("Tasks, or requests, that were done.", lambda pool: pool.tasks_done),
    "pool_forks": ("Workers that were started.", lambda pool: pool.forks),
    "pool_retirements": ("Workers that ended in order.", lambda pool: pool.retirements),
    "pool_worker_deaths": ("Workers that died at work.", lambda pool: pool.deaths),
    "pool_other_deaths": ("Workers that died without work.", lambda pool: pool.other_deaths),
    "pool_reloads": ("Reloads.", lambda pool: pool.generation),
}


class ExecutorCollector(Collector):
    """A collector for a registry. It serves any number of executors, and keeps them alive. A
    registry takes only one collector, because it refuses the same metric twice.

    Args:
        executors: each by the name that its metrics have in the label ``executor``.
    """

    def __init__(self, **executors: PreforkExecutor) -> None:
        self._executors = executors

    def collect(self) -> Iterator[Metric]:
        """The present metrics."""
        snapshots = {name: executor.stats() for name, executor in self._executors.items()}
        yield _workers(snapshots, "prefork_executor_workers", "executor")
        for kind, metrics in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, (documentation, value) in metrics.items():
                family = kind(f"prefork_executor_{name}", documentation, labels=["executor"])
                for executor, stats in snapshots.items():
                    if (found := value(stats)) is not None:
                        family.add_metric([executor], found)
                yield family
        bounded = {name: stats.memory for name, stats in snapshots.items() if stats.memory}
        if bounded:
            yield from _memory(bounded)


class PoolCollector(Collector):
    """A collector for pools of other processes of this user and machine, raw ones above all. It
    sees them from outside, as :mod:`prefork_executor.status` does. A pool that cannot be read,
    because it has ended, for example, has no metrics but ``prefork_executor_pool_up``.

    Args:
        pools: by the name in the label ``pool``: the pool's process id, or a function that
            returns it at each scrape.
    """

    def __init__(self, **pools: int | Callable[[], int]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        """The present metrics."""
        snapshots = {name: found for name, pid in self._pools.items() if (found := _read(pid))}
        up = GaugeMetricFamily(
            "prefork_executor_pool_up", "Whether the pool lives.", labels=["pool"]
        )
        for name in self._pools:
            up.add_metric([name], name in snapshots)
        yield up
        yield _workers(snapshots, "prefork_executor_pool_workers", "pool")
        for kind, metrics in (
            (GaugeMetricFamily, _POOL_GAUGES),
            (CounterMetricFamily, _POOL_COUNTERS),
        ):
            for metric, (documentation, value) in metrics.items():
                family = kind(f"prefork_executor_{metric}", documentation, labels=["pool"])
                for name, pool in snapshots.items():
                    family.add_metric([name], value(pool))
                yield family


def _read(pid: int | Callable[[], int]) -> PoolStatus | None:
    try:
        return status.read(pid() if callable(pid) else pid)
    except (StatusError, OSError, ValueError):
        return None


def _memory(snapshots: dict[str, MemoryStats]) -> Iterator[Metric]:
    """Of executors with ``max_memory``."""
    kinds = ((GaugeMetricFamily, _MEMORY_GAUGES), (CounterMetricFamily, _MEMORY_COUNTERS))
    for kind, metrics in kinds:
        for name, (documentation, value) in metrics.items():
            family = kind(f"prefork_executor_{name}", documentation, labels=["executor"])
            for executor, memory in snapshots.items():
                family.add_metric([executor], value(memory))
            yield family


def _workers(snapshots: Mapping[str, PoolStats], metric: str, label: str) -> Metric:
    family = GaugeMetricFamily(metric, "Live workers by state.", labels=[label, "state"])
    for name, stats in snapshots.items():
        counts = Counter("idle" if row.state == "taking" else row.state for row in stats.workers)
        for state in STATES:
            family.add_metric([name, state], counts[state])
    return family
