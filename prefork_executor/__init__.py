"""A process pool that grows and shrinks with the work and survives its workers.

:class:`PreforkExecutor` implements ``concurrent.futures.Executor``.
"""

from __future__ import annotations

from ._system import platform as _platform  # noqa: F401 - it refuses systems without fork()

TYPE_CHECKING = False
if TYPE_CHECKING:  # Importing typing would take a third of the time to import all of this.
    from typing import Any

    from ._server.inside_task import held_resources, worker_index, yell
    from .errors import (
        BacklogFull,
        ReloadFailed,
        RemoteExceptionStandIn,
        TaskAborted,
        TaskMemoryExceeded,
        TaskTimeout,
        WorkerDied,
    )
    from .executor import ExecutorView, PreforkExecutor
    from .pool import Pool
    from .shared import SharedExecutor, shared_executor
    from .stats import (
        ExecutorStats,
        MemoryStats,
        PoolStats,
        ScalingDecision,
        Waits,
        WorkerStats,
    )

__version__ = "1.0.0rc1"

__all__ = [
    "BacklogFull",
    "ExecutorStats",
    "ExecutorView",
    "MemoryStats",
    "Pool",
    "PoolStats",
    "PreforkExecutor",
    "ReloadFailed",
    "RemoteExceptionStandIn",
    "ScalingDecision",
    "SharedExecutor",
    "TaskAborted",
    "TaskMemoryExceeded",
    "TaskTimeout",
    "Waits",
    "WorkerDied",
    "WorkerStats",
    "held_resources",
    "shared_executor",
    "worker_index",
    "yell",
]

_MODULES = {
    "._server.inside_task": ("held_resources", "worker_index", "yell"),
    ".errors": (
        *("BacklogFull", "ReloadFailed", "RemoteExceptionStandIn", "TaskAborted"),
        *("TaskMemoryExceeded", "TaskTimeout", "WorkerDied"),
    ),
    ".executor": ("ExecutorView", "PreforkExecutor"),
    ".pool": ("Pool",),
    ".shared": ("SharedExecutor", "shared_executor"),
    ".stats": (
        *("ExecutorStats", "MemoryStats", "PoolStats", "ScalingDecision", "Waits"),
        "WorkerStats",
    ),
}
"""Where the public names are. A module is imported when a program uses one of its names: pytest
imports this package in every run where the plugin is installed, and few tests use it."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    thing = globals()[name] = getattr(import_module(_MODULE_OF[name], __name__), name)
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
