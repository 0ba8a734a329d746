"""One resource tracker for a pool and its caller: the caller's own.

multiprocessing's resource tracker is a process that unlinks named shared memory and semaphores
when the last process that can write to its pipe has ended. If a process needs a tracker, and the
process that started it has not given it one, it starts one. If a worker did so, all shared memory
that the worker has made or attached, the caller's included, would be unlinked when the worker
leaves.

So workers need the caller's tracker. With spawn and forkserver, multiprocessing starts it and
passes it on. With fork it must exist before the supervisor is forked. But it is a whole
interpreter, and most programs never need one. So only its pipe is made here. When a process writes
to the pipe, the I/O thread of a pool wakes, and starts the process that reads it:

    none ── Tracker.new() ─▶ a pipe without a reader ── something is written ─▶ started
      ▲                               │
      └────── the last pool ends ─────┘

From "started" on, all is as if the caller had started the tracker itself. Pools share the pipe.
Only the caller may start the process: its forks have the writing end, but not the reading end.

(From Python 3.13.14 and 3.14.5 on, a fork closes the writing end as well, unless it is announced:
see `_system.processes.fork_masked`.)
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from .._support.logs import logger
from .._system import descriptors, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Pipe:
    """A tracker's pipe without a reader."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.users = 0


_lock = threading.Lock()
_pipe: _Pipe | None = None


class Tracker:
    """One pool's share in a tracker that has not been started. Used in the caller's process."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe: _Pipe | None = pipe
        self.descriptor = os.dup(pipe.read_end)
        """Readable when the tracker is needed; -1 if this pool need not watch any more."""
        pipe.users += 1

    @classmethod
    def new(cls) -> Tracker | None:
        """Returns None if there is a tracker already.

        Raises:
            OSError: no descriptor is left.
        """
        global _pipe
        with _lock:
            if _pipe is None:
                _pipe = _install()
            return None if _pipe is None else cls(_pipe)

    def start(self) -> None:
        """Start it, unless another pool has. If that fails, it is tried again at the pool's
        end."""
        self._look_no_more()
        with _lock:
            if self._pipe is not None and self._pipe is _pipe:
                _start()

    def close(self) -> None:
        """The pool ends. If it is the last one, and no process has needed the tracker, remove
        the pipe. Safe to call again."""
        self._look_no_more()
        pipe, self._pipe = self._pipe, None
        with _lock:
            if pipe is None or pipe is not _pipe:
                return
            pipe.users -= 1
            if not pipe.users and not _uninstall():
                _start()

    def disown(self) -> None:
        """In a fork of the caller."""
        self._look_no_more()
        self._pipe = None

    def _look_no_more(self) -> None:
        if self.descriptor >= 0:
            descriptors.close_quietly((self.descriptor,))
            self.descriptor = -1


def _tracker() -> Any:
    from multiprocessing import resource_tracker  # Only pools that start need it.

    return resource_tracker._resource_tracker


def _install() -> _Pipe | None:
    """Make this process believe that it has a tracker. Returns None if it has one."""
    tracker = _tracker()
    with tracker._lock:
        if tracker._fd is not None:
            return None
        pipe = _Pipe()
        tracker._fd = pipe.write_end
        return pipe


def _uninstall() -> bool:
    """Returns False if that would lose what a process has written to the tracker."""
    global _pipe
    assert _pipe is not None
    if descriptors.readable(_pipe.read_end):
        return False
    tracker = _tracker()
    with tracker._lock:
        if tracker._fd == _pipe.write_end:
            tracker._fd = None
    descriptors.close_quietly((_pipe.read_end, _pipe.write_end))
    _pipe = None
    return True


def _start() -> None:
    global _pipe
    assert _pipe is not None
    try:
        pid = _spawn(_pipe.read_end)
    except Exception as error:
        logger.warning("multiprocessing's resource tracker could not be started: %s", error)
        return
    tracker = _tracker()
    with tracker._lock:
        if tracker._fd == _pipe.write_end:
            tracker._pid = pid
        descriptors.close_quietly((_pipe.read_end,))
        _pipe = None


def _spawn(read_end: int) -> int:
    """Start the process as multiprocessing does, but with this pipe. Returns its id."""
    from multiprocessing import spawn, util

    program = f"from multiprocessing.resource_tracker import main;main({read_end})"
    python: Any = spawn.get_executable()
    flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # No signal that is meant for the caller may end it before it ignores them.
    mask = signals.current_mask()
    try:
        signals.block_signals((signal.SIGINT, signal.SIGTERM))
        command = [python, *flags, "-c", program]
        return int(util.spawnv_passfds(python, command, [*_stderr(), read_end]))
    finally:
        signals.restore_mask(mask)


def _stderr() -> list[int]:
    try:
        return [sys.stderr.fileno()]
    except Exception:
        return []


def _forget() -> None:
    """In a fork of this process, which may not start the tracker."""
    global _lock, _pipe
    _lock = threading.Lock()
    if _pipe is not None:
        descriptors.close_quietly((_pipe.read_end,))
        _pipe = None


os.register_at_fork(after_in_child=_forget)
