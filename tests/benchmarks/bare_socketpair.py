"""The limit: the pickles of a call and of its result through a socketpair, and nothing else.

The call is pickled, run and its result pickled once, before anything is measured. Small
messages go through SOCK_SEQPACKET, what does not fit one through a stream.
"""

from __future__ import annotations

import multiprocessing
import pickle
import socket
from typing import Any

SMALL = 64 * 1024
"""Bytes of the largest message that is sent whole."""
BUFFER = 1024 * 1024
"""Bytes asked for in each direction, as our channels do."""
ENDED_WITHIN = 10.0
"""Seconds that the other process may take to end."""


class Link:
    """A process that answers, and the end of the socket to it.

    Args:
        call: a function, its arguments and its keyword arguments.
    """

    def __init__(self, call: tuple[Any, ...]) -> None:
        fn, args, kwargs = call
        self._call = pickle.dumps(call, 5)
        answer = pickle.dumps(fn(*args, **kwargs), 5)
        self._is_big = max(len(self._call), len(answer)) > SMALL
        self._end, theirs = _pair(self._is_big)
        self._buffer = bytearray(max(SMALL, len(answer)))
        self._answer_size = len(answer)
        serve = _serve_big if self._is_big else _serve
        context = multiprocessing.get_context("fork")
        arguments = (self._end, theirs, len(self._call), answer)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def exchange(self) -> None:
        """One call over, one result back."""
        if self._is_big:
            self._end.sendall(self._call)
            _receive_all(self._end, memoryview(self._buffer)[: self._answer_size])
        else:
            self._end.send(self._call)
            self._end.recv_into(self._buffer)

    def exchange_many(self, count: int) -> None:
        """So many, as many on the way as there is room for."""
        sent = received = 0
        while received < count:
            while sent < count and self._try_to_send():
                sent += 1
            self._end.recv_into(self._buffer)
            received += 1

    def _try_to_send(self) -> bool:
        try:
            self._end.send(self._call, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """End the process."""
        self._end.close()
        self._process.join(ENDED_WITHIN)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _pair(is_big: bool) -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_STREAM if is_big else socket.SOCK_SEQPACKET
    )
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    return ends


def _serve(far: socket.socket, end: socket.socket, _size: int, answer: bytes) -> None:
    far.close()
    buffer = bytearray(SMALL)
    while end.recv_into(buffer):
        end.send(answer)


def _serve_big(far: socket.socket, end: socket.socket, size: int, answer: bytes) -> None:
    far.close()
    buffer = memoryview(bytearray(size))
    while _receive_all(end, buffer):
        end.sendall(answer)


def _receive_all(end: socket.socket, buffer: memoryview) -> bool:
    while buffer.nbytes:
        received = end.recv_into(buffer)
        if not received:
            return False
        buffer = buffer[received:]
    return True
