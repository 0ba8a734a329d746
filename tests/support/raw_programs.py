"""Runs raw-mode programs as processes of their own, and looks at them from outside.

A pool takes its process over: process group, SIGCHLD, forks. So pytest's own process
never becomes one; every program is a script, and says what it sees on its output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from injection import is_alive
from waiting import BOUND, eventually

from prefork_executor._system.platform import FALLBACK

MARK = "PREFORK_EXECUTOR_TEST_PROGRAM"
"""Environment variable by which a program's processes are found, orphans included."""

PRELUDE = """
import ctypes  # Some builds of Python keep a library's file open from here on.
import os, signal, socket, sys, time
from prefork_executor import raw
from prefork_executor._board.worker_states import State
from prefork_executor.raw import *

signal.alarm(900)  # Whatever the test does, nothing stays for longer.

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def listen():
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    say("port", listener.getsockname()[1])
    return listener

def serve(listener):
    '''Echoes lines until the client closes; one connection after the other.'''
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(line)

def rest():
    '''In short turns: a signal that comes just before a sleep is handled after it.'''
    while True:
        time.sleep(0.01)

def states():
    '''What the pool's children do, as the scoreboard has it.'''
    return sorted(State(slot.state).name for slot in raw._pool._main._board.read_all())

def whip(code, args=()):
    while pf_whip_kids(code, args):
        pass
"""
OBEYS_SIGNALS = """
signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
signal.signal(signal.SIGHUP, lambda *_: (pf_reload(), say("reloaded")))
"""
"""What a server begins with that stops and reloads when it is told to."""
RUN_FILE = """
import runpy, sys
sys.dont_write_bytecode = True  # Two versions a second must not be taken for one.
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Program:
    """One running program."""

    def __init__(self, directory: Path, source: str, *, prelude: str = PRELUDE) -> None:
        self.expects_complaints = False
        """Whether something on its standard error is part of what is tested."""
        self.directory = directory
        """Where it runs."""
        self._mark = uuid.uuid4().hex
        self._out, self._err = directory / f"{self._mark}.out", directory / f"{self._mark}.err"
        script = directory / f"{self._mark}.py"
        script.write_text(prelude + textwrap.dedent(source))
        self.process = self._start([sys.executable, str(script)], directory)

    def _start(self, command: list[str], directory: Path) -> subprocess.Popen[bytes]:
        # Appending, because many processes write to them.
        with open(self._out, "ab") as out, open(self._err, "ab") as err:
            return subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, MARK: self._mark, "PYTHONUNBUFFERED": ""},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    # --- what it says -------------------------------------------------------------------

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def complaints(self) -> str:
        return self._err.read_text()

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def said(self, word: str) -> list[str]:
        """What followed this word in every line that began with it."""
        found = [line.partition(" ") for line in self.lines]
        return [rest for first, _, rest in found if first == word]

    def hear(self, word: str, times: int = 1) -> list[str]:
        """Wait until it has said a word so often; what followed the word."""

        def heard() -> bool:
            self._must_not_have_failed(word)
            return len(self.said(word)) >= times

        eventually(heard, f"{word!r}, {times} times")
        return self.said(word)

    def _must_not_have_failed(self, word: str) -> None:
        if self.process.poll() is not None and not self.said(word):
            pytest.fail(f"ended without {word!r}: {self.output}\n{self.complaints}")

    # --- what it is -----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """Its living children, the hook's process included."""
        try:
            found = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in found if is_alive(child)]

    def processes(self) -> list[int]:
        """Every living process of it, orphans included."""
        everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in everyone if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            # A process that has ended has no environment any more, even before it is waited for.
            return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, when it has ended and left nobody behind."""
        status = self.process.wait(BOUND)
        eventually(lambda: not self.processes(), "its processes are gone")
        return status

    def stop(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND)
        if FALLBACK:  # There no kernel kills the children of a killed main process.
            self.expects_complaints = True
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.processes(), "its processes are gone")

    # --- talking to it ------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.hear("port")[0])

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=BOUND)

    def echo(self, connection: socket.socket, line: bytes = b"hello\n") -> bytes:
        """What comes back for a line: all of it, or what came before the end."""
        answer = b""
        try:
            connection.sendall(line)
            while not answer.endswith(b"\n"):
                received = connection.recv(4096)
                if not received:
                    break
                answer += received
        except ConnectionError:
            pass
        return answer


Run = Callable[..., Program]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a program of this source. In the end it must be gone, with everything
    it has forked, and have complained of nothing that the test did not expect."""
    programs: list[Program] = []

    def start(source: str, **options: str) -> Program:
        programs.append(Program(tmp_path, source, **options))
        return programs[-1]

    yield start
    for program in programs:
        program.stop()
    for program in programs:
        if not program.expects_complaints:
            assert program.complaints == ""


def run_to_end(run: Run, source: str, status: int = 0) -> Program:
    """A program that ends by itself, with this exit status."""
    program = run(source)
    assert program.wait() == status, program.complaints
    return program


linux_only = pytest.mark.skipif(FALLBACK, reason="needs the kernel to kill orphans")
TERM, KILL, HUP = signal.SIGTERM, signal.SIGKILL, signal.SIGHUP
