"""The example servers under load, while they grow, shrink, reload and lose children.

In its short form by default; PREFORK_EXECUTOR_LOAD=50000 gives the requests for each
server. The figures go to the report (pytest -s shows them).
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from certificates import certify
from load_client import Connection
from raw_programs import HUP, KILL, RUN_FILE, TERM, Program, Run, run
from scripts import SUPPORT
from waiting import BOUND, eventually

from prefork_executor._board import scoreboard as sb
from prefork_executor._board.scoreboard import Scoreboard

__all__ = ["run"]

REQUESTS = int(os.environ.get("PREFORK_EXECUTOR_LOAD", "2500"))
LONGEST = BOUND + REQUESTS / 100
"""Seconds that a load may take: far beyond what it takes."""
MOST = 12
SILENT = 3
"""Clients at a time that connect and say nothing."""
EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENT = SUPPORT / "load_client.py"

APPLICATION = """
def application(environ, start_response):
    body = ("version-{version} " + environ["PATH_INFO"]).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""


class Server:
    """An example server, and what can be done to it."""

    def __init__(self, run: Run, *arguments: str) -> None:
        arguments = (*arguments, "--port", "0", "--max-servers", str(MOST))
        self.program: Program = run(RUN_FILE.format(arguments=list(arguments)), prelude="")
        # It says that workers which we kill died, as it should.
        self.program.expects_complaints = True
        eventually(lambda: ":" in self.program.output)
        self.ports = [int(port) for port in re.findall(r":(\d+)", self.program.lines[0])]
        self.port = self.ports[0]
        self.board = self._open_board()
        self.most_children = 0

    def _open_board(self) -> Scoreboard:
        for name in Path(f"/proc/{self.program.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # Some come and go.
                if "prefork-scoreboard" in str(name.readlink()):
                    return Scoreboard(os.open(name, os.O_RDWR), MOST)
        raise AssertionError("it has no scoreboard")

    def count(self) -> int:
        """Its children now. There must never be too many."""
        live = len(self.board.read_all())
        self.most_children = max(self.most_children, live)
        return live

    def kill_an_idle_child(self, number: int) -> bool:
        """Signal a child that holds no connection. It is stopped while we make sure,
        because SIGKILL would take its connection with it."""
        slots = [slot for slot in self.board.read_all() if slot.state == sb.IDLE]
        if not slots:
            return False
        slot = random.choice(slots)
        try:
            child = psutil.Process(slot.pid)
            child.suspend()
            eventually(lambda: child.status() != psutil.STATUS_RUNNING)
            now = self.board.read(slot.place)
            is_idle = now.pid == slot.pid and now.state == sb.IDLE
            if is_idle:
                child.send_signal(number)
            child.resume()
        except psutil.NoSuchProcess:
            return False
        return is_idle


@pytest.fixture(params=["plain", "plain and TLS"])
def http_server(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    publish(tmp_path, 0)
    arguments = [str(EXAMPLES / "http_server.py"), "--app", "served:application"]
    if request.param == "plain and TLS":
        arguments += ["--tls-port", "0", "--certificate", str(certify(tmp_path, "load"))]
    server = Server(run, *arguments)
    yield server
    server.board.close()


@pytest.fixture(params=["whip", "new"])
def echo_server(run: Run, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(run, str(EXAMPLES / "echo_server.py"), "--variant", request.param)
    yield server
    server.board.close()


def publish(directory: Path, version: int) -> None:
    """Put another version of the application in place, whole."""
    (directory / "next.py").write_text(APPLICATION.format(version=version))
    (directory / "next.py").replace(directory / "served.py")


def version(server: Server) -> str:
    """Of the application, as a client sees it now."""
    connection = Connection(server.port)
    answer = connection.http(1)
    connection.close()
    return answer


def start_client(run: Run, protocol: str, server: Server, requests: int) -> Program:
    waves = max(6, requests // 1000)
    ports = ",".join(map(str, server.ports))
    arguments = [str(CLIENT), protocol, ports, str(requests), str(waves)]
    return run(RUN_FILE.format(arguments=arguments), prelude="")


def figures(client: Program) -> dict[str, Any]:
    assert client.process.wait(LONGEST) == 0, client.complaints
    found: dict[str, Any] = json.loads(client.said("figures")[0])
    return found


def grows_and_shrinks(server: Server, protocol: str) -> None:
    """As many connections at a time as it may have children, each served by its own."""
    connections = []
    for number in range(MOST):
        connections.append(Connection(server.port))
        getattr(connections[-1], protocol)(number)
    eventually(lambda: server.count() == MOST)
    for connection in connections:
        connection.close()
    eventually(lambda: 2 <= server.count() <= 6, "shrinks to the spares")


def disturbed(server: Server, client: Program, reload: Any) -> dict[str, int]:
    """Kill idle children, reload, and connect without a word, until the client has ended. How
    often."""
    done = {"TERM": 0, "KILL": 0, "HUP": 0, "silent": 0}
    silent: collections.deque[socket.socket] = collections.deque()
    began = time.monotonic()
    while client.process.poll() is None and time.monotonic() - began < LONGEST:
        assert server.count() <= MOST
        what = random.choice(["TERM", "KILL", *done]) if done["HUP"] else "HUP"
        if what == "HUP":
            reload()
            done[what] += 1
        elif what == "silent":
            silent.append(socket.create_connection(("127.0.0.1", server.ports[-1])))
            done[what] += 1
        else:
            done[what] += server.kill_an_idle_child(TERM if what == "TERM" else KILL)
        if len(silent) > SILENT:
            silent.popleft().close()
        time.sleep(random.uniform(0.02, 0.2))
    for connection in silent:
        connection.close()
    return done


def report(name: str, found: dict[str, Any], done: dict[str, int], server: Server) -> None:
    rate = found["answered"] / found["seconds"]
    print(f"{name}: {found['answered']} answered, {found['lost']} lost, {rate:.0f}/s", end="; ")
    print(f"at most {server.most_children} children; {done}")


def test_the_http_server_loses_no_request_whatever_happens_to_idle_children(
    run: Run, http_server: Server, tmp_path: Path
) -> None:
    grows_and_shrinks(http_server, "http")
    versions = iter(range(1, 1_000_000))
    latest = 0

    def reload() -> None:
        nonlocal latest
        latest = next(versions)
        publish(tmp_path, latest)
        http_server.program.signal(HUP)

    client = start_client(run, "http", http_server, REQUESTS)
    done = disturbed(http_server, client, reload)
    found = figures(client)
    report(f"http on {len(http_server.ports)} ports", found, done, http_server)
    assert (found["lost"], found["answered"]) == (0, REQUESTS), found["first lost"]
    if latest:
        eventually(lambda: version(http_server) == f"version-{latest}", "the last reload")
    assert_shrinks_and_stops(http_server)


def test_the_echo_server_loses_no_line_whatever_happens_to_idle_children(
    run: Run, echo_server: Server
) -> None:
    grows_and_shrinks(echo_server, "echo")
    client = start_client(run, "echo", echo_server, REQUESTS)
    done = disturbed(echo_server, client, lambda: echo_server.program.signal(HUP))
    found = figures(client)
    report("echo", found, done, echo_server)
    assert (found["lost"], found["answered"]) == (0, REQUESTS), found["first lost"]
    assert_shrinks_and_stops(echo_server)


def assert_shrinks_and_stops(server: Server) -> None:
    eventually(lambda: 2 <= server.count() <= 6, "shrinks to the spares")
    server.program.signal(TERM)
    assert server.program.wait() == 0


def test_a_client_that_breaks_off_leaves_no_time_limit_to_the_next(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(16 * 1024 * 1024))
    program = run(
        f"""
        sys.path.insert(0, {str(EXAMPLES)!r})
        import http_server
        def accept(listener, real=http_server.pf_kid_accept):
            say("time left", *signal.getitimer(signal.ITIMER_REAL))
            return real(listener)
        http_server.pf_kid_accept = accept
        sys.argv = "http_server.py --port 0 --max-servers 1 --min-spare-servers 1".split()
        http_server.main()
        """
    )
    port = int(program.hear("serving")[0].rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=BOUND) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert program.hear("time", 2) == ["left 0.0 0.0"] * 2
