"""Starts the client's supervisor, and another one when it has ended.

A client has at most one supervisor at a time. A supervisor is started, says that it is ready, and
ends. It ends because the pool closes, because the client has told it to kill its workers and end,
or by a fault or a signal. If the client still needs a supervisor, it starts another after a pause,
which `Restarts` decides. While there is no supervisor, the client accepts tasks, and they wait.

The thread that submits the first task starts the first supervisor, with the client's lock held. The
I/O thread starts the later ones, without the lock, so that no submit waits for them.
"""

from __future__ import annotations

from collections.abc import Callable

from .._board import scoreboard as sb
from .._board.counters import count_the_left
from .._board.scoreboard import Slot
from .._messages.channels import PoolChannels
from .._messages.wire import Kind
from .._server.settings import Settings
from .._support import faults
from .._support.logs import logger
from .._support.timers import Timer
from .._system import descriptors, processes
from .._system.green import GreenPoller
from .direct import DirectReader
from .dispatch import Dispatcher
from .phases import Event, Phase
from .restarts import Restarts
from .shared_state import SharedState
from .supervisor_handle import SupervisorHandle
from .watchdog import REACT_WITHIN, Watchdog
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


GONE_WITHIN = 10.0
"""Seconds to wait, at most, until the workers of a dead supervisor are gone."""


class Supervisors:
    """The present supervisor, if there is one, and its successors.

    Args:
        context, settings: from the caller.
        shared, channels, dispatcher, direct, main: the client's.
        poller: the I/O thread's.
        stop: called with a reason when the program ends the process as one of its children.
    """

    # From start on.
    watchdog: Watchdog

    def __init__(
        self,
        context: Any,
        settings: Settings,
        shared: SharedState,
        channels: PoolChannels,
        dispatcher: Dispatcher,
        direct: DirectReader,
        main: WorkersMain,
        poller: descriptors.Poller | GreenPoller,
        stop: Callable[[str], None],
    ) -> None:
        self._context = context
        self._settings = settings
        self._shared = shared
        self._channels = channels
        self._dispatcher = dispatcher
        self._direct = direct
        self._main = main
        self._poller = poller
        self._stop = stop
        self.current: SupervisorHandle | None = None
        self.restarts = Restarts()
        self.watchdog_timer = Timer()
        """For the next look of :class:`Watchdog`."""
        self.is_cut = False
        """Whether the channels were shut down and have not been renewed yet."""
        self._is_ready = False

    # --- the beginning of one -----------------------------------------------------------

    def start(self) -> None:
        """Start a supervisor. This takes long, and needs no lock. Raises what starting a process
        raises."""
        self._main.look()
        self._is_ready = False
        self.current = supervisor = SupervisorHandle(self._stop)
        self.watchdog = Watchdog(supervisor, self._channels.board, self.watchdog_timer)
        try:
            supervisor.start(self._context, self._settings, self._give_channels)
            self._poller.register(supervisor.control.fileno())
        except BaseException:
            with self._shared.lock:
                self.current = None
                self._main.forget()
            supervisor.close()
            raise
        with self._shared.lock:
            # A caller may have asked meanwhile that the workers end.
            self._dispatcher.release_unless_asked()

    def _give_channels(self, control: descriptors.Socket) -> None:
        # Write this word before the supervisor gets the board: then the pool writes it.
        pid = self.current and self.current.pid
        self._channels.board.words[sb.MAIN] = pid or 0
        faults.at("client.gives_channels", pid, control)
        self._channels.give_to(control)

    def is_ready(self, main: int) -> None:
        """Note that the supervisor is ready. ``main`` is the process that runs the pool."""
        self.restarts.succeeded()
        with self._shared.lock:
            self._is_ready = True
            watched = self.watchdog.watch(main)
        if watched is not None:
            self._poller.register(watched)

    def start_next(self) -> None:
        """Start a supervisor in place of the one that has ended. Raises what :meth:`start` raises,
        and OSError if there are no descriptors for new channels."""
        if self.is_cut:
            self._renew_channels()
        self.start()

    # --- commands to the supervisor, with the lock held -----------------------------------

    def tell(self, kind: int, number: int = 0, extra: int = 0) -> None:
        """Send a command, if there is a supervisor."""
        if self.current is not None:
            self.current.tell(kind, number, extra)

    def tell_to_end_worker(self, pid: int, number: int) -> bool:
        """Tell it to end this worker by this signal. Returns False if there is no supervisor."""
        if self.current is None:
            return False
        self.current.tell(Kind.END_WORKER, pid, number)
        return True

    def tell_to_end_workers(self, number: int, end: int) -> None:
        """Tell it to end all workers by this signal. It answers with the number ``end``."""
        if self.current is not None and self._is_ready:
            self.current.tell(Kind.END_WORKERS, number, end)
            self.watchdog.expect_sign()
        elif self.current is not None:
            # There are no workers yet, and what it preloads may take for ever.
            self.make_it_kill()
            self.restarts.forgive()

    def tell_to_end_task(self, slot: Slot) -> None:
        """Tell it to end the task that this slot names."""
        if self.current is not None:
            self.current.tell_if_free(Kind.END_TASK, slot.task, slot.place)
            self.watchdog.expect_sign()

    def expect_sign(self) -> None:
        """Expect that the supervisor carries out the command that it was just sent."""
        self.watchdog.expect_sign()

    def make_it_kill(self) -> None:
        """Make the supervisor kill all workers and end."""
        if self.current is not None:
            self.current.make_it_kill()
            self.watchdog.expect_end()

    def end_when_done(self) -> None:
        """Make the supervisor shut down if the client is closing and no task is left."""
        lifecycle = self._shared.lifecycle
        if lifecycle.is_abandoned and lifecycle.phase is Phase.OPEN:
            lifecycle.after(Event.SHUTDOWN)
        if lifecycle.phase is Phase.CLOSING and self._shared.ledger.is_empty:
            lifecycle.after(Event.ALL_DONE)
            if self.current is not None:
                self.current.tell(Kind.SHUTDOWN)
                self.watchdog.expect_sign()

    # --- whether the supervisor reacts -----------------------------------------------------

    def look_after(self, ready: list[int]) -> None:
        """Kill the supervisor if it has not reacted in time. ``ready`` are the readable
        descriptors."""
        ended = self.watchdog.on_readable(ready)
        if ended is not None:
            self._poller.unregister(ended)
            descriptors.close_quietly([ended])
        if self.watchdog.is_overdue() and self.current is not None:
            logger.error("the supervisor did not react in %g s; killing it", REACT_WITHIN)
            self.current.kill()

    def on_cut(self) -> None:
        """End the supervisor, because a task has shut down a channel that it has inherited. The
        shutdown works for all processes, so running tasks can no longer report their outcomes, and
        they are ended. Another supervisor goes on with new channels."""
        if self.is_cut:
            return
        self.is_cut = True
        logger.error("a task has shut down the pool's channels; ending the running tasks")
        self._poller.unregister(self._channels.yells.fileno())
        self.restarts.forgive()
        with self._shared.lock:
            self._dispatcher.cut()
            if self.current is not None:
                self.current.make_it_kill()

    def _renew_channels(self) -> None:
        with self._shared.lock:
            self._channels.renew()
            self._poller.register(self._channels.yells.fileno(), shared=True)
            self._direct.watch_again()
            self.is_cut = False
            self._dispatcher.mend()

    # --- the end of one --------------------------------------------------------------------

    def see_off(self, supervisor: SupervisorHandle) -> str:
        """Wait until the workers of this supervisor, which has ended, are gone, and forget it.
        Returns how it ended, as a verb phrase."""
        self._poller.unregister(supervisor.control.fileno())
        if (watched := self.watchdog.watched) is not None:
            self._poller.unregister(watched)
        self.watchdog.close()
        pid, how = supervisor.pid, supervisor.wait()
        board = self._channels.board
        # If another process forks the workers, wait for that first: it might fork more.
        main = board.words[sb.MAIN]
        processes.wait_until_gone({main} - {0, pid}, board.descriptor, GONE_WITHIN)
        pids = [slot.pid for slot in board.read_all()]
        processes.wait_until_gone(pids, board.descriptor, GONE_WITHIN)
        board.words[sb.MAIN] = board.words[sb.SIGN] = 0
        count_the_left(board)
        with self._shared.lock:
            supervisor.close()
            self.current = None
        return how

    def close(self) -> None:
        """With the lock held: let go of the supervisor, if there is one."""
        if self.current is not None:
            self.current.close()
            self.current = None

    def disown(self) -> None:
        """Let go of it in a child that the caller forked."""
        if self.current is not None:
            self.current.disown()
