"""The server of ``prefork-executor top --web``, and what it tells of a pool.

A pool's state says what a program does: command lines, names of functions. So only its user
should see it, and other users of the machine can connect to a loopback address as well. And
whatever page the user visits can have his browser ask an address of this machine. Therefore:

* The server binds a loopback address alone.
* Its paths begin with a secret that nobody can guess. Whoever does not know it learns nothing.
* It refuses requests that name another host than it has. Otherwise a page whose name is made to
  mean this machine (DNS rebinding) would count as the server's own.
* It takes GET alone, and a request changes nothing: the server only reads the scoreboard.
* The page runs its own script and no other, loads nothing from elsewhere, and cannot be framed.
  What it shows is text, never markup.

The pool is read at fixed intervals, however many pages there are.
"""

from __future__ import annotations

import hmac
import http.server
import json
import secrets
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prefork_executor import __version__
from prefork_executor._support.wording import counted
from prefork_executor.cli._common import at_maximum, memory, size, span
from prefork_executor.cli._looks import LEGEND, Looks, letters
from prefork_executor.cli.status import change, waits
from prefork_executor.errors import PoolEnded, StatusError
from prefork_executor.status import PoolStatus, Watch, WorkerStatus

HOST = "127.0.0.1"
SECRET_BYTES = 24
PATIENCE = 10.0
"""Seconds in which a client must send its request."""
MAX_PLACES = 4096
LINGER = 3
"""Intervals for which the server goes on when the pool has ended, so that pages learn of it."""
PAGES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve(watch: Watch, delay: float, port: int) -> str:
    """Serve until the pool ends or the user interrupts this. Prints the page's address.

    Args:
        watch: the pool.
        delay: seconds between two looks.
        port: the port to bind. 0: any that is free.

    Returns:
        Why it has ended, if the pool has.
    """
    story = Story(delay)
    story.add(watch.read())
    with _bound(story, port) as server:
        thread = threading.Thread(target=server.serve_forever, name="prefork-executor-web")
        thread.start()
        try:
            print(server.address, flush=True)
            while True:
                time.sleep(delay)
                story.add(watch.read())
        except PoolEnded as end:
            story.end(str(end))
            time.sleep(max(1.0, LINGER * delay))
            return str(end)
        except KeyboardInterrupt:
            return ""
        finally:
            server.shutdown()
            thread.join()


def _bound(story: Story, port: int) -> Server:
    try:
        return Server(story, port)
    except (OSError, OverflowError) as error:
        raise StatusError(f"port {port} of {HOST} cannot be bound: {error}") from None


class Story:
    """What pages are told, as JSON."""

    def __init__(self, delay: float) -> None:
        self._looks = Looks()
        self._delay = delay
        self.json = b""

    def add(self, pool: PoolStatus) -> None:
        """Add the next look."""
        self._looks.add(pool)
        self._tell({})

    def end(self, why: str) -> None:
        """The pool has ended."""
        self._tell({"ended": why})

    def _tell(self, more: dict[str, str]) -> None:
        pool = self._looks.now
        assert pool is not None
        told = {
            "version": __version__,
            "delay": self._delay,
            "title": f"{pool.kind} of process {pool.pid}",
            "command": pool.command,
            "figures": self._figures(pool),
            "places": letters(pool, MAX_PLACES),
            "legend": LEGEND,
            "courses": self._courses(pool),
            "workers": [self._row(row) for row in pool.workers],
            "decisions": [_decision(decision) for decision in reversed(pool.decisions)],
            **more,
        }
        self.json = json.dumps(told).encode()

    def _figures(self, pool: PoolStatus) -> list[tuple[str, str]]:
        is_raw = pool.kind == "raw"
        figures = [
            ("open for", span(pool.time - pool.started)),
            ("workers", f"{len(pool.workers)} of {pool.max_workers}"),
            ("requests done" if is_raw else "tasks done", f"{pool.tasks_done:,}"),
            ("a second", self._looks.rate()),
            ("at maximum", at_maximum(pool)),
            ("forks", f"{pool.forks:,}"),
            ("retired", f"{pool.retirements:,}"),
            ("died", f"{pool.deaths + pool.other_deaths:,}"),
        ]
        if not is_raw:
            figures[4:4] = [
                ("backlog", f"{pool.backlog:,}, at most {pool.max_backlog:,}"),
                ("waits", waits(pool)),
            ]
        elif pool.listeners:
            queue = f"{pool.backlog:,}, at most {pool.max_backlog:,}"
            figures[4:4] = [("listen queue", queue)]
        if pool.start_cost is not None:
            figures.append(("a start takes", span(pool.start_cost)))
        if pool.memory_bound is not None:
            figures.append(("memory", memory(pool)))
        return figures

    def _courses(self, pool: PoolStatus) -> list[dict[str, Any]]:
        """The course of each number, and what the full height is. None: the largest of them."""
        workers = {"name": "workers", "values": [*self._looks.workers], "top": pool.max_workers}
        if pool.kind == "raw" and not pool.listeners:
            return [workers]
        return [workers, {"name": "backlog", "values": [*self._looks.backlog], "top": None}]

    def _row(self, row: WorkerStatus) -> list[tuple[str, float | str]]:
        """A cell for each column of the page: its text, and what to sort it by."""
        cpu = self._looks.cpu(row)
        return [
            (str(row.pid), row.pid),
            (row.state, row.state),
            (span(row.in_state), row.in_state),
            (f"{row.tasks_done:,}", row.tasks_done),
            (size(row.memory), row.memory or 0),
            (f"{cpu:.0f}", cpu),
            (row.task or "-", row.task or ""),
        ]


def _decision(decision: Any) -> dict[str, str]:
    at = time.strftime("%H:%M:%S", time.localtime(decision.time))
    what = f"{counted(decision.workers, 'worker')}{change(decision)}: {decision.reason}"
    return {"at": at, "what": what}


class Server(http.server.ThreadingHTTPServer):
    """Serves the page of one pool at :attr:`address`."""

    daemon_threads = True

    def __init__(self, story: Story, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.story = story
        self.secret = secrets.token_urlsafe(SECRET_BYTES)
        self.files = {
            name: ((Path(__file__).parent / file).read_bytes(), kind)
            for name, (file, kind) in PAGES.items()
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has broken off its connection."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The page's address, which has the secret."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser may say that it has asked."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    server_version = "prefork-executor"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        secret, _, name = self.path.removeprefix("/").partition("/")
        is_known = hmac.compare_digest(secret.encode(), self.server.secret.encode())
        if is_known and name == "state":
            self._answer(self.server.story.json, "application/json")
        elif is_known and name in self.server.files:
            self._answer(*self.server.files[name])
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: who has asked for what is nobody's business."""
