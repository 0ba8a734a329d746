"""How much memory processes take, and how much is left for them.

What a process takes is what it has for itself: its own pages, and shared memory that no other
process has mapped. Two kinds of pages are left out:

* Pages that it shares. A worker has inherited them and not written to them, or the program has
  mapped them as well. So they are there whether the worker runs or not. With them, a program of
  10 GB would have four forked workers of 1.7 GB each before their first task, and a bound of 6 GB
  would let only one task run at a time.
* Pages of files. The kernel takes them back when memory is needed. With them, no task could read a
  mapped file that is larger than the bound.

The kernel counts page by page (``smaps_rollup``: 20 ms for a gigabyte), and keeps
the process from mapping memory meanwhile. So each process is counted once, and then again one
at a time, as far as that takes no more than COUNT_SHARE of the time. In between, what has come or
gone since is taken from ``statm``, which costs microseconds: resident pages less those of files.
Where there is no /proc, psutil tells what a process has for itself.

What is left is the least of what the machine and each control group have left, from that of
this process up to the root: below ``memory.max`` and ``memory.high`` (version 2), or
``memory.limit_in_bytes`` (version 1). What the kernel takes back when a process needs memory
counts as free: pages of files, and the kernel's own caches. The kernel's MemAvailable counts the
same for the machine.

All that is read here is read through a function that gives a file's bytes, and that gives
none for a file that cannot be read. So tests give it recorded ones. Only pools with a bound
for their memory import this.
"""

from __future__ import annotations

import math
import os
import posix
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .control_groups import groups_of, read_file
from .machine import MAXRSS_UNIT
from .platform import FALLBACK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Read = Callable[[str], bytes]

COUNT_SHARE, HURRY_SHARE = 0.01, 0.1
"""The parts of a processor's time that may go into counting pages, beyond once for each process.
The larger part is for counts that are urgent: of all processes at once, and of each process that
grew while it was counted."""
UNSURE = 1 << 20
"""Bytes by which a process may have grown without another count."""
_OF_ROLLUP = (
    *(b"Rss:", b"Anonymous:", b"Pss_Anon:", b"Pss_Shmem:", b"Pss_File:"),
    *(b"Private_Clean:", b"Private_Dirty:"),
)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = 1 << 62
"""From here on a limit of version 1 is none: it writes the largest number of pages there is."""
_CACHES = (b"inactive_file", b"active_file", b"slab_reclaimable")
"""In a control group's memory.stat: what the kernel takes back when memory is needed."""
_MEMINFO, _PRESSURE = "/proc/meminfo", "/proc/pressure/memory"


def why_not_measurable() -> str:
    """Why memory cannot be measured here, and what to do; empty if it can."""
    if not FALLBACK or _psutil() is not None:
        return ""
    return "this system has no /proc; install psutil (the extra prefork-executor[memory])"


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


# --- what a process takes --------------------------------------------------------------------


def taken_in(rollup: bytes) -> int | None:
    """Bytes that a process has for itself, of the text of its smaps_rollup.

    The kernel does not say how many of the private pages are pages of files. There are at least
    as many as follow from the assumption that each other page of a file is shared by two
    processes, which are the fewest. The rest may stand for as many shared pages, but these are few.
    Before version 5.4 the kernel tells the whole proportional set size only."""
    found = [_kilobytes(rollup, name) for name in _OF_ROLLUP]
    told = [size for size in found if size is not None]
    if len(told) < len(found):
        return _kilobytes(rollup, b"Pss:")
    rss, anonymous, of_anonymous, of_shared_memory, of_files, clean, dirty = told
    of_own_files = max(0, 2 * of_files - (rss - anonymous))
    return min(clean + dirty - of_own_files, of_anonymous + of_shared_memory)


def private_in(statm: bytes) -> int | None:
    """Bytes of resident memory that are of no file, of the text of a process's statm."""
    try:
        resident, shared = statm.split()[1:3]
        return max(0, int(resident) - int(shared)) * _PAGE
    except ValueError:
        return None


def _kilobytes(text: bytes, name: bytes) -> int | None:
    for line in text.splitlines():
        if line.startswith(name):
            try:
                return int(line.split()[1]) * 1024
            except (ValueError, IndexError):
                return None
    return None


class _Counted(NamedTuple):
    """When a process's pages were counted, and by how much they were more than what statm
    said then. From ``again_at`` on they are to be counted again, because the process has grown
    meanwhile. A new process is counted at once."""

    at: float = -1.0
    beyond: int = 0
    again_at: float = -1.0


class Scales:
    """Weighs the workers of one pool."""

    def __init__(
        self,
        read: Read = read_file,
        clock: Callable[[], float] = time.monotonic,
        cost: Callable[[], float] = time.thread_time,
    ) -> None:
        self._read = read
        self._clock = clock
        self._cost = cost
        self._counted: dict[int, _Counted] = {}
        self._count_again_at = self._count_all_at = 0.0
        self.spent = 0.0
        """Seconds that counting pages has taken in the latest call of :meth:`weigh`."""

    def weigh(self, pids: Iterable[int], *, exactly: bool = False) -> dict[int, int]:
        """Bytes that each of these processes takes. One that has ended is left out.
        ``exactly``: count the pages of all of them now, unless that was done just before."""
        self.spent = 0.0
        if FALLBACK:
            return {pid: size for pid in pids if (size := _unique_size(pid)) is not None}
        private = {pid: size for pid in pids if (size := self._private(pid)) is not None}
        counted = {pid: self._counted.get(pid, _Counted()) for pid in private}
        now = self._clock()
        exactly = exactly and now >= self._count_all_at
        for pid in sorted(private, key=lambda pid: counted[pid].at):
            before = counted[pid]
            if exactly or now >= min(before.again_at, self._count_again_at):
                private[pid], counted[pid] = self._count(pid, private[pid], before.beyond, now)
        if exactly:
            self._count_all_at = now + self.spent / HURRY_SHARE
        self._counted = counted
        return {pid: max(0, size + counted[pid].beyond) for pid, size in private.items()}

    def _private(self, pid: int) -> int | None:
        return private_in(self._read(f"/proc/{pid}/statm"))

    def _count(self, pid: int, before: int, beyond: int, now: float) -> tuple[int, _Counted]:
        begin = self._cost()
        taken = taken_in(self._read(f"/proc/{pid}/smaps_rollup"))
        spent = self._cost() - begin
        self.spent += spent
        self._count_again_at = now + spent / COUNT_SHARE
        after = self._private(pid)
        if taken is None or after is None:
            return before, _Counted(now, beyond, math.inf)
        # While it grows, what is counted is of some moment between the two. Then it is counted
        # again soon.
        least, most = taken - max(before, after), taken - min(before, after)
        again_at = now + spent / HURRY_SHARE if most - least >= UNSURE else math.inf
        return after, _Counted(now, min(max(beyond, least), most), again_at)


def _unique_size(pid: int) -> int | None:
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except psutil.AccessDenied:
            return int(process.memory_info().rss)
    except psutil.Error:
        return None


# --- what is left -----------------------------------------------------------------------------


class Room(NamedTuple):
    """The memory there is for this process and others, in bytes. ``stalled`` is the percent of
    the last ten seconds in which all processes that had work waited for memory."""

    has: int
    left: int
    stalled: float = 0.0


class System:
    """The machine's memory, and that of the control groups that this process is in."""

    def __init__(self, read: Read = read_file) -> None:
        self._read = read
        self._groups = list(groups_in(read("/proc/self/cgroup"), read("/proc/self/mountinfo")))
        own = f"{self._groups[0].folder}/memory.pressure" if self._groups else ""
        self._pressure = own if own and read(own) else _PRESSURE

    def look(self) -> Room:
        """What there is now. ``left`` is never below zero."""
        if FALLBACK:
            memory = _psutil().virtual_memory()
            return Room(int(memory.total), int(memory.available))
        meminfo = self._read(_MEMINFO)
        has = _kilobytes(meminfo, b"MemTotal:") or 0
        left = _kilobytes(meminfo, b"MemAvailable:") or 0
        for group in self._groups:
            limit = group.limit(self._read)
            if limit is not None:
                has = min(has, limit)
                left = min(left, limit - group.used(self._read))
        return Room(has, max(0, left), stalled_in(self._read(self._pressure)))


class Group(NamedTuple):
    """A control group: the folder of its files, and whether they are version 1's."""

    folder: str
    is_old: bool = False

    def limit(self, read: Read) -> int | None:
        """Bytes that it may take; None: any."""
        names = ("memory.limit_in_bytes",) if self.is_old else ("memory.max", "memory.high")
        found = [_number(read(f"{self.folder}/{name}")) for name in names]
        return min((limit for limit in found if limit is not None), default=None)

    def used(self, read: Read) -> int:
        """Bytes that it takes, without those that the kernel takes back when they are needed.

        Pages of files that were read more than once, which are "active", are among these. With
        them, a program that has read its data twice would have nothing left."""
        usage = "memory.usage_in_bytes" if self.is_old else "memory.current"
        prefix = b"total_" if self.is_old else b""
        caches = {prefix + name for name in _CACHES}
        cached = 0
        for line in read(f"{self.folder}/memory.stat").splitlines():
            name, _, number = line.partition(b" ")
            if name in caches:
                cached += _number(number) or 0
        return max(0, (_number(read(f"{self.folder}/{usage}")) or 0) - cached)


def _number(text: bytes) -> int | None:
    text = text.strip()
    value = int(text) if text.isdigit() else None
    return value if value is not None and value < _NO_LIMIT else None


def groups_in(own: bytes, mounts: bytes) -> Iterator[Group]:
    """The control groups that bound this process's memory, its own first, of the texts of
    /proc/self/cgroup and /proc/self/mountinfo."""
    is_old, folders = groups_of("memory", own, mounts)
    return (Group(folder, is_old) for folder in folders)


def stalled_in(pressure: bytes) -> float:
    """The percent of the last ten seconds in which nobody could go on, of the text of a
    memory.pressure. 0 where the kernel does not tell."""
    for line in pressure.splitlines():
        if line.startswith(b"full avg10="):
            try:
                return float(line.split()[1].removeprefix(b"avg10="))
            except ValueError:
                return 0.0
    return 0.0


# --- the most that a task takes ---------------------------------------------------------------


class Gauge:
    """In a worker: how much memory a task adds to it at most, and how much more it had at the
    task's beginning than at its first one's, which earlier tasks have left behind.

    The kernel keeps the most that a process has had (``ru_maxrss``), and forgets it when
    asked to (``clear_refs``). Together that takes 9 microseconds a task, most of it to open
    the file: a descriptor that was kept open might be another file's by now, if a task has
    closed it. Where the kernel does not forget, only what is more than ever before is seen.

    What the kernel keeps includes pages of files and of shared memory. If the task has touched some
    for the first time, and they are still mapped at its end, they are taken off: a large file that
    the program has mapped is nothing that each of its tasks adds."""

    def __init__(self) -> None:
        import resource

        self._usage = resource.getrusage
        self._who = resource.RUSAGE_SELF
        self._first: int | None = None
        self._begin = self._mapped = 0
        self._mapped_at = -UNSURE

    def size_of_new(self) -> int:
        """What this process takes before its first task, as `Scales` weighs it."""
        return Scales().weigh([os.getpid()]).get(os.getpid(), 0)

    def begin(self) -> None:
        """A task begins."""
        if not FALLBACK:
            _forget_most()
        self._begin = self._most()
        # To ask takes as long as all else here, and most tasks have mapped nothing.
        if abs(self._begin - self._mapped_at) >= UNSURE:
            self._mapped, self._mapped_at = _mapped(), self._begin
        if self._first is None:
            self._first = self._begin - self._mapped

    def end(self) -> tuple[int, int]:
        """It has ended: bytes that it has added at most, and that there were before."""
        added = max(0, self._most() - self._begin)
        if added >= UNSURE:
            added = max(0, added - max(0, _mapped() - self._mapped))
        return added, max(0, self._begin - self._mapped - (self._first or 0))

    def _most(self) -> int:
        return int(self._usage(self._who).ru_maxrss) * MAXRSS_UNIT


def _mapped() -> int:
    """Bytes of this process's pages of files and of shared memory."""
    if FALLBACK:
        return 0
    try:
        return int(read_file("/proc/self/statm").split()[2]) * _PAGE
    except (ValueError, IndexError):
        return 0


def _forget_most() -> None:
    try:
        descriptor = posix.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        posix.write(descriptor, b"5")
    except OSError:
        pass
    finally:
        posix.close(descriptor)
