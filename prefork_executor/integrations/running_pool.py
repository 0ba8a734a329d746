"""A raw `pf_*` pool in a child process, watched from outside: for tests.

A raw pool takes over its process, so a test's own process must not become one. Here the
main process is forked off, runs ``pf_whip_kids``, and obeys SIGTERM and SIGHUP as servers do.
What its children yell is written to a file, which the test's process reads. So no thread is
needed, which would make the next fork doubtful, and no process waits for a reader.

Every process of the pool inherits the writing end of a pipe, the leash. So the pipe's end of file
says that all of them are gone, the hook's included. Processes that still hold it are found in
/proc, and so are processes that these have started in their process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import IO, Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from prefork_executor.raw import pf_done, pf_error, pf_init, pf_reload, pf_whip_kids

from ._output import print_lines

__all__ = ["Left", "RunningPool", "Yell"]

START_TIMEOUT = 60.0
"""Seconds in which the main process must have set up its pool. It takes far less."""
WAIT_TIMEOUT = 30.0
"""Default seconds to wait for yells, or for the end."""
POLL = 0.005
"""Seconds between two checks for what is not announced: yells in the file, and the end of
processes that are not our children."""
_LENGTH = struct.Struct("<Q")
"""Precedes each yell in the file: its length in bytes."""
PR_SET_PDEATHSIG = 1

Hook = Callable[[int, Any, int | None], object]


class Yell(NamedTuple):
    """What a child has yelled: its pid, the data as a hook gets it (or the error, if it
    could not be unpickled here), and the exit code: None unless the child left with it."""

    pid: int
    data: Any
    exitcode: int | None


class Left(NamedTuple):
    """What a pool has left at its end: a line for each process that had to be killed, and
    the paths of shared memory that it used when it was told to end, and that is unused now."""

    processes: list[str]
    shared_memory: list[str]


class RunningPool:
    """A raw pool whose main process is a child of this one, and does nothing but
    ``while pf_whip_kids(serve, args): pass``.

    Args:
        serve: what a child runs. May be a lambda or a closure.
        args: its arguments, for example listening sockets.
        options: those of ``pf_init``. A ``child_data_hook`` is called as well.

    Raises:
        TypeError, ValueError: as ``pf_init`` does.
        OSError: the process or its pool could not be set up.
    """

    def __init__(
        self, serve: Callable[..., object], args: Iterable[Any] = (), **options: Any
    ) -> None:
        _check(serve, options.get("child_data_hook"))
        self._yells: list[Yell] = []
        self._read_to = 0
        self._exitcode: int | None = None
        self._shared: set[str] = set()
        self._file = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 - until _close()
        options["child_data_hook"] = _Teller(self._file, options.get("child_data_hook"))
        self._leash, far_end = multiprocessing.Pipe(duplex=False)
        with far_end:
            self._inode = os.fstat(far_end.fileno()).st_ino
            self._process = _forked(self._leash, far_end, serve, tuple(args), options)
        self._pid = self._process.pid or 0
        try:
            self._await_start()
        except BaseException:
            self._close()
            raise

    def _await_start(self) -> None:
        problem: BaseException | None = OSError("the pool's main process did not start")
        if self._leash.poll(START_TIMEOUT):
            with contextlib.suppress(EOFError):
                problem = self._leash.recv()
        if problem is not None:
            raise problem

    # --- for tests ----------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """That of the main process."""
        return self._pid

    @property
    def exitcode(self) -> int | None:
        """That of the main process. None while it lives, -N if signal N has ended it."""
        return self._process.exitcode if self._exitcode is None else self._exitcode

    @property
    def yells(self) -> list[Yell]:
        """What has been yelled so far, in order. This is a copy."""
        if not self._file.closed:
            self._read()
        return list(self._yells)

    def wait_for_yells(self, count: int = 1, timeout: float = WAIT_TIMEOUT) -> list[Yell]:
        """Wait until there have been ``count`` yells since the start.

        Returns:
            All yells so far, at least ``count``.

        Raises:
            TimeoutError: there were fewer after ``timeout`` seconds, or at the pool's end.
        """
        deadline = time.monotonic() + timeout
        while True:
            is_over = self._is_over()  # Asked first: yells that came before the end count.
            heard = self.yells
            if len(heard) >= count:
                return heard
            if is_over or time.monotonic() >= deadline:
                when = "when the pool had ended" if is_over else f"after {timeout:g} s"
                raise TimeoutError(f"{len(heard)} of {count} yells had come {when}")
            time.sleep(POLL)

    def reload(self) -> None:
        """Replace all children by new ones, as ``pf_reload`` does. Does not wait."""
        self._signal(signal.SIGHUP)

    def terminate(self) -> None:
        """End the pool, as ``pf_done`` does. Does not wait."""
        # Now, because afterwards nothing tells whose memory it was.
        self._shared.update(*map(_shared_memory_of, self._processes()))
        self._signal(signal.SIGTERM)

    def stop(self, timeout: float = WAIT_TIMEOUT) -> int:
        """The same, and wait until all of the pool is gone.

        Returns:
            The main process's exit code.

        Raises:
            TimeoutError: processes were left after ``timeout`` seconds. The message names
                them. They live on until the fixture ends them.
        """
        self.terminate()
        left = self._left_after(timeout)
        if left:
            raise TimeoutError("\n  ".join([f"the pool did not end within {timeout:g} s:", *left]))
        return self.exitcode or 0

    # --- its end --------------------------------------------------------------------------

    def end(self, timeout: float) -> Left:
        """End the pool, kill what is left after ``timeout`` seconds, and close it.

        Returns:
            What it has left. Nothing if called again.
        """
        if self._exitcode is not None:
            return Left([], [])
        try:
            self.terminate()
            processes = self._left_after(timeout)
        finally:
            self._close()
        return Left(processes, _unused(self._shared))

    def _signal(self, number: int) -> None:
        # Not after its end has been seen: by then the id may belong to another process.
        if self._exitcode is None and self._process.is_alive():
            os.kill(self._pid, number)

    def _left_after(self, timeout: float) -> list[str]:
        """What is left after ``timeout`` seconds: a line for each process."""
        deadline = time.monotonic() + timeout
        self._process.join(timeout)
        while (left := self._processes()) or not self._is_over():
            if time.monotonic() >= deadline:
                return [*map(self._described, left)] or ["a process that cannot be found"]
            time.sleep(POLL)
        return []

    def _close(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.join(WAIT_TIMEOUT)
        exitcode = self._process.exitcode
        self._exitcode = -signal.SIGKILL if exitcode is None else exitcode
        with contextlib.suppress(ValueError):  # It hangs in a system call.
            self._process.close()
        self._read()
        self._file.close()
        self._leash.close()

    def _is_over(self) -> bool:
        """Whether all its processes have closed the leash. After the start nothing is sent
        through it."""
        return self._exitcode is not None or self._leash.poll(0)

    def _processes(self) -> list[int]:
        """Its living processes: its process group, and others that hold the leash."""
        if self._exitcode is not None:
            return []
        found = set(_members(self._pid))
        if self._process.is_alive():
            found.add(self._pid)
        if not self._is_over():
            found.update(_holders(f"pipe:[{self._inode}]"))
        return sorted(found)

    def _described(self, pid: int) -> str:
        if pid == self._pid:
            return f"its main process {pid}"
        command = _text(pid, "cmdline")
        if command == _text(os.getpid(), "cmdline"):
            return f"process {pid}, which it has forked"
        return f"process {pid}: {command.replace(chr(0), ' ').strip()}"

    # --- what comes from it -----------------------------------------------------------------

    def _read(self) -> None:
        """Read all whole yells that were written since the last time."""
        descriptor = self._file.fileno()
        while len(head := os.pread(descriptor, _LENGTH.size, self._read_to)) == _LENGTH.size:
            [length] = _LENGTH.unpack(head)
            message = os.pread(descriptor, length, self._read_to + _LENGTH.size)
            if len(message) < length:
                return
            self._read_to += _LENGTH.size + length
            self._yells.append(_yell_from(message))


def _check(serve: object, hook: object) -> None:
    """Check these two. pf_init checks the rest."""
    if not callable(serve):
        raise TypeError(f"serve must be callable, not {type(serve).__name__}")
    if hook is not None and not callable(hook):
        raise TypeError(f"child_data_hook must be callable, not {type(hook).__name__}")


def _yell_from(message: bytes) -> Yell:
    pid, data, exitcode = pickle.loads(message)
    try:
        return Yell(pid, pickle.loads(data), exitcode)
    except Exception as error:  # noqa: BLE001 - the test's own classes may raise anything
        return Yell(pid, error, exitcode)


# --- the main process -------------------------------------------------------------------------


class _Teller:
    """The data hook: writes down what children yell, for the test."""

    def __init__(self, file: IO[bytes], hook: Hook | None) -> None:
        self._file = file
        self._hook = hook

    def __call__(self, pid: int, data: Any, exitcode: int | None) -> None:
        message = pickle.dumps((pid, cloudpickle.dumps(data), exitcode))
        self._file.write(_LENGTH.pack(len(message)) + message)
        if self._hook is not None:
            self._hook(pid, data, exitcode)


def _forked(*args: Any) -> multiprocessing.context.ForkProcess:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_be_main, args=(os.getpid(), *args))
    with warnings.catch_warnings():
        # pytest-xdist has threads. The child has none of them, as the pool requires.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _be_main(
    parent: int,
    test_end: Connection,
    leash: Connection,
    serve: Callable[..., object],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    _die_with(parent)
    test_end.close()
    print_lines()
    # The test's handlers keep records in memory, of which this process has only a copy.
    logging.root.handlers[:] = [logging.StreamHandler()]
    problem = _set_up(options)
    leash.send(problem)
    while problem is None and pf_whip_kids(serve, args):
        pass


def _set_up(options: dict[str, Any]) -> Exception | None:
    """Become a pool that obeys signals. Returns why, if that is not possible."""
    try:
        if not pf_init(**options):
            return OSError(pf_error())
    except (TypeError, ValueError) as error:
        return error
    signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
    signal.signal(signal.SIGHUP, lambda *_: pf_reload())
    return None


def _die_with(parent: int) -> None:
    """If the kernel can do it, end with the test's process, whatever ends that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# --- what /proc says; nothing where there is none ---------------------------------------------


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _text(pid: int, name: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", errors="replace") as file:
        return file.read()
    return ""


def _members(group: int) -> Iterator[int]:
    """The living processes of a process group."""
    for pid in _pids():
        # After the command, which is in parentheses: state, parent, group.
        fields = _text(pid, "stat").rpartition(")")[2].split()
        if len(fields) > 2 and fields[0] not in "ZX" and int(fields[2]) == group:
            yield pid


def _links(pid: int) -> Iterator[str]:
    """The files that a process has open."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def _holders(pipe: str) -> Iterator[int]:
    """The processes that have a pipe open, except this one, which reads it."""
    return (pid for pid in _pids() if pid != os.getpid() and pipe in _links(pid))


def _shared_memory_of(pid: int) -> set[str]:
    """The paths of named shared memory that a process has mapped or open."""
    mapped = (line.split(maxsplit=5)[-1] for line in _text(pid, "maps").splitlines())
    return {path for path in (*mapped, *_links(pid)) if path.startswith("/dev/shm/")}


def _unused(paths: set[str]) -> list[str]:
    """The paths that still exist, and that no living process has mapped or open."""
    left = {path for path in paths if os.path.exists(path)}
    for pid in _pids() if left else ():
        left -= _shared_memory_of(pid)
    return sorted(left)
