"""The machine's memory and processors, as far as a process may use them."""

from __future__ import annotations

import math
import os
import sys

from .control_groups import groups_of, read_file
from .platform import FALLBACK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .control_groups import Read

_PAGE = os.sysconf("SC_PAGE_SIZE")
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes: what ``ru_maxrss`` counts in."""
OOM_COUNTERS = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)
"""Where Linux counts the processes that it has killed for lack of memory, in a line
``oom_kill N``: of the control group (version 2, then 1), or of the whole machine."""


def resident_memory(pid: int) -> int | None:
    """Bytes of a process's resident memory, shared pages included. None if there is no such
    process, or the system does not tell."""
    return None if FALLBACK else memory_in_proc(pid)


def memory_in_proc(pid: int) -> int | None:
    """The same, on any system that has a /proc."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(256).split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def own_memory() -> int:
    """Bytes of this process's resident memory. If the system does not tell, its peak."""
    now = resident_memory(os.getpid())
    if now is not None:
        return now
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def oom_kills() -> int:
    """How many processes the system has killed for lack of memory, as far as it tells. This
    is the sum of several counters, so only its growth has a meaning."""
    return sum(map(_oom_kills_in, OOM_COUNTERS))


def _oom_kills_in(path: str) -> int:
    try:
        # As bytes: text would import a codec at the start of every pool.
        with open(path, "rb") as file:
            found = [line.split()[1] for line in file if line.startswith(b"oom_kill ")]
        return int(found[0]) if found else 0
    except (OSError, ValueError, IndexError):
        return 0


def available_cpus(read: Read = read_file) -> int:
    """CPUs this process may use: its affinity, lowered to the least quota of its control groups
    (rounded up), at least 1."""
    count = getattr(os, "process_cpu_count", None)
    cpus = count() if count is not None else _affinity()
    quota = _quota(read)
    if quota is not None:
        cpus = min(cpus or 1, math.ceil(quota))
    return max(1, cpus or 1)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(read: Read) -> float | None:
    """CPUs granted by the control groups, version 2 or 1; None if unlimited."""
    own, mounts = read("/proc/self/cgroup"), read("/proc/self/mountinfo")
    is_old, folders = groups_of("cpu", own, mounts)
    quotas = []
    for folder in folders:
        if is_old:
            fields = [read(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period")]
        else:
            fields = read(f"{folder}/cpu.max").split()
        numbers = [int(field) for field in fields if field.strip().isdigit()]
        if len(numbers) == 2 and numbers[1]:
            quotas.append(numbers[0] / numbers[1])
    return min(quotas, default=None)
