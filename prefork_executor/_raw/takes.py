"""What a raw child takes: connections, datagrams, what it reads from pipes.

A child counts as idle until it says that it is busy. In between it may have taken something, and
the process that tells it to leave must know that. So in a child the calls below note what they
return, in the same step that returns it: no signal handler can run in between (see :func:`noting`).

==============================  =====================================================
call                            applies to
==============================  =====================================================
``socket.accept``               any listener, so in socketserver, ssl, asyncio as well
``socket.recv``, ``recv_into``  sockets that keep messages whole: datagrams of UDP
``recvfrom``, ``recvmsg``,      and of AF_UNIX, SOCK_SEQPACKET
and these ``_into``
``os.read``, ``os.readv``       pipes, FIFOs
==============================  =====================================================

Other ways of taking are not seen: a library in C, a file object over a pipe (whose buffer may
hold what was meant for other children anyway), and functions that were looked up before the
fork (``from os import read``).
"""

from __future__ import annotations

import _socket
import functools
import operator
import os
import socket
import stat
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WHOLE = (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW)
_RECEIVE = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")
_type_of: Callable[[Any], int] = _socket.socket.type.__get__


class Takes:
    """What this process has taken since it last said what it does.

    Args:
        before: called before each of these calls. It returns False if nothing need be noted.
    """

    def __init__(self, before: Callable[[], bool]) -> None:
        self._before = before
        self._last: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._last)

    def clear(self) -> None:
        """The process has now said what it does."""
        self._last = []

    def begin(self) -> None:
        """Note takes from now on. This process was forked for that, and has one thread."""
        sockets: Any = socket.socket
        sockets._accept = self.noting(sockets._accept, _is_any)
        for name in _RECEIVE:
            setattr(sockets, name, self.noting(getattr(sockets, name), _keeps_messages_whole))
        system: Any = os
        for name in ("read", "readv"):
            setattr(system, name, self.noting(getattr(os, name), _is_pipe))

    def noting(
        self, call: Callable[..., Any], concerns: Callable[[Any], bool]
    ) -> Callable[..., Any]:
        """Wrap the call: it notes what it returns if its first argument ``concerns`` us."""

        @functools.wraps(call)
        def noted(source: Any, *args: Any, **kwargs: Any) -> Any:
            if not (concerns(source) and self._before()):
                return call(source, *args, **kwargs)
            taken = self._last = []
            # All of this is one step: a handler runs either before the call has taken
            # anything, or when it is in the list.
            taken.extend(map(operator.call, (functools.partial(call, source, *args, **kwargs),)))
            return taken[0]

        return noted


def _is_any(_listener: Any) -> bool:
    return True


def _keeps_messages_whole(end: Any) -> bool:
    return _type_of(end) in _WHOLE


def _is_pipe(descriptor: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, TypeError, OverflowError):
        return False  # The call itself reports what is wrong.
