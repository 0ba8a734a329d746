"""Control groups with little memory or few CPUs, where this machine lets the tests make some."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator

from prefork_executor._system.control_groups import groups_of, read_file

_numbers = itertools.count()


LIMITS = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
}
"""The file that takes a controller's limit, of version 1 and of version 2."""


def _made(controller: str) -> tuple[str, str] | None:
    """A new group below this process's, and its file for the limit; None: there may be none."""
    own, mounts = read_file("/proc/self/cgroup"), read_file("/proc/self/mountinfo")
    is_old, folders = groups_of(controller, own, mounts)
    if not folders:
        return None
    folder = f"{folders[0]}/prefork-test-{os.getpid()}-{next(_numbers)}"
    limit = f"{folder}/{LIMITS[controller][0 if is_old else 1]}"
    try:
        os.mkdir(folder)
    except OSError:
        return None
    if os.access(limit, os.W_OK) and os.access(f"{folder}/cgroup.procs", os.W_OK):
        return folder, limit
    os.rmdir(folder)
    return None


@contextlib.contextmanager
def limited(limit: int, controller: str = "memory") -> Iterator[str]:
    """A new group with so many bytes of memory, or so many microseconds of processor time in each
    tenth of a second: its folder. A process is in it that writes its number to its cgroup.procs."""
    made = _made(controller)
    assert made is not None
    folder, file = made
    try:
        with open(file, "w") as out:
            out.write(str(limit))
        yield folder
    finally:
        for _ in range(1000):
            try:
                os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.01)  # A process that is just ending.


def may_be_made(controller: str = "memory") -> bool:
    """Whether this machine and this user allow for it."""
    made = _made(controller)
    if made is not None:
        os.rmdir(made[0])
    return made is not None
