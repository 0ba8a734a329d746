"""Nothing of a test run outlives it, however it ends.

Whatever a process that runs tests starts bears its mark: programs have it in their
environment, forks have a mapping of that name. A program of its own, the keeper, waits for
the end of that process and then kills all that bear the mark. A plain leash, such as a pipe or
a signal at a parent's death, would not do: it would also end what a test expects the pool
itself to end.

By the mark one can also tell what this run has in ``/dev/shm`` from what others have there, if a
process has mapped it. The creator of a named semaphore maps it under a name that is then removed,
so files are compared by their inodes. Of a semaphore that no process has mapped only the name
tells whose it was: this run's have its mark in their names. Those of programs that it starts have
not. But each of these has a resource tracker of its own, which removes what the program leaves.

Only on Linux; elsewhere a killed run leaves what it leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import select
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator

MARK = "PREFORK_EXECUTOR_TESTS_OF"
"""The environment variable that programs have."""
ROUNDS = 100
"""So often the keeper looks for what is left, with pauses of PAUSE seconds."""
PAUSE = 0.05
IS_LINUX = sys.platform.startswith("linux")


def leave_pid_1() -> None:
    """In a container the tests may be its first process, which inherits every orphan and must
    reap it, or it stays a zombie. So that process does only that, and a fork of it goes on."""
    if os.getpid() != 1:
        return
    tests = os.fork()
    if not tests:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # That of a terminal reaches the tests as well.
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(tests, number))
    while True:
        pid, status = os.wait()
        if pid == tests:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def hold() -> None:
    """Mark this process and all that it will start, and have a keeper wait for its end."""
    if not IS_LINUX:
        return
    number = uuid.uuid4().hex
    name = f"tests-{number}"
    os.environ[MARK] = name
    _map_named(name)
    # multiprocessing has no public way for this. Its processes inherit it.
    multiprocessing.current_process()._config["semprefix"] = f"/mp-{number}"  # type: ignore[attr-defined]
    # Not a Popen, which complains at the end of a process that still runs.
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-IS", __file__, str(os.getpid()), name],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)],
        setsid=True,
    )


def _map_named(name: str) -> None:
    """Map a page of that name, for good. Python's own mmap would keep a descriptor."""
    descriptor = os.memfd_create(name)
    try:
        os.ftruncate(descriptor, mmap.PAGESIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)


def bearers(name: str) -> Iterator[int]:
    """The processes that bear this mark."""
    mark = name.encode()
    for pid in _processes():
        if mark in _read(pid, "maps") or MARK.encode() + b"=" + mark in _read(pid, "environ"):
            yield pid


def of_others(names: Iterable[str]) -> set[str]:
    """Those files of ``/dev/shm`` that are not this run's."""
    if not IS_LINUX:
        return set()
    ours = {os.getpid(), *bearers(os.environ[MARK])}
    mapped_here = {file for pid in ours for file in _mapped(pid)}
    mapped_elsewhere = {file for pid in _processes() if pid not in ours for file in _mapped(pid)}
    number = os.environ[MARK].removeprefix("tests-")
    foreign = set()
    for name in names:
        try:
            status = os.stat(f"/dev/shm/{name}")
        except FileNotFoundError:
            continue  # Gone by now.
        file = status.st_dev, status.st_ino
        is_foreign = file in mapped_elsewhere or status.st_uid != os.geteuid()
        if name.startswith("sem.") and number not in name:
            is_foreign = is_foreign or file not in mapped_here
        if is_foreign:
            foreign.add(name)
    return foreign


def _mapped(pid: int) -> Iterator[tuple[int, int]]:
    """Device and inode of each file of ``/dev/shm`` that the process has mapped."""
    for line in _read(pid, "maps").splitlines():
        if b" /dev/shm/" in line:
            device, inode = line.split()[3:5]
            major, minor = (int(part, 16) for part in device.split(b":"))
            yield os.makedev(major, minor), int(inode)


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]


def _read(pid: int, what: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{what}", "rb") as file:
            return file.read()
    except OSError:
        return b""  # It has ended, or is another user's.


def _keep(pid: int, name: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        select.select([process], [], [])
    for _ in range(ROUNDS):
        left = [found for found in bearers(name) if not _ends_by_itself(found)]
        if not left:
            return
        for found in left:
            with contextlib.suppress(OSError):
                os.kill(found, signal.SIGKILL)
        time.sleep(PAUSE)


def _ends_by_itself(pid: int) -> bool:
    # multiprocessing's resource tracker does when all others have, and cleans up.
    return pid == os.getpid() or b"resource_tracker" in _read(pid, "cmdline")


if __name__ == "__main__":
    _keep(int(sys.argv[1]), sys.argv[2])
