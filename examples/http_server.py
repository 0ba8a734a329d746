"""A prefork HTTP/1.1 server: static files, or a WSGI application.

    python examples/http_server.py [DIR] [--port N] [--max-servers N]
    python examples/http_server.py --app module:callable     # flask_app.py is one
    python examples/http_server.py --certificate cert.pem --key key.pem --tls-port 8443
    python examples/http_server.py --pid-file http.pid; kill -HUP $(cat http.pid)

The standard library speaks the protocol (http.server, wsgiref, ssl). The pool grows with the
number of connections, and shrinks when they are gone. At SIGHUP the server reloads: new children
take the places of the old ones, and no request is lost. They import the application again, and
read the certificate again. At SIGTERM or Ctrl-C the server answers the requests that it has
(for ten seconds at most), and stops. Under systemd, use http_server.socket and
http_server.service, which are beside this file: systemd listens, so connections wait while the
server restarts.

A connection that is kept alive holds a child. So if many clients are slow, put a proxy in front
of this server. A child that hangs in a request is ended by SIGALRM after REQUEST_TIME.
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
import ssl
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
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
"""Seconds for which a connection may be silent, between requests or within one."""
REQUEST_TIME = 60
"""Whole seconds that one request may take. After that SIGALRM ends the child."""
HANDSHAKE = 5.0
"""Seconds that the TLS handshake may take. A client that is silent, or speaks no TLS, costs only
its own connection, and holds one child for this time."""
FIRST_FROM_SYSTEMD = 3
"""The descriptor of the first socket that systemd hands over."""
MOST_BODY = 16 * 1024 * 1024
"""The largest body of a request, in bytes."""


class Connection(BaseHTTPRequestHandler):
    """The requests of one connection: what static files and applications have in common."""

    protocol_version = "HTTP/1.1"
    timeout = KEEP_ALIVE
    wbufsize = 64 * 1024  # Header and body leave in one packet.

    def setup(self) -> None:
        """Switch Nagle's algorithm off, but not on Unix sockets, which do not have it."""
        self.disable_nagle_algorithm = self.request.family != socket.AF_UNIX
        super().setup()

    def parse_request(self) -> bool:
        """Do it as the standard library does, but limit the time, and refuse chunked bodies."""
        signal.alarm(REQUEST_TIME)
        if not super().parse_request():
            return False
        if "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return False
        return True

    def handle_one_request(self) -> None:
        """Do it as the standard library does. Afterwards the time is no longer limited."""
        try:
            super().handle_one_request()
        finally:  # It raises if the client has gone.
            signal.alarm(0)

    def handle_expect_100(self) -> bool:
        """Send the answer at once: the client waits for it."""
        expected = super().handle_expect_100()
        self.wfile.flush()
        return expected

    def end_headers(self) -> None:
        """Say whether the client may send another request on this connection. It may not if this
        child is to leave. A client of HTTP/1.0 sends another only if it has asked for that and is
        told that it may."""
        if pf_kid_leaving() and not self.close_connection:
            self.send_header("Connection", "close")  # Sets close_connection, too.
        elif self.keeps_alive_1_0():
            self.send_header("Connection", "keep-alive")
        super().end_headers()

    def keeps_alive_1_0(self) -> bool:
        """Whether the client speaks HTTP/1.0 and the connection is kept nevertheless."""
        return self.request_version == "HTTP/1.0" and not self.close_connection

    def log_message(self, format: str, *args: Any) -> None:
        """Log no accesses: that would cost more than most responses."""


class StaticFiles(Connection, SimpleHTTPRequestHandler):
    """Files under a directory."""

    def parse_request(self) -> bool:
        """Close the connection after a request with a body. The body is not read, so the next
        read would take it for a request."""
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
        host, port = address(self.connection.getsockname())
        environ = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": address(self.client_address)[0],
            "HTTPS": "on" if isinstance(self.connection, ssl.SSLSocket) else "off",
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ


def address(name: Any) -> tuple[str, int]:
    """Host and port. A Unix socket has neither."""
    return (name[0], name[1]) if isinstance(name, tuple) else ("localhost", 0)


class Response(SimpleHandler):
    """One response of the application, on a connection that may be kept alive."""

    http_version = "1.1"
    server_software = "prefork"
    os_environ: ClassVar[dict[str, str]] = {}  # The application does not get our environment.

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
        """Close the connection after a response without a length, to mark the end of the body."""
        super().cleanup_headers()
        if "Content-Length" not in self.headers and self.status[:3] not in ("204", "304"):
            self.connection.close_connection = True
        if self.connection.close_connection or pf_kid_leaving():
            self.connection.close_connection = True
            self.headers["Connection"] = "close"
        elif self.connection.keeps_alive_1_0():
            self.headers["Connection"] = "keep-alive"

    def write(self, data: bytes) -> None:
        """Send a response to HEAD with the same header as one to GET, but without a body."""
        if self.connection.command != "HEAD":
            super().write(data)
        elif not self.headers_sent:
            self.bytes_sent = len(data)
            self.send_headers()

    def log_exception(self, exc_info: Any) -> None:
        """Log the exception, and close the connection: the response may be incomplete."""
        self.connection.close_connection = True
        super().log_exception(exc_info)


def load(name: str) -> Callable[..., Any]:
    """Import what ``module:callable`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute or "application")


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """What the server needs to speak TLS. None: it does not speak TLS."""
    if options.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.certificate, options.key)
    except OSError as error:
        sys.exit(f"{options.certificate} cannot be used: {error}")
    return context


def serve(listeners: dict[socket.socket, bool], options: argparse.Namespace) -> None:
    """A child's life: one connection after the other, until it is told to leave.

    Args:
        listeners: the listeners, and whether each of them speaks TLS.
    """
    # The child imports the application and reads the certificate, so that a reload does so again.
    context = tls_context(options)
    if options.app:
        respond = functools.partial(Application, app=load(options.app))
    else:
        respond = functools.partial(StaticFiles, directory=options.directory)
    ready = [
        context.wrap_socket(listener, server_side=True) if context and is_tls else listener
        for listener, is_tls in listeners.items()
    ]
    while taken := pf_kid_accept(*ready):  # It does the handshake, too.
        with contextlib.suppress(OSError), taken[0] as connection:  # The client has gone.
            respond(connection, taken[1], None)


# --- what the main process does beside that --------------------------------------------------


def listen(options: argparse.Namespace) -> dict[socket.socket, bool]:
    """The sockets that systemd has handed over, or our own, and whether each speaks TLS."""
    if os.environ.pop("LISTEN_PID", "") == str(os.getpid()):
        return dict(from_systemd())
    only_tls = options.certificate is not None and options.tls_port is None
    listeners = {socket.create_server((options.host, options.port), backlog=1024): only_tls}
    if options.tls_port is not None:
        listeners[socket.create_server((options.host, options.tls_port), backlog=1024)] = True
    return listeners


def from_systemd() -> Iterator[tuple[socket.socket, bool]]:
    """The sockets of systemd, and whether each has FileDescriptorName=tls in its unit."""
    count = int(os.environ.pop("LISTEN_FDS"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":") + [""] * count
    for number, name in zip(range(count), names, strict=False):
        os.set_inheritable(FIRST_FROM_SYSTEMD + number, False)
        yield socket.socket(fileno=FIRST_FROM_SYSTEMD + number), name == "tls"


def url(listener: socket.socket, is_tls: bool) -> str:
    """The address of this listener for clients."""
    name = listener.getsockname()
    scheme = "https" if is_tls else "http"
    return f"{scheme}://{name[0]}:{name[1]}/" if isinstance(name, tuple) else f"unix:{name}"


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Keep this process's id in a file while the server serves."""
    if path is None:
        yield
        return
    if path.exists() and is_alive(path.read_text()):
        sys.exit(f"{path} says that the server is running as process {path.read_text().strip()}")
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(f"{os.getpid()}\n")
    new.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def is_alive(pid: str) -> bool:
    """Whether there is such a process."""
    if not pid.strip().isdecimal() or not int(pid):
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def main() -> int:
    """Listen, fork, and serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", default=os.getcwd())
    parser.add_argument("--app", help="a WSGI application, as module:callable")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--tls-port", type=int, help="a second port, for TLS")
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        help="speak TLS with this certificate, in PEM, with its chain",
    )
    parser.add_argument(
        "--key", metavar="FILE", help="the certificate's key, if it is not in the same file"
    )
    parser.add_argument("--pid-file", type=Path, help="where to write the main process's id")
    parser.add_argument("--min-spare-servers", type=int, default=2)
    parser.add_argument("--max-spare-servers", type=int, default=6)
    parser.add_argument("--max-servers", type=int, default=40)
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())

    listeners = listen(options)
    for listener in listeners:
        # Each child wraps the listeners for TLS. That gives a listener the mode of this object, in
        # all processes. Children that wait for a connection must not find it blocking.
        listener.setblocking(False)
    if any(listeners.values()) and tls_context(options) is None:
        sys.exit("TLS needs a certificate: give --certificate FILE")
    initialised = pf_init(
        listeners=listeners,
        min_spare_servers=options.min_spare_servers,
        max_spare_servers=options.max_spare_servers,
        max_servers=options.max_servers,
        handshake_timeout=HANDSHAKE,
        child_sigh={"INT HUP": "IGNORE"},  # Ctrl-C reaches all; the main process acts on it.
    )
    if not initialised:
        sys.exit(f"could not set up the pool: {pf_error()!s}")
    signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
    signal.signal(signal.SIGINT, lambda *_: pf_done(0))
    signal.signal(signal.SIGHUP, lambda *_: pf_reload())

    with pid_file(options.pid_file):
        print("serving", *(url(*listener) for listener in listeners.items()), flush=True)
        try:
            while pf_whip_kids(serve, (listeners, options)):
                pass
        finally:
            pf_done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
