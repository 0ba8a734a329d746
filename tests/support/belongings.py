"""What a process owns at one moment: processes, descriptors, threads, shared memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import leash
import psutil

KERNEL_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


@dataclass(frozen=True)
class Belongings:
    """What this process owns at one moment."""

    processes: frozenset[tuple[int, float]]
    descriptors: frozenset[tuple[str, str]]
    threads: frozenset[str]
    shared_memory: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        return cls(
            frozenset(_descendants()),
            frozenset(_descriptors()),
            frozenset(f"{thread.name} {thread.ident}" for thread in threading.enumerate()),
            _shared_memory(),
        )

    def beyond(self, before: Belongings) -> dict[str, list[object]]:
        """What is here that was not there before, by kind; empty if nothing."""
        added = {
            "processes": [_command(pid) for pid, _ in self.processes - before.processes],
            "descriptors": sorted(self.descriptors - before.descriptors),
            "threads": sorted(self.threads - before.threads),
            "shared memory": _unless_of_others(self.shared_memory - before.shared_memory),
        }
        return {kind: things for kind, things in added.items() if things}


def _descendants() -> Iterator[tuple[int, float]]:
    for pid in _descendants_of(os.getpid()):
        try:
            yield pid, psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            continue


def _descendants_of(pid: int) -> Iterator[int]:
    """As psutil's ``children`` does, which reads about every process of the machine: that was
    most of what a short test took."""
    if not KERNEL_LISTS_CHILDREN:
        yield from (child.pid for child in psutil.Process(pid).children(recursive=True))
        return
    for child in _children_of(pid):
        yield child
        yield from _descendants_of(child)


def _children_of(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError):  # It has gone.
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # Or this thread of it has.
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children += map(int, file.read().split())
    return children


def _command(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} ({process.status()}): {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return f"{pid} (gone by now)"


def _descriptors() -> Iterator[tuple[str, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield name, os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # The one that listed the directory.


def _unless_of_others(names: frozenset[str]) -> list[object]:
    # The directory is the whole machine's: what others have there is no fault of a test, nor
    # what they have removed before it could be seen whose it was.
    return sorted((names - leash.of_others(names)) & _shared_memory()) if names else []


def _shared_memory() -> frozenset[str]:
    return frozenset([*_named_shared_memory(), *_mapped_shared_memory()])


def _named_shared_memory() -> list[str]:
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return [name for name in names if name.startswith(("prefork", "psm_", "sem.mp-"))]


def _mapped_shared_memory() -> list[str]:
    with open("/proc/self/maps", "rb") as file:
        maps = file.read()
    if b"memfd:prefork" not in maps:
        return []
    return [line.split()[0].decode() for line in maps.splitlines() if b"memfd:prefork" in line]
