"""The programs of docs/graceful-stop.md, stopped by real signals to their whole group: all
that they have accepted is done, and nothing of them stays."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from injection import is_alive, lines
from page_examples import examples
from waiting import BOUND, eventually

from prefork_executor import status

PAGE = Path(__file__).parents[2] / "docs" / "graceful-stop.md"
GROUP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])


WORK = "time.sleep(0.1)"


def block(mark: str, seconds: float) -> str:
    """The page's program that has this in it, but with tasks that take so long."""
    (source,) = [e.source for e in examples(PAGE) if mark in e.source]
    assert WORK in source
    return source.replace(WORK, f"time.sleep({seconds})")


class Service:
    """A program in a process group of its own."""

    def __init__(self, directory: Path, *command: str) -> None:
        self.prints = directory / "prints"
        with self.prints.open("w") as prints:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=prints,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int) -> list[psutil.Process]:
        """Send the signal to the group. Returns the processes there were."""
        there = self.children()
        os.killpg(self.process.pid, number)
        return there

    def wait(self) -> int:
        return self.process.wait(BOUND)

    def kill(self) -> None:
        for process in self.children() if self.process.poll() is None else []:
            process.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def services() -> Iterator[list[Service]]:
    """Those that a test has started; none of them survives it."""
    started: list[Service] = []
    yield started
    for service in started:
        service.kill()


@GROUP_SIGNALS
@pytest.mark.parametrize("mark", ["threading.Event", "add_signal_handler"])
def test_a_program_finishes_all_it_has_accepted(
    mark: str, number: int, services: list[Service], tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(block(mark, 0.5))
    service = Service(tmp_path, "main.py")
    services.append(service)
    eventually(lambda: len(lines(service.prints)) >= 2)
    there = service.stop(number)
    assert service.wait() == 0, service.prints.read_text()
    *done, last = lines(service.prints)
    assert sorted(done) == sorted(f"done {job}" for job in range(10))
    assert last == "all that was accepted is done"
    eventually(lambda: not any(map(is_alive, there)))


@GROUP_SIGNALS
def test_a_program_without_a_handler_dies_and_leaves_nothing(
    number: int, services: list[Service], tmp_path: Path
) -> None:
    source = block("threading.Event", BOUND).replace("(signal.SIGTERM, signal.SIGHUP)", "()")
    (tmp_path / "main.py").write_text(source)
    service = Service(tmp_path, "main.py")
    services.append(service)
    eventually(lambda: len(service.children()) >= 3, "the supervisor and two workers")
    there = service.stop(number)
    assert service.wait() == -number
    eventually(lambda: not any(map(is_alive, there)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def get(port: int) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)) as link:
        link.request("GET", "/")
        return link.getresponse().read().decode()


def answers(port: int) -> bool:
    try:
        return get(port) == "done"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("mark", "server", "command"),
    [
        (
            "lifespan.shutdown",
            "uvicorn",
            ["main:app", "--port", "{port}", "--log-level", "warning"],
        ),
        ("start_response", "gunicorn", ["main:app", "-b", "127.0.0.1:{port}", "-w", "2"]),
    ],
)
def test_a_web_server_finishes_the_requests_it_has_accepted(
    mark: str, server: str, command: list[str], services: list[Service], tmp_path: Path
) -> None:
    pytest.importorskip(server)
    port = free_port()
    (tmp_path / "main.py").write_text(block(mark, 2.0))
    arguments = [argument.format(port=port) for argument in command]
    service = Service(tmp_path, "-m", server, *arguments)
    services.append(service)
    eventually(lambda: answers(port), service.prints.read_text())
    bodies: list[str] = []
    client = threading.Thread(target=lambda: bodies.append(get(port)))
    client.start()
    eventually(lambda: busy(service), "the request's task runs")
    there = service.stop(signal.SIGTERM)
    client.join(BOUND)
    assert bodies == ["done"]
    # When all is done, uvicorn sends itself the signal that it has caught.
    assert service.wait() in (0, -signal.SIGTERM), service.prints.read_text()
    eventually(lambda: not any(map(is_alive, there)))


def busy(service: Service) -> bool:
    ours = {process.pid for process in service.children()} | {service.process.pid}
    pools = [pool for pool in status.pools() if pool.pid in ours]
    return any(worker.state == "busy" for pool in pools for worker in pool.workers)
