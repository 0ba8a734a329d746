"""The supervisor: a process that runs a `WorkerPool` for one executor.

Single-threaded from its first line to its last, so that it may fork for the
life of the pool whatever threads the caller's process has. It runs no task and
unpickles nothing but its own start. It must outlive no caller: it watches the
caller's process (a pidfd where there is one) and its control socket, and when
either ends it kills every worker and goes.

What it tells upstream goes through the same yell channel as the workers'
outcomes. A worker's death notice is sent after the worker has ended, so it lies
behind the worker's last outcome: whoever reads it has read all that the worker
ever said. The slot is cleared after the notice is sent, never before.
"""

from __future__ import annotations

import collections
import gc
import os
import pickle
import signal
import socket
import time
from typing import NamedTuple

from . import _pickling, _posix, _wire
from . import _scoreboard as sb
from ._channel import DONTWAIT, WorkerChannels
from ._pool import WorkerPool
from ._regulator import Counts, Decision
from ._wire import Death, Kind
from ._worker import Settings, live_as_worker

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

    def __init__(self, control: socket.socket, settings: Settings, client: int) -> None:
        self._control = control
        self._settings = settings
        self._channels = WorkerChannels.receive(control, settings.limits.max_workers)
        self._client = _posix.open_pidfd(client)
        self._outbox: collections.deque[tuple[bytes, Death | None]] = collections.deque()
        self._closing = False
        self._pool = WorkerPool(
            settings.limits,
            self._channels.board,
            self._channels.doorbell,
            child_handlers={signal.SIGINT: signal.SIG_IGN},
            disown=self._disown,
        )
        self._pool.waiter.register(control.fileno())
        if self._client is not None:
            self._pool.waiter.register(self._client)
        limits = settings.limits
        self._channels.board.words[sb.BELL] = int(limits.max_spare < limits.max_workers)

    def _disown(self) -> None:
        """In a new worker: close what belongs to the supervisor alone."""
        self._control.close()
        if self._client is not None:
            os.close(self._client)

    def run(self) -> None:
        """Wait, reap, tell, regulate, act; until the end."""
        main = _pickling.introduce_main() if self._settings.tell_main else {}
        self._tell(_wire.pack(Kind.SUPERVISOR_READY, body=pickle.dumps(main)))
        while not (self._closing and not self._pool.pids and not self._outbox):
            self._obey(self._pool.wait(RETRY_SEND if self._outbox else None))
            for death in self._pool.reap():
                self._tell(_wire.pack_death(death), death)
            self._flush()
            if self._closing:
                self._pool.see_off()
            else:
                outstanding = self._channels.board.words[sb.OUTSTANDING]
                decision = self._pool.regulate(self._backlog, outstanding)
                self._act(decision)
                self._listen(decision.enough)

    def _obey(self, ready: list[int]) -> None:
        if self._client in ready:
            self._abandon()
        if self._control.fileno() in ready:
            command = self._control.recv(_wire.HEADER.size)
            if not command:
                self._abandon()
            if command[0] == Kind.SHUTDOWN:
                self._closing = True
                self._pool.retire_all()
            elif command[0] == Kind.END_NOW:
                self._closing = True
                self._pool.end_all(_wire.HEADER.unpack(command)[3])

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
                live_as_worker(seat, self._channels, self._settings)

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
            except (BrokenPipeError, ConnectionResetError):
                self._abandon()
            self._outbox.popleft()
            if death is not None:
                self._pool.bury(death)


def supervise(control: socket.socket, settings: Settings, client: int) -> None:
    """The supervisor process's main function. ``client`` is the caller's process id."""
    _posix.forget_handlers()
    # Ctrl-C is the caller's to handle; the pool ends with it, in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _posix.restore_mask(set())
    try:
        supervisor = Supervisor(control, settings, client)
    except EOFError:
        return
    # What has been inherited is never garbage here, and not looking at it keeps
    # its pages shared with the caller and among the workers.
    gc.freeze()
    _posix.flush_streams()
    supervisor.run()
