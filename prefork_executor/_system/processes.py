"""Processes: fork, wait, kill, and descriptors that tell of an end.

No process of the pool may ever wait for a child that it did not fork itself: the user's own
children belong to the user. And none may run Python signal handlers between a fork and the
moment when the child has installed its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posix
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from . import green
from .descriptors import close_quietly, pause, readable
from .platform import FALLBACK, libc
from .signals import ALL_SIGNALS, block_signals, current_mask, restore_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

logger = logging.getLogger("prefork_executor")

PR_SET_PDEATHSIG = 1


def import_for_children() -> None:
    """Import now, before a fork, what is otherwise imported late. A child cannot always import:
    a thread that the child does not have may hold the import lock, or the child may have no
    descriptor left to open a file with."""
    import resource  # noqa: F401

    libc()


def fork_masked() -> tuple[int, set[int]]:
    """Fork with every signal blocked. Returns what fork returned, and the old signal mask. The
    parent restores the mask at once, the child when it has installed its handlers. The child
    keeps multiprocessing's resource tracker, if this process has one.

    Raises:
        OSError: the fork failed, and the mask is restored.
    """
    old_mask = current_mask()
    try:
        block_signals(ALL_SIGNALS)
        with _tracker_kept():
            pid: int = green.system().fork()
        if not pid:
            green.forget_hub()
        return pid, old_mask
    except BaseException:
        restore_mask(old_mask)
        raise


@contextlib.contextmanager
def _tracker_kept() -> Iterator[None]:
    """For a fork by this thread. From Python 3.13.14 and 3.14.5 on, a fork closes the child's
    copy of the resource tracker's pipe, except in a fork that multiprocessing has announced as
    its own. So announce this one, too."""
    resource_tracker = sys.modules.get("multiprocessing.resource_tracker")
    intent = getattr(resource_tracker, "_fork_intent", None)
    if intent is None:
        yield
        return
    intent.preserve_fd = True
    try:
        yield
    finally:
        intent.preserve_fd = False


def flush_streams() -> None:
    """Before a fork, so that the child does not write the buffers again, and before _exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def leave(status: int) -> NoReturn:
    """Flush, and end this process, which was forked off. What the main process has registered
    for its own end does not run."""
    flush_streams()
    os._exit(status)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to SIGKILL this process when ``parent``, which forked it, ends. If that
    has ended already, exit now. A no-op where the system has no such means."""
    if not FALLBACK:
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_by_signal(number: int) -> NoReturn:
    """End this process as the signal would have ended it, but without a core dump."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    restore_mask(current_mask() - {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # A signal that stops: the process has been continued.


def try_reap(pid: int) -> int | None:
    """The wait status of our own child if it has ended, else None. If other code has already
    waited for the child, its status is taken to be 0."""
    try:
        ended, status = green.system().waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if ended else None


def reap_all() -> Iterator[tuple[int, int]]:
    """The process id and wait status of each of our children that has ended, whoever made it: the
    first process of a container is also the parent of those that other processes have left."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def wait_for_child(pid: int) -> bool:
    """Wait until our own child has ended, without reaping it. Returns False if there is no such
    child; other code may have reaped it."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return True
    return False


def has_stopped(pid: int) -> bool:
    """Whether a signal has stopped our own child since the last call."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def split_status(status: int) -> tuple[int | None, int | None]:
    """A wait status as (exit status, signal number). One of them is None."""
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (None, -code)


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may have ended. If we may not signal it, because it has become
    another user's, only log that: the other processes must still get their signal."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        name = signal.Signals(number).name
        logger.warning("process %d could not be sent %s: %s", pid, name, error.strerror)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends. None if the system has no such
    means, or there is no such process."""
    if FALLBACK:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def sentinel_of(pid: int, is_there: Callable[[], bool]) -> int:
    """A descriptor that becomes readable when this process has ended. ``is_there`` says whether
    the id still belongs to the process that is meant. If not, the descriptor is readable at once.
    Where the system does not tell of ends, it never becomes readable.

    Raises:
        OSError: no descriptor is left.
    """
    descriptor = open_pidfd(pid)
    is_meant = is_there()
    if is_meant and descriptor is not None:
        return descriptor
    close_quietly([descriptor] if descriptor is not None else [])
    read_end, write_end = os.pipe()
    # The process may have been reaped, and ``is_there`` may not know yet.
    if not (is_meant and _exists(pid)):
        os.close(write_end)
    return read_end


def wait_until_gone(pids: Iterable[int], mapped: int, timeout: float) -> None:
    """SIGKILL what is left of these processes and wait until they have ended, ``timeout``
    seconds at most. They are not our children, so other processes may have their ids by now.
    Only processes that have mapped the file of the descriptor ``mapped`` are meant."""
    deadline = time.monotonic() + timeout
    if FALLBACK:
        _wait_until_gone_by_ids(list(pids), deadline)
        return
    descriptors = [fd for pid in pids if (fd := _open_if_mapped(pid, mapped)) is not None]
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    for descriptor in descriptors:
        readable(descriptor, max(0.0, deadline - time.monotonic()))
        posix.close(descriptor)


def _open_if_mapped(pid: int, mapped: int) -> int | None:
    """A pidfd of this process, if it has mapped that file."""
    descriptor = open_pidfd(pid)
    # From here on the id cannot become another process's without our noticing.
    if descriptor is not None and not _has_mapped(pid, mapped):
        posix.close(descriptor)
        return None
    return descriptor


def _has_mapped(pid: int, descriptor: int) -> bool:
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    wanted = f" {device} {status.st_ino} ".encode()
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return any(wanted in line for line in maps)
    except OSError:
        return False  # It has ended, or has become another user's and ends with its lifeline.


def _wait_until_gone_by_ids(pids: list[int], deadline: float) -> None:
    for pid in pids:
        send_signal(pid, signal.SIGKILL)
    for pid in pids:
        while _exists(pid) and time.monotonic() < deadline:
            pause(0.01)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # It is another user's.
    return True
