"""Requests a second of examples/http_server.py beside gunicorn's sync worker.

    python tests/benchmarks/http_requests.py [--rounds N] [--requests N] [--json FILE]
    python tests/benchmarks/http_requests.py --tool ab     # or wrk, where they are installed

Needs the extra "bench". Both serve the same WSGI application with two workers; they
take turns in one run, so that what else the machine does falls on both. The client is
a process of its own. gunicorn's sync worker closes every connection, so that is what
is compared; what ours gains by keeping connections alive is shown beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "http_server.py"
WORKERS = 2
CLIENTS = 4
"""Connections at a time."""
WRK_TIME = "2s"
"""How long wrk asks."""
Measure = Callable[[int, int, bool], float]
"""Requests a second: takes the port, how many, and whether connections are kept alive."""
BOUND = 30.0
"""Seconds that a server may take to start, and a request to be answered."""
CLOSING = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
KEEPING = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


def ours(port: int) -> list[str]:
    """The command of our server, with a fixed number of children."""
    counts = [f"--{name}-servers={WORKERS}" for name in ("min-spare", "max-spare", "max")]
    return [str(EXAMPLE), "--app", "hello:application", "--port", str(port), *counts]


def gunicorn(port: int) -> list[str]:
    """The command of gunicorn's."""
    options = ["-w", str(WORKERS), "-b", f"127.0.0.1:{port}", "--log-level", "error"]
    return ["-m", "gunicorn", *options, "hello:application"]


# --- the client ---------------------------------------------------------------------------


def connect(port: int) -> socket.socket:
    """A connection to the server under test."""
    return socket.create_connection(("127.0.0.1", port), timeout=BOUND)


def ask_closing(port: int, times: int) -> None:
    """A connection a request, as gunicorn's sync worker has it."""
    for _ in range(times):
        with connect(port) as connection:
            connection.sendall(CLOSING)
            answer = b""
            while received := connection.recv(4096):
                answer += received
        check(answer)


def ask_keeping(port: int, times: int) -> None:
    """All requests on one connection."""
    with connect(port) as connection:
        for _ in range(times):
            connection.sendall(KEEPING)
            answer = connection.recv(4096)
            while answer.count(b"world!\n") < 8:
                answer += connection.recv(4096)
            check(answer)


def check(answer: bytes) -> None:
    """The whole response, and nothing else."""
    if not answer.startswith(b"HTTP/1.1 200 OK\r\n") or answer.count(b"Hello, world!\n") != 8:
        raise SystemExit(f"a wrong answer: {answer!r}")


def run_client(port: int, requests: int, keeps_alive: bool) -> None:
    """The client process, and those it forks: prints the seconds that all requests took."""
    ask = ask_keeping if keeps_alive else ask_closing
    clients = WORKERS if keeps_alive else CLIENTS
    with multiprocessing.get_context("fork").Pool(clients) as pool:
        pool.starmap(ask_closing, [(port, 1)] * clients, chunksize=1)
        began = time.perf_counter()
        pool.starmap(ask, [(port, requests // clients)] * clients, chunksize=1)
        print(time.perf_counter() - began)


# --- measuring -----------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    """A server that answers, until the block ends."""
    command = [sys.executable, *command]
    process = subprocess.Popen(command, cwd=HERE / "served", stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + BOUND
        while True:
            with contextlib.suppress(ConnectionError):
                ask_closing(port, 1)
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(BOUND)


def measure(port: int, requests: int, keeps_alive: bool) -> float:
    """Requests a second, by a client in another process."""
    arguments = ["--client", str(port), "--requests", str(requests)]
    command = [sys.executable, __file__, *arguments, *(["--keep-alive"] if keeps_alive else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return requests / float(done.stdout)


def measure_by_ab(port: int, requests: int, keeps_alive: bool) -> float:
    """The same, by ab."""
    clients = str(WORKERS if keeps_alive else CLIENTS)
    command = ["ab", "-q", "-n", str(requests), "-c", clients, *(["-k"] if keeps_alive else [])]
    printed = output([*command, f"http://127.0.0.1:{port}/"])
    if "Failed requests:        0\n" not in printed or "Non-2xx" in printed:
        raise SystemExit(f"ab has seen failures:\n{printed}")
    return figure(r"Requests per second: +([0-9.]+)", printed)


def measure_by_wrk(port: int, _requests: int, keeps_alive: bool) -> float:
    """The same, by wrk, which takes a time and not a number."""
    clients = str(WORKERS if keeps_alive else CLIENTS)
    closing = [] if keeps_alive else ["-H", "Connection: close"]
    command = ["wrk", "-t", "1", "-c", clients, "-d", WRK_TIME, *closing]
    printed = output([*command, f"http://127.0.0.1:{port}/"])
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise SystemExit(f"wrk has seen failures:\n{printed}")
    return figure(r"Requests/sec: +([0-9.]+)", printed)


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def figure(pattern: str, printed: str) -> float:
    """The number that a tool has printed."""
    found = re.search(pattern, printed)
    if found is None:
        raise SystemExit(f"no figure in this:\n{printed}")
    return float(found[1])


def compare(rounds: int, requests: int, measure: Measure) -> dict[str, list[float]]:
    """Requests a second by server, one number a round."""
    ports = free_port(), free_port()
    rates: dict[str, list[float]] = {"ours": [], "gunicorn sync": [], "ours, keep-alive": []}
    with serving(ours(ports[0]), ports[0]), serving(gunicorn(ports[1]), ports[1]):
        for port in ports:
            measure(port, requests // 10, False)
        for _ in range(rounds):
            rates["ours"].append(measure(ports[0], requests, False))
            rates["gunicorn sync"].append(measure(ports[1], requests, False))
            rates["ours, keep-alive"].append(measure(ports[0], requests, True))
    return rates


TOOLS: dict[str, Measure] = {"python": measure, "ab": measure_by_ab, "wrk": measure_by_wrk}
"""The clients, by name."""


def show(rates: dict[str, list[float]]) -> None:
    """Medians, and ours in gunicorn's."""
    theirs = statistics.median(rates["gunicorn sync"])
    print(f"Python {platform.python_version()}, {WORKERS} workers; medians")
    for name, found in rates.items():
        median = statistics.median(found)
        print(f"{name:18} {median:8,.0f} requests/s  {median / theirs:5.2f} x gunicorn")


def main() -> int:
    """Measure, show, and keep the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--tool", choices=TOOLS, default="python", help="the client")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--keep-alive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        run_client(options.client, options.requests, options.keep_alive)
        return 0
    rates = compare(options.rounds, options.requests, TOOLS[options.tool])
    show(rates)
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
