"""The I/O thread: it reads what comes upstream, resolves futures, sends what waits, and looks
after the supervisor.

One turn::

    read a batch of what has come         (`upstream.py`)
    do what callers have asked for        (`requests.py`)
    enter outcomes into the books; look at recoveries, batches and time limits; send
    tell the futures, without the lock    (`outcomes.py`)
    get ready what is to be sent next     (`preparing.py`)
    wait, if there was nothing more to read

It refers to the client's parts and not to the executor, so an executor that nobody refers
to any more can be collected; its finalizer closes the client.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._messages import wire
from .._messages.channels import PoolChannels
from .._server.settings import Settings
from .._support import faults
from .._support.named_tuples import NamedTuple
from .._system.descriptors import Poller
from .._system.green import GreenPoller
from .batches import Batches
from .books import Books
from .deaths import Deaths
from .direct import DirectReader
from .dispatch import Dispatcher, Failed
from .notices import Notices
from .outcomes import Outcome, fail_all, open_all, resolve_all, settle
from .ownership import Ownership
from .phases import Phase
from .preparing import Preparer
from .recovery import MISSING_INTERVAL, Recoveries
from .reloads import Reloads
from .requests import Requests
from .resource_tracking import Tracker
from .roster import Roster
from .supervisor_handle import SupervisorHandle
from .supervisors import Supervisors
from .upstream import Upstream, YellHooks
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .outcomes import End

logger = logging.getLogger("prefork_executor")

NEVER_ENOUGH = -1
"""Outcomes to be read: all there are."""
RECOVERY_INTERVAL = 0.005
"""Seconds between two looks of a recovery that waits for a worker to move."""


class ClientParts(NamedTuple):
    """What a client has before it starts, for its I/O thread."""

    context: Any
    settings: Settings
    books: Books
    direct: DirectReader
    main: WorkersMain
    reloads: Reloads
    roster: Roster
    yell_hooks: YellHooks
    stop: Callable[[str], None]
    """Called with a reason when the program ends the supervisor as one of its children."""
    break_off: Callable[[str, BaseException | None], None]
    """The pool cannot go on, for a reason, and because of what was raised, if anything was."""
    end: Callable[[], None]
    """All processes have ended."""


class IoLoop:
    """What runs in the I/O thread until the client has ended.

    Args:
        parts: the client's.
        channels: of the pool that starts now.
        poller: with which this thread waits.
        fence: for the dispatcher.
    """

    def __init__(
        self,
        parts: ClientParts,
        channels: PoolChannels,
        poller: Poller | GreenPoller,
        fence: Callable[[], object] | None,
    ) -> None:
        self._books = books = parts.books
        self._ledger = ledger = books.ledger
        self._lifecycle = books.lifecycle
        self._deadlines = books.deadlines
        self._channels = channels
        self._poller = poller
        self._direct = direct = parts.direct
        self._main = main = parts.main
        self._reloads = reloads = parts.reloads
        self._roster = parts.roster
        self._break_off = break_off = parts.break_off
        self._end = parts.end
        self._recoveries = recoveries = Recoveries(ledger, channels)
        self._batches = batches = Batches(ledger, recoveries, channels.board)
        self.dispatcher = dispatcher = Dispatcher(
            ledger, channels, books.deadlines, batches, channels.wake, fence
        )
        self._preparer = Preparer(books, channels, dispatcher, main)
        self.supervisors = supervisors = Supervisors(
            *(parts.context, parts.settings, books, channels, dispatcher, direct, main, poller),
            parts.stop,
        )
        self.requests = Requests(books, recoveries, channels, dispatcher, supervisors, break_off)
        self._deaths = deaths = Deaths(
            *(books, recoveries, dispatcher, reloads, parts.roster, supervisors),
            has_initializer=parts.settings.initializer is not None,
            break_off=break_off,
        )
        notices = Notices(
            *(books, recoveries, batches, deaths, dispatcher, main, reloads, supervisors), break_off
        )
        self._upstream = Upstream(books, channels, direct, parts.yell_hooks, notices, supervisors)
        self._ownership = Ownership()
        self._tracker: Tracker | None = None
        self._unresolved: list[End | None] = []

    def share_tracker(self, tracker: Tracker) -> None:
        """Start the resource tracker when workers need it."""
        self._tracker = tracker
        self._poller.register(tracker.descriptor)

    def run(self) -> None:
        """Until the client has ended."""
        self._direct.serve()
        with self._direct.reading:
            try:
                while self._lifecycle.phase is not Phase.ENDED:
                    self.turn()
            except BaseException as error:
                if self._lifecycle.is_copy:
                    return  # A done-callback has forked, and this thread is the fork's only one.
                # A bug of ours must not leave futures that nobody will ever resolve.
                logger.critical("the executor's I/O thread failed", exc_info=True)
                self._break_off(
                    "the executor's I/O thread failed; this is a bug in the pool", error
                )
                self._end()

    def turn(self) -> None:
        """Read a batch, resolve its futures, send what waits; wait if nothing came."""
        outcomes: list[Outcome] = []
        supervisors = self.supervisors
        # More than those in flight is not to be expected; what else has come wakes us at once.
        more = self._upstream.read_batch(outcomes, len(self._ledger.in_flight))
        while supervisors.current is None and self._upstream.read_batch(outcomes, NEVER_ENOUGH):
            pass  # Nobody is left who could say more.
        # After reading: the marker that has woken us for one may have been read just now.
        if self.requests.queue:
            with self._books.lock:
                self._books.history.note_backlog(self._ledger, self._channels.board)
            self.requests.do_all()
        self._resolve(outcomes)
        while self._preparer.get_ready():
            self._resolve(outcomes)
        self.dispatcher.close_sent()
        self._recoveries.close_unread()
        while self._recoveries.dropped:
            logger.error("what was no task was dropped: %s", self._recoveries.dropped.pop(0))
        if supervisors.current is None and self._lifecycle.is_to_end:
            self._end()
        elif not more:
            self._wait()

    # --- waiting ------------------------------------------------------------------------

    def _wait(self) -> None:
        patience = self._patience()
        self._direct.reading.release()
        try:
            ready = self._poller.wait(patience)
        finally:
            self._direct.reading.acquire()
        self._ownership.woke(is_early=bool(ready))
        if not ready:
            self._channels.files.drop_unused()
        if (tracker := self._tracker) is not None and tracker.descriptor in ready:
            self._poller.unregister(tracker.descriptor)
            tracker.start()
        supervisor = self.supervisors.current
        if supervisor is None:
            self._replace_supervisor()
        elif supervisor.control.fileno() in ready:
            self._on_supervisor_end(supervisor)
        else:
            self.supervisors.look_after(ready)

    def _patience(self) -> float | None:
        """Seconds after which there is something to do though nobody has said so."""
        supervisors = self.supervisors
        supervisor = supervisors.current
        watched = None if supervisor is None else supervisors.supervision.look_at
        due = (self._deadlines.look_at, self._batches.look_at, supervisors.restarts.at, watched)
        idle = (self._channels.files.drop_at, self._ownership.look_at)
        looks = [at for at in (*due, *idle) if at is not None]
        waits = [max(0.0, min(looks) - time.monotonic())] if looks else []
        has_unsent = supervisor is not None and supervisor.has_unsent
        if self._recoveries.is_at_work or self.dispatcher.is_to_try_again or has_unsent:
            waits.append(RECOVERY_INTERVAL)
        elif self._ledger.in_flight:
            waits.append(MISSING_INTERVAL)
        return min(waits, default=None)

    # --- outcomes -----------------------------------------------------------------------

    def _resolve(self, outcomes: list[Outcome]) -> None:
        failed: Failed = []
        ends: list[End | None] = []
        self._unresolved = ends
        try:
            with self._books.lock:
                self._settle(outcomes, ends)
                self._go_on(failed)
        finally:
            # Even if that fails, for these are in the books no more.
            resolve_all(ends)
            fail_all(failed)

    def _settle(self, outcomes: list[Outcome], ends: list[End | None]) -> None:
        """With the lock held: enter these outcomes into the books."""
        history = self._books.history
        # The backlog is at its largest just before it shrinks.
        history.note_backlog(self._ledger, self._channels.board)
        for done in outcomes:
            end = settle(self._ledger, done)
            ends.append(end)
            history.finished += end is not None and not done.is_death
        outcomes.clear()

    def _go_on(self, failed: Failed) -> None:
        """With the lock held: whatever can be done now."""
        if self._direct.was_interrupted:
            self._direct.forget_interruption()
            self._ledger.recount()
        if self.dispatcher.was_interrupted:
            self.dispatcher.forget_interruption()
            self._ledger.recount()
            self._recoveries.open()
        if (supervisor := self.supervisors.current) is not None:
            supervisor.flush()
        if self.dispatcher.is_cut and not self.supervisors.is_cut:
            self.supervisors.on_cut()
        if self._recoveries.is_at_work:
            self._recoveries.look()
        elif self._ledger.in_flight:
            self._recoveries.look_for_missing()
        if self._batches.look_at is not None:
            self._batches.look()
        if self._deadlines.look_at is not None:
            self._end_tasks()
        if self._ledger.waiting and self._lifecycle.broken is None:
            self.dispatcher.send_waiting(failed)
        self.dispatcher.report()
        self.supervisors.end_when_done()

    def _end_tasks(self) -> None:
        """With the lock held: have those workers ended whose tasks are to end."""
        ends = self._deadlines.due(self._ledger, self._read_board_in_order, self._recoveries.mark)
        for slot in ends:
            self.supervisors.tell_to_end_task(slot)

    def _read_board_in_order(self) -> list[Slot]:
        """What was written before what has been read so far is in this reading."""
        fences.everywhere(self._channels.board)
        return self._channels.board.read_all()

    # --- the supervisor's end -------------------------------------------------------------

    def _on_supervisor_end(self, supervisor: SupervisorHandle) -> None:
        supervisors = self.supervisors
        how = supervisors.see_off(supervisor)
        if self._lifecycle.is_to_end:
            return
        if self._channels.are_cut():
            supervisors.on_cut()
        self._settle_after_supervisor()
        self._reloads.end_all()
        # Closing, what was lost may have been the last; or the caller gave up.
        if self._lifecycle.is_to_end:
            return
        what, is_hopeless = supervisors.restarts.ended(
            how, self._books.history.finished, from_outside=supervisor.ended_from_outside
        )
        if is_hopeless:
            self._break_off(what, None)
        else:
            logger.error("%s", what)

    def _settle_after_supervisor(self) -> None:
        """No worker lives. What the slots name had begun; nothing else had."""
        outcomes: list[Outcome] = []
        board = self._channels.board
        while self._upstream.read_batch(outcomes, NEVER_ENOUGH):
            pass
        self._batches.forget()
        for slot in board.read_all():
            unsent = memoryview(board.unsent(slot.place))
            open_all(unsent, outcomes, self._ledger, self._books.recorder)
            if (recorder := self._books.recorder) is not None:
                recorder.died(_as_killed(slot), self._ledger.in_flight)
            if slot.state == sb.BUSY:
                is_cut = self.supervisors.is_cut
                why = "a task has shut down the pool's channels" if is_cut else ""
                self._deaths.lose(slot.task, outcomes, slot.pid, None, int(signal.SIGKILL), why)
            self._roster.ended(slot.pid, slot.born, -int(signal.SIGKILL))
            board.clear(slot.place)
        self.dispatcher.hold()
        self._resolve(outcomes)
        self._deaths.forget()
        with self._books.lock:
            self._recoveries.forget()
            self._recoveries.drain_pipe()
            self._ledger.requeue(list(self._ledger.in_flight))
            self._main.forget()
            for task in self._ledger.waiting:
                task.unbind()

    def _replace_supervisor(self) -> None:
        """If it is time, in the place of one that has ended."""
        restarts = self.supervisors.restarts
        if not restarts.is_due():
            return
        try:
            self.supervisors.start_next()
        except Exception as error:
            what = restarts.not_started(error)
            if what is None:
                self._break_off(f"no other supervisor could be started: {error}", error)
            else:
                logger.error("%s", what)  # noqa: TRY400 - where it failed says nothing
                self._reloads.end_all()  # Asked of one that has never been.
        faults.at("client.replaced_supervisor")
        with self._books.lock:
            self.dispatcher.report()

    # --- the end ------------------------------------------------------------------------

    def forget_recoveries(self) -> None:
        """With the lock held: all tasks have been given up."""
        self._recoveries.forget()

    def close_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def disown(self) -> None:
        """In a child that the caller forked."""
        self._unresolved.clear()  # A done-callback may have forked. The others are not for here.
        if self._tracker is not None:
            self._tracker.disown()


def _as_killed(slot: Slot) -> wire.Death:
    """The death that nobody tells of a worker whose supervisor has died."""
    status = int(signal.SIGKILL)
    slot_words = (slot.place, slot.state, slot.task, slot.done, 0, slot.tail)
    return wire.Death(slot.pid, status, *slot_words, slot.born, slot.since, time.monotonic_ns())
