"""The supervisor that a client has, and the next one when it has ended.

There is at most one at a time. It is started, says that it is ready, and ends. It ends because
the pool closes, because it was told to kill its workers and end, or by a fault or a signal. If the
client still needs one, another takes its place after the pause that `Restarts` decides. While
there is none, tasks are accepted and wait.

The first is started in the thread that submits the first task, with the client's lock held. The
I/O thread starts the later ones, without the lock, so that no submit waits for them.
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
"""Seconds to wait, at most, until the workers of a dead supervisor are gone."""


class Supervisors:
    """The present supervisor, and the next.

    Args:
        context, settings: from the caller.
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
        """Whether the channels were shut down and have not been renewed yet."""
        self._is_ready = False

    # --- the beginning of one -----------------------------------------------------------

    def start(self) -> None:
        """Start one. Takes time, and needs no lock. Raises what starting a process raises."""
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
            # Some of its workers may have been asked to end meanwhile.
            self._dispatcher.release_unless_asked()

    def _give_channels(self, control: descriptors.Socket) -> None:
        # From now on the processes of the pool write this word.
        pid = self.current and self.current.pid
        self._channels.board.words[sb.MAIN] = pid or 0
        faults.at("client.gives_channels", pid, control)
        self._channels.give_to(control)

    def is_ready(self, main: int) -> None:
        """The supervisor has said that it is ready. ``main`` is the process that runs the pool."""
        self.restarts.succeeded()
        with self._books.lock:
            self._is_ready = True
            watched = self.supervision.watch(main)
        if watched is not None:
            self._poller.register(watched)

    def start_next(self) -> None:
        """Start one in place of the one that has ended. Raises what :meth:`start` raises, and
        OSError if there are no descriptors for new channels."""
        if self.is_cut:
            self._renew_channels()
        self.start()

    # --- what it is told, with the lock held ------------------------------------------------

    def tell(self, kind: int, number: int = 0, extra: int = 0) -> None:
        """Send a command, if there is a supervisor."""
        if self.current is not None:
            self.current.tell(kind, number, extra)

    def tell_to_end_worker(self, pid: int, number: int) -> bool:
        """End this worker by this signal. Returns False if there is no supervisor."""
        if self.current is None:
            return False
        self.current.tell(Kind.END_WORKER, pid, number)
        return True

    def tell_to_end_workers(self, number: int, end: int) -> None:
        """End all workers by this signal. The supervisor answers with the number ``end``."""
        if self.current is not None and self._is_ready:
            self.current.tell(Kind.END_WORKERS, number, end)
            self.supervision.expect_sign()
        elif self.current is not None:
            # It may preload for ever, and there are no workers yet.
            self.make_it_kill()
            self.restarts.forgive()

    def tell_to_end_task(self, slot: Slot) -> None:
        """End the task that this slot names."""
        if self.current is not None:
            self.current.tell_if_free(Kind.END_TASK, slot.task, slot.place)
            self.supervision.expect_sign()

    def expect_sign(self) -> None:
        """The supervisor must soon do what it was just told."""
        self.supervision.expect_sign()

    def make_it_kill(self) -> None:
        """Make it kill all workers and end."""
        if self.current is not None:
            self.current.make_it_kill()
            self.supervision.expect_end()

    def end_when_done(self) -> None:
        """When the client closes and no task is left: make it end."""
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
        """Kill the supervisor if it does not do what it should. ``ready`` are readable
        descriptors."""
        ended = self.supervision.on_readable(ready)
        if ended is not None:
            self._poller.unregister(ended)
            descriptors.close_quietly([ended])
        if self.supervision.is_overdue() and self.current is not None:
            logger.error("the supervisor did not react in %g s; killing it", REACT_WITHIN)
            self.current.kill()

    def on_cut(self) -> None:
        """A task has shut down a channel, which it has inherited, for all processes. The running
        tasks can no longer report their outcomes, so they are ended. Another supervisor goes on
        with new channels."""
        if self.is_cut:
            return
        self.is_cut = True
        logger.error("a task has shut down the pool's channels; ending the running tasks")
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
        """It has ended: wait until its workers have, and forget it. Returns how it ended, as a
        verb phrase."""
        self._poller.unregister(supervisor.control.fileno())
        if (watched := self.supervision.watched) is not None:
            self._poller.unregister(watched)
        self.supervision.close()
        pid, how = supervisor.pid, supervisor.wait()
        board = self._channels.board
        # First the process that forks workers, if that is another, or there might be more of them.
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
        """With the lock held: let go of the supervisor that is left."""
        if self.current is not None:
            self.current.close()
            self.current = None

    def disown(self) -> None:
        """In a child that the caller forked."""
        if self.current is not None:
            self.current.disown()
