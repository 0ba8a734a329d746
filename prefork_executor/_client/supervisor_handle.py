"""The client's hold on its supervisor process: start it, ask it to end, see it end.

The control socket is the hold. Its end of file, at either side, says that the other side is gone.
When the supervisor sees it, it kills its workers and ends.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import popen_fork

from .._messages import wire
from .._server import contexts
from .._server.settings import Settings
from .._server.supervisor import supervise, supervise_spawned
from .._support import faults
from .._system import descriptors, green, processes, signals
from .._system.descriptors import Socket
from ..errors import describe_end
from .supervisor_process import stop_pool_when_ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Signals that other processes send. A process's own faults raise others."""
REAPED_WITHIN = 1.0
"""Seconds to wait for the exit status of a supervisor that the client has killed."""
_LEAVE_MAIN_ALONE = """
(lambda spawn, prepare: spawn.__dict__.update(
    prepare=lambda data, *rest, **more: prepare(
        {key: data[key] for key in data if not key.startswith("init_main")}, *rest, **more
    )
))(*(lambda spawn: (spawn, spawn.prepare))(__import__("MODULE", fromlist=["prepare"])))
or "NAME"
"""
"""An expression whose value is a name. Evaluating it also changes multiprocessing's module for
spawned processes: that prepares its process as usual, but does not import ``__main__``."""


class _NameOfOneWithoutMain(str):
    """The name of a process that does not import the caller's ``__main__`` when it starts.

    A spawned process gets its name, the path of ``__main__`` and more in one message. When it
    has read that, it imports ``__main__``, and only then does it read which function to run.
    multiprocessing has no option against that. So the name carries the change. When the
    message is unpickled in the new process, the module is changed there. For that, our
    package need not be importable yet."""

    module: str

    def __reduce__(self) -> tuple[Any, ...]:
        code = _LEAVE_MAIN_ALONE.replace("MODULE", self.module).replace("NAME", self)
        return eval, (" ".join(code.split()),)


def _process_name(process: type) -> str:
    """The supervisor's name, for a process of this class."""
    package = process.__module__.rpartition(".")[0]
    name = _NameOfOneWithoutMain("PreforkSupervisor")
    name.module = f"{package}.spawn"
    return name


def _clean_context(context: Any) -> Any:
    """This context. If its fork server is not suitable, a context that spawns."""
    if context.get_start_method() != "forkserver":
        return context
    package = context.Process.__module__.rpartition(".")[0]
    server = getattr(importlib.import_module(f"{package}.forkserver"), "_forkserver", None)
    if _runs_main(server) or _is_deaf(server):
        return context.get_context("spawn")
    return context


def _runs_main(server: Any) -> bool:
    """Whether this fork server has run the user's code, or would.

    By default a fork server is told of ``__main__``. From Python 3.13.2 on it imports it, and
    all processes that are forked from it share the result for good."""
    preloaded = getattr(server, "_preload_modules", None) or ()
    start = getattr(getattr(server, "ensure_running", None), "__code__", None)
    return "__main__" in preloaded and "init_main_from_path" in getattr(start, "co_consts", ())


def _is_deaf(server: Any) -> bool:
    """Whether SIGCHLD is blocked in this fork server, or would be.

    It inherits that from the thread that starts it, which may wait for that signal by sigwait,
    for example. Then the server never learns that a process has ended, and so no other process
    does. Unblocking the signal for a moment would not help: the program would lose a SIGCHLD that
    comes just then."""
    pid = getattr(server, "_forkserver_pid", None)
    blocked = None if pid is None else signals.blocked_signals(pid)
    if blocked is None:
        blocked = signals.current_mask()
    return signal.SIGCHLD in blocked


@contextlib.contextmanager
def _handlers_at_rest(context: Any) -> Iterator[None]:
    """If the supervisor is forked from this process, let no signal run this process's handlers
    there. The supervisor restores the mask itself, when it has removed them."""
    if context.get_start_method() != "fork":
        yield
        return
    mask = signals.current_mask()
    signals.block_signals(signals.ALL_SIGNALS)
    try:
        yield
    finally:
        signals.restore_mask(mask)


def _close_what_a_failed_fork_leaves(error: Exception) -> None:
    """multiprocessing makes two pipes, then forks. If that fails, they would stay open for ever."""
    step, launch = error.__traceback__, popen_fork.Popen._launch.__code__  # type: ignore[attr-defined]
    while step is not None and step.tb_frame.f_code is not launch:
        step = step.tb_next
    left = step.tb_frame.f_locals if step is not None else {}
    if left and not hasattr(left["self"], "pid"):
        names = ("parent_r", "child_w", "child_r", "parent_w")
        descriptors.close_quietly(left[name] for name in names if name in left)


def _start_process(context: Any, args: tuple[object, ...]) -> Any:
    try:
        return _start_in(context, args)
    except ChildProcessError:
        # The fork server is no child of this process: for example, a server that preloads its
        # application has used it, and then forked this one. multiprocessing waits for it as for
        # a child, so it can never start anything here. A spawned supervisor inherits as little.
        return _start_in(multiprocessing.get_context("spawn"), args)


def _start_in(context: Any, args: tuple[object, ...]) -> Any:
    target = supervise_spawned if context.get_start_method() == "spawn" else supervise
    process = context.Process(
        target=target, args=args, name=_process_name(context.Process), daemon=False
    )
    with _handlers_at_rest(context):
        process.start()
    return process


def _explain_daemon(error: Exception) -> None:
    """multiprocessing says only that it does not allow this."""
    if isinstance(error, AssertionError) and "daemonic processes" in str(error):
        raise AssertionError(
            "this is a daemonic process, and such a process may have no child processes, so no "
            "pool can be started here. Start this process with daemon=False. If it is a worker of "
            "multiprocessing.Pool, use an executor's workers for tasks that start pools themselves."
        ) from error


class SupervisorHandle:
    """One supervisor process, not yet started.

    It exists before the process does. So a forked supervisor's copy of it is known, and can be
    closed there. ``stop`` is called with a reason when the program ends the process as one of
    its children.
    """

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self.control, self._theirs = descriptors.control_pair()
        self._given: Any = None  # The same as _theirs, in the form in which it travels.
        self._unsent: collections.deque[bytes] = collections.deque()
        self._process: Any = None
        self._starter: int | None = None
        self._is_started = False
        self._pidfd: int | None = None
        self._was_killed = False
        self.ended_from_outside = False
        """After :meth:`wait`: whether another process has ended it, not a fault of its own."""

    def start(
        self,
        context: Any,
        settings: Settings,
        give_channels: Callable[[Socket], None],
    ) -> None:
        """Start the process and give it its ends of the channels. Raises what starting a
        multiprocessing.Process raises, or pickle.PicklingError, which says what part of the
        settings cannot travel."""
        self._starter = threading.get_ident()
        context = _clean_context(context)
        try:
            given_as = contexts.connection_type(context)
            self._given = given_as(self._theirs.detach())
            faults.at("client.starts_supervisor")
            process = _start_process(context, (self._given, settings, os.getpid()))
        except Exception as error:
            _close_what_a_failed_fork_leaves(error)
            from .._pickling.at_start import explain_start

            explained = explain_start(settings.users_things, error)
            if explained is None:
                _explain_daemon(error)
                raise
            raise explained from error
        finally:
            self._close_theirs()
            self._starter = None
        stop_pool_when_ended(process, self._stop)
        self._process = process
        self._pidfd = processes.open_pidfd(process.pid)
        # If the process has ended already, that is found out as at any other time.
        with contextlib.suppress(ConnectionError):
            give_channels(self.control)
        self._is_started = True
        faults.at("client.started_supervisor")

    def _close_theirs(self) -> None:
        self._theirs.close()
        if self._given is not None:
            descriptors.close_quietly([contexts.detach(self._given)])

    @property
    def pid(self) -> int | None:
        """Its process id. None before it is started and after it was closed."""
        return None if self._process is None else self._process.pid

    def tell(self, kind: int, number: int = 0, extra: int = 0) -> None:
        """Send a command. If the supervisor has not started (its channels go first), or has not
        read hundreds of others, keep the command for :meth:`flush`, in order. If the supervisor
        is ending, the command is dropped."""
        self._unsent.append(wire.pack(kind, number, extra))
        self.flush()

    def tell_if_free(self, kind: int, number: int, extra: int) -> None:
        """The same for a command that will be repeated. If it cannot be sent, it is dropped."""
        if self._is_started and not self._unsent:
            with contextlib.suppress(OSError):
                self.control.send(wire.pack(kind, number, extra), socket.MSG_DONTWAIT)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def flush(self) -> None:
        """Send the kept commands, as far as that is possible without waiting."""
        while self._is_started and self._unsent:
            try:
                self.control.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            self._unsent.popleft()

    def make_it_kill(self) -> None:
        """Have it kill every worker, whatever the worker does, and end."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill it, whatever it does. What it has forked ends with it."""
        self._was_killed = True
        if self._pidfd is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._process is not None and self._process.exitcode is None:
            processes.send_signal(self._process.pid, signal.SIGKILL)

    def wait(self) -> str:
        """Wait for its end. Returns how it ended, as a verb phrase."""
        exitcode = self._exitcode()
        self.ended_from_outside = exitcode is not None and -exitcode in FROM_OUTSIDE
        if exitcode is None:
            return "ended, and another part of this process took its exit status"
        return describe_end(exitcode, None) if exitcode >= 0 else describe_end(None, -exitcode)

    def _exitcode(self) -> int | None:
        """Wait for its end. Returns None if its exit status is not known."""
        if self._was_killed and not self._is_reaped():
            return -signal.SIGKILL
        # join() uses gevent's waitpid. In a thread outside the hub that would wait for something
        # that only the hub's thread can do.
        if green.threads_are_green() or not processes.wait_for_child(self._process.pid):
            self._process.join()
        exitcode: int | None = self._process.exitcode
        return exitcode

    def _is_reaped(self) -> bool:
        """Whether it can be reaped within a moment. A process that is traced ends first for its
        tracer, which may take long."""
        deadline = time.monotonic() + REAPED_WITHIN
        while self._process.exitcode is None:
            if time.monotonic() > deadline:
                self._process._popen.returncode = -signal.SIGKILL
                return False
            descriptors.pause(REAPED_WITHIN / 100)
        return True

    def close(self) -> None:
        """Let go of the process. If it still runs, it kills its workers and ends."""
        self.control.close()
        if self._pidfd is not None:
            descriptors.close_quietly([self._pidfd])
            self._pidfd = None
        if self._process is not None:
            if self._exitcode() is None:
                # The caller's process waits for all its children, and was quicker.
                # multiprocessing would take such a process for alive, for ever.
                self._process._popen.returncode = 0
            if hasattr(self._process._popen, "close"):  # loky's class has no close().
                self._process.close()
            self._process = None

    def disown(self) -> None:
        """In a forked copy of the client: close its end. Also close the supervisor's end, unless
        this process is the new supervisor, forked by the thread that is starting it."""
        self.control.close()
        if self._pidfd is not None:
            descriptors.close_quietly([self._pidfd])
            self._pidfd = None
        if self._starter != threading.get_ident():
            self._close_theirs()
