"""Raw mode: the pf_* functions of Perl's Parallel::MPM::Prefork, and an object form.

Your own process is the pool's main process. It forks children that run your code,
keeps between a minimum and a maximum of idle ones, and listens to what they yell::

    from prefork_executor.raw import *

    pf_init(max_servers=20)
    while pf_whip_kids(serve, (listener,)):
        pass
    pf_done()

The functions are a face over one :class:`PreforkPool`; a program that prefers an
object uses that. docs/raw.md has a table from each Perl call to ours, and every
difference. Nothing here may run in a process with threads: it forks.

Signals in the main process
---------------------------
All signals but SIGCHLD are blocked while the pool works on its books, all of them
while it forks. They are open while it waits and while a data hook runs. So a handler
of yours runs between two steps, never within one, and may call :func:`pf_done`, which
does everything then and there, except that what the interrupted step still uses is
closed only when that step ends (``_depth`` counts the steps within one another).
It may also raise, at any line at which they are open: so what must be undone is done
within the ``try`` that undoes it, and is set back, not counted back.

A child and the TERM that comes too late
----------------------------------------
The main process retires an idle child by SIGTERM, and may be wrong: the child may
just have taken a connection and not yet said so. Then it serves that first; the head
of ``_kid.py`` says how.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from . import _descriptors, _processes, _random_streams, _raw_options, _signals
from ._channel import new_board
from ._descriptors import Doorbell
from ._kid import Kid, YellFlags
from ._raw_options import ChildSignals, Spares
from ._regulator import Limits
from ._scoreboard import RAW
from ._signals import Handler
from ._worker_pool import WorkerPool
from ._yell_hook import DataHook, HookProcess, YellReader

__all__ = [
    "PreforkPool",
    "pf_done",
    "pf_error",
    "pf_init",
    "pf_kid_accept",
    "pf_kid_busy",
    "pf_kid_exit",
    "pf_kid_idle",
    "pf_kid_leaving",
    "pf_kid_new",
    "pf_kid_yell",
    "pf_reload",
    "pf_whip_kids",
]

T = TypeVar("T")
YELLS_A_TURN = 100
"""Yells that a hook in the main process hears before the pool looks after its
children again."""
_ALL_BUT_CHILD = _signals.ALL_SIGNALS - {signal.SIGCHLD}
"""SIGCHLD's handler is the pool's own and does nothing but wake it."""


class PreforkPool:
    """A prefork pool in the calling process. Forks nothing before the first
    :meth:`whip_kids` or :meth:`kid_new`. As a context manager it ends with
    :meth:`done`.

    Args:
        min_spare_servers: idle children kept ready, while there is room. Default 5,
            or what the others given allow.
        max_spare_servers: idle children above this are retired. Default 10.
        start_servers: children forked at first. Default 5.
        max_servers: children at most, those that are leaving included.
        child_sigh: dispositions for the children: names of signals, separated by
            spaces and with or without SIG, to a callable, "DEFAULT" or "IGNORE".
            SIGTERM is DEFAULT unless given here, whatever the main process has.
        child_data_hook: called as ``hook(pid, data, exitcode)`` for what children
            yell; ``exitcode`` is None unless the child left with it.
        data_hook_in_main: run the hook in this process instead of one of its own.
        on_fork_failure: "retry": log and try again with backoff. "return": let
            whip_kids and kid_new return None, as the original does.
        term_timeout: seconds after which a child that was told to end, and has not,
            gets SIGKILL.

    Raises:
        TypeError, ValueError: a bad option, by name.
        OSError: no descriptors or no memory for the channels.
    """

    def __init__(
        self,
        *,
        min_spare_servers: int | None = None,
        max_spare_servers: int | None = None,
        start_servers: int | None = None,
        max_servers: int = _raw_options.MAX_SERVERS,
        child_sigh: ChildSignals | None = None,
        child_data_hook: DataHook | None = None,
        data_hook_in_main: bool = False,
        on_fork_failure: str = "retry",
        term_timeout: float = 10.0,
    ) -> None:
        spares = Spares(min_spare_servers, max_spare_servers, start_servers, max_servers)
        limits, handlers = spares.limits(), _raw_options.handlers(child_sigh)
        _raw_options.check_hook(child_data_hook)
        _raw_options.check_on_fork_failure(on_fork_failure)
        _raw_options.check_term_timeout(term_timeout)
        self._hook = child_data_hook
        self._hook_in_main = bool(data_hook_in_main)
        self._return_on_failure = on_fork_failure == "return"
        self._main = os.getpid()
        self._kid: Kid | None = None
        self._owed = 0
        self._failures = 0
        self._is_done = False
        self._raised: BaseException | None = None
        self._depth = 0
        self._mask: set[int] = set()
        with contextlib.ExitStack() as opened:
            self._open(opened, limits, handlers, term_timeout)
            self._opened = opened.pop_all()

    def _open(
        self,
        opened: contextlib.ExitStack,
        limits: Limits,
        handlers: Mapping[int, Handler],
        term_timeout: float,
    ) -> None:
        self._yells, self._yells_far = _descriptors.socket_pair()
        opened.callback(self._yells.close)
        opened.callback(self._yells_far.close)
        self._doorbell = Doorbell.new()
        opened.callback(self._doorbell.close)
        self._board = new_board(limits.max_workers)
        opened.callback(self._board.close)
        self._board.introduce(RAW, self._main, **limits.spares)
        self._pool = WorkerPool(
            limits,
            self._board,
            self._doorbell,
            child_handlers=handlers,
            disown=self._disown,
            retire_signal=signal.SIGTERM,
            leave_within=term_timeout,
        )
        opened.callback(self._pool.close)
        self._reader = YellReader(self._yells, self._hook and self._call_hook)
        self._hook_process: HookProcess | None = None
        if self._hook is not None and not self._hook_in_main:
            self._hook_process = HookProcess(self._reader, self._settle_hook_process)
        else:
            self._pool.waiter.register(self._yells.fileno())
        _become_group_leader()

    def _disown(self) -> None:
        """In a new child: close what belongs to the main process alone."""
        self._yells.close()
        self._board.disarm()
        if self._hook_process is not None:
            self._hook_process.let_go()

    def _settle_hook_process(self) -> None:
        self._pool.disown_all()
        self._yells_far.close()
        _signals.restore_mask(self._mask)

    # --- in the main process ------------------------------------------------------------

    def __enter__(self) -> PreforkPool:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.done()

    @property
    def pids(self) -> list[int]:
        """The children that have not been waited for yet."""
        return self._pool.pids

    @property
    def error(self) -> bytes | str:
        """What :func:`pf_error` returns for this pool."""
        return self._reader.unthawed or ""

    def whip_kids(self, code: Callable[..., object], args: tuple[Any, ...] = ()) -> int | None:
        """Fork what is lacking, retire what is too many, then wait until a child
        changes its status, yells or exits. To be called in a loop.

        Args:
            code: run as ``code(*args)`` in every new child, which exits with 0
                when it returns, with 1 if it raises, printing the traceback.
            args: its arguments.

        Returns:
            1 after something has happened, a signal that you handle included; 0
            once :meth:`done` has been called; None if a fork failed and
            ``on_fork_failure`` is "return".
        """
        if not callable(code):
            raise TypeError(f"pf_whip_kids needs a callable, not {type(code).__name__}")
        with self._signals_held("pf_whip_kids"):
            self._regulate()
            while self._owed and not self._is_done:
                if self._fork_one():
                    self._run_and_exit(code, args)
            if self._failed_fork():
                return None
            self._wait()
        return 0 if self._is_done else 1

    def kid_new(self) -> int | None:
        """Fork one child as soon as one is wanted; wait until then.

        Returns:
            The pid in the main process and 0 in the child; -1 once :meth:`done`
            has been called; None if the fork failed and ``on_fork_failure`` is
            "return".
        """
        with self._signals_held("pf_kid_new"):
            while not self._is_done:
                self._regulate()
                before = set(self._pool.pids)
                if self._owed and self._fork_one():
                    _signals.restore_mask(self._mask)
                    return 0
                if self._failed_fork():
                    return None
                for pid in set(self._pool.pids) - before:
                    return pid
                self._wait()
        return -1

    def reload(self) -> None:
        """Let new children take the places of all there are now. An old one gets
        SIGTERM when it is idle and new ones serve; what it does is not cut short.
        Without effect in a child."""
        if not self._is_main():
            return
        with self._signals_held("pf_reload"):
            if not self._is_done:
                self._pool.replace_all()
                self._doorbell.ring()

    def done(self, exitcode: int | None = None) -> None:
        """SIGTERM every child, wait for all, hear what they yelled, and close the
        pool; then exit, if an exit code is given. Without effect in a child, or
        when called again. May be called from a signal handler, and from the hook.

        Children that survive SIGTERM get SIGKILL ``term_timeout`` seconds later.
        Signals wait until it is over.

        Raises:
            SystemExit: ``exitcode`` was given.
            BaseException: the first that a hook in this process raised meanwhile and
                that was not just an Exception, such as its own call's SystemExit.
        """
        if not self._is_main():
            return
        with self._signals_held("pf_done"):
            if not self._is_done:  # Else a handler did it all, just before they were held.
                self._is_done = True
                self._see_all_off()
        if exitcode is not None:
            sys.exit(exitcode)

    # --- the main process's steps, with signals held ------------------------------------------

    def _is_main(self) -> bool:
        return self._kid is None and os.getpid() == self._main

    @contextlib.contextmanager
    def _signals_held(self, name: str) -> Iterator[None]:
        if not self._is_main():
            raise RuntimeError(f"{name} was called outside the process that set up the pool")
        outer, depth, mask = self._mask, self._depth, _signals.current_mask()
        try:
            self._mask, self._depth = mask, depth + 1
            _signals.block_signals(_ALL_BUT_CHILD)
            yield
        finally:
            if self._is_main():
                self._mask, self._depth = outer, depth
                if self._is_done and not depth:
                    self._opened.close()
                _signals.restore_mask(mask)

    def _with_signals_open(self, call: Callable[..., T], *args: Any) -> T:
        """Call with the signals as they were when we were called, except that nothing
        may interrupt the end.

        No context manager: a handler that raises just before its end is entered would
        leave that for the garbage collector, and so the signals blocked for good."""
        held = _signals.current_mask()
        try:
            if not self._is_done:
                _signals.restore_mask(self._mask)
            return call(*args)
        finally:
            if self._is_main():
                _signals.restore_mask(held)

    def _regulate(self) -> None:
        if self._is_done:
            return
        self._bury_the_dead()  # A handler may have raised before we came to that.
        if self._hook_process is not None:
            self._hook_process.ensure_running()
        if not self._owed and not self._pool.is_quiet():
            self._failures = self._pool.failed_forks
            self._owed = self._pool.regulate(lambda _counts: 0).start

    def _fork_one(self) -> bool:
        """True in the new child, whose signals are still held: a handler may raise."""
        self._owed -= 1
        _processes.flush_streams()
        seat = self._pool.fork_worker()
        if seat is None:
            return False
        _random_streams.renew()
        hooked = self._hook is not None
        self._kid = Kid(
            seat,
            self._board,
            self._yells_far,
            self._doorbell,
            hooked=hooked,
            generation=self._pool.generation,
        )
        return True

    def _failed_fork(self) -> bool:
        if self._pool.failed_forks == self._failures:
            return False
        self._failures = self._pool.failed_forks
        self._owed = 0
        return self._return_on_failure

    def _run_and_exit(self, code: Callable[..., object], args: tuple[Any, ...]) -> NoReturn:
        status = 1
        try:
            _signals.restore_mask(self._mask)
            code(*args)
            status = 0
        except SystemExit as leave:
            status = _exit_status(leave)
        except BaseException:  # noqa: BLE001 - whatever it was, the child ends here
            traceback.print_exc()
        finally:
            try:
                assert self._kid is not None
                self._kid.exit(status)
            finally:  # A handler that raises ends it all the same.
                _processes.leave(status)

    def _wait(self) -> None:
        ready = self._with_signals_open(self._wait_for_events)
        if not self._is_done:
            self._look_after_events(ready)

    def _wait_for_events(self) -> list[int]:
        # A handler may have called done() as the signals opened.
        return [] if self._is_done else self._pool.wait(self._hook_due_in())

    def _hook_due_in(self) -> float | None:
        return None if self._hook_process is None else self._hook_process.due_in()

    def _look_after_events(self, ready: list[int]) -> None:
        self._bury_the_dead()
        if self._yells.fileno() in ready:
            self._reader.read(YELLS_A_TURN)

    def _bury_the_dead(self) -> None:
        for death in self._pool.reap():
            self._pool.bury(death)

    def _call_hook(self, pid: int, data: Any, exitcode: int | None) -> None:
        assert self._hook is not None
        if not self._hook_in_main:
            self._hook(pid, data, exitcode)
            return
        is_the_end = self._is_done
        try:
            self._with_signals_open(self._hook, pid, data, exitcode)
        except BaseException as raised:
            if not is_the_end or isinstance(raised, Exception):
                raise
            self._raised = self._raised or raised  # Nothing cuts the end short.

    def _see_all_off(self) -> None:
        self._pool.end_all(signal.SIGTERM)
        while self._pool.pids:
            if self._hook_process is not None:
                self._hook_process.ensure_running()  # A full channel would hold children up.
            self._look_after_events(self._pool.wait(self._hook_due_in()))
            self._pool.see_off()
        if self._hook_process is not None:
            self._hook_process.finish()
        else:
            self._reader.read()
        self._doorbell.ring()  # We may be within a wait, which is to end.
        if self._raised is not None:
            raise self._raised

    # --- in a child ---------------------------------------------------------------------------

    def kid_busy(self) -> None:
        """In a child: say that it works. Idempotent; no effect elsewhere."""
        if self._kid is not None:
            self._kid.busy()

    def kid_idle(self) -> None:
        """In a child: say that it is idle again. Idempotent; no effect elsewhere."""
        if self._kid is not None:
            self._kid.idle()

    def kid_accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        """In a child: wait for a connection, take it, and be busy, with no moment
        in which a retiring SIGTERM could lose it.

        Marks the child idle first. From the first call on SIGTERM only makes the
        next call return None, before which it calls the handler that you gave in
        child_sigh, if any. The listener becomes non-blocking, the connection is not.

        Returns:
            What ``listener.accept()`` returns, or None: it is time to leave.

        Raises:
            RuntimeError: called outside of a child.
        """
        if self._kid is None:
            raise RuntimeError("pf_kid_accept works only in a child of the pool")
        return self._kid.accept(listener)

    def kid_leaving(self) -> bool:
        """In a child: whether it should take nothing more after what it holds,
        because it is retired, or the pool reloads. A server that keeps connections
        alive asks this before it promises to keep one. False elsewhere."""
        return self._kid is not None and self._kid.leaving()

    def kid_yell(self, data: Any, thaw: bool = False) -> bool:
        """In a child: send data upstream, of any size, now.

        No effect in the main process, without a hook, or if ``data`` is None.

        Args:
            data: anything that can be pickled.
            thaw: give the hook the object instead of its pickle as bytes.

        Returns:
            Whether it was sent.

        Raises:
            ConnectionError: the main process was killed, and the hook's with it.
        """
        if self._kid is None or data is None:
            return False
        return self._kid.yell(data, YellFlags(thaw=bool(thaw)))

    def kid_exit(self, exitcode: int = 0, data: Any = None, thaw: bool = False) -> None:
        """In a child: yell ``data``, if any, with the exit code, and exit. No effect
        elsewhere.

        Args:
            exitcode: its lower 8 bits are the child's exit status.
            data, thaw: as for :meth:`kid_yell`.
        """
        if self._kid is None:
            return
        try:
            if data is not None:
                self._kid.yell(data, YellFlags(thaw=bool(thaw), exitcode=exitcode & 0xFF))
        except ConnectionError:
            pass  # The main process was killed: nobody is left who could hear it.
        except Exception:  # noqa: BLE001 - it was told to exit, with this code
            traceback.print_exc()
        self._kid.exit(exitcode & 0xFF)


def _become_group_leader() -> None:
    """A process group of our own, as the original has, unless we lead one."""
    with contextlib.suppress(PermissionError):
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)


def _exit_status(leave: SystemExit) -> int:
    if leave.code is None:
        return 0
    if isinstance(leave.code, int):
        return leave.code & 0xFF
    print(leave.code, file=sys.stderr)
    return 1


# --- the functions ------------------------------------------------------------------------------

_pool: PreforkPool | None = None
_error: bytes | str = ""


def _current() -> PreforkPool:
    if _pool is None:
        raise RuntimeError("pf_init() has not been called, or it returned False")
    return _pool


def pf_init(**options: Any) -> bool:
    """Set up a pool in this process: process group, channels, SIGCHLD. Forks
    nothing. Children left over from an earlier pool are ended first.

    Args:
        options: those of :class:`PreforkPool`.

    Returns:
        False on error; :func:`pf_error` says why.

    Raises:
        TypeError, ValueError: an unknown option, or a nonsensical value.
    """
    global _pool, _error
    known = PreforkPool.__init__.__kwdefaults__ or {}
    for name in options.keys() - known.keys():
        raise TypeError(f"pf_init has no option {name!r}; it has {', '.join(known)}")
    if _pool is not None:
        _pool.done()
    try:
        _pool, _error = PreforkPool(**options), ""
    except OSError as error:
        _pool, _error = None, str(error)
    return _pool is not None


def pf_whip_kids(code: Callable[..., object], args: Iterable[Any] = ()) -> int | None:
    """See :meth:`PreforkPool.whip_kids`."""
    return _current().whip_kids(code, tuple(args))


def pf_kid_new() -> int | None:
    """See :meth:`PreforkPool.kid_new`."""
    return _current().kid_new()


def pf_kid_busy() -> None:
    """See :meth:`PreforkPool.kid_busy`."""
    _current().kid_busy()


def pf_kid_idle() -> None:
    """See :meth:`PreforkPool.kid_idle`."""
    _current().kid_idle()


def pf_kid_accept(listener: socket.socket) -> tuple[socket.socket, Any] | None:
    """See :meth:`PreforkPool.kid_accept`."""
    return _current().kid_accept(listener)


def pf_kid_leaving() -> bool:
    """See :meth:`PreforkPool.kid_leaving`."""
    return _current().kid_leaving()


def pf_kid_yell(data: Any, thaw: bool = False) -> bool:
    """See :meth:`PreforkPool.kid_yell`."""
    return _current().kid_yell(data, thaw)


def pf_kid_exit(exitcode: int = 0, data: Any = None, thaw: bool = False) -> None:
    """See :meth:`PreforkPool.kid_exit`."""
    _current().kid_exit(exitcode, data, thaw)


def pf_reload() -> None:
    """See :meth:`PreforkPool.reload`."""
    _current().reload()


def pf_done(exitcode: int | None = None) -> None:
    """See :meth:`PreforkPool.done`."""
    _current().done(exitcode)


def pf_error() -> bytes | str:
    """Why :func:`pf_init` returned False; or, inside the data hook when it was
    called with data None, the bytes that could not be thawed."""
    return _error or (_pool.error if _pool is not None else "")
