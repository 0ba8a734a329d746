"""Raw mode: the pf_* functions of Perl's Parallel::MPM::Prefork, and an object form.

Your own process is the pool's main process. It forks children that run your code, keeps
between a minimum and a maximum of them idle, and receives what they yell::

    from prefork_executor.raw import *

    pf_init(max_servers=20)
    while pf_whip_kids(serve, (listener,)):
        pass
    pf_done()

The functions are a face over one :class:`PreforkPool`. A program that prefers an
object uses that. docs/raw.md has a table from each Perl call to ours, and every
difference. Do not use this module in a process with threads: it forks.

A child and a SIGTERM that comes too late
-----------------------------------------
The main process retires an idle child by SIGTERM. But the child may just have taken a
connection without having said so yet. Then it serves that connection first. The head of
``_raw/child.py`` says how.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from ._raw import options
from ._raw.child import YellFlags
from ._raw.data_hook import DataHook
from ._raw.main_process import MainProcess
from ._raw.options import ChildSignals, Spares

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


class PreforkPool:
    """A prefork pool in the calling process. Forks nothing before the first
    :meth:`whip_kids` or :meth:`kid_new`. As a context manager it ends with
    :meth:`done`.

    Args:
        min_spare_servers: idle children kept ready if there is room. Default 5,
            or what the other options allow.
        max_spare_servers: idle children above this are retired. Default 10.
        start_servers: children forked at first. Default 5.
        max_servers: children at most, including those that are leaving.
        child_sigh: dispositions for the children. Maps names of signals, separated by
            spaces and with or without SIG, to a callable, "DEFAULT" or "IGNORE".
            SIGTERM is DEFAULT unless given here, whatever the main process has.
        child_data_hook: called as ``hook(pid, data, exitcode)`` for what children
            yell. ``exitcode`` is None unless the child left with it.
        data_hook_in_main: run the hook in this process instead of one of its own.
        on_fork_failure: "retry": log and try again with backoff. "return": let
            whip_kids and kid_new return None, as the original does.
        term_timeout: seconds after which a child that was told to end, and has not,
            gets SIGKILL.
    Raises:
        TypeError, ValueError: a bad option, which the message names.
        OSError: no descriptors or no memory for the channels.
    """

    def __init__(
        self,
        *,
        min_spare_servers: int | None = None,
        max_spare_servers: int | None = None,
        start_servers: int | None = None,
        max_servers: int = options.MAX_SERVERS,
        child_sigh: ChildSignals | None = None,
        child_data_hook: DataHook | None = None,
        data_hook_in_main: bool = False,
        on_fork_failure: str = "retry",
        term_timeout: float = 10.0,
    ) -> None:
        spares = Spares(min_spare_servers, max_spare_servers, start_servers, max_servers)
        limits, handlers = spares.limits(), options.handlers(child_sigh)
        options.check_hook(child_data_hook)
        options.check_on_fork_failure(on_fork_failure)
        options.check_term_timeout(term_timeout)
        self._main = MainProcess(
            limits,
            handlers,
            child_data_hook,
            hook_in_main=bool(data_hook_in_main),
            return_on_failure=on_fork_failure == "return",
            term_timeout=term_timeout,
        )

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
        """The children that have not been reaped yet."""
        return self._main.pids

    @property
    def error(self) -> bytes | str:
        """What :func:`pf_error` returns for this pool."""
        return self._main.error

    def whip_kids(self, code: Callable[..., object], args: tuple[Any, ...] = ()) -> int | None:
        """Fork missing children, retire surplus ones, then wait until a child changes its
        status, yells or exits. Call it in a loop.

        Args:
            code: run as ``code(*args)`` in every new child, which exits with 0
                when it returns. If it raises, the child prints the traceback and exits with 1.
            args: its arguments.

        Returns:
            1 after something has happened, including a signal that you handle. 0
            once :meth:`done` has been called. None if a fork failed and
            ``on_fork_failure`` is "return".
        """
        if not callable(code):
            raise TypeError(f"pf_whip_kids needs a callable, not {type(code).__name__}")
        return self._main.whip_kids(code, args)

    def kid_new(self) -> int | None:
        """Wait until another child is needed, then fork it.

        Returns:
            The pid in the main process and 0 in the child. -1 once :meth:`done`
            has been called. None if the fork failed and ``on_fork_failure`` is
            "return".
        """
        return self._main.kid_new()

    def reload(self) -> None:
        """Replace all children by new ones. An old one gets SIGTERM when it is idle and new
        ones serve, so its work is not cut short. No effect in a child."""
        self._main.reload()

    def done(self, exitcode: int | None = None) -> None:
        """SIGTERM every child, wait for all, receive what they yelled, and close the pool. Then
        exit, if an exit code is given. No effect in a child, or when called again. May be
        called from a signal handler, and from the hook.

        Children that survive SIGTERM get SIGKILL ``term_timeout`` seconds later.
        Signals are blocked until it is over.

        Raises:
            SystemExit: ``exitcode`` was given.
            BaseException: the first exception that a hook in this process raised meanwhile
                and that was no Exception, for example a SystemExit.
        """
        self._main.done(exitcode)

    # --- in a child ---------------------------------------------------------------------------

    def kid_busy(self) -> None:
        """In a child: say that it works. Calling it again has no effect, nor elsewhere."""
        if self._main.child is not None:
            self._main.child.busy()

    def kid_idle(self) -> None:
        """In a child: say that it is idle again. Calling it again has no effect, nor elsewhere."""
        if self._main.child is not None:
            self._main.child.idle()

    def kid_accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        """In a child: wait for a connection, take it, and be busy. At no moment can a
        retiring SIGTERM lose the connection.

        Marks the child idle first. From the first call on, SIGTERM only makes the
        next call return None. Before that it calls the handler that you gave in
        child_sigh, if any. The listener becomes non-blocking, the connection does not.

        Returns:
            What ``listener.accept()`` returns, or None if the child should leave.

        Raises:
            RuntimeError: called outside a child.
        """
        if self._main.child is None:
            raise RuntimeError("pf_kid_accept works only in a child of the pool")
        return self._main.child.accept(listener)

    def kid_leaving(self) -> bool:
        """In a child: whether it should take nothing more after what it holds, because it
        is being retired, or the pool reloads. A server with keep-alive connections asks this
        before it promises to keep one. False elsewhere."""
        return self._main.child is not None and self._main.child.leaving()

    def kid_yell(self, data: Any, thaw: bool = False) -> bool:
        """In a child: send data of any size upstream, now.

        No effect in the main process, without a hook, or if ``data`` is None.

        Args:
            data: anything that can be pickled.
            thaw: give the hook the object instead of its pickle.

        Returns:
            Whether it was sent.

        Raises:
            ConnectionError: the main process was killed, and the hook's process with it.
        """
        if self._main.child is None or data is None:
            return False
        return self._main.child.yell(data, YellFlags(thaw=bool(thaw)))

    def kid_exit(self, exitcode: int = 0, data: Any = None, thaw: bool = False) -> None:
        """In a child: yell ``data``, if any, with the exit code, and exit. No effect
        elsewhere.

        Args:
            exitcode: its lower 8 bits are the child's exit status.
            data, thaw: as for :meth:`kid_yell`.
        """
        if self._main.child is None:
            return
        try:
            if data is not None:
                self._main.child.yell(data, YellFlags(thaw=bool(thaw), exitcode=exitcode & 0xFF))
        except ConnectionError:
            pass  # The main process was killed, so no process can receive it.
        except Exception:  # noqa: BLE001 - the child was told to exit with this code
            traceback.print_exc()
        self._main.child.exit(exitcode & 0xFF)


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
        TypeError, ValueError: an unknown option, or a bad value.
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
    """Why :func:`pf_init` returned False. Inside the data hook, when that was called with data
    None: the bytes that could not be thawed."""
    return _error or (_pool.error if _pool is not None else "")
