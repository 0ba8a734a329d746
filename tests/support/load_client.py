"""Loads a server from a process of its own, and counts what it does not answer.

    python load_client.py http|echo PORT[,TLSPORT] REQUESTS [WAVES]

With a second port, every other connection goes there and speaks TLS.
Waves of many and of few connections at a time follow one another, so that the server
grows and shrinks. A connection carries a few requests. Nothing is tried again: a
request that is not answered in full, and rightly, is lost. Prints a line of JSON.
"""

from __future__ import annotations

import collections
import json
import random
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor

MANY, FEW = 16, 2
"""Connections at a time."""
BOUND = 180.0
"""Seconds without an answer after which a request counts as lost."""
TLS = ssl.create_default_context()
"""Accepts any certificate. (This program runs from a copy, without what tests share.)"""
TLS.check_hostname = False
TLS.verify_mode = ssl.CERT_NONE


class Connection:
    """One connection: requests in, answers out."""

    def __init__(self, port: int, is_tls: bool = False) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=BOUND)
        if is_tls:
            self._socket = TLS.wrap_socket(self._socket)
        self._lines = self._socket.makefile("rb")
        self.is_open = True

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def http(self, number: int) -> str:
        """What the application answered, without the path that it repeats."""
        self._socket.sendall(b"GET /%d HTTP/1.1\r\nHost: load\r\n\r\n" % number)
        status = self._lines.readline()
        headers = {}
        while (line := self._lines.readline().strip()) != b"":
            name, _, value = line.lower().partition(b":")
            headers[name] = value.strip()
        body = self._lines.read(int(headers[b"content-length"])).decode()
        self.is_open = headers.get(b"connection") != b"close"
        if not status.startswith(b"HTTP/1.1 200") or not body.endswith(f" /{number}"):
            raise ConnectionError(f"{status!r} {body!r}")
        return body.partition(" ")[0]

    def echo(self, number: int) -> str:
        self._socket.sendall(b"%d\n" % number)
        line = self._lines.readline()
        if line != b"%d\n" % number:
            raise ConnectionError(f"{line!r} for {number}")
        return ""


class Load:
    """The counts of one run."""

    def __init__(self, protocol: str, ports: list[int]) -> None:
        self._protocol, self._ports = protocol, ports
        self.answered: collections.Counter[str] = collections.Counter()
        self.lost: list[str] = []

    def session(self, numbers: list[int]) -> None:
        """Requests on one connection, or on another when the server has closed it."""
        connection = None
        for number in numbers:
            try:
                if connection is None:
                    place = number % len(self._ports)
                    connection = Connection(self._ports[place], is_tls=place > 0)
                self.answered[getattr(connection, self._protocol)(number)] += 1
            except Exception as error:
                self.lost.append(f"{number}: {error!r}")
                connection = None
            if connection is not None and not connection.is_open:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def wave(self, threads: int, numbers: list[int]) -> None:
        sessions = []
        while numbers:
            size = random.randint(1, 10)
            sessions.append(numbers[:size])
            numbers = numbers[size:]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.session, sessions))


def main() -> None:
    protocol, requests = sys.argv[1], int(sys.argv[3])
    ports = [int(port) for port in sys.argv[2].split(",")]
    waves = int(sys.argv[4]) if len(sys.argv) > 4 else 6
    load, began = Load(protocol, ports), time.perf_counter()
    for wave in range(waves):
        numbers = list(range(wave, requests, waves))
        load.wave(FEW if wave % 2 else MANY, numbers)
    figures = {
        "answered": sum(load.answered.values()),
        "lost": len(load.lost),
        "first lost": load.lost[:5],
        "by": load.answered,
        "seconds": time.perf_counter() - began,
    }
    print("figures", json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
