"""What faults.py lets workers do: tasks, initializers, and what they return.

A task that has to be seen at work notes its process id in a file first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from notes import REASON, note, noted
from pools import POOLS, Options

MIB = 1024 * 1024
DYING_STATUS = 91
"""With what status an initializer ends its worker."""
LONG = 60.0
"""Seconds: longer than any scenario lasts."""


# --- tasks that do no harm ---------------------------------------------------------------------


def nap(seconds: float) -> int:
    """Take a little time; say who did it."""
    time.sleep(seconds)
    return os.getpid()


def noted_nap(path: str, seconds: float) -> None:
    """Say that it has begun, and take some time."""
    note(path)
    time.sleep(seconds)


def nap_then_note(path: str, seconds: float) -> None:
    """Take some time, and say that it was done."""
    time.sleep(seconds)
    note(path)


def echo(value: Any) -> Any:
    """Send it back."""
    return value


def long_call(path: str) -> int:
    """One call of C code that takes minutes and holds the GIL."""
    note(path)
    return sum(range(10**11))


def nested(name: str) -> int:
    """Run a task in a pool of the same kind."""
    pool = POOLS[name](Options())
    result: int = pool.submit(nap, 0.01).result()
    pool.shutdown()
    return result


# --- tasks that end their worker ---------------------------------------------------------------


def kill_self() -> None:
    """As if the kernel had."""
    os.kill(os.getpid(), signal.SIGKILL)


def sys_exit(status: int) -> NoReturn:
    """What a program does that was made a function."""
    sys.exit(status)


def segfault() -> None:
    """A bug in an extension module."""
    ctypes.string_at(0)


def close_descriptors() -> None:
    """What daemonizing code does."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def meddle() -> None:
    """What a task does that takes descriptors for its own."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor < 3:
            continue
        with contextlib.suppress(OSError):
            if select.select([], [descriptor], [], 0)[1]:
                os.write(descriptor, b"nobody expects this")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def leave_child(children: str, then: Callable[[], None]) -> None:
    """Fork a child that outlives this task and holds copies of all descriptors."""
    if os.fork() == 0:
        note(children)
        time.sleep(LONG)
        os._exit(0)
    while not noted(children):
        time.sleep(0.01)
    then()


def return_at_once() -> None:
    """Nothing more."""


# --- tasks that do not end when asked ----------------------------------------------------------


def ignore_sigterm(path: str) -> None:
    """Hang, and ignore the signal that asks to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    noted_nap(path, LONG)


# --- memory ------------------------------------------------------------------------------------


def limit_memory() -> None:
    """An initializer: 256 MiB more than there are now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 256 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def hoard() -> NoReturn:
    """Take memory until there is none. The traceback keeps all of it alive."""
    taken = []
    while True:
        taken.append(bytearray(MIB))


# --- what does not travel ----------------------------------------------------------------------


class TwoArgumentsError(Exception):
    """As many are written: it pickles, and cannot be unpickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def raise_two_arguments() -> NoReturn:
    """Fail with an exception that cannot be unpickled."""
    raise TwoArgumentsError("it failed", "no reason")


def return_lock() -> Any:
    """A result that cannot be pickled."""
    return threading.Lock()


class Trap:
    """Does something to the one process that unpickles it and is the client."""

    def __init__(self, client: int, does: Callable[[], object]) -> None:
        self.client = client
        self.does = does

    def __reduce__(self) -> tuple[Any, ...]:
        return spring, (self.client, self.does)


def spring(client: int, does: Callable[[], object]) -> Trap:
    """Unpickle a trap."""
    if os.getpid() == client:
        does()
    return Trap(client, does)


def return_trap(client: int, does: Callable[[], object]) -> Trap:
    """A result that harms whoever unpickles it."""
    return Trap(client, does)


def raise_value_error() -> NoReturn:
    """What a __setstate__ may do."""
    raise ValueError("this object is from another version")


def raise_system_exit() -> NoReturn:
    """What few expect of unpickling."""
    raise SystemExit(5)


def end_process() -> NoReturn:
    """A crash in an extension module's unpickling."""
    os._exit(6)


# --- initializers ------------------------------------------------------------------------------


def initializer_raises(path: str) -> NoReturn:
    """In every worker."""
    note(path)
    raise RuntimeError(REASON)


def initializer_dies(path: str) -> NoReturn:
    """In every worker, without a word."""
    note(path)
    os._exit(DYING_STATUS)


def give_up_rights() -> None:
    """As a server does that root has started."""
    os.setgid(65534)
    os.setuid(65534)
