"""Processes: fork, wait, kill, and descriptors that tell of an end.

What no process of the pool may ever do: wait for a child that it did not fork
itself (the user's own children are theirs), or run Python signal handlers
between fork and the moment at which the child has put its own in place.
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
    """Import here, before a fork, what is imported late otherwise. A child cannot always: the
    import's lock may be held by a thread that the child does not have, and the child may have
    no descriptor left to open a file with."""
    import resource  # noqa: F401

    libc()


def fork_masked() -> tuple[int, set[int]]:
    """Fork with every signal blocked. Returns what fork returned, and the mask
    to restore: by the parent at once, by the child when its handlers stand. The child has
    multiprocessing's resource tracker, if this process has one.

    Raises:
        OSError: the fork failed; the mask is restored.
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
    copy of the resource tracker's pipe, unless it is one of multiprocessing's own; these say
    so beforehand."""
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
    """Before a fork, so that the child does not write it again, and before _exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def leave(status: int) -> NoReturn:
    """Flush, and end this process, which was forked off: it runs nothing of what the
    main process has registered for its own end."""
    flush_streams()
    os._exit(status)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to SIGKILL this process when ``parent``, which forked it,
    ends; if it has ended already, exit now. A no-op where there is no such means."""
    if not FALLBACK:
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def end_by_signal(number: int) -> NoReturn:
    """End this process as the signal would have ended it, but for a file of its memory."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    restore_mask(current_mask() - {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # A stopping one, which has continued.


def try_reap(pid: int) -> int | None:
    """The wait status of our own child if it has ended, else None. A child that
    somebody else has waited for counts as ended with status 0."""
    try:
        ended, status = green.system().waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if ended else None


def wait_for_child(pid: int) -> bool:
    """Wait until our own child has ended, and leave its status to whom it concerns. False:
    there is no such child; perhaps somebody was quicker."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return True
    return False


def has_stopped(pid: int) -> bool:
    """Whether a signal has stopped our own child since this was last asked."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None
    except ChildProcessError:
        return False


def split_status(status: int) -> tuple[int | None, int | None]:
    """A wait status as (exit status, signal number), one of them None."""
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (None, -code)


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may have ended. One that we may not signal, because it
    has become another user's, is left alone: the others are to get theirs."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        name = signal.Signals(number).name
        logger.warning("process %d could not be sent %s: %s", pid, name, error.strerror)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, or None where
    there is no such means or no such process."""
    if FALLBACK:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def sentinel_of(pid: int, is_there: Callable[[], bool]) -> int:
    """A descriptor that is ready when this process has ended. ``is_there`` tells whether it is
    still the one that is meant; else one is returned that is ready. Where nothing tells of
    an end it never is.

    Raises:
        OSError: no descriptor is left.
    """
    descriptor = open_pidfd(pid)
    is_meant = is_there()
    if is_meant and descriptor is not None:
        return descriptor
    close_quietly([descriptor] if descriptor is not None else [])
    read_end, write_end = os.pipe()
    # It may have been reaped, and nobody told of that yet.
    if not (is_meant and _exists(pid)):
        os.close(write_end)
    return read_end


def wait_until_gone(pids: Iterable[int], mapped: int, timeout: float) -> None:
    """SIGKILL what is left of these processes and wait until they have ended, ``timeout``
    seconds at most. They are nobody's children that we could wait for, so their ids may be
    strangers' by now: meant is only who has mapped the file of the descriptor ``mapped``."""
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
    # After that it cannot become another's without our noticing.
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
        return False  # It has ended; or it is another user's, and ends with its lifeline.


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
