"""The only place for fork, kill, waitpid, signals and descriptor hygiene.

Linux offers the pool more than POSIX does. Each such means has a fallback that
other systems use, and that is used on Linux too when the environment variable
``PREFORK_EXECUTOR_FALLBACK`` is set to 1, so that it can be tested here:

=======================  ===========================  ==========================
purpose                  Linux                        elsewhere
=======================  ===========================  ==========================
whole messages           SOCK_SEQPACKET               SOCK_DGRAM
waking one idle worker   epoll, EPOLLEXCLUSIVE        poll; all wake, one gets it
shared memory            memfd                        an unlinked temporary file (also where
                                                      a sandbox refuses memfds)
the client's end         a pidfd                      end of file on control
the supervisor's end     PR_SET_PDEATHSIG, and a      end of file on the leash;
                         lifeline                     the client kills workers
=======================  ===========================  ==========================

What no process of the pool may ever do: wait for a child that it did not fork
itself (the user's own children are theirs), or run Python signal handlers
between fork and the moment at which the child has put its own in place.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import contextlib
import errno
import fcntl
import functools
import logging
import math
import mmap
import os
import posix
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

from . import _green

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from typing import Any, NoReturn

if not hasattr(os, "fork"):
    raise ImportError(
        f"prefork_executor needs a POSIX system with fork(); {sys.platform} has none. "
        "Use concurrent.futures.ProcessPoolExecutor here."
    )

logger = logging.getLogger("prefork_executor")

FALLBACK = os.environ.get("PREFORK_EXECUTOR_FALLBACK") == "1" or not sys.platform.startswith(
    "linux"
)
"""Whether this process does without what only Linux has."""


def _kernel() -> tuple[int, ...]:
    """Its version, as far as it is in numbers."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0]
    return tuple(int(part) for part in (major, minor) if part.isdecimal())


WAKES_ONE = not FALLBACK and _kernel() >= (5, 11)
"""Whether of those that wait for one descriptor exclusively the first is woken, and no other,
and the next message wakes the next. Before, one could be told of two messages and the other
of none, or a wait that timed out could take the news with it."""
SOCKET_TYPE = socket.SOCK_DGRAM if FALLBACK else socket.SOCK_SEQPACKET
CMSG_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
EPOLLEXCLUSIVE = getattr(select, "EPOLLEXCLUSIVE", 0)
EPOLLRDHUP = getattr(select, "EPOLLRDHUP", 0)
PR_SET_PDEATHSIG = 1
F_SETSIG = 10
SOCKET_BUFFER = 1024 * 1024
"""Bytes asked for in each direction; the kernel may grant less. Some thousand
small messages: nobody who sends one has to wait for a reader that is busy."""

LONGEST_WAIT = 1e6
"""Seconds, some eleven days. No system call takes more than twenty-four; whoever has
waited for so long looks again."""


Socket = _socket.socket
"""Without what ``socket.socket`` adds, and what gevent and eventlet put in its place: see
`_green.py`."""
Handler = Callable[[int, types.FrameType | None], object] | int | signal.Handlers | None
# `_signal`, because the function in `signal` makes an enum of every number: 0.2 ms for a
# full mask, at every turn of a raw main process's loop.
ALL_SIGNALS = frozenset(int(number) for number in _signal.valid_signals())


def socket_pair() -> tuple[Socket, Socket]:
    """Two connected sockets that keep messages whole."""
    ends = _socket.socketpair(socket.AF_UNIX, SOCKET_TYPE)
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    return ends


def control_pair() -> tuple[Socket, Socket]:
    """Two connected sockets for which the end of one side is seen at the other,
    on every system. Only on Linux do they keep messages apart as well."""
    kind = socket.SOCK_STREAM if FALLBACK else socket.SOCK_SEQPACKET
    return _socket.socketpair(socket.AF_UNIX, kind)


def is_at_end(end: Socket) -> bool:
    """Whether nothing more will come, because the other end is gone. Reading nothing
    does not say so where messages are kept whole: one may be empty."""
    if FALLBACK:
        try:
            is_stream = end.type == socket.SOCK_STREAM
            return is_stream and not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
    poll = _green.poll()
    poll.register(end.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def shared_file(name: str, size: int) -> int:
    """A descriptor of a new, empty file of this many bytes that lies in memory
    (on other systems, and where a sandbox refuses that: in the temporary directory) and
    vanishes with its users.

    Raises:
        OSError: no descriptor, or no room, or it would be larger than a file may be.
    """
    # Before the system finds it out, which would send SIGXFSZ.
    most = file_size_limit()
    if most is not None and size > most:
        raise OSError(
            errno.EFBIG,
            f"{os.strerror(errno.EFBIG)}: {size} bytes of shared memory, where a file of this "
            f"process may have {most} (RLIMIT_FSIZE, `ulimit -f`)",
        )
    descriptor = _memory_file(name)
    if descriptor is None:
        descriptor, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    try:
        os.ftruncate(descriptor, size)
        _seal(descriptor)
    except BaseException:
        posix.close(descriptor)
        raise
    return descriptor


def _memory_file(name: str) -> int | None:
    """None: there are none, or they are refused, as by seccomp."""
    if FALLBACK:
        return None
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return None


def file_size_limit() -> int | None:
    """Bytes that a file may have which this process writes, one in memory included. None:
    any number."""
    import resource  # Not in what only imports the package.

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def import_for_children() -> None:
    """Import here, before a fork, what is imported late otherwise. A child cannot always: the
    import's lock may be held by a thread that the child does not have, and the child may have
    no descriptor left to open a file with."""
    import resource  # noqa: F401

    libc()


def _seal(descriptor: int) -> None:
    """Whoever has the file may not change its size: those who have mapped it would be
    killed (SIGBUS) when they look behind its new end. Without effect on other files than
    those in memory."""
    if not FALLBACK:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library. (It takes a millisecond that programs which start no pool need not
    spend.)"""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number, offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, size, number, number, number, offset]
    libc.munmap.argtypes = [address, size]
    return libc


def map_private(descriptor: int, size: int) -> memoryview:
    """The file's first ``size`` bytes, mapped copy-on-write. No descriptor stays
    open for it, so that a thousand payloads may be alive at once.

    Raises:
        OSError: no room.
    """
    return _map(descriptor, size, mmap.MAP_PRIVATE)


def map_shared(descriptor: int, size: int) -> memoryview:
    """The same, mapped as one memory for all who do. So those who run the user's code
    need no descriptor, by which that code could write to the file.

    Raises:
        OSError: no room.
    """
    return _map(descriptor, size, mmap.MAP_SHARED)


def _map(descriptor: int, size: int, kind: int) -> memoryview:
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(descriptor, size, kind, trackfd=False))
    import ctypes

    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc().mmap(None, size, access, kind, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    # At the interpreter's end somebody may still look at it.
    weakref.finalize(mapped, libc().munmap, ctypes.c_void_p(address), size).atexit = False
    return memoryview(mapped).cast("B")


def close_quietly(descriptors: Iterable[int]) -> None:
    """Close descriptors of which some may be closed already."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            posix.close(descriptor)


class Doorbell:
    """A pipe that wakes the one process that waits for it. Rings coalesce: what
    counts is that it rang, not how often. It also takes the interpreter's
    signal wake-ups, so that no signal is missed between a look and a wait."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self.write_end = write_end

    @classmethod
    def new(cls) -> Doorbell:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        return cls(read_end, write_end)

    def ring(self) -> None:
        """Wake the listener. Never blocks: a full pipe wakes it just as well."""
        with contextlib.suppress(BlockingIOError):
            posix.write(self.write_end, b"\0")

    def hush(self) -> bytes:
        """Forget all rings up to now. Returns what rang: a zero for a ring, a
        signal's number for a signal that came."""
        rung = b""
        with contextlib.suppress(BlockingIOError):
            while more := posix.read(self.read_end, 4096):
                rung += more
        return rung

    def disown_read_end(self) -> None:
        """For those who only ring."""
        if self.read_end >= 0:
            posix.close(self.read_end)
            self.read_end = -1

    def close(self) -> None:
        close_quietly(end for end in (self.read_end, self.write_end) if end >= 0)
        self.read_end = self.write_end = -1


class Lifeline:
    """A pipe whose writing end one process holds, and no other. When that has ended, however it
    ended, the kernel kills those that hang on it: also one that is stopped, or has another
    user's rights by now, which makes it forget PR_SET_PDEATHSIG. On other systems than Linux
    it does nothing.

    (A process that has asked for it gets a signal of its choice when a descriptor can be read,
    or is at its end. Nobody ever writes here. What it asks for belongs to the open file, which
    forks would share: so each opens the pipe anew.)"""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self._write_end = write_end
        self._own = -1

    @classmethod
    def new(cls) -> Lifeline:
        return cls(*os.pipe())

    def hang_on(self) -> None:
        """From now on this process dies with the one that has made the pipe."""
        self.close(keep_read_end=True)
        if FALLBACK:
            return
        import fcntl

        with contextlib.suppress(OSError):  # There is no /proc, say.
            self._own = os.open(f"/proc/self/fd/{self.read_end}", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(self._own, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self._own, F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(self._own, fcntl.F_GETFL)
            fcntl.fcntl(self._own, fcntl.F_SETFL, flags | os.O_ASYNC)
        if readable(self.read_end):
            os._exit(1)  # It had ended before.

    def close(self, *, keep_read_end: bool = False) -> None:
        """Safe to call again. In the process that has made the pipe: kill all who hang on it."""
        kept = self.read_end if keep_read_end else -1
        ends = {self.read_end, self._write_end, self._own} - {kept, -1}
        close_quietly(ends)
        self.read_end, self._write_end, self._own = kept, -1, -1


class Waiter:
    """Waits until one of a few descriptors can be read.

    A descriptor registered as *shared* is one that many processes wait for; on
    Linux the kernel wakes one of them a message, and the same one first while it
    is idle, so that a trickle of work leaves the others to grow tired and retire.
    """

    def __init__(self) -> None:
        self._epoll = None if FALLBACK else _green.epoll()
        self._polled: set[int] = set()

    def register(self, descriptor: int, *, shared: bool = False, end_only: bool = False) -> None:
        """``end_only``: wake when its other end has gone, whatever there is to be read.
        Without epoll that is not told: the caller looks for himself, now and then."""
        if self._epoll is not None:
            mask = EPOLLRDHUP if end_only else select.EPOLLIN
            self._epoll.register(descriptor, mask | (EPOLLEXCLUSIVE if shared else 0))
        elif not end_only:
            self._polled.add(descriptor)

    def unregister(self, descriptor: int) -> None:
        if self._epoll is not None:
            self._epoll.unregister(descriptor)
        else:
            self._polled.discard(descriptor)

    def wait(self, timeout: float | None = None) -> list[int]:
        """The descriptors that can be read, or are at their end; an empty list
        after ``timeout`` seconds, or after LONGEST_WAIT if that is sooner."""
        if self._epoll is not None:
            seconds = -1 if timeout is None else min(timeout, LONGEST_WAIT)
            return [fd for fd, _ in self._epoll.poll(seconds)]
        # A new object for each call: a signal handler that runs within one may wait, too.
        poll = _green.poll()
        for descriptor in self._polled:
            poll.register(descriptor, select.POLLIN)
        return [fd for fd, _ in poll.poll(_milliseconds(timeout))]

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


def _milliseconds(timeout: float | None) -> int | None:
    return None if timeout is None else math.ceil(min(timeout, LONGEST_WAIT) * 1000)


def pause(seconds: float) -> None:
    """Wait. (``time.sleep`` is another function in a program that gevent has patched.)"""
    _green.poll().poll(_milliseconds(seconds))


def readable(descriptor: int, timeout: float | None = 0.0) -> bool:
    """Whether a read would not block, right now or within so many seconds; or LONGEST_WAIT,
    if that is sooner."""
    poll = _green.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(_milliseconds(timeout)))


# --- processes ------------------------------------------------------------------------


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
            pid: int = _green.system().fork()
        if not pid:
            _green.forget_hub()
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


def current_mask() -> set[int]:
    """The signals that are blocked now."""
    return set(_signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def blocked_signals(pid: int) -> set[int] | None:
    """Those that are blocked in the main thread of another process. None: it has ended, or the
    system does not tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            told = dict(line.split(b":", 1) for line in file if b":" in line)
        if told[b"State"].split()[0] == b"Z":
            return None
        mask = int(told[b"SigBlk"], 16)
    except (OSError, KeyError, ValueError):
        return None
    return {number for number in range(1, signal.NSIG) if mask >> (number - 1) & 1}


def block_signals(numbers: Iterable[int]) -> None:
    """Block these as well. A Python handler of a signal that came before runs now,
    and may raise."""
    _signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def restore_mask(mask: set[int]) -> None:
    """Block these and no others. Handlers of what came meanwhile run now."""
    _signal.pthread_sigmask(signal.SIG_SETMASK, mask)


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


def forget_handlers() -> None:
    """In a process that was forked off: the Python handlers of the one that forked it
    are about that one's life. Ignored signals stay ignored."""
    _signal.set_wakeup_fd(-1)
    for number in ALL_SIGNALS:
        if callable(_signal.getsignal(number)):
            with contextlib.suppress(OSError, ValueError):
                set_handler(number, signal.SIG_DFL)


def set_handler(number: int, handler: Handler) -> Handler:
    """``signal.signal``, which in a patched program is another for SIGCHLD. Returns what
    was there; None: it was not Python that had installed it."""
    new: Any = handler
    old: Handler = _signal.signal(number, new if callable(new) else int(new))
    return old


def install_handlers(handlers: Mapping[int, Handler]) -> None:
    for number, handler in handlers.items():
        set_handler(number, handler)


def run_handlers() -> None:
    """Run the Python handlers of signals that have come, if they have not run yet.

    From CPython 3.13 on, in a process that was forked by another thread than the main one,
    the interpreter's loop does not notice that a signal has come. What does is any function
    in C that asks. This is the cheapest of them."""
    repr(None)


SA_RESETHAND = 0x80000000
_FLAGS_BEHIND = 128
"""Bytes of the signal mask, in Linux's C libraries, between a ``struct sigaction``'s
handler and its flags."""


def default_after_next(number: int) -> None:
    """Have the kernel restore a signal's default effect as it delivers the next one to the
    handler there is, which runs all the same. A no-op elsewhere than on Linux, where
    :func:`has_default_action` could not tell either."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    action = ctypes.create_string_buffer(256)
    at = struct.calcsize("P") + _FLAGS_BEHIND
    if libc().sigaction(int(number), None, action) == 0:
        (flags,) = struct.unpack_from("=I", action, at)
        struct.pack_into("=I", action, at, flags | SA_RESETHAND)
        libc().sigaction(int(number), action, None)


def has_default_action(pid: int, number: int) -> bool:
    """Whether a process neither handles this signal nor ignores it. False if that
    cannot be told."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = [line.split() for line in file if line.startswith((b"SigIgn", b"SigCgt"))]
        return not any(int(mask, 16) >> (number - 1) & 1 for _, mask in lines)
    except (OSError, ValueError):
        return False


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
        ended, status = _green.system().waitpid(pid, os.WNOHANG)
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


# --- memory -----------------------------------------------------------------------------

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
OOM_COUNTERS = (
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
    "/proc/vmstat",
)
"""Where Linux counts the processes it has killed for lack of memory, in a line
``oom_kill N``: in the control group (version 2, 1), or on the whole machine."""


def resident_memory(pid: int) -> int | None:
    """Bytes of a process's resident memory, pages it shares included. None: there is
    no such process, or no way to tell."""
    return None if FALLBACK else memory_in_proc(pid)


def memory_in_proc(pid: int) -> int | None:
    """The same, wherever there is a /proc."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(256).split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def own_memory() -> int:
    """Bytes of this process's resident memory; where that cannot be told, of the
    most it has ever been."""
    now = resident_memory(os.getpid())
    if now is not None:
        return now
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def oom_kills() -> int:
    """How many processes the system has killed for lack of memory, as far as it tells:
    the sum of its counters, of which only the growth means something."""
    return sum(map(_oom_kills_in, OOM_COUNTERS))


def _oom_kills_in(path: str) -> int:
    try:
        # As bytes: the codec would be imported at the start of every pool.
        with open(path, "rb") as file:
            found = [line.split()[1] for line in file if line.startswith(b"oom_kill ")]
        return int(found[0]) if found else 0
    except (OSError, ValueError, IndexError):
        return 0


# --- the machine ----------------------------------------------------------------------


def available_cpus() -> int:
    """CPUs this process may use: its affinity, lowered to its control group's
    quota (rounded up), at least 1."""
    count = getattr(os, "process_cpu_count", None)
    cpus = count() if count is not None else _affinity()
    quota = _cgroup_quota()
    if quota is not None:
        cpus = min(cpus or 1, math.ceil(quota))
    return max(1, cpus or 1)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota() -> float | None:
    """CPUs granted by the control group, version 2 or 1; None if unlimited."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", encoding="ascii") as file:
                quota = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us", encoding="ascii") as file:
                period = file.read().strip()
        except OSError:
            return None
    if quota in ("max", "-1") or not quota.isdigit() or not period.isdigit():
        return None
    return int(quota) / int(period)
