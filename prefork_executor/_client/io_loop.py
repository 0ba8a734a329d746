"""The I/O thread: it reads what comes upstream, resolves futures, sends waiting tasks, and looks
after the supervisor.

One turn::

    read a batch of messages                 (`upstream.py`)
    measure memory, if there is a bound      (`memory_watch.py`)
    carry out what callers have asked for    (`requests.py`)
    enter outcomes into the books; look at recoveries, batches, memory and time limits; send
    resolve futures, without the lock        (`outcomes.py`)
    prepare the next tasks                   (`preparing.py`)
    wait, if there was nothing more to read

The thread refers to the client's parts and not to the executor. So an executor to which nothing
else refers can be garbage-collected. Its finalizer closes the client.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._messages import wire
from .._messages.channels import PoolChannels
from .._messages.wire import Kind
from .._server.settings import Settings
from .._support import faults
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from .._support.timers import seconds_left
from .._system.descriptors import Poller
from .._system.green import GreenPoller
from .backpressure import Backpressure
from .barriers import Barriers
from .batches import Batches
from .deaths import Deaths
from .dependents import Dependents
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
from .shared_state import SharedState
from .supervisor_handle import SupervisorHandle
from .supervisors import Supervisors
from .upstream import Upstream, YellHooks
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._support.timers import Timed
    from .gate import Gate
    from .memory_watch import MemoryWatch
    from .outcomes import End


NEVER_ENOUGH = -1
"""As a number of outcomes to read: all that have come."""
RECOVERY_INTERVAL = 0.005
"""Seconds between two looks at a recovery that waits until workers have left TAKING."""


class ClientParts(NamedTuple):
    """What a client has made before it starts, for its I/O thread."""

    context: Any
    settings: Settings
    shared: SharedState
    direct: DirectReader
    main: WorkersMain
    reloads: Reloads
    backpressure: Backpressure | None
    dependents: Dependents
    roster: Roster
    yell_hooks: YellHooks
    stop: Callable[[str], None]
    """Called with a reason when the program ends the supervisor as one of its children."""
    break_off: Callable[[str, BaseException | None], None]
    """Called with a reason, and an exception or None, if the pool cannot go on."""
    end: Callable[[], None]
    """Called when all processes have ended."""


class IoLoop:
    """The loop that the I/O thread runs until the client has ended.

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
        self._shared = shared = parts.shared
        self._ledger = ledger = shared.ledger
        self._lifecycle = shared.lifecycle
        self._deadlines = shared.deadlines
        self._channels = channels
        self._poller = poller
        self._direct = direct = parts.direct
        self._main = main = parts.main
        self._reloads = reloads = parts.reloads
        self._roster = parts.roster
        self._backpressure = parts.backpressure
        self._dependents = parts.dependents
        self._break_off = break_off = parts.break_off
        self._end = parts.end
        self._barriers = barriers = Barriers(channels)
        self._recoveries = recoveries = Recoveries(ledger, channels, barriers)
        self._batches = batches = Batches(ledger, recoveries, barriers, channels.board)
        self._memory = memory = _watch_for(parts, channels)
        gate = _gate_for(parts, channels, memory)
        self.dispatcher = dispatcher = Dispatcher(
            ledger, channels, shared.deadlines, batches, channels.wake, fence, gate
        )
        self._preparer = Preparer(shared, channels, dispatcher, main)
        self.supervisors = supervisors = Supervisors(
            *(parts.context, parts.settings, shared, channels, dispatcher, direct, main, poller),
            parts.stop,
        )
        self.requests = Requests(shared, recoveries, channels, dispatcher, supervisors, break_off)
        self._deaths = deaths = Deaths(
            *(shared, recoveries, dispatcher, reloads, parts.roster, supervisors),
            has_initializer=parts.settings.initializer is not None,
            break_off=break_off,
        )
        notices = Notices(
            *(shared, recoveries, barriers, deaths, dispatcher, main, reloads, supervisors),
            break_off,
        )
        self._upstream = Upstream(shared, channels, direct, parts.yell_hooks, notices, supervisors)
        self._ownership = Ownership()
        self._timers: tuple[Timed, ...] = (
            *(shared.deadlines.timer, batches.timer, self._ownership.timer, channels.files),
            *(supervisors.restarts.timer, supervisors.watchdog_timer, self._dependents.timer),
            *(() if memory is None else (memory.timer,)),
        )
        self._tracker: Tracker | None = None
        self._unresolved: list[End | None] = []

    def share_tracker(self, tracker: Tracker) -> None:
        """Start the resource tracker when workers need it."""
        self._tracker = tracker
        self._poller.register(tracker.descriptor)

    def run(self) -> None:
        """Run turns until the client has ended."""
        self._direct.serve()
        with self._direct.reading:
            try:
                while self._lifecycle.phase is not Phase.ENDED:
                    self.turn()
            except BaseException as error:
                if self._lifecycle.is_copy:
                    return  # A done-callback has forked, and this is the only thread of the child.
                # Whatever has happened, every future must be resolved.
                try:
                    logger.critical("the executor's I/O thread failed", exc_info=True)
                finally:
                    self._break_off(_why_it_failed(error), error)
                    self._end()

    def turn(self) -> None:
        """Read a batch, resolve its futures, and send waiting tasks. Wait if there is nothing more
        to read."""
        outcomes: list[Outcome] = []
        supervisors = self.supervisors
        # There are hardly more outcomes than tasks in flight. If more has come, the wait below
        # ends at once.
        more = self._upstream.read_batch(outcomes, len(self._ledger.in_flight))
        if self._memory is not None:
            self._memory.measure(has_news=bool(outcomes))
        while supervisors.current is None and self._upstream.read_batch(outcomes, NEVER_ENOUGH):
            pass  # No process is left that could send more.
        # Look after reading: the marker that wakes this thread for a request may have been read.
        if self.requests.queue:
            with self._shared.lock:
                self._shared.history.note_backlog(self._ledger, self._channels.board)
            self.requests.do_all()
        self._dependents.go_on()
        self._resolve(outcomes)
        while self._preparer.get_ready():
            self._resolve(outcomes)
        self.dispatcher.close_sent()
        if self._memory is not None:
            self._memory.log()
        self._recoveries.close_unread()
        while self._recoveries.dropped:
            what = self._recoveries.dropped.pop(0)
            logger.error("a message that is not a task was dropped: %s", what)
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
        """Seconds until there is something to do even if no message comes; None: never."""
        left = seconds_left(self._timers)
        supervisor = self.supervisors.current
        has_unsent = supervisor is not None and supervisor.has_unsent
        if self._recoveries.is_at_work or self.dispatcher.is_to_try_again or has_unsent:
            most = RECOVERY_INTERVAL
        elif self._ledger.in_flight:
            most = MISSING_INTERVAL
        else:
            return left
        return most if left is None else min(left, most)

    # --- outcomes -----------------------------------------------------------------------

    def _resolve(self, outcomes: list[Outcome]) -> None:
        failed: Failed = []
        ends: list[End | None] = []
        self._unresolved = ends
        try:
            with self._shared.lock:
                self._settle(outcomes, ends)
                self._go_on(failed)
        finally:
            # Even if that fails, because these tasks are no longer in the books.
            resolve_all(ends)
            fail_all(failed)

    def _settle(self, outcomes: list[Outcome], ends: list[End | None]) -> None:
        """With the lock held: enter these outcomes into the books."""
        history = self._shared.history
        # The backlog is at its largest just before it shrinks.
        history.note_backlog(self._ledger, self._channels.board)
        finished = 0
        for done in outcomes:
            end = settle(self._ledger, done)
            ends.append(end)
            finished += end is not None and not done.is_death
        history.count_finished(finished)
        outcomes.clear()

    def _go_on(self, failed: Failed) -> None:
        """With the lock held: do all that can be done now."""
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
        if self._batches.timer.is_set:
            self._batches.look()
        if self._memory is not None:
            self._look_at_memory(self._memory)
        if self._deadlines.timer.is_set:
            self._end_tasks()
        if self._ledger.waiting and self._lifecycle.broken is None:
            self.dispatcher.send_waiting(failed)
        self.dispatcher.report()
        if self._backpressure is not None:
            self._backpressure.ring_for_room(len(self.dispatcher.ready))
        self.supervisors.end_when_done()

    def _look_at_memory(self, watch: MemoryWatch) -> None:
        """With the lock held: if memory was measured, do what its rules say."""
        actions = watch.look()
        for pid in actions.leave:
            self.supervisors.tell(Kind.RETIRE_WORKER, pid)
        if actions.drain:
            self._recoveries.drain_pipe()
        if actions.ring:
            self._channels.doorbell.ring()

    def _end_tasks(self) -> None:
        """With the lock held: tell the supervisor which tasks it must end now."""
        ends = self._deadlines.due(self._ledger, self._read_board_in_order, self._barriers.send)
        for slot in ends:
            self.supervisors.tell_to_end_task(slot)

    def _read_board_in_order(self) -> list[Slot]:
        """Read the board. The reading has all that other processes wrote before they sent what
        this thread has read."""
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
        # If the client is closing, the lost tasks may have been the last.
        if self._lifecycle.is_to_end:
            return
        what, is_hopeless = supervisors.restarts.ended(
            how, self._shared.history.finished, from_outside=supervisor.ended_from_outside
        )
        if is_hopeless:
            self._break_off(what, None)
        else:
            logger.error("%s", what)

    def _settle_after_supervisor(self) -> None:
        """Settle all tasks after the supervisor and its workers have ended. The tasks that the
        slots name had begun, and no others."""
        outcomes: list[Outcome] = []
        board = self._channels.board
        while self._upstream.read_batch(outcomes, NEVER_ENOUGH):
            pass
        self._batches.forget()
        for slot in board.read_all():
            unsent = memoryview(board.unsent(slot.place))
            open_all(unsent, outcomes, self._ledger, self._shared.recorder)
            if (recorder := self._shared.recorder) is not None:
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
        with self._shared.lock:
            self._recoveries.forget()
            self._recoveries.drain_pipe()
            self._ledger.requeue(list(self._ledger.in_flight))
            self._main.forget()
            for task in self._ledger.waiting:
                task.unbind()

    def _replace_supervisor(self) -> None:
        """Start another supervisor in place of the one that has ended, if it is time."""
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
                logger.error("%s", what)
                self._reloads.end_all()  # A supervisor that never ran was asked for them.
        faults.at("client.replaced_supervisor")
        with self._shared.lock:
            self.dispatcher.report()

    # --- the end ------------------------------------------------------------------------

    def forget_recoveries(self) -> None:
        """With the lock held: forget all recoveries, because all tasks have been given up."""
        self._recoveries.forget()

    def close_tracker(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def disown(self) -> None:
        """Let go of all this in a child that the caller forked."""
        # A done-callback may have forked. The parent runs the other callbacks.
        self._unresolved.clear()
        self._dependents.disown()
        if self._tracker is not None:
            self._tracker.disown()


def _gate_for(
    parts: ClientParts, channels: PoolChannels, memory: MemoryWatch | None
) -> Gate | None:
    totals = parts.settings.resources
    if memory is None and not totals:
        return None
    from .gate import Gate  # Most pools have no bound and no resources.
    from .resources import Resources

    resources = Resources(totals, parts.shared.ledger) if totals else None
    return Gate(channels.board, None if memory is None else memory.gate, resources)


def _watch_for(parts: ClientParts, channels: PoolChannels) -> MemoryWatch | None:
    bound = parts.settings.max_memory
    if bound is None:
        return None
    from .memory_watch import MemoryWatch  # Most pools have no bound.

    shared = parts.shared
    watch = MemoryWatch(shared.ledger, shared.deadlines, channels.board, bound, shared.decided)
    shared.bound_memory(watch)
    return watch


def _as_killed(slot: Slot) -> wire.Death:
    """The death notice of a worker whose supervisor has died, and so cannot send one."""
    status = int(signal.SIGKILL)
    slot_words = (slot.place, slot.state, slot.task, slot.done, 0, slot.tail)
    return wire.Death(slot.pid, status, *slot_words, slot.born, slot.since, time.monotonic_ns())


def _why_it_failed(error: BaseException) -> str:
    """What the futures' errors say after the I/O thread has raised this."""
    what = f"the executor's I/O thread failed: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError | OSError):
        return f"{what}; the system has refused what the pool needs, so the pool has ended"
    return (
        f"{what}; unless other code has raised this in that thread, it is a bug in the pool: "
        "please report it with the traceback in the log"
    )
