"""A process pool that grows and shrinks with the work and survives its workers.

:class:`PreforkExecutor` implements ``concurrent.futures.Executor``.
"""

from __future__ import annotations

from ._worker import yell
from .errors import RemoteExceptionStandIn, WorkerDied
from .executor import PreforkExecutor
from .stats import ExecutorStats, ScalingDecision, WorkerStats

__version__ = "0.1.0"

__all__ = [
    "ExecutorStats",
    "PreforkExecutor",
    "RemoteExceptionStandIn",
    "ScalingDecision",
    "WorkerDied",
    "WorkerStats",
    "yell",
]
