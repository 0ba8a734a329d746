"""Sends tasks, as far ahead as the window and the pipe allow.

A task is sent in the thread that submits it, if it is the next and there is room; else
by the I/O thread, as outcomes come in. Nobody ever waits for room, and there is no need
to watch for the pipe to become writable: what fills it are tasks in flight, so an
outcome is bound to come. All of this happens with the client's lock held; so nothing is
pickled and nothing big is copied here, but beforehand, without the lock.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

from .._board import scoreboard as sb
from .._messages import channels, wire
from .._messages.channels import DONTWAIT, Parcel, PoolChannels
from .._messages.wire import Kind
from .._support import faults
from . import batches
from .batches import Batches
from .deadlines import Deadlines
from .ledger import AHEAD, Ledger, Task
from .outcomes import begin, is_about_the_task
from .task_states import TO_FAIL, WAITING

Failed = list[tuple[Task, BaseException]]
"""Tasks that cannot travel, with what their futures get once the lock is free."""


class Dispatcher:
    """Brings tasks from the books to the pipe.

    Args:
        ledger, channels, deadlines, batches: the client's.
        wake: makes the I/O thread look around.
        fence: makes what was written to the board visible before the next access; None: that
            is done elsewhere.
    """

    def __init__(
        self,
        ledger: Ledger,
        channels: PoolChannels,
        deadlines: Deadlines,
        batches: Batches,
        wake: Callable[[], None],
        fence: Callable[[], object] | None,
    ) -> None:
        self._ledger = ledger
        self._channels = channels
        self._deadlines = deadlines
        self._batches = batches
        self._wake = wake
        self._fence = fence
        self.ready: set[int] = set()
        """The workers that have said they take tasks."""
        self.is_held = False
        """Whether nothing may be sent, because workers are about to be ended."""
        self.was_interrupted = False
        """Whether a signal handler has raised while a task was being sent. Whether it
        has left is not known then, as after a death in TAKING."""
        self.is_cut = False
        """Whether the pipe was found to be shut down; nothing more is sent then."""
        self._tries_again = False
        self._sent: list[Parcel] = []
        self._last_end = self._last_end_told = 0

    def report(self) -> None:
        """Tell the supervisor how much there is, and ring if it is more than it
        sees workers for. It goes on looking by itself while they lack."""
        outstanding = self._ledger.outstanding
        words = self._channels.board.words
        words[sb.OUTSTANDING] = outstanding
        if self._fence is not None:
            self._fence()
        if outstanding > words[sb.ENOUGH]:
            self._channels.doorbell.ring()

    # --- whether anything may be sent --------------------------------------------------------

    def hold(self) -> None:
        """Send nothing before there is another supervisor."""
        self.is_held = True

    def hold_for_end(self) -> int:
        """Send nothing before all who are meant have been told to end. Returns the number of
        this end."""
        self.is_held = True
        self._last_end += 1
        return self._last_end

    def end_is_told(self, end: int) -> None:
        """The supervisor, if there is one, has been told of this end."""
        self._last_end_told = end

    def release(self, end: int) -> None:
        """All who are meant by this end have been told."""
        if end == self._last_end:
            self.is_held = False

    def release_unless_asked(self) -> None:
        """There is another supervisor: go on, unless it is still to be told of an end."""
        self.is_held = self._last_end != self._last_end_told

    def cut(self) -> None:
        """The pipe was shut down."""
        self.is_cut = True

    def mend(self) -> None:
        """There is another pipe."""
        self.is_cut = False

    def forget_interruption(self) -> None:
        """What was interrupted has been looked after."""
        self.was_interrupted = False

    # --- sending -----------------------------------------------------------------------------

    def has_room(self) -> bool:
        return not self.is_held and not self.is_cut and self._ledger.has_room(len(self.ready))

    def is_to_send_now(self) -> bool:
        """Whether a task that is submitted now had better be sent at once. If others
        are in flight, enough for every worker, one of their outcomes is soon to come,
        and then more can be sent at less cost."""
        enough = AHEAD * max(1, len(self.ready)) + 1
        ledger = self._ledger
        return not ledger.waiting and len(ledger.in_flight) < enough and self.has_room()

    @property
    def is_to_try_again(self) -> bool:
        """Whether the I/O thread has to try again though nobody will tell it to."""
        return self._tries_again and bool(self._ledger.waiting)

    def send_waiting(self, failed: Failed) -> None:
        """Send what may be sent."""
        ledger = self._ledger
        while ledger.waiting and self.has_room():
            task = ledger.waiting[0]
            if task.state is not WAITING:
                if task.state is TO_FAIL and task.verdict is not None:
                    failed.append((task, task.verdict))
                ledger.dequeue()
                continue
            if not self.is_ready(task):
                if task.future.cancelled() and not begin(task):
                    ledger.dequeue()
                    continue
                return  # Until it is, see next_to_prepare.
            if (limit := self._fair_share()) > 1 and batches.batchable_body(task) is not None:
                if not self._send_batch(limit):
                    return
                continue
            if not begin(task):
                ledger.dequeue()
                continue
            ledger.number(task)
            if not self.send(task, failed):
                return

    def is_ready(self, task: Task) -> bool:
        """Whether it can be sent without work that takes its time."""
        return task.parts is not None and (not task.bulk or task.parcel is not None)

    def next_to_prepare(self) -> list[Task]:
        """The tasks whose turn has come, if the first has to be made ready: pickled, or
        copied into its file. That is not done with the lock held, nor before there is room
        for it."""
        waiting = self._ledger.waiting
        if not waiting or self.is_ready(waiting[0]) or not self.has_room():
            return []
        if waiting[0].state is not WAITING:
            return []
        return list(itertools.islice(waiting, batches.MAX_TASKS))

    def _fair_share(self) -> int:
        """How many of the tasks that wait one worker may get in one message."""
        return min(batches.MAX_TASKS, self._ledger.backlog // max(1, len(self.ready)))

    def _send_batch(self, limit: int) -> bool:
        """Send the tasks that are the next to wait in one message, as far as they may
        share it. False: the pipe is full."""
        ledger = self._ledger
        batch, bodies = self._gather(limit)
        if not batch:
            return True
        first, last = batch[0].number, batch[-1].number
        meta, names = self._batch_meta(batch)
        try:
            if faults.points:
                faults.at("client.sends_batch", first, len(batch))
            self._channels.tasks.send(wire.pack_calls(first, bodies, meta, names), DONTWAIT)
        except OSError as error:
            # Full; or the system has no memory for it, which comes to the same.
            ledger.requeue(range(first, last + 1))
            self._on_full_pipe(error)
            return False
        self._tries_again = False
        self._batches.sent(last)
        for task in batch:
            if task.options.timeout is not None:
                self._deadlines.watch(task.options.timeout)
        return True

    def _gather(self, limit: int) -> tuple[list[Task], list[bytes]]:
        """Tasks for one message, told to run and in the books, and their calls."""
        ledger, span = self._ledger, 0
        batch: list[Task] = []
        bodies: list[bytes] = []
        while ledger.waiting and len(batch) < limit and span < batches.MAX_SPAN_NS:
            task = ledger.waiting[0]
            body = batches.batchable_body(task)
            if task.state is not WAITING or body is None:
                break
            if not begin(task):
                ledger.dequeue()
                continue
            ledger.number(task)
            ledger.send_next()
            batch.append(task)
            bodies.append(body)
            span += task.timing.mean
        return batch, bodies

    def _batch_meta(self, batch: list[Task]) -> tuple[int, list[int]]:
        """What is told beside these calls: see `_messages.wire.pack_call_meta`; and their
        names, if they have not all the same. The wait of one of them is measured at most."""
        names = [task.timing.index or self._enter_name(task) for task in batch]
        submitted = max([task.submitted for task in batch])
        if names.count(names[0]) == len(names):
            return wire.pack_call_meta(names[0], submitted), []
        return wire.pack_call_meta(0, submitted), names

    def _enter_name(self, task: Task) -> int:
        timing = task.timing
        timing.index = self._channels.board.enter_name(timing.name)
        return timing.index

    def send(self, task: Task, failed: Failed) -> bool:
        """Send the task that is the next to wait, ready and numbered. False: the pipe is
        full."""
        ledger = self._ledger
        try:
            # In the books before it is sent: its outcome may be there at once.
            ledger.send_next()
            meta = task.timing.index or self._enter_name(task)
            if task.submitted:
                meta = wire.pack_call_meta(meta, task.submitted)
            if faults.points:
                faults.at("client.sends_task")
            if task.parcel is not None:
                self._send_parcel(task, task.parcel, meta)
            elif task.parts is not None:
                tasks = self._channels.tasks
                channels.send(tasks, Kind.CALL, task.number, meta, task.parts, DONTWAIT)
            if faults.points:
                faults.at("client.sent_task")
        except (BlockingIOError, ConnectionError) as error:
            ledger.requeue([task.number])
            self._on_full_pipe(error)
            return False
        except BaseException as error:
            if not is_about_the_task(error):
                self._on_interrupted_send(task)
                raise
            ledger.settle(task.number)
            error.add_note(f"Task {task.name} could not be sent to a worker.")
            failed.append((task, error))
        self._tries_again = False
        if task.options.timeout is not None and self._deadlines.watch(task.options.timeout):
            self._wake()
        return True

    def _send_parcel(self, task: Task, parcel: Parcel, meta: int) -> None:
        parcel.send(self._channels.tasks, Kind.CALL, task.number, meta, DONTWAIT)
        self._sent.append(parcel)
        task.unwrap()

    def close_sent(self) -> None:
        """Close the parcels that have been sent. Without the client's lock: the worker may
        have been quicker, and to free hundreds of megabytes takes long."""
        while self._sent:
            with contextlib.suppress(IndexError):  # Another thread does the same.
                self._sent.pop().close()

    def _on_interrupted_send(self, task: Task) -> None:
        # The rest is left to the I/O thread, where no handler can raise again.
        self.was_interrupted = True
        self._ledger.complete_send(task)

    def _on_full_pipe(self, error: OSError) -> None:
        """What fills the pipe are tasks in flight, and their outcomes make us try
        again. With none in flight it is the limit on the descriptors under way,
        which all pools of one user share: then the I/O thread tries again by itself.
        If it is not full but was shut down, the I/O thread must see to that."""
        if isinstance(error, ConnectionError):
            self.is_cut = True
            self._wake()
        elif not self._ledger.in_flight and not self._tries_again:
            self._tries_again = True
            self._wake()
