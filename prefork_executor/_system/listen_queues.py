"""How many connections wait in a listener's queue in the kernel, on Linux.

TCP tells it in TCP_INFO, AF_UNIX by a netlink socket (``sock_diag``), as ``ss -l`` shows it.
"""

from __future__ import annotations

import os
import socket
import struct

from .platform import FALLBACK

_TCP_INFO, _UNACKED = 11, 24
"""The option, and where its field ``tcpi_unacked`` lies: for a listener, the queue's length."""
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_SHOW_RQLEN, _ATTRIBUTE_RQLEN = 16, 4
_HEADER, _REQUEST, _ANSWER, _ATTRIBUTE = (
    struct.Struct(layout) for layout in ("=IHHII", "=BBxxIIIII", "=BBBxIII", "=HHI")
)
_ANY_STATE = _ANY_COOKIE = 0xFFFFFFFF


def queue_length(listener: socket.socket) -> int:
    """How many connections wait to be accepted; 0 if the system does not tell."""
    try:
        if FALLBACK or listener.fileno() < 0:
            return 0
        if listener.family == socket.AF_UNIX:
            return _of_unix(os.fstat(listener.fileno()).st_ino)
        info = listener.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104)
        return int(struct.unpack_from("=I", info, _UNACKED)[0])
    except (OSError, struct.error):
        return 0


def _of_unix(inode: int) -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        length = _HEADER.size + _REQUEST.size
        header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
        kernel.send(
            header
            + _REQUEST.pack(
                socket.AF_UNIX, 0, _ANY_STATE, inode, _SHOW_RQLEN, _ANY_COOKIE, _ANY_COOKIE
            )
        )
        answer = kernel.recv(8192, socket.MSG_DONTWAIT)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0  # An error, or there is no such socket.
    at = _HEADER.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= len(answer):
        size, kind, value = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _ATTRIBUTE_RQLEN:
            return int(value)
        at += max(4, (size + 3) & ~3)
    return 0
