"""A process pool that grows and shrinks with the work and survives its workers.

:class:`PreforkExecutor` implements ``concurrent.futures.Executor``.
"""

from __future__ import annotations

from .errors import (
    ReloadFailed,
    RemoteExceptionStandIn,
    TaskAborted,
    TaskTimeout,
    WorkerDied,
)
from .executor import ExecutorView, PreforkExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:  # Importing typing would take a third of the time to import all of this.
    from typing import Any

    from ._server.worker import worker_index, yell
    from .pool import Pool
    from .stats import ExecutorStats, PoolStats, ScalingDecision, Waits, WorkerStats

__version__ = "0.1.0"

__all__ = [
    "ExecutorStats",
    "ExecutorView",
    "Pool",
    "PoolStats",
    "PreforkExecutor",
    "ReloadFailed",
    "RemoteExceptionStandIn",
    "ScalingDecision",
    "TaskAborted",
    "TaskTimeout",
    "Waits",
    "WorkerDied",
    "WorkerStats",
    "worker_index",
    "yell",
]


def __getattr__(name: str) -> Any:
    # Names that most programs do not use are imported only when a program uses them.
    if name in ("worker_index", "yell"):
        from ._server import worker

        thing = getattr(worker, name)
    elif name == "Pool":
        from . import pool

        thing = pool.Pool
    elif name in ("ExecutorStats", "PoolStats", "ScalingDecision", "Waits", "WorkerStats"):
        from . import stats

        thing = getattr(stats, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = thing
    return thing
