"""Executors as Prometheus metrics, read from `stats()` when they are asked for.

    from prometheus_client import REGISTRY, start_http_server

    REGISTRY.register(ExecutorCollector(thumbnails=executor))
    start_http_server(8000)

Counting costs the pool nothing between two scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from prefork_executor import ExecutorStats, PreforkExecutor

__all__ = ["ExecutorCollector"]

STATES = ("starting", "idle", "busy", "leaving")
"""What a worker does. Taking a task lasts microseconds, and counts as idle."""


def _longest(stats: ExecutorStats) -> float:
    return max((row.in_state for row in stats.workers if row.state == "busy"), default=0.0)


_GAUGES: dict[str, tuple[str, Callable[[ExecutorStats], float]]] = {
    "workers_max": ("The limit of workers.", lambda stats: stats.max_workers),
    "workers_peak": ("The most workers there have been.", lambda stats: stats.peak_workers),
    "tasks_waiting": ("Tasks not yet sent to a worker.", lambda stats: stats.waiting),
    "tasks_in_flight": ("Tasks sent and not yet resolved.", lambda stats: stats.in_flight),
    "longest_task_seconds": ("How long the task that runs for longest has run.", _longest),
}
_COUNTERS: dict[str, tuple[str, Callable[[ExecutorStats], float]]] = {
    "tasks_finished": ("Tasks that have returned or raised.", lambda stats: stats.finished),
    "worker_deaths": ("Workers that died with a task.", lambda stats: stats.deaths),
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
        yield _workers(snapshots)
        for kind, metrics in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, (documentation, value) in metrics.items():
                family = kind(f"prefork_executor_{name}", documentation, labels=["executor"])
                for executor, stats in snapshots.items():
                    family.add_metric([executor], value(stats))
                yield family


def _workers(snapshots: dict[str, ExecutorStats]) -> Metric:
    family = GaugeMetricFamily(
        "prefork_executor_workers", "Live workers by state.", labels=["executor", "state"]
    )
    for executor, stats in snapshots.items():
        counts = Counter("idle" if row.state == "taking" else row.state for row in stats.workers)
        for state in STATES:
            family.add_metric([executor, state], counts[state])
    return family
