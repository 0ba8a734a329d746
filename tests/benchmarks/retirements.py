"""Counts what a server in raw mode loses whose children are retired all the time.

    python tests/benchmarks/retirements.py [--kind tcp|udp|pipe|socketserver|wsgiref]
        [--variant whip|new] [--sigterm default|exits|own] [--requests N]

The server is one that was ported line by line from Perl: its children call ``accept`` (or
``recvfrom``, ``os.read``), then ``pf_kid_busy()``, and ``pf_kid_idle()`` when they are done. It
keeps one spare child, and waves of sixteen clients come, so that most children are retired after
each wave. SIGTERM has its default effect in a child, or a handler that exits: of
``child_sigh``, or of the child's ``own``. A request that is not answered is lost.

The 50,000 requests of the default take some minutes. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import select
import signal
import socket
import socketserver
import struct
import sys
import time
import wsgiref.simple_server
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from prefork_executor import status
from prefork_executor.raw import (
    pf_done,
    pf_init,
    pf_kid_busy,
    pf_kid_exit,
    pf_kid_idle,
    pf_kid_new,
    pf_whip_kids,
)

CLIENTS = 16
PATIENCE = 30.0
"""Seconds without an answer after which a request is lost."""
RECORD = struct.Struct("Q")

# --- the server's children ----------------------------------------------------------------------


def serve_tcp(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        pf_kid_busy()
        with connection:
            connection.sendall(connection.recv(100))
        pf_kid_idle()


def serve_udp(end: socket.socket) -> None:
    while True:
        data, address = end.recvfrom(100)
        pf_kid_busy()
        end.sendto(data, address)
        pf_kid_idle()


def serve_pipe(jobs: int, answers: int) -> None:
    while True:
        record = os.read(jobs, RECORD.size)
        pf_kid_busy()
        os.write(answers, record)
        pf_kid_idle()


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(100))


class _Marked:
    """A server of the standard library that says when it works."""

    def process_request(self, *args: Any) -> None:
        pf_kid_busy()
        super().process_request(*args)  # type: ignore[misc]
        pf_kid_idle()


class EchoServer(_Marked, socketserver.TCPServer):
    pass


class WebServer(_Marked, wsgiref.simple_server.WSGIServer):
    pass


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def answer_web(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


def serve_socketserver(listener: socket.socket) -> None:
    server = EchoServer(listener.getsockname(), Echo, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def serve_wsgiref(listener: socket.socket) -> None:
    server = WebServer(listener.getsockname(), QuietHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = listener.getsockname()
    server.setup_environ()
    server.set_app(answer_web)
    server.serve_forever()


# --- the server -----------------------------------------------------------------------------


def leave(*_: object) -> NoReturn:
    pf_kid_exit(0)


def run_server(code: Any, args: tuple[Any, ...], variant: str, sigterm: str) -> NoReturn:
    def live(*args: Any) -> None:
        if sigterm == "own":
            signal.signal(signal.SIGTERM, leave)
        code(*args)

    pf_init(
        min_spare_servers=1,
        max_spare_servers=1,
        idle_timeout=0,
        start_servers=1,
        max_servers=CLIENTS,
        child_sigh={"TERM": leave} if sigterm == "exits" else None,
    )
    signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
    if variant == "whip":
        while pf_whip_kids(live, args):
            pass
    while (pid := pf_kid_new()) is not None and pid >= 0:
        if pid == 0:
            live(*args)
            pf_kid_exit(0)
    sys.exit(0)


# --- its clients ----------------------------------------------------------------------------


def ask_stream(address: Any, number: int) -> bool:
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(b"%d" % number)
        return connection.recv(100) == b"%d" % number


def ask_web(address: Any, number: int) -> bool:
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        connection.sendall(b"GET /%d HTTP/1.0\r\n\r\n" % number)
        with connection.makefile("rb") as answer:
            return answer.read().endswith(b"\r\n\r\n/%d" % number)


def ask_datagram(address: Any, number: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.settimeout(PATIENCE)
        end.sendto(b"%d" % number, address)
        return end.recv(100) == b"%d" % number


ASK = {
    "tcp": ask_stream,
    "socketserver": ask_stream,
    "wsgiref": ask_web,
    "udp": ask_datagram,
}


def count_lost(ask: Any, address: Any, requests: int) -> int:
    def is_lost(number: int) -> bool:
        try:
            return not ask(address, number)
        except OSError:
            return True

    lost = 0
    with ThreadPoolExecutor(CLIENTS) as pool:
        for first in range(0, requests, CLIENTS):
            wave = range(first, min(first + CLIENTS, requests))
            lost += sum(pool.map(is_lost, wave))
    return lost


def count_lost_of_pipe(jobs: int, answers: int, requests: int) -> int:
    answered: collections.Counter[int] = collections.Counter()
    for first in range(0, requests, CLIENTS):
        wave = range(first, min(first + CLIENTS, requests))
        for number in wave:
            os.write(jobs, RECORD.pack(number))
        until, missing = time.monotonic() + PATIENCE, len(wave)
        while missing and select.select([answers], (), (), max(0, until - time.monotonic()))[0]:
            answered[RECORD.unpack(os.read(answers, RECORD.size))[0]] += 1
            missing -= 1
    return requests - len(answered)


# --- both ---------------------------------------------------------------------------------


def start_server(code: Any, args: tuple[Any, ...], variant: str, sigterm: str) -> int:
    server = os.fork()
    if not server:
        try:
            run_server(code, args, variant, sigterm)
        finally:
            os._exit(0)
    return server


def measure(kind: str, variant: str, sigterm: str, requests: int) -> dict[str, Any]:
    began = time.monotonic()
    code: Any = globals()[f"serve_{kind}"]
    if kind == "pipe":
        (jobs, to_jobs), (answers, to_answers) = os.pipe(), os.pipe()
        server = start_server(code, (jobs, to_answers), variant, sigterm)
        lost = count_lost_of_pipe(to_jobs, answers, requests)
    else:
        end = socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
        )
        end.bind(("127.0.0.1", 0))
        if kind != "udp":
            end.listen(512)
        server = start_server(code, (end,), variant, sigterm)
        lost = count_lost(ASK[kind], end.getsockname(), requests)
    retired = status.read(server).retirements
    os.kill(server, signal.SIGTERM)
    os.waitpid(server, 0)
    seconds = round(time.monotonic() - began, 1)
    named = {"kind": kind, "variant": variant, "sigterm": sigterm}
    return {**named, "requests": requests, "lost": lost, "retired": retired, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=[*ASK, "pipe"], default="tcp")
    parser.add_argument("--variant", choices=["whip", "new"], default="whip")
    parser.add_argument("--sigterm", choices=["default", "exits", "own"], default="default")
    parser.add_argument("--requests", type=int, default=50_000)
    options = parser.parse_args()
    print(json.dumps(measure(**vars(options))), flush=True)


if __name__ == "__main__":
    main()
