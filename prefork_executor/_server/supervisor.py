"""The supervisor: a process that runs a `WorkerPool` for one executor.

It has a single thread whenever it forks, for all of the pool's life, whatever threads the
caller's process has. It runs no task. It has run at most that part of the user's code that all
workers may share, and only before there were any workers. `template.py` describes this, and
which process the pool then runs in. The supervisor must not outlive its caller. It watches the
caller's process (by a pidfd, if there is one) and its control socket. When either ends, it kills
every worker and ends.

Its notices go upstream through the same yell channel as the workers' outcomes. A worker's death
notice is sent after the worker has ended, so it lies behind the worker's last outcome. When the
client reads the notice, it has read all that the worker ever said. The slot is always cleared
after the notice is sent.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import os
import signal
import threading

from .._board import fences
from .._board import scoreboard as sb
from .._board.decisions import pack_decision
from .._messages import wire
from .._messages.channels import DONTWAIT, WorkerChannels
from .._messages.wire import Death, Kind
from .._pool.regulator import Counts, Decision
from .._pool.worker_pool import WorkerPool
from .._support import faults
from .._support.logs import logger
from .._system import descriptors, green, machine, processes, signals
from .._system.descriptors import Socket, adopted_socket
from ..errors import ProtocolError
from . import contexts, end_signals
from .settings import Settings
from .template import Preparation
from .users_code import UserCode
from .worker import live_as_worker
from .worker_process import Caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


MAX_COMMANDS = 128
"""Commands to read at once, where they are not kept apart. Each was written whole."""
RETRY_SEND = 0.005
"""Seconds until the supervisor sends a notice again that did not fit into the yell channel."""


class Supervisor:
    """Runs the pool until the caller ends it, or ends itself."""

    def __init__(
        self,
        control: Socket,
        settings: Settings,
        channels: WorkerChannels,
        caller: Caller,
        user_code: UserCode,
        preparation: Preparation,
    ) -> None:
        self._control = control
        self._settings = settings
        self._channels = channels
        self._caller = caller
        self._client = caller.pidfd
        self._user_code = user_code
        self._preparation = preparation
        self._outbox: collections.deque[tuple[bytes, Death | None]] = collections.deque()
        self._closing = False
        self._reload = 0
        self._oom_kills = machine.oom_kills()
        if settings.max_memory is not None:
            from .._system import memory  # noqa: F401 - for the workers, which all need it
        end_signals.ignore()
        self._pool = WorkerPool(
            settings.limits,
            self._channels.board,
            self._channels.doorbell,
            child_handlers={signal.SIGINT: signal.SIG_IGN},
            disown=self._begin_worker,
            max_memory=settings.max_memory_per_child,
        )
        self._pool.poller.register(control.fileno())
        if self._client is not None:
            self._pool.poller.register(self._client)
        if preparation.parent is not None:
            self._pool.poller.register(preparation.parent.fileno())
        limits = settings.limits
        self._channels.board.words[sb.BELL] = int(limits.max_spare < limits.max_workers)

    def _begin_worker(self) -> None:
        """In a new worker: install its signal handlers, and close what belongs only to the
        supervisor."""
        end_signals.install()
        signals.install_handlers(self._user_code.handlers)
        self._control.close()
        self._channels.lifeline.close()  # The worker's hangs on the supervisor, and that on this.
        self._preparation.close()

    def run(self) -> None:
        """Until the end: wait, reap, tell, regulate, act."""
        self._tell(wire.pack(Kind.SUPERVISOR_READY, os.getpid()))
        while not (self._closing and not self._pool.pids and not self._outbox):
            faults.at("supervisor.waits")
            self._obey(self._pool.wait(RETRY_SEND if self._outbox else self._preparation.patience))
            self._preparation.look()
            for death in self._pool.reap():
                self._tell_unsent(death)
                self._tell(wire.pack_death(self._with_cause(death)), death)
            self._tell_of_stopped()
            self._tell_of_reload()
            self._flush()
            if self._closing:
                self._pool.see_off()
            else:
                outstanding = self._channels.board.words[sb.OUTSTANDING]
                decision = self._pool.regulate(self._backlog, outstanding)
                self._act(decision)
                self._listen(decision.enough)
        self._preparation.look(wait=True)
        self._channels.board.words[sb.SIGN] = sb.NEVER

    def _obey(self, ready: list[int]) -> None:
        if self._client in ready or self._has_no_parent(ready):
            self._abandon()
        if self._control.fileno() in ready:
            received = self._control.recv(MAX_COMMANDS * wire.HEADER.size, DONTWAIT)
            if not received and descriptors.is_at_end(self._control):
                self._abandon()
            for start in range(0, len(received), wire.HEADER.size):
                self._do(received[start : start + wire.HEADER.size])

    def _has_no_parent(self, ready: list[int]) -> bool:
        parent = self._preparation.parent
        return parent is not None and parent.fileno() in ready

    def _do(self, command: bytes) -> None:
        try:
            kind, number, extra = wire.unpack_command(command)
        except ProtocolError as error:
            logger.error("a malformed command was dropped: %s", error)
            return
        if kind == Kind.SHUTDOWN:
            self._closing = True
            # The client sends this when it has read every outcome, and not before.
            self._pool.retire_all(is_all_done=True)
        elif kind == Kind.END_WORKERS:
            self._pool.end_all(number)
            self._tell(wire.pack(Kind.WORKERS_TOLD, extra))
        elif kind == Kind.END_WORKER:
            self._pool.end_worker(number, extra)
        elif kind == Kind.RETIRE_WORKER:
            self._pool.retire_worker(number)
        elif kind == Kind.END_TASK:
            self._pool.end_task(extra, number)
        elif kind == Kind.RELOAD:
            self._reload = number
            self._pool.replace_all()
        elif kind == Kind.KEEP_OLD:
            self._reload = 0
            self._pool.keep_old()
        elif kind == Kind.SIGN:
            self._channels.board.words[sb.SIGN] = number

    def _tell_unsent(self, death: Death) -> None:
        """Send what the worker had ready to send, before its death notice."""
        unsent = self._channels.board.unsent(death.slot)
        if unsent:
            self._tell(wire.pack(Kind.OUTCOMES, death.pid, 0, unsent))

    def _tell_of_stopped(self) -> None:
        for pid in self._pool.stopped:
            self._tell(wire.pack(Kind.STOPPED, pid))
        self._pool.stopped.clear()

    def _tell_of_reload(self) -> None:
        if self._reload and not self._pool.is_replacing:
            self._tell(wire.pack(Kind.RELOADED, self._reload))
            self._reload = 0

    def _with_cause(self, death: Death) -> Death:
        """If SIGKILL ended the worker, add whether the system was killing for lack of memory."""
        if processes.split_status(death.status)[1] != signal.SIGKILL:
            return death
        before, self._oom_kills = self._oom_kills, machine.oom_kills()
        if self._oom_kills <= before:
            return death
        return death._replace(flags=death.flags | wire.OUT_OF_MEMORY)

    def _abandon(self) -> None:
        """The caller has ended: nothing of the pool may remain."""
        self._pool.kill_all()
        os._exit(0)

    def _backlog(self, counts: Counts) -> int:
        if counts.idle and not descriptors.readable(self._channels.tasks.fileno()):
            # All outstanding tasks are running, or their outcomes are on the way.
            return 0
        return max(0, self._channels.board.words[sb.OUTSTANDING] - counts.busy)

    def _act(self, decision: Decision) -> None:
        if decision.start or decision.retire:
            self._tell_decision(decision)
        for _ in range(decision.start):
            seat = self._pool.fork_worker()
            if seat is not None:
                live_as_worker(seat, self._channels, self._settings, self._caller, self._user_code)

    def _listen(self, enough: int | None) -> None:
        """Tell the client from how many tasks on it must ring. The client writes its number and
        then reads ours. We write ours and then read the client's. So one of us notices."""
        words = self._channels.board.words
        limit = sb.NEVER if enough is None else enough
        if words[sb.ENOUGH] != limit:  # Otherwise the client has seen it long ago.
            words[sb.ENOUGH] = limit
            fences.everywhere(self._channels.board)
        if words[sb.OUTSTANDING] > limit:
            self._pool.look_again()

    # --- upstream ---------------------------------------------------------------------

    def _tell_decision(self, decision: Decision) -> None:
        packed = pack_decision(
            len(self._pool.pids), decision.start, decision.retire, decision.reason
        )
        self._tell(wire.pack(Kind.DECISION, body=packed))

    def _tell(self, packet: bytes, death: Death | None = None) -> None:
        self._outbox.append((packet, death))
        self._flush()

    def _flush(self) -> None:
        """Send, in order, what can be sent without waiting."""
        while self._outbox:
            packet, death = self._outbox[0]
            try:
                faults.at("supervisor.tells", death, self._channels.board)
                self._channels.yells.send(packet, DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                self._abandon()
            self._outbox.popleft()
            faults.at("supervisor.told", death, self._channels.board)
            if death is not None:
                self._pool.release(death)


def supervise(connection: Any, settings: Settings, client: int) -> None:
    """The supervisor process's main function. ``connection`` holds its end of the control
    socket. ``client`` is the caller's process id."""
    green.forget_hub()
    signals.forget_handlers()
    # The caller handles Ctrl-C. The pool ends with the caller, in order.
    signals.install_handlers({signal.SIGINT: signal.SIG_IGN})
    end_signals.ignore()
    control = adopted_socket(contexts.detach(connection))
    signals.restore_mask(set())
    # If it were ignored, this process could not wait for its children.
    signals.install_handlers({signal.SIGCHLD: signal.SIG_DFL})
    with contextlib.closing(control), contextlib.suppress(EOFError):
        channels = WorkerChannels.receive(control, settings.limits.max_workers)
        with contextlib.closing(channels):
            caller = Caller(client, contexts.starters_name(), processes.open_pidfd(client))
            _prepare_and_run(control, settings, channels, caller)


def supervise_spawned(connection: Any, settings: Settings, client: int) -> None:
    """The main function of a supervisor process that was spawned.

    The process ends as multiprocessing's forked processes do: the functions that were registered
    for its end run, but the interpreter is not taken apart. That would take 30 ms, for which the
    caller would wait."""
    code = 0
    try:
        supervise(connection, settings, client)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    processes.leave(code)


def _prepare_and_run(
    control: Socket, settings: Settings, channels: WorkerChannels, caller: Caller
) -> None:
    user_code = UserCode(settings)
    preparation = Preparation(settings, user_code, channels, control, caller.pidfd)
    with contextlib.closing(preparation):
        if not preparation.run():
            return
        # Inherited objects are never garbage here. If the collector does not look at them, their
        # pages stay shared with the caller and among the workers.
        gc.freeze()
        processes.flush_streams()
        Supervisor(control, settings, channels, caller, user_code, preparation).run()
