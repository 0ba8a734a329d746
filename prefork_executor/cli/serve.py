"""``prefork-executor serve``: a server whose code and interpreter can be replaced while it serves.

It opens the listeners, starts the server, and stays. It runs no code of the server's. At SIGHUP it
runs the server's command again, beside the running server and with the same listeners. When the new
server says that it serves, the old one gets SIGTERM. If the new one ends before, or does not serve
in time, the old one goes on.

The server gets its listeners by ``pf_listeners()``, or as from systemd. A raw pool says by itself
when it serves.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import posix
import signal
import socket
import stat
import sys
import time
from typing import Any, NoReturn

from prefork_executor._raw.given import FIRST, READY
from prefork_executor._system import processes, signals
from prefork_executor._system.descriptors import Doorbell, Poller
from prefork_executor._system.platform import FALLBACK, libc

UNIX = "unix:"
PORTS = range(1 << 16)
SAFE = 64
"""Descriptors from here on are out of the way while a new process sorts its own."""
_STOP = (signal.SIGTERM, signal.SIGINT)


def add_to(subcommands: Any) -> None:
    """Add the parser."""
    parser = subcommands.add_parser(
        "serve",
        help="run a server, and replace its code and interpreter while it serves",
        description="Open the listeners, run COMMAND with them, and run it again at SIGHUP. The "
        "old server ends when the new one serves. SIGTERM ends the server; a second one kills it.",
    )
    parser.add_argument(
        *("-b", "--bind"),
        action="append",
        required=True,
        metavar="ADDRESS",
        help="HOST:PORT, [IPV6]:PORT or unix:PATH; may be given several times",
    )
    parser.add_argument(
        "--backlog", type=int, default=512, help="backlog of each listener (default: %(default)s)"
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long a new server may take until it serves (default: %(default)g)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until the server ends. Returns its exit status."""
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        print("prefork-executor serve: say which COMMAND to run", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as opened:
        try:
            listeners = [opened.enter_context(_listen(a, options.backlog)) for a in options.bind]
        except (OSError, ValueError) as error:
            print(f"prefork-executor serve: {error}", file=sys.stderr)
            return 1
        return Master(command, listeners, options.ready_timeout).run()


def _listen(address: str, backlog: int) -> socket.socket:
    try:
        if address.startswith(UNIX):
            return _listen_unix(address.removeprefix(UNIX), backlog)
        host, colon, port = address.rpartition(":")
        if not colon:
            raise ValueError(address)
        is_ipv6 = host.startswith("[")
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        found = (host.strip("[]"), int(port))
        if found[1] not in PORTS:
            raise ValueError(address)
        return socket.create_server(found, family=family, backlog=backlog)
    except ValueError:
        raise ValueError(f"{address!r} is not HOST:PORT, [IPV6]:PORT or unix:PATH") from None
    except OSError as error:
        why = error.strerror or error  # Python itself refuses a path that is too long.
        raise OSError(f"cannot listen at {address}: {why}") from error


def _listen_unix(path: str, backlog: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if _is_left_over(path):
            os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def _is_left_over(path: str) -> bool:
    """Whether this is a socket on which no process listens any more. The kernel also refuses a
    connection to a file that is no socket."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            return False  # A process listens, and its backlog is full.
    return False


class Server:
    """One run of the command.

    Args:
        pid: its process.
        pipe: becomes readable when it serves, or when it has closed its end.
        deadline: when it must serve, on the monotonic clock.
    """

    def __init__(self, pid: int, pipe: int, deadline: float) -> None:
        self.pid = pid
        self.pipe = pipe
        self.deadline = deadline

    def says_that_it_serves(self) -> bool | None:
        """None: it has closed the pipe and not said so."""
        try:
            return True if posix.read(self.pipe, 1) else None
        except BlockingIOError:
            return False

    def close_pipe(self) -> None:
        """It need not say any more that it serves."""
        posix.close(self.pipe)
        self.pipe = -1


class Master:
    """Starts servers, and ends them.

    Args:
        command: the server's.
        listeners: what it is given.
        ready_timeout: seconds that it has until it serves.
    """

    def __init__(
        self, command: list[str], listeners: list[socket.socket], ready_timeout: float
    ) -> None:
        self._command = command
        self._listeners = listeners
        self._ready_timeout = ready_timeout
        self._bell = Doorbell.new()
        self._poller = Poller()
        self._poller.register(self._bell.read_end)
        self._serving: Server | None = None
        self._candidate: Server | None = None
        self._leaving: list[Server] = []
        self._wants_reload = False
        self._stops = 0
        self._status = 0

    def run(self) -> int:
        """Until no server is left. Returns the exit status of the last that served."""
        for number in (signal.SIGHUP, signal.SIGCHLD, *_STOP):
            signal.signal(number, signals.only_wake_up)
        signal.set_wakeup_fd(self._bell.write_end, warn_on_full_buffer=False)
        # Whoever has started us may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP, signal.SIGCHLD, *_STOP))
        self._serving = self._start()
        while self._serving or self._candidate or self._leaving:
            self._poller.wait(self._due_in())
            for rung in self._bell.hush():
                self._heed(rung)
            self._reap()
            self._look_at_candidate()
            if self._wants_reload and self._candidate is None and not self._stops:
                self._wants_reload = False
                self._candidate = self._start()
        return self._status

    def _due_in(self) -> float | None:
        if self._candidate is None or self._candidate.pipe < 0:
            return None
        return max(0.0, self._candidate.deadline - time.monotonic())

    def _heed(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._wants_reload = True
        elif number in _STOP:
            self._stops += 1
            for server in self._servers():
                is_first = self._stops == 1
                processes.send_signal(server.pid, signal.SIGTERM if is_first else signal.SIGKILL)

    def _servers(self) -> list[Server]:
        found = [self._serving, self._candidate, *self._leaving]
        return [server for server in found if server is not None]

    # --- their ends -----------------------------------------------------------------------

    def _reap(self) -> None:
        for pid, status in processes.reap_all():
            for server in self._servers():
                if server.pid == pid:
                    self._ended(server, os.waitstatus_to_exitcode(status))

    def _ended(self, server: Server, code: int) -> None:
        self._forget_pipe(server)
        if server is self._candidate:
            self._candidate = None
            self._say(f"the new server {server.pid} ended before it served (status {code})")
        elif server is self._serving:
            self._serving = None
            self._status = code if code >= 0 else 128 - code
            if not self._stops:
                self._say(f"the server {server.pid} ended (status {code})")
        else:
            self._leaving.remove(server)

    def _forget_pipe(self, server: Server) -> None:
        if server.pipe >= 0:
            self._poller.unregister(server.pipe)
            server.close_pipe()

    # --- the new one ----------------------------------------------------------------------

    def _look_at_candidate(self) -> None:
        first, new = self._serving, self._candidate
        if first is not None and first.pipe >= 0 and first.says_that_it_serves() is not False:
            self._forget_pipe(first)  # No other server waits for it.
        if new is None or new.pipe < 0:
            return
        serves = new.says_that_it_serves()
        if serves:
            self._promote(new)
        elif serves is None or time.monotonic() >= new.deadline:
            limit = f"did not serve within {self._ready_timeout:g} s"
            why = "closed its pipe before it served" if serves is None else limit
            self._say(f"the new server {new.pid} {why}, and is killed")
            self._forget_pipe(new)
            processes.send_signal(new.pid, signal.SIGKILL)

    def _promote(self, new: Server) -> None:
        self._forget_pipe(new)
        old, self._serving, self._candidate = self._serving, new, None
        self._say(f"the new server {new.pid} serves")
        if old is not None:
            self._leaving.append(old)
            processes.send_signal(old.pid, signal.SIGTERM)

    def _start(self) -> Server:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        processes.flush_streams()
        pid, mask = processes.fork_masked()
        if pid == 0:
            self._become_server(write_end, mask)
        signals.restore_mask(mask)
        posix.close(write_end)
        self._poller.register(read_end)
        return Server(pid, read_end, time.monotonic() + self._ready_timeout)

    def _become_server(self, pipe: int, mask: set[int]) -> NoReturn:
        try:
            signals.forget_handlers()
            if not FALLBACK:
                libc().prctl(processes.PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            given = [*(listener.fileno() for listener in self._listeners), pipe]
            kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, SAFE) for descriptor in given]
            for at, descriptor in enumerate(kept, FIRST):
                os.dup2(descriptor, at)
                posix.close(descriptor)
            count = len(self._listeners)
            given_to = {"LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid())}
            ready = f"{os.getpid()}:{FIRST + count}"
            environment = {**os.environ, **given_to, READY: ready}
            signals.restore_mask(mask)
            os.execvpe(self._command[0], self._command, environment)
        except OSError as error:
            self._say(f"cannot run {self._command[0]}: {error.strerror}")
        finally:
            processes.leave(127)

    @staticmethod
    def _say(text: str) -> None:
        # Whoever read our messages may have ended, or the disk may be full. The service goes on.
        # (sys.stderr would keep the message, and fail again at the end of this process.)
        with contextlib.suppress(OSError):
            posix.write(2, f"prefork-executor serve: {text}\n".encode(errors="backslashreplace"))
