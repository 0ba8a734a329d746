"""``prefork-executor top --web``: what its server answers, and to whom; and its page in a browser,
which is left out if there is none."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsers import browse, in_browser
from raw_programs import Run, run
from status_programs import command, held_pool
from waiting import BOUND, eventually

from prefork_executor import status

__all__ = ["run"]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


class Web:
    """A running ``top --web``."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefork_executor", "top", "--web", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        parts = urlsplit(self.address)
        self.port, self.path = parts.port, parts.path

    def ask(
        self, path: str, *, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def state(self) -> Any:
        code, _, body = self.ask(self.path + "state")
        assert code == 200
        return json.loads(body)

    def ends(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=BOUND)
        return self.process.returncode, out, err


@pytest.fixture
def webs() -> Iterator[Any]:
    """Starts ``top --web``."""
    with contextlib.ExitStack() as started:

        def start(*arguments: object) -> Web:
            web = Web(*arguments)

            def end() -> None:
                web.process.kill()
                web.process.communicate()

            started.callback(end)
            return web

        yield start


@pytest.fixture
def web(run: Run, tmp_path: Path, webs: Any) -> Any:
    """One for a pool of three busy workers with five tasks waiting."""
    program = held_pool(run, tmp_path / "gate")
    web = webs(program.pid, "-d", 0.1)
    web.program = program
    return web


def test_it_tells_what_top_shows(web: Any) -> None:
    told = web.state()
    seen = status.read(web.program.pid)
    assert told["title"] == f"executor of process {web.program.pid}"
    assert told["places"] == "WWW"
    figures = dict(told["figures"])
    assert figures["workers"] == "3 of 3"
    assert re.fullmatch(r"5, at most [5-8]", figures["backlog"])
    assert {cells[0][1] for cells in told["workers"]} == {worker.pid for worker in seen.workers}
    assert all(cells[-1][0] == "__main__.hold" for cells in told["workers"])
    assert told["courses"][0]["top"] == 3
    assert told["decisions"]


def test_it_is_live_and_ends_with_the_pool(web: Any, tmp_path: Path) -> None:
    before = len(web.state()["courses"][0]["values"])
    eventually(lambda: len(web.state()["courses"][0]["values"]) > before + 2)
    (tmp_path / "gate").touch()
    told: dict[str, Any] = {}

    def has_ended() -> bool:
        told.update(web.state())
        return "ended" in told

    eventually(has_ended)
    assert told["ended"] == f"the pool of process {web.program.pid} has ended"
    assert web.ends() == (0, told["ended"] + "\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(web: Any, number: int) -> None:
    web.state()
    web.process.send_signal(number)
    assert web.ends() == (0 if number == signal.SIGINT else -number, "", "")


def test_a_browser_that_breaks_off_its_requests_is_not_reported(web: Any) -> None:
    at_once = struct.pack("ii", 1, 0)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", web.port)) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            browser.sendall(b"GET / HTTP/1.1\r\n")
    web.state()
    web.process.send_signal(signal.SIGINT)
    assert web.ends() == (0, "", "")


def test_it_binds_the_loopback_address_alone(web: Any) -> None:
    local = f"0100007F:{web.port:04X}"
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{web.port:04X}")
    ]
    assert listening == [local]


def test_only_who_knows_the_path_gets_anything(web: Any) -> None:
    assert len(web.path) > 30
    assert web.ask(web.path)[0] == 200
    guesses = ("/", "/state", "/page.js", "//state", web.path[:-2] + "/", "/x" + web.path[1:])
    for path in (*guesses, web.path + "other", web.path + "../state", "/%C3%A4"):
        code, _, body = web.ask(path)
        assert code == 404
        assert b"hold" not in body
        assert web.path.strip("/").encode() not in body


def test_every_run_has_another_path(run: Run, tmp_path: Path, webs: Any) -> None:
    program = held_pool(run, tmp_path / "gate")
    assert webs(program.pid).path != webs(program.pid).path


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "[::1]:{port}", ""]
)
def test_a_request_for_another_host_is_refused(web: Any, host: str) -> None:
    code, _, body = web.ask(web.path + "state", Host=host.format(port=web.port))
    assert code == 403
    assert b"hold" not in body
    assert web.ask(web.path + "state", Host=f"localhost:{web.port}")[0] == 200


@pytest.mark.parametrize(
    "text",
    [
        b"GET /\xe4\xff HTTP/1.1\r\nHost: localhost",
        b"GET %s HTTP/1.0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x00" * 10,
    ],
)
def test_requests_without_a_host_or_without_sense_harm_nothing(web: Any, text: bytes) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=BOUND) as connection:
        connection.sendall(text.replace(b"%s", web.path.encode() + b"state") + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    assert b"hold" not in answer
    assert web.state()["places"] == "WWW"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_it_only_answers_get(web: Any, method: str) -> None:
    assert web.ask(web.path, method=method)[0] == 501


def test_the_page_loads_nothing_else_and_may_not_be_framed(web: Any) -> None:
    for name in ("", "page.js", "page.css", "state"):
        code, headers, body = web.ask(web.path + name)
        assert code == 200
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert b"://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert "innerHTML" not in web.ask(web.path + "page.js")[2].decode()


def test_many_pages_cost_the_pool_no_more_than_one(web: Any) -> None:
    for _ in range(50):
        web.state()
    threads = len(os.listdir(f"/proc/{web.process.pid}/task"))
    assert threads < 10


def test_without_rich_it_works(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    source = (
        "import sys; sys.modules['rich'] = None;"
        f"from prefork_executor.cli import main; main(['top', '--web', '{program.pid}'])"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.kill()


@pytest.mark.parametrize("port", ["99999", "-1", "{taken}"])
def test_a_port_that_cannot_be_bound_is_named(run: Run, tmp_path: Path, port: str) -> None:
    program = held_pool(run, tmp_path / "gate")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port.format(taken=taken.getsockname()[1])
        done = command("top", "--web", "--port", port, program.pid)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} of 127.0.0.1 cannot be bound" in done.stderr


# --- in a browser ---------------------------------------------------------------------------------


@in_browser
def test_a_browser_shows_the_pool_and_complains_of_nothing(web: Any, tmp_path: Path) -> None:
    shown, complaints = browse(
        *(web.address, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=3000")
    )
    assert complaints == ""
    assert f"executor of process {web.program.pid}" in shown
    assert shown.count("<td>__main__.hold</td>") == 3
    assert shown.count('<span class="W">W</span>') == 3
    assert "<rect" in shown


@in_browser
@pytest.mark.parametrize("scheme", ["0", "1"])
def test_it_is_painted_in_light_and_in_dark(web: Any, scheme: str, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    browse(
        *(web.address, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1100,1000"),
        *("--virtual-time-budget=3000", f"--blink-settings=preferredColorScheme={scheme}"),
    )
    assert len(picture.read_bytes()) > 20_000
