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
from typing import Any, TypeVar

from ._raw import given, options
from ._raw.child import Child, YellFlags
from ._raw.events import Watchers
from ._raw.main_process import MainProcess
from ._raw.options import ChildSignals, Count, DataHook, Settings, Spares
from ._raw.threads import require_main_thread
from ._raw.wear import ChildLimits
from ._support.arguments import check_callable, check_function, check_seconds
from .stats import ScalingDecision

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
    "pf_kid_take",
    "pf_kid_wait",
    "pf_kid_yell",
    "pf_listeners",
    "pf_reload",
    "pf_whip_kids",
]

T = TypeVar("T")


class PreforkPool:
    """A prefork pool in the calling process. Forks nothing before the first
    :meth:`whip_kids` or :meth:`kid_new`. As a context manager it ends with
    :meth:`done`.

    Args:
        min_spare_servers: idle children kept ready if there is room. Default 5,
            or what the other options allow. Like the next two, a number, or a part of
            ``max_servers`` such as "10%", rounded up.
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
        handshake_timeout: seconds that a TLS client's handshake may take in
            :meth:`kid_accept`.
        hook_timeout: seconds for which the hook may go on at the end, beyond the children's
            ``term_timeout``. Then it is ended, and the yells that it has not read are lost.
            None: it may go on for ever.
        max_requests_per_child: how often a child may be busy before another takes its place.
        max_memory_per_child: bytes of resident memory that a child may have before another
            takes its place. Only on Linux; it has no effect elsewhere.
        max_lifetime: seconds that a child may live before another takes its place.
        busy_timeout: seconds that a child may be busy. After that its stack is logged, and it
            is killed. :meth:`kid_busy` restarts the time.
        limits_jitter: each child's limits of requests and lifetime are lower by a random part,
            this at most, so that the children do not all reach them at once.
        idle_timeout: seconds that an idle child above ``max_spare_servers`` stays. 0: it is
            retired at once, as in the original.
        listeners: the pool's listening sockets. The connections that wait in their queues, as
            Linux tells it, are the pool's backlog: it starts more children for them, and
            `status` and metrics show their number.
        on_child_start: called as ``on_child_start(pid)`` when a child was forked. This and the
            next two are called in the main process between two steps.
        on_child_exit: called as ``on_child_exit(pid, status, reason)`` when a child has ended.
            ``status`` is its exit status, or minus the number of the signal that has ended it.
            ``reason`` is a word: see docs/raw.md.
        on_decision: called with a :class:`~prefork_executor.stats.ScalingDecision` when the pool
            starts or retires children, or has decided something else.
    Raises:
        RuntimeError: this is not the main thread.
        TypeError, ValueError: a bad option, which the message names.
        OSError: no descriptors or no memory for the channels.
    """

    def __init__(
        self,
        *,
        min_spare_servers: Count | None = None,
        max_spare_servers: Count | None = None,
        start_servers: Count | None = None,
        max_servers: int = options.MAX_SERVERS,
        child_sigh: ChildSignals | None = None,
        child_data_hook: DataHook | None = None,
        data_hook_in_main: bool = False,
        on_fork_failure: str = "retry",
        term_timeout: float = 10.0,
        handshake_timeout: float = 10.0,
        hook_timeout: float | None = 30.0,
        max_requests_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        max_lifetime: float | None = None,
        busy_timeout: float | None = None,
        limits_jitter: float = 0.1,
        idle_timeout: float = 5.0,
        listeners: Iterable[socket.socket] = (),
        on_child_start: Callable[[int], object] | None = None,
        on_child_exit: Callable[[int, int, str], object] | None = None,
        on_decision: Callable[[ScalingDecision], object] | None = None,
    ) -> None:
        require_main_thread()
        spares = Spares.given(min_spare_servers, max_spare_servers, start_servers, max_servers)
        options.check_idle_timeout(idle_timeout)
        limits, handlers = spares.limits(idle_timeout), options.handlers(child_sigh)
        options.check_hook(child_data_hook)
        options.check_on_fork_failure(on_fork_failure)
        options.check_timeout("term_timeout", term_timeout)
        options.check_timeout("handshake_timeout", handshake_timeout)
        if hook_timeout is not None:
            options.check_timeout("hook_timeout", hook_timeout)
        child_limits = ChildLimits(
            max_requests_per_child, max_memory_per_child, max_lifetime, busy_timeout, limits_jitter
        )
        options.check_child_limits(child_limits)
        watchers = Watchers(on_child_start, on_child_exit, on_decision)
        for name, function in watchers._asdict().items():
            check_callable(name, function)
        self._main = MainProcess(
            Settings(
                limits,
                handlers,
                hook=child_data_hook,
                hook_in_main=bool(data_hook_in_main),
                return_on_failure=on_fork_failure == "return",
                term_timeout=term_timeout,
                handshake_timeout=handshake_timeout,
                hook_timeout=hook_timeout,
                child_limits=child_limits,
                watchers=watchers,
                listeners=options.check_listeners(listeners),
            )
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

    def whip_kids(
        self,
        code: Callable[..., object],
        args: tuple[Any, ...] = (),
        timeout: float | None = None,
    ) -> int | None:
        """Fork missing children, retire surplus ones, then wait until a child changes its
        status, yells or exits. Call it in a loop.

        Args:
            code: run as ``code(*args)`` in every new child, which exits with 0
                when it returns. If it raises, the child logs the traceback and exits with 1.
            args: its arguments.
            timeout: seconds to wait at most, for periodic work of your own. None: until
                something has happened.

        Returns:
            1 after something has happened, including a signal that you handle, or after
            ``timeout``. 0 once :meth:`done` has been called. None if a fork failed and
            ``on_fork_failure`` is "return".
        """
        if not callable(code):
            raise TypeError(f"pf_whip_kids needs a callable, not {type(code).__name__}")
        return self._main.whip_kids(code, args, _wait_at_most(timeout))

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

    def kid_accept(
        self, listener: socket.socket, *more: socket.socket
    ) -> tuple[socket.socket, Any] | None:
        """In a child: wait for a connection, take it, and be busy. At no moment can a
        retiring SIGTERM lose the connection.

        Marks the child idle first. From the first call on, SIGTERM only makes the
        next call return None. Before that it calls the handler that you gave in
        child_sigh, if any. Listeners become non-blocking, connections do not.

        Args:
            listener, more: the listening sockets, of any families. Those that have
                connections take turns. For one made by ``SSLContext.wrap_socket``, the
                handshake is done when the child is busy. If it fails or takes longer than
                ``handshake_timeout``, the connection is closed and the child waits on.

        Returns:
            What ``accept()`` of one of them returns, or None if the child should leave.

        Raises:
            RuntimeError: called outside a child.
            TypeError, ValueError: one of them is no socket, or is closed.
        """
        return self._child("pf_kid_accept").accept((listener, *more))

    def kid_wait(
        self, fileobjs: Iterable[Any] = (), timeout: float | None = None
    ) -> list[Any] | None:
        """In a child: wait until there may be work to take. Marks the child idle first. From
        the first call on, SIGTERM only makes a call return None, as for :meth:`kid_accept`.

        Args:
            fileobjs: objects with ``fileno()``, or descriptors: listeners, datagram
                sockets, pipes, selectors.
            timeout: seconds; None: until there is work.

        Returns:
            Those that can be read. An empty list after ``timeout`` seconds. None if the
            child should leave.

        Raises:
            RuntimeError: called outside a child.
            TypeError, ValueError: a bad argument.
        """
        return self._child("pf_kid_wait").wait(tuple(fileobjs), _wait_at_most(timeout))

    def kid_take(self, function: Callable[[], T | None]) -> T | None:
        """In a child: take work by calling ``function``, and be busy. At no moment can a
        retiring SIGTERM lose what it takes. Marks the child idle first.

        Args:
            function: returns what it has taken, or None if there is nothing. Instead of
                None it may raise BlockingIOError or queue.Empty. It should not wait: while
                it runs, the child cannot leave.

        Returns:
            What the function returned. None if there was nothing, or if the child should
            leave: then the next :meth:`kid_wait` returns None, too.

        Raises:
            RuntimeError: called outside a child.
            Exception: what the function raised. The child counts as busy then.
        """
        check_function("function", function)
        return self._child("pf_kid_take").take(function)

    def _child(self, name: str) -> Child:
        child = self._main.child
        if child is None or not child.is_here:
            raise RuntimeError(f"{name} works only in a child of the pool")
        return child

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


def _wait_at_most(timeout: float | None) -> float | None:
    seconds = check_seconds("timeout", timeout)
    return None if seconds is None else max(0.0, seconds)


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


def pf_whip_kids(
    code: Callable[..., object], args: Iterable[Any] = (), timeout: float | None = None
) -> int | None:
    """See :meth:`PreforkPool.whip_kids`."""
    return _current().whip_kids(code, tuple(args), timeout)


def pf_kid_new() -> int | None:
    """See :meth:`PreforkPool.kid_new`."""
    return _current().kid_new()


def pf_kid_busy() -> None:
    """See :meth:`PreforkPool.kid_busy`."""
    _current().kid_busy()


def pf_kid_idle() -> None:
    """See :meth:`PreforkPool.kid_idle`."""
    _current().kid_idle()


def pf_kid_accept(
    listener: socket.socket, *more: socket.socket
) -> tuple[socket.socket, Any] | None:
    """See :meth:`PreforkPool.kid_accept`."""
    return _current().kid_accept(listener, *more)


def pf_kid_wait(fileobjs: Iterable[Any] = (), timeout: float | None = None) -> list[Any] | None:
    """See :meth:`PreforkPool.kid_wait`."""
    return _current().kid_wait(fileobjs, timeout)


def pf_kid_take(function: Callable[[], T | None]) -> T | None:
    """See :meth:`PreforkPool.kid_take`."""
    return _current().kid_take(function)


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


def pf_listeners() -> list[socket.socket]:
    """The listening sockets that this process was started with, by ``prefork-executor serve`` or by
    systemd's socket activation, in the order in which they were named there. Empty if there are
    none. Each call returns the same sockets.

    Raises:
        OSError: what was given is no socket.
    """
    return given.listeners()


def pf_error() -> bytes | str:
    """Why :func:`pf_init` returned False. Inside the data hook, when that was called with data
    None: the bytes that could not be thawed."""
    return _error or (_pool.error if _pool is not None else "")
