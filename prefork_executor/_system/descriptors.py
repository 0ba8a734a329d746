"""Sockets, pipes, and waiting for them."""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import math
import os
import posix
import select
import signal
import socket
from collections.abc import Iterable

from . import green
from .platform import FALLBACK

SOCKET_TYPE = socket.SOCK_DGRAM if FALLBACK else socket.SOCK_SEQPACKET
CMSG_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
EPOLLEXCLUSIVE = getattr(select, "EPOLLEXCLUSIVE", 0)
EPOLLRDHUP = getattr(select, "EPOLLRDHUP", 0)
F_SETSIG = 10
SOCKET_BUFFER = 1024 * 1024
"""Bytes asked for in each direction; the kernel may grant less. It is enough for thousands
of small messages, so senders seldom wait for a busy reader."""
MAX_WAIT = 1e6
"""Seconds, about eleven days. System calls accept up to twenty-four days. A caller that has
waited this long looks again."""
Socket = _socket.socket
"""The C class: without what ``socket.socket`` adds, and never what gevent or eventlet has put
in its place (see `green.py`)."""


def socket_pair() -> tuple[Socket, Socket]:
    """Two connected sockets that keep messages whole."""
    ends = _pair(SOCKET_TYPE)
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    return ends


def control_pair() -> tuple[Socket, Socket]:
    """Two connected sockets. On every system either side sees that the other has ended. Only
    on Linux do they also keep messages whole."""
    return _pair(socket.SOCK_STREAM if FALLBACK else socket.SOCK_SEQPACKET)


def _pair(kind: int) -> tuple[Socket, Socket]:
    ends = _socket.socketpair(socket.AF_UNIX, kind)
    for end in ends:
        end.setblocking(True)
    return ends


def adopted_socket(descriptor: int) -> Socket:
    """The socket of a descriptor. It has no timeout, whatever the program has set for its own
    sockets by ``socket.setdefaulttimeout``."""
    end = Socket(fileno=descriptor)
    end.setblocking(True)
    return end


def is_at_end(end: Socket) -> bool:
    """Whether the other end is gone and nothing more will come. Where messages are kept
    whole, an empty read does not tell: a message may be empty."""
    if FALLBACK:
        try:
            is_stream = end.type == socket.SOCK_STREAM
            return is_stream and not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
    poll = green.poll()
    poll.register(end.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def close_quietly(descriptors: Iterable[int]) -> None:
    """Close these descriptors. Some may be closed already."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            posix.close(descriptor)


class Doorbell:
    """A pipe that wakes the one process that waits for it. Rings coalesce: that it rang
    counts, not how often. The interpreter also writes its signal wake-ups there, so no
    signal is missed between a look and a wait."""

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
        """Wake the listener. Never blocks: if the pipe is full, the listener wakes anyway."""
        with contextlib.suppress(BlockingIOError):
            posix.write(self.write_end, b"\0")

    def hush(self) -> bytes:
        """Forget all rings so far. Returns a zero for each ring, and for each signal that came
        its number."""
        rung = b""
        with contextlib.suppress(BlockingIOError):
            while more := posix.read(self.read_end, 4096):
                rung += more
        return rung

    def disown_read_end(self) -> None:
        """For processes that only ring."""
        if self.read_end >= 0:
            posix.close(self.read_end)
            self.read_end = -1

    def close(self) -> None:
        close_quietly(end for end in (self.read_end, self.write_end) if end >= 0)
        self.read_end = self.write_end = -1


class Lifeline:
    """A pipe whose writing end only one process holds. When that process has ended, however it
    ended, the kernel kills the processes that hang on the pipe. It also kills one that is
    stopped, and one that now has another user's rights, for which it forgets PR_SET_PDEATHSIG.
    On systems other than Linux a lifeline does nothing.

    (A process can ask for a signal of its choice when a descriptor becomes readable or is at its
    end. No process ever writes into this pipe. The request belongs to the open file, which
    forked processes would share, so each process opens the pipe anew.)"""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self._write_end = write_end
        self._own = -1

    @classmethod
    def new(cls) -> Lifeline:
        return cls(*os.pipe())

    def hang_on(self) -> None:
        """From now on this process dies with the one that made the pipe."""
        self.close(keep_read_end=True)
        if FALLBACK:
            return
        with contextlib.suppress(OSError):  # For example, there is no /proc.
            self._own = os.open(f"/proc/self/fd/{self.read_end}", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(self._own, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(self._own, F_SETSIG, signal.SIGKILL)
            flags = fcntl.fcntl(self._own, fcntl.F_GETFL)
            fcntl.fcntl(self._own, fcntl.F_SETFL, flags | os.O_ASYNC)
        if readable(self.read_end):
            os._exit(1)  # That process has ended already.

    def close(self, *, keep_read_end: bool = False) -> None:
        """Safe to call again. In the process that made the pipe: kill all that hang on it."""
        kept = self.read_end if keep_read_end else -1
        ends = {self.read_end, self._write_end, self._own} - {kept, -1}
        close_quietly(ends)
        self.read_end, self._write_end, self._own = kept, -1, -1


class Poller:
    """Waits until one of a few descriptors can be read.

    Many processes wait for a descriptor that is registered as *shared*. On Linux the
    kernel wakes one of them for each message, and prefers the same one while it is idle.
    So under a trickle of work the others stay idle and retire.
    """

    def __init__(self) -> None:
        self._epoll = None if FALLBACK else green.epoll()
        self._polled: set[int] = set()

    def register(self, descriptor: int, *, shared: bool = False, end_only: bool = False) -> None:
        """``end_only``: wake only when its other end has gone, even if there is something to
        read. Without epoll nothing tells: the caller has to look now and then."""
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
        """The descriptors that can be read or are at their end. The list is empty after
        ``timeout`` seconds, or after MAX_WAIT if that is sooner."""
        if self._epoll is not None:
            seconds = -1 if timeout is None else min(timeout, MAX_WAIT)
            return [fd for fd, _ in self._epoll.poll(seconds)]
        # A new object for each call: a signal handler that interrupts one may wait, too.
        poll = green.poll()
        for descriptor in self._polled:
            poll.register(descriptor, select.POLLIN)
        return [fd for fd, _ in poll.poll(_milliseconds(timeout))]

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


def _milliseconds(timeout: float | None) -> int | None:
    return None if timeout is None else math.ceil(min(timeout, MAX_WAIT) * 1000)


def pause(seconds: float) -> None:
    """Wait. (gevent replaces ``time.sleep`` in a program that it has patched.)"""
    green.poll().poll(_milliseconds(seconds))


def readable(descriptor: int, timeout: float | None = 0.0) -> bool:
    """Whether a read would not block, now or within so many seconds (MAX_WAIT at most)."""
    poll = green.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(_milliseconds(timeout)))
