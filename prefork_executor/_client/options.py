"""Checks of the options of executors and of tasks: what the caller gives, and what it becomes.

Each error names the argument."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping

from .._messages.wire import HELD_LIMIT
from .._pool.regulator import Limits
from .._server.settings import Settings, TaskOptions
from .._support.arguments import (
    brief,
    check_count,
    check_int,
    check_order,
    check_resource_names,
    check_seconds,
    time_limit,
)
from .._system import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

MAX_NICE = 19
MAX_WORKERS = 4096
"""Workers at most. Beyond this number, the default limits of every system interfere."""
MAX_MEMORY = 1 << 56
"""Bytes at most: more than any machine has. The scoreboard counts no further than to 64 bits."""


def task_options(
    settings: Settings | None,
    timeout: float | None,
    retries: int,
    memory: int | None = None,
    priority: int = 0,
    resources: Mapping[str, int] | None = None,
    *,
    timeout_name: str = "timeout",
) -> TaskOptions:
    """The options of tasks, checked.

    Args:
        settings: the executor's; None: there are none yet, and so no option depends on them.
        timeout, retries, memory, priority, resources: as the caller has given them.
        timeout_name: what the caller calls the timeout.

    Raises:
        TypeError, ValueError: a bad argument, or one that the executor can never fulfil.
    """
    timeout = time_limit(timeout_name, timeout)
    check_count("retries", retries, minimum=0)
    check_int("priority", priority)
    if memory is not None:
        check_count("memory", memory, minimum=0)
        if settings is not None and settings.max_memory is not None:
            check_order("memory", memory, "max_memory", settings.max_memory)
        memory = min(int(memory), MAX_MEMORY)
    needs = _needs(resources, {} if settings is None else settings.resources)
    return TaskOptions(timeout, int(retries), memory, int(priority), needs)


def _needs(resources: Mapping[str, int] | None, totals: Mapping[str, int]) -> dict[str, int] | None:
    needs = _counts(resources, minimum=0)
    for name, count in needs.items():
        if name not in totals:
            known = ", ".join(sorted(totals)) or "none"
            raise ValueError(f"the executor has no resource {name!r}; it has {known}")
        total = totals[name]
        check_order(f"resources[{name!r}]", count, "the number that the executor has", total)
    return {name: count for name, count in needs.items() if count} or None


def memory_bound(value: int | float | None) -> int | None:
    """``max_memory`` in bytes.

    Raises:
        TypeError, ValueError: it is no number of bytes and no part, or cannot be kept here.
    """
    if value is None:
        return None
    if not isinstance(value, float):
        check_count("max_memory", value, minimum=1)
    elif not 0 < value <= 1:
        raise ValueError(f"max_memory must be above 0 and at most 1.0 as a float, not {value:g}")
    from .._system import memory  # For pools with this option only.

    if why := memory.why_not_measurable():
        raise ValueError(f"max_memory cannot be kept here: {why}")
    if isinstance(value, float):
        return int(value * memory.System().look().has)
    return min(int(value), MAX_MEMORY)


def executor_resources(resources: Mapping[str, int] | None) -> dict[str, int]:
    """How many units an executor has of each resource, checked.

    Raises:
        TypeError, ValueError: it is no mapping of names to counts, or too much to be told.
    """
    totals = _counts(resources, minimum=1)
    most = {name: tuple(range(min(count, HELD_LIMIT))) for name, count in totals.items()}
    if len(pickle.dumps(most, 5)) > HELD_LIMIT:
        raise ValueError(
            "resources are too many: the numbers of all units must fit into one message, "
            f"which has room for about {HELD_LIMIT // 3} units"
        )
    return totals


def _counts(resources: Mapping[str, int] | None, minimum: int) -> dict[str, int]:
    if resources is None:
        return {}
    check_resource_names(resources)
    for name, count in resources.items():
        check_count(f"resources[{name!r}]", count, minimum)
    return {name: int(count) for name, count in resources.items()}


def check_backlog(max_backlog: int | None) -> int | None:
    """How many tasks may wait.

    Raises:
        TypeError, ValueError: it is no number of tasks.
    """
    if max_backlog is None:
        return None
    check_count("max_backlog", max_backlog, minimum=1)
    return int(max_backlog)


def cpu_sets(cpu_affinity: Any) -> tuple[frozenset[int], ...]:
    """The CPUs that workers run on, by their index.

    Args:
        cpu_affinity: ``"spread"``, an iterable of CPUs and of sets of CPUs, or None.

    Raises:
        TypeError, ValueError: it is something else, or names a CPU that this process may not use.
        RuntimeError: this system cannot tell processes which CPUs to run on.
    """
    if cpu_affinity is None:
        return ()
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeError("cpu_affinity does not work here: this system has no CPU affinity")
    allowed = os.sched_getaffinity(0)
    if isinstance(cpu_affinity, str):
        if cpu_affinity != "spread":
            raise ValueError(
                f'cpu_affinity must be "spread" or a list of CPU sets, not {cpu_affinity!r}'
            )
        return tuple(frozenset((cpu,)) for cpu in sorted(allowed))
    if not isinstance(cpu_affinity, Iterable):
        kind = type(cpu_affinity).__name__
        raise TypeError(f'cpu_affinity must be "spread" or a list of CPU sets, not {kind}')
    sets = tuple(_cpu_set(part) for part in cpu_affinity)
    if not sets:
        raise ValueError("cpu_affinity must name CPUs: the list is empty")
    if unknown := sorted(frozenset().union(*sets) - allowed):
        raise ValueError(
            f"cpu_affinity names CPU {unknown[0]}, which this process may not use; "
            f"it may use {', '.join(map(str, sorted(allowed)))}"
        )
    return sets


def _cpu_set(part: Any) -> frozenset[int]:
    cpus = part if isinstance(part, Iterable) and not isinstance(part, str) else (part,)
    found = frozenset(cpus)
    for cpu in found:
        check_count("a CPU of cpu_affinity", cpu, minimum=0)
    if not found:
        raise ValueError("cpu_affinity holds an empty set of CPUs")
    return found


def check_nice(nice: int | None) -> int | None:
    """How much nicer workers are than the caller.

    Raises:
        TypeError, ValueError: it is no number from 0 to MAX_NICE.
    """
    if nice is None:
        return None
    check_count("nice", nice, minimum=0)
    if nice > MAX_NICE:
        raise ValueError(f"nice must be at most {MAX_NICE}, not {brief(nice)}")
    return int(nice)


def pool_limits(
    max_workers: int | None,
    min_spare: int,
    max_spare: int | None,
    start: int | None,
    idle_timeout: float | Literal["auto"] | None,
) -> Limits:
    """How many workers there may be, from the constructor's arguments.

    Raises:
        TypeError, ValueError: one of them is no number of workers or seconds, or they contradict
            each other.
    """
    if max_workers is None:
        max_workers = machine.available_cpus()
    _check_max_workers(max_workers)
    max_workers = int(max_workers)
    check_count("min_spare_workers", min_spare, minimum=0)
    if max_spare is None:
        max_spare = max_workers
    check_count("max_spare_workers", max_spare, minimum=0)
    if start is None:
        start = min(min_spare, max_workers)
    check_count("start_workers", start, minimum=0)
    check_order("min_spare_workers", min_spare, "max_workers", max_workers)
    check_order("min_spare_workers", min_spare, "max_spare_workers", max_spare)
    check_order("start_workers", start, "max_workers", max_workers)
    check_order("max_spare_workers", max_spare, "max_workers", max_workers)
    return Limits(
        max_workers=max_workers,
        min_spare=int(min_spare),
        max_spare=int(max_spare),
        start_workers=int(start),
        idle_timeout=_idle_timeout(idle_timeout),
    )


def _check_max_workers(max_workers: int) -> None:
    check_int("max_workers", max_workers, takes_bool=True)
    if max_workers <= 0:
        # The standard library's message, which programs may look for.
        raise ValueError("max_workers must be greater than 0")
    if max_workers > MAX_WORKERS:
        raise ValueError(f"max_workers must be at most {MAX_WORKERS}, not {brief(max_workers)}")


def _idle_timeout(value: float | str | None) -> float | Literal["auto"] | None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f'idle_timeout must be seconds, None or "auto", not {value!r}')
        return "auto"
    seconds = check_seconds("idle_timeout", value)
    if seconds is not None and seconds < 0:
        raise ValueError(f"idle_timeout must be at least 0 seconds, not {seconds:g}")
    return seconds


def check_share_main(share_main: bool | str) -> bool | None:
    """Whether workers share one import of the main module; None for "auto".

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(share_main, bool):
        return share_main
    if not isinstance(share_main, str):
        kind = type(share_main).__name__
        raise TypeError(f'share_main must be "auto", True or False, not {kind}')
    if share_main != "auto":
        raise ValueError(f'share_main must be "auto", True or False, not {share_main!r}')
    return None


def check_preload(value: object) -> Callable[[], object] | tuple[str, ...]:
    """A callable, or the names of modules to import; none for None.

    Raises:
        TypeError, ValueError: it is something else, or a name is none of an absolute module.
    """
    if value is None:
        return ()
    if callable(value):
        return value
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise TypeError(f"preload must be module names or a callable, not {type(value).__name__}")
    names = tuple(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must hold module names, not {type(name).__name__}")
        if not name or name.startswith("."):
            raise ValueError(f"preload must hold absolute module names, not {name!r}")
    return names
