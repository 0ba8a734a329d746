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
import contextlib
import functools
import importlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from typing import Any, ClassVar
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

    def parse_request(self) -> bool:
        """As the standard library does, with a limit on the time, and no chunks."""
        signal.alarm(REQUEST_TIME)
        if not super().parse_request():
            return False
        if "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return False
        return True

    def handle_one_request(self) -> None:
        """As the standard library does; then the time is no longer limited."""
        try:
            super().handle_one_request()
        finally:  # It raises if the client has gone.
            signal.alarm(0)

    def handle_expect_100(self) -> bool:
        """The client waits for this one, so it must leave the buffer."""
        expected = super().handle_expect_100()
        self.wfile.flush()
        return expected

    def end_headers(self) -> None:
        """Promise no further request to the client if this child is to leave."""
        if pf_kid_leaving() and not self.close_connection:
            self.send_header("Connection", "close")  # Sets close_connection, too.
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """No log of accesses: it would cost more than most responses."""


class StaticFiles(Connection, SimpleHTTPRequestHandler):
    """Files under a directory."""

    def parse_request(self) -> bool:
        """A body is not read, so it must not be taken for the next request."""
        parsed = super().parse_request()
        if parsed and self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True
        return parsed


class Application(Connection):
    """A WSGI application (PEP 3333)."""

    def __init__(self, *args: Any, app: Callable[..., Any]) -> None:
        self.app = app
        super().__init__(*args)

    def answer(self) -> None:
        """Run the application for one request, whatever its method."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):
            Response(self, body).run(self.app)
        else:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = answer  # noqa: N815 - http.server looks for these names
    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815

    def environ(self) -> dict[str, str]:
        """The request as WSGI's variables."""
        path, _, query = self.path.partition("?")
        host, port = self.connection.getsockname()[:2]
        environ = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


class Response(SimpleHandler):
    """One response of the application, on a connection that may be kept alive."""

    http_version = "1.1"
    server_software = "prefork"
    os_environ: ClassVar[dict[str, str]] = {}  # Ours is no business of the application's.

    def __init__(self, connection: Application, body: bytes) -> None:
        super().__init__(
            io.BytesIO(body),
            connection.wfile,
            sys.stderr,
            connection.environ(),
            multithread=False,
            multiprocess=True,
        )
        self.connection = connection

    def cleanup_headers(self) -> None:
        """Without a length only the connection's end tells where the body ends."""
        super().cleanup_headers()
        if "Content-Length" not in self.headers and self.status[:3] not in ("204", "304"):
            self.connection.close_connection = True
        if self.connection.close_connection or pf_kid_leaving():
            self.connection.close_connection = True
            self.headers["Connection"] = "close"

    def write(self, data: bytes) -> None:
        """A response to HEAD has the header of one to GET, and no body."""
        if self.connection.command != "HEAD":
            super().write(data)
        elif not self.headers_sent:
            self.bytes_sent = len(data)
            self.send_headers()

    def log_exception(self, exc_info: Any) -> None:
        """The response may be cut off in its middle."""
        self.connection.close_connection = True
        super().log_exception(exc_info)


def load(name: str) -> Callable[..., Any]:
    """Import what ``module:callable`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute or "application")


def serve(listener: socket.socket, options: argparse.Namespace) -> None:
    """A child's life: one connection after the other, until it is told to leave."""
    if options.app:
        # Imported here and not in the main process, so that a reload imports it anew.
        respond = functools.partial(Application, app=load(options.app))
    else:
        respond = functools.partial(StaticFiles, directory=options.directory)
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, contextlib.suppress(OSError):  # The client has gone.
            respond(connection, taken[1], None)


def main() -> int:
    """Listen, fork, and serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", default=os.getcwd())
    parser.add_argument("--app", help="a WSGI application, as module:callable")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--min-spare-servers", type=int, default=2)
    parser.add_argument("--max-spare-servers", type=int, default=6)
    parser.add_argument("--max-servers", type=int, default=40)
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())

    initialised = pf_init(
        min_spare_servers=options.min_spare_servers,
        max_spare_servers=options.max_spare_servers,
        max_servers=options.max_servers,
        child_sigh={"INT HUP": "IGNORE"},  # Ctrl-C reaches all; the main process acts on it.
    )
    if not initialised:
        sys.exit(f"could not set up the pool: {pf_error()!s}")
    signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
    signal.signal(signal.SIGINT, lambda *_: pf_done(0))
    signal.signal(signal.SIGHUP, lambda *_: pf_reload())

    listener = socket.create_server((options.host, options.port), backlog=1024)
    print("serving http://{}:{}/".format(*listener.getsockname()), flush=True)
    try:
        while pf_whip_kids(serve, (listener, options)):
            pass
    finally:
        pf_done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
