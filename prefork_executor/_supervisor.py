"""The supervisor: a process that runs a `WorkerPool` for one executor.

Single-threaded whenever it forks, for the life of the pool, whatever threads the
caller's process has. It runs no task and unpickles nothing but its own start; of the
user's code it runs ``preload`` alone, before there is any worker. It must outlive no
caller: it watches the caller's process (a pidfd where there is one) and its control
socket, and when either ends it kills every worker and goes.

What it tells upstream goes through the same yell channel as the workers'
outcomes. A worker's death notice is sent after the worker has ended, so it lies
behind the worker's last outcome: whoever reads it has read all that the worker
ever said. The slot is cleared after the notice is sent, never before.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import posix
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from . import _channel, _contexts, _end_signals, _failures, _green, _pickling, _posix, _wire
from . import _scoreboard as sb
from ._channel import DONTWAIT, WorkerChannels
from ._pickling import Part
from ._pool import WorkerPool
from ._posix import Socket, Waiter
from ._regulator import Counts, Decision
from ._settings import Settings
from ._tuples import NamedTuple
from ._wire import Death, Kind
from ._worker import Caller, live_as_worker
from .errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

logger = logging.getLogger("prefork_executor")

MOST_COMMANDS = 128
"""Commands read at once, where they are not kept apart. Each was written whole."""
RETRY_SEND = 0.005
"""Seconds until a notice is tried again that the full yell channel did not take."""


class Notice(NamedTuple):
    """What the pool decided, for those who watch it."""

    at: float
    live: int
    start: int
    retire: int
    reason: str


class Supervisor:
    """Runs the pool until the caller ends it or has ended."""

    def __init__(self, control: Socket, settings: Settings, client: int) -> None:
        self._control = control
        self._settings = settings
        self._channels = WorkerChannels.receive(control, settings.limits.max_workers)
        self._client = _posix.open_pidfd(client)
        me: Any = multiprocessing.current_process()
        self._caller = Caller(client, me._parent_name, self._client)
        self._outbox: collections.deque[tuple[bytes, Death | None]] = collections.deque()
        self._closing = False
        self._reload = 0
        self._oom_kills = _posix.oom_kills()
        _end_signals.survive()
        self._pool = WorkerPool(
            settings.limits,
            self._channels.board,
            self._channels.doorbell,
            child_handlers={signal.SIGINT: signal.SIG_IGN, **_end_signals.handlers()},
            disown=self._disown,
            most_memory=settings.max_memory_per_child,
        )
        self._pool.waiter.register(control.fileno())
        if self._client is not None:
            self._pool.waiter.register(self._client)
        limits = settings.limits
        self._channels.board.words[sb.BELL] = int(limits.max_spare < limits.max_workers)

    def _disown(self) -> None:
        """In a new worker: close what belongs to the supervisor alone."""
        self._control.close()

    def run(self) -> None:
        """Wait, reap, tell, regulate, act; until the end."""
        main = _pickling.introduce_main() if self._settings.tell_main else {}
        self._tell(_wire.pack(Kind.SUPERVISOR_READY, body=pickle.dumps(main)))
        while not (self._closing and not self._pool.pids and not self._outbox):
            self._obey(self._pool.wait(RETRY_SEND if self._outbox else None))
            for death in self._pool.reap():
                self._tell_unsent(death)
                self._tell(_wire.pack_death(self._with_cause(death)), death)
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

    def preload(self) -> bool:
        """Run what is to be run once before workers are forked. False: it failed."""
        preload = self._settings.preload
        if not preload:
            return True
        try:
            with self._ending_with_caller():
                run_preload(preload)
        except BaseException as error:
            logger.critical("preload failed", exc_info=True)
            self._send_waiting(Kind.PRELOAD_FAILED, _failures.dump_failure(error, skip_frames=1))
            return False
        _warn_of_threads()
        return True

    def _send_waiting(self, kind: int, parts: Sequence[Part]) -> None:
        with contextlib.suppress(ConnectionError):
            _channel.send(self._channels.yells, kind, 0, 0, parts)

    @contextlib.contextmanager
    def _ending_with_caller(self) -> Iterator[None]:
        """While the user's code runs here, a thread looks after the caller's end."""
        stop_read, stop_write = os.pipe()
        wait_for_end = _green.start_thread(functools.partial(self._end_with_caller, stop_read))
        try:
            yield
        finally:
            posix.close(stop_write)
            wait_for_end()
            posix.close(stop_read)

    def _end_with_caller(self, stop: int) -> None:
        waiter = Waiter()
        for descriptor in (stop, self._control.fileno(), self._client):
            if descriptor is not None:
                waiter.register(descriptor)
        while True:
            ready = waiter.wait()
            if stop in ready:
                waiter.close()
                return
            if self._client in ready or _posix.is_at_end(self._control):
                os._exit(0)
            waiter.unregister(self._control.fileno())  # A command, which can wait.

    def _obey(self, ready: list[int]) -> None:
        if self._client in ready:
            self._abandon()
        if self._control.fileno() in ready:
            received = self._control.recv(MOST_COMMANDS * _wire.HEADER.size, DONTWAIT)
            if not received and _posix.is_at_end(self._control):
                self._abandon()
            for start in range(0, len(received), _wire.HEADER.size):
                self._do(received[start : start + _wire.HEADER.size])

    def _do(self, command: bytes) -> None:
        try:
            kind, number, extra = _wire.unpack_command(command)
        except ProtocolError as error:
            logger.error("a malformed command was dropped: %s", error)  # noqa: TRY400
            return
        if kind == Kind.SHUTDOWN:
            self._closing = True
            # Told when every outcome has been read, and not before.
            self._pool.retire_all(is_all_done=True)
        elif kind == Kind.END_WORKERS:
            self._pool.end_all(number)
            self._tell(_wire.pack(Kind.WORKERS_TOLD, extra))
        elif kind == Kind.END_TASK:
            self._pool.end_task(extra, number)
        elif kind == Kind.RELOAD:
            self._reload = number
            self._pool.replace_all()
        elif kind == Kind.KEEP_OLD:
            self._reload = 0
            self._pool.keep_old()

    def _tell_unsent(self, death: Death) -> None:
        """What it had ready to be sent lies before its death, as if it had sent it."""
        unsent = self._channels.board.unsent(death.slot)
        if unsent:
            self._tell(_wire.pack(Kind.OUTCOMES, death.pid, 0, unsent))

    def _tell_of_stopped(self) -> None:
        for pid in self._pool.stopped:
            self._tell(_wire.pack(Kind.STOPPED, pid))
        self._pool.stopped.clear()

    def _tell_of_reload(self) -> None:
        if self._reload and not self._pool.is_replacing:
            self._tell(_wire.pack(Kind.RELOADED, self._reload))
            self._reload = 0

    def _with_cause(self, death: Death) -> Death:
        """Add whether the system was killing for lack of memory, to a SIGKILL."""
        if _posix.split_status(death.status)[1] != signal.SIGKILL:
            return death
        before, self._oom_kills = self._oom_kills, _posix.oom_kills()
        if self._oom_kills <= before:
            return death
        return death._replace(flags=death.flags | _wire.OUT_OF_MEMORY)

    def _abandon(self) -> None:
        """The caller has ended: nothing of the pool may stay."""
        self._pool.kill_all()
        os._exit(0)

    def _backlog(self, counts: Counts) -> int:
        if counts.idle and not _posix.readable(self._channels.tasks.fileno()):
            # Whatever is outstanding is being run, or is an outcome on its way.
            return 0
        return max(0, self._channels.board.words[sb.OUTSTANDING] - counts.busy)

    def _act(self, decision: Decision) -> None:
        if decision.start or decision.retire:
            self._tell_decision(decision)
        for _ in range(decision.start):
            seat = self._pool.fork_worker()
            if seat is not None:
                live_as_worker(seat, self._channels, self._settings, self._caller)

    def _listen(self, enough: int | None) -> None:
        """Tell the client above how many tasks to ring. It writes its number and
        then reads ours, we write ours and then read its: one of us notices."""
        words = self._channels.board.words
        words[sb.ENOUGH] = sb.NEVER if enough is None else enough
        if words[sb.OUTSTANDING] > words[sb.ENOUGH]:
            self._pool.look_again()

    # --- upstream ---------------------------------------------------------------------

    def _tell_decision(self, decision: Decision) -> None:
        notice = Notice(
            time.time(), len(self._pool.pids), decision.start, decision.retire, decision.reason
        )
        self._tell(_wire.pack(Kind.DECISION, body=pickle.dumps(tuple(notice))))

    def _tell(self, packet: bytes, death: Death | None = None) -> None:
        self._outbox.append((packet, death))
        self._flush()

    def _flush(self) -> None:
        """Send what can be sent without waiting, in order."""
        while self._outbox:
            packet, death = self._outbox[0]
            try:
                self._channels.yells.send(packet, DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                self._abandon()
            self._outbox.popleft()
            if death is not None:
                self._pool.bury(death)


def supervise(connection: Any, settings: Settings, client: int) -> None:
    """The supervisor process's main function. ``connection`` holds its end of the control
    socket, ``client`` is the caller's process id."""
    _green.forget_hub()
    _posix.forget_handlers()
    # Ctrl-C is the caller's to handle; the pool ends with it, in order.
    _posix.install_handlers({signal.SIGINT: signal.SIG_IGN})
    _end_signals.survive()
    control = Socket(fileno=_contexts.detach(connection))
    _posix.restore_mask(set())
    try:
        supervisor = Supervisor(control, settings, client)
    except EOFError:
        return
    if not supervisor.preload():
        return
    # What has been inherited is never garbage here, and not looking at it keeps
    # its pages shared with the caller and among the workers.
    gc.freeze()
    _posix.flush_streams()
    supervisor.run()


def run_preload(preload: Callable[[], object] | tuple[str, ...]) -> None:
    """Import these modules, or call this."""
    if callable(preload):
        preload()
    else:
        for name in preload:
            importlib.import_module(name)


def _warn_of_threads() -> None:
    """A lock that a thread holds at a fork is held for ever in the child."""
    threads = threading.active_count()
    if threads > 1:
        logger.warning(
            "preload has left %d threads running in the supervisor; workers are forked "
            "without them, and locks that they hold stay locked there",
            threads - 1,
        )
