"""What the process that has started this one has given to it: listeners, and a pipe.

The listeners come as from systemd's socket activation: descriptors from 3 on, whose number is in
LISTEN_FDS; LISTEN_PID says for which process they are. ``prefork-executor serve`` starts servers in
the same way. It also gives them a pipe. A pool writes into it when enough of its children serve, so
that the server before it may end.
"""

from __future__ import annotations

import os
import posix
import socket

FIRST = 3
"""The first descriptor that is given."""
READY = "PREFORK_EXECUTOR_READY"
"""The environment variable with the process that the pipe is meant for, and its descriptor
(``PID:DESCRIPTOR``). systemd's variables do not tell: a server may delete them when it has taken
its listeners."""
INTERVAL = 0.1
"""Seconds between two looks whether enough children serve."""

_taken: list[socket.socket] = []


def listeners() -> list[socket.socket]:
    """The listeners; each call returns the same ones."""
    if not _taken and _is_for_us():
        count = int(os.environ.get("LISTEN_FDS", "0"))
        for descriptor in range(FIRST, FIRST + count):
            os.set_inheritable(descriptor, False)
            _taken.append(socket.socket(fileno=descriptor))
    return list(_taken)


def _is_for_us() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid())


class Readiness:
    """Tells the process that has started this one when the pool serves. The first pool takes the
    pipe, if there is one."""

    def __init__(self) -> None:
        self._pipe = -1
        pid, _, pipe = os.environ.get(READY, "").partition(":")
        if pid == str(os.getpid()):
            del os.environ[READY]
            self._pipe = int(pipe)
            os.set_inheritable(self._pipe, False)

    @property
    def is_awaited(self) -> bool:
        """Whether that process is still to be told."""
        return self._pipe >= 0

    def tell(self) -> None:
        """The pool serves."""
        try:
            posix.write(self._pipe, b"1")
        except OSError:
            pass  # That process has ended.
        finally:
            self.close()

    def close(self) -> None:
        """If that process has not been told, it sees that it will not be."""
        if self._pipe >= 0:
            posix.close(self._pipe)
            self._pipe = -1
