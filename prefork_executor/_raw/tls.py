"""Connections of a listener that speaks TLS.

``accept`` of such a listener also does the handshake, which waits for the client. A child does
the two steps one after the other. In between it says that it is busy. So a client that says
nothing holds one child, for a bounded time, and the pool starts another child for the others.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from .._support.logs import logger


def speaks_tls(listener: socket.socket) -> bool:
    """Whether this listener was made by ``SSLContext.wrap_socket``."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(listener, ssl.SSLSocket)


def accept_raw(listener: socket.socket) -> tuple[socket.socket, Any]:
    """``accept`` without the handshake."""
    return socket.socket.accept(listener)


def shake_hands(
    connection: socket.socket, client: Any, listener: Any, timeout: float
) -> socket.socket | None:
    """Do the handshake, unless the listener leaves it to its user. Returns the secured
    connection, or None if the handshake failed or took longer than ``timeout`` seconds: then
    the connection is closed."""
    secured: Any = None
    theirs = connection.gettimeout()  # That of socket.setdefaulttimeout, if it was called.
    try:
        secured = listener.context.wrap_socket(
            connection,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=listener.suppress_ragged_eofs,
        )
        if listener.do_handshake_on_connect:
            secured.settimeout(timeout)
            secured.do_handshake()
            secured.settimeout(theirs)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError.
        (secured or connection).close()
        logger.info("TLS handshake with %s failed: %s", client or "a client", error)
        return None
    return secured  # type: ignore[no-any-return]
