"""A prefork HTTP/1.1 server: static files, or a WSGI application.

    python examples/http_server.py [DIR] [--port N] [--max-servers N]
    python examples/http_server.py --app module:callable

The protocol is the standard library's (http.server, wsgiref); the pool grows with the
connections and shrinks when they are gone. SIGHUP reloads: new children, which import
the application anew, take the places of the old ones, and no request is lost. SIGTERM
or Ctrl-C stops when the requests there are have been answered (ten seconds at most).

A connection kept alive holds a child, so put a proxy in front of it if clients are
many and slow. As anywhere, a child that hangs in a request is a child less: it is
ended by SIGALRM after REQUEST_TIME.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from typing import Any
from urllib.parse import unquote
from wsgiref.handlers import SimpleHandler

from prefork_executor.raw import (
    pf_done,
    pf_error,
    pf_init,
    pf_kid_accept,
    pf_kid_leaving,
    pf_reload,
    pf_whip_kids,
)

KEEP_ALIVE = 5.0
"""Seconds that a connection may be silent, between requests or within one."""
REQUEST_TIME = 60
"""Whole seconds that one request may take; then its child is ended by SIGALRM."""
MOST_BODY = 16 * 1024 * 1024
"""Bytes of a request's body that are taken."""


class Connection(BaseHTTPRequestHandler):
    """What static files and applications have in common: one connection's requests."""

    protocol_version = "HTTP/1.1"
    timeout = KEEP_ALIVE
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # Header and body leave in one packet.

    def __init__(self, connection: socket.socket, address: Any) -> None:
        try:
            super().__init__(connection, address, None)  # type: ignore[arg-type]
        except OSError:
            pass  # The client has gone.

    def parse_request(self) -> bool:
        """As the standard library does, with a limit on the request's time."""
        signal.alarm(REQUEST_TIME)
        if not super().parse_request():
            return False
        if "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return False
        return True

    def handle_one_request(self) -> None:
        """As the standard library does; afterwards the child may be wanted gone."""
        super().handle_one_request()
        signal.alarm(0)

    def keeps_alive(self) -> bool:
        """Whether the client may send another request, as far as this one says."""
        return not self.close_connection and not pf_kid_leaving()

    def end_headers(self) -> None:
        """Say so if this response is the last on this connection."""
        if not self.keeps_alive():
            self.send_header("Connection", "close")  # Also sets close_connection.
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """No log of accesses: it would cost more than most responses."""


class StaticFiles(Connection, SimpleHTTPRequestHandler):
    """Files under the current directory."""

    def parse_request(self) -> bool:
        """A body is not read, so it must not be taken for the next request."""
        parsed = super().parse_request()
        if parsed and self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True
        return parsed


class Application(Connection):
    """A WSGI application."""

    app: Callable[..., Any]

    def answer(self) -> None:
        """Run the application for one request, whatever its method."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            self.close_connection = True
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = Body(self.rfile.read(int(length)))
        Response(self, body).run(type(self).app)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = answer


def wsgi_environ(connection: Connection) -> dict[str, str]:
    """The request as WSGI's (PEP 3333) variables."""
    path, _, query = connection.path.partition("?")
    host, port = connection.connection.getsockname()[:2]
    environ = {
        "REQUEST_METHOD": connection.command,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": connection.request_version,
        "REMOTE_ADDR": connection.client_address[0],
        "CONTENT_TYPE": connection.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": connection.headers.get("Content-Length", ""),
    }
    return environ
