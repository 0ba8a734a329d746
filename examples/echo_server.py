"""A prefork echo server, in the two variants that Parallel::MPM::Prefork offers.

    python examples/echo_server.py [--port N] [--variant whip|new] [--max-servers N]

It sends every line back. The line ``quit`` ends the child that reads it. At SIGTERM or
Ctrl-C the server serves its open connections to their ends (for ten seconds at most) and
stops. At SIGHUP it replaces every child by a new one.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from typing import Any

from prefork_executor.raw import (
    pf_done,
    pf_error,
    pf_init,
    pf_kid_accept,
    pf_kid_exit,
    pf_kid_new,
    pf_kid_yell,
    pf_reload,
    pf_whip_kids,
)

PATIENCE = 60.0
"""Seconds for which a client may be silent. Meanwhile its child can do no other work."""


def serve(listener: socket.socket) -> None:
    """A child's life: one connection after the other, until it is told to leave."""
    while taken := pf_kid_accept(listener):
        connection, _address = taken
        connection.settimeout(PATIENCE)
        with connection:
            try:
                lines = echo(connection)
            except OSError as error:  # The client has gone, or is silent.
                pf_kid_yell({"failed": str(error)}, thaw=True)
                continue
        pf_kid_yell({"lines": lines}, thaw=True)


def echo(connection: socket.socket) -> int:
    """Send every line back. Returns how many there were."""
    count = 0
    with connection.makefile("rb") as lines:
        for count, line in enumerate(lines, 1):
            if line.startswith(b"quit"):
                connection.close()
                pf_kid_exit(0, {"quit after": count}, thaw=True)
            connection.sendall(line)
    return count


def report(pid: int, data: Any, exitcode: int | None) -> None:
    """The hook. It runs in a process of its own, for everything that the children yell."""
    left = "" if exitcode is None else f", left with {exitcode}"
    print(f"child {pid}: {data}{left}", flush=True)


def run_with_whip_kids(listener: socket.socket) -> None:
    """Variant 1: more convenient, less flexible."""
    while pf_whip_kids(serve, (listener,)):
        pass


def run_with_kid_new(listener: socket.socket) -> None:
    """Variant 2: more flexible, less convenient."""
    while True:
        pid = pf_kid_new()
        if pid is None:
            sys.exit("could not fork")  # Only with on_fork_failure="return".
        if pid < 0:
            return  # pf_done() was called.
        if pid == 0:
            serve(listener)
            pf_kid_exit(0, {"bye": os.getpid()}, thaw=True)


def main() -> int:
    """Listen, fork, and serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=20116, help="0: any that is free")
    parser.add_argument("--variant", choices=["whip", "new"], default="whip")
    parser.add_argument("--max-servers", type=int, default=20)
    options = parser.parse_args()

    initialised = pf_init(
        min_spare_servers=min(2, options.max_servers),
        max_spare_servers=4,
        max_servers=options.max_servers,
        child_sigh={"INT HUP": "IGNORE"},  # Ctrl-C reaches all; the main process acts on it.
        child_data_hook=report,
    )
    if not initialised:
        sys.exit(f"could not set up the pool: {pf_error()!s}")
    signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
    signal.signal(signal.SIGINT, lambda *_: pf_done(0))
    signal.signal(signal.SIGHUP, lambda *_: pf_reload())

    listener = socket.create_server((options.host, options.port), backlog=512)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    try:
        if options.variant == "whip":
            run_with_whip_kids(listener)
        else:
            run_with_kid_new(listener)
    finally:
        pf_done()
    return 0


if __name__ == "__main__":
    sys.exit(main())
