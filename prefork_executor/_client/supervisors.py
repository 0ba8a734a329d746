"""The supervisor that a client has, and the next one when it has ended.

At most one is there at a time. It is started, says that it is ready, and ends: because the
pool closes, because it was told to kill its workers and go, or by a fault or a signal. Unless
nobody needs it any more, another takes its place after the pause that `Restarts` says. While
there is none, tasks are accepted and wait.

The first is started in the thread that submits the first task, with the client's lock held;
those after it by the I/O thread, without the lock, so that nobody who submits waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from .._board import scoreboard as sb
from .._board.counters import count_the_left
from .._board.scoreboard import Slot
from .._messages.channels import PoolChannels
from .._messages.wire import Kind
from .._server.settings import Settings
from .._support import faults
from .._system import descriptors, processes
from .._system.green import GreenPoller
from .books import Books
from .direct import DirectReader
from .dispatch import Dispatcher
from .phases import Event, Phase
from .restarts import Restarts
from .supervision import REACT_WITHIN, Supervision
from .supervisor_handle import SupervisorHandle
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

logger = logging.getLogger("prefork_executor")

GONE_WITHIN = 10.0
"""Seconds to wait for the workers of a dead supervisor to be gone, at most."""


class Supervisors:
    """The one there is, and the next.

    Args:
        context, settings: what the caller has asked for.
        books, channels, dispatcher, direct, main: the client's.
        poller: the I/O thread's.
        stop: called with a reason when the program ends the process as one of its children.
    """

    # From start on.
    supervision: Supervision

    def __init__(
        self,
        context: Any,
        settings: Settings,
        books: Books,
        channels: PoolChannels,
        dispatcher: Dispatcher,
        direct: DirectReader,
        main: WorkersMain,
        poller: descriptors.Poller | GreenPoller,
        stop: Callable[[str], None],
    ) -> None:
        self._context = context
        self._settings = settings
        self._books = books
        self._channels = channels
        self._dispatcher = dispatcher
        self._direct = direct
        self._main = main
        self._poller = poller
        self._stop = stop
        self.current: SupervisorHandle | None = None
        self.restarts = Restarts()
        self.is_cut = False
        """Whether the channels were shut down, and have not been renewed."""
        self._is_ready = False

    # --- the beginning of one -----------------------------------------------------------

    def start(self) -> None:
        """Takes its time, and needs no lock. Raises what starting a process raises."""
        self._main.look()
        self._is_ready = False
        self.current = supervisor = SupervisorHandle(self._stop)
        self.supervision = Supervision(supervisor, self._channels.board)
        try:
            supervisor.start(self._context, self._settings, self._give_channels)
            self._poller.register(supervisor.control.fileno())
        except BaseException:
            with self._books.lock:
                self.current = None
                self._main.forget()
            supervisor.close()
            raise
        with self._books.lock:
            # Workers whose end has been asked for meanwhile may be its own.
            self._dispatcher.release_unless_asked()

    def _give_channels(self, control: descriptors.Socket) -> None:
        # From now on the word is written by those over there.
        pid = self.current and self.current.pid
        self._channels.board.words[sb.MAIN] = pid or 0
        faults.at("client.gives_channels", pid, control)
        self._channels.give_to(control)

    def is_ready(self, main: int) -> None:
        """It has said so; ``main`` is the process in which the pool runs."""
        self.restarts.succeeded()
        with self._books.lock:
            self._is_ready = True
            watched = self.supervision.watch(main)
        if watched is not None:
            self._poller.register(watched)

    def start_next(self) -> None:
        """Start one in the place of the one that has ended. Raises what :meth:`start` raises,
        and OSError: there are no descriptors for new channels."""
        if self.is_cut:
            self._renew_channels()
        self.start()

    # --- what it is told, with the lock held ------------------------------------------------

    def tell(self, kind: int, number: int = 0, extra: int = 0) -> None:
        """Tell it, if there is one."""
        if self.current is not None:
            self.current.tell(kind, number, extra)

    def tell_to_end_worker(self, pid: int, number: int) -> bool:
        """By this signal. False: there is no supervisor."""
        if self.current is None:
            return False
        self.current.tell(Kind.END_WORKER, pid, number)
        return True

    def tell_to_end_workers(self, number: int, end: int) -> None:
        """By this signal; it answers with the number of this end."""
        if self.current is not None and self._is_ready:
            self.current.tell(Kind.END_WORKERS, number, end)
            self.supervision.expect_sign()
        elif self.current is not None:
            # It preloads, perhaps for ever; there are no workers yet.
            self.make_it_kill()
            self.restarts.forgive()

    def tell_to_end_task(self, slot: Slot) -> None:
        """The one that this slot names."""
        if self.current is not None:
            self.current.tell_if_free(Kind.END_TASK, slot.task, slot.place)
            self.supervision.expect_sign()

    def expect_sign(self) -> None:
        """What it was told just now is to be done soon."""
        self.supervision.expect_sign()

    def make_it_kill(self) -> None:
        """Have it kill all workers and end."""
        if self.current is not None:
            self.current.make_it_kill()
            self.supervision.expect_end()

    def end_when_done(self) -> None:
        """When the client closes and nothing is left: have it end."""
        lifecycle = self._books.lifecycle
        if lifecycle.is_abandoned and lifecycle.phase is Phase.OPEN:
            lifecycle.after(Event.SHUTDOWN)
        if lifecycle.phase is Phase.CLOSING and not self._books.ledger.outstanding:
            lifecycle.after(Event.ALL_DONE)
            if self.current is not None:
                self.current.tell(Kind.SHUTDOWN)
                self.supervision.expect_sign()

    # --- whether it does what it should ----------------------------------------------------

    def look_after(self, ready: list[int]) -> None:
        """Kill it, if it does not do what it should. ``ready`` are descriptors that can be
        read."""
        ended = self.supervision.on_readable(ready)
        if ended is not None:
            self._poller.unregister(ended)
            descriptors.close_quietly([ended])
        if self.supervision.is_overdue() and self.current is not None:
            logger.error("the supervisor did not react in %g s; killing it", REACT_WITHIN)
            self.current.kill()

    def on_cut(self) -> None:
        """A task has shut down a channel, which it has inherited, for all who use it. Nobody
        can say any more what has become of what runs: it ends, and another supervisor goes
        on with new channels."""
        if self.is_cut:
            return
        self.is_cut = True
        logger.error("a task has shut down the pool's channels; what runs is ended")
        self._poller.unregister(self._channels.yells.fileno())
        self.restarts.forgive()
        with self._books.lock:
            self._dispatcher.cut()
            if self.current is not None:
                self.current.make_it_kill()

    def _renew_channels(self) -> None:
        with self._books.lock:
            self._channels.renew()
            self._poller.register(self._channels.yells.fileno(), shared=True)
            self._direct.watch_again()
            self.is_cut = False
            self._dispatcher.mend()

    # --- the end of one --------------------------------------------------------------------

    def see_off(self, supervisor: SupervisorHandle) -> str:
        """It has ended: wait until its workers have, and forget it. Returns how it ended, as
        a verb phrase."""
        self._poller.unregister(supervisor.control.fileno())
        if (watched := self.supervision.watched) is not None:
            self._poller.unregister(watched)
        self.supervision.close()
        pid, how = supervisor.pid, supervisor.wait()
        board = self._channels.board
        # First who forks workers, if that was another process, or there might be more of them.
        main = board.words[sb.MAIN]
        processes.wait_until_gone({main} - {0, pid}, board.descriptor, GONE_WITHIN)
        pids = [slot.pid for slot in board.read_all()]
        processes.wait_until_gone(pids, board.descriptor, GONE_WITHIN)
        board.words[sb.MAIN] = board.words[sb.SIGN] = 0
        count_the_left(board)
        with self._books.lock:
            supervisor.close()
            self.current = None
        return how

    def close(self) -> None:
        """With the lock held: let go of the one that is left."""
        if self.current is not None:
            self.current.close()
            self.current = None

    def disown(self) -> None:
        """In a child that the caller forked."""
        if self.current is not None:
            self.current.disown()
