"""Sends tasks, as far ahead as the window and the pipe allow.

If a task is the next and there is room, the thread that submits it also sends it. Otherwise the I/O
thread sends it later, as outcomes come in. No thread waits for room, and the client need not watch
for the pipe to become writable: only tasks in flight fill the pipe, so an outcome will come. All of
this happens with the client's lock held. So nothing is pickled and nothing big is copied here; that
was done before, without the lock.
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
from .outcomes import EndedForMemory, begin, is_about_the_task
from .task_states import TO_FAIL, WAITING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gate import Gate

Failed = list[tuple[Task, BaseException]]
"""Tasks that are not sent, with the errors that their futures get when the lock is free."""


class Dispatcher:
    """Sends tasks from the books into the pipe.

    Args:
        ledger, channels, deadlines, batches: the client's.
        wake: wakes the I/O thread.
        fence: makes what was written to the board visible before the next access; None: the
            supervisor makes the fences for both sides.
        gate: decides which tasks may begin; None: each task needs only a worker.
    """

    def __init__(
        self,
        ledger: Ledger,
        channels: PoolChannels,
        deadlines: Deadlines,
        batches: Batches,
        wake: Callable[[], None],
        fence: Callable[[], object] | None,
        gate: Gate | None,
    ) -> None:
        self._ledger = ledger
        self._channels = channels
        self._deadlines = deadlines
        self._batches = batches
        self._wake = wake
        self._fence = fence
        self.gate = gate
        self.ready: set[int] = set()
        """The process ids of the workers that have said that they are ready."""
        self.is_held = False
        """Whether nothing may be sent, because workers are about to be ended."""
        self.was_interrupted = False
        """Whether a signal handler has raised while a task was being sent. Then it is not known
        whether the task is in the pipe, as after a death in TAKING."""
        self.is_cut = False
        """Whether the pipe was found to be shut down. Then nothing more is sent."""
        self._tries_again = False
        self._sent: list[Parcel] = []
        self._last_end = self._last_end_told = 0

    def report(self) -> None:
        """Write the number of unfinished tasks on the board, and ring if that is more than the
        supervisor has said are enough for the present workers. While workers lack, the supervisor
        looks again without being rung."""
        outstanding = self._ledger.outstanding
        words = self._channels.board.words
        if self.gate is not None:
            # The supervisor must not start workers for tasks that are held back.
            held = words[sb.HELD] = self.gate.held()
            outstanding -= held
        words[sb.OUTSTANDING] = outstanding
        if self._fence is not None:
            self._fence()
        if outstanding > words[sb.ENOUGH]:
            self._channels.doorbell.ring()

    # --- whether anything may be sent --------------------------------------------------------

    def hold(self) -> None:
        """Send nothing until there is another supervisor."""
        self.is_held = True

    def hold_for_end(self) -> int:
        """Send nothing until the supervisor has told all present workers to end. Returns the
        number of this command."""
        self.is_held = True
        self._last_end += 1
        return self._last_end

    def end_is_told(self, end: int) -> None:
        """Note that the supervisor, if there is one, has been sent the command with this number."""
        self._last_end_told = end

    def outlive(self, tasks: list[Task]) -> None:
        """Note that these tasks are no longer in the books, although workers that are being ended
        may still run them."""
        if self.gate is not None:
            self.gate.outlive(tasks)

    def release(self, end: int) -> None:
        """Send tasks again: the supervisor has carried out the command with this number."""
        if end == self._last_end:
            self.is_held = False

    def release_unless_asked(self) -> None:
        """Send tasks again, under a new supervisor, unless a command to end workers must still be
        sent to it."""
        self.is_held = self._last_end != self._last_end_told

    def cut(self) -> None:
        """Send nothing, because the pipe was shut down."""
        self.is_cut = True

    def mend(self) -> None:
        """Send tasks again: there is another pipe."""
        self.is_cut = False

    def forget_interruption(self) -> None:
        """Note that the I/O thread has dealt with the interrupted send."""
        self.was_interrupted = False

    # --- sending -----------------------------------------------------------------------------

    def has_room(self) -> bool:
        return not self.is_held and not self.is_cut and self._ledger.has_room(len(self.ready))

    def is_to_send_now(self) -> bool:
        """Whether a task that is submitted now should be sent at once. If enough tasks for every
        worker are in flight, one of their outcomes will come soon. Then the I/O thread sends
        several tasks together, which costs less."""
        enough = AHEAD * max(1, len(self.ready)) + 1
        ledger = self._ledger
        return not ledger.waiting and len(ledger.in_flight) < enough and self.has_room()

    @property
    def is_to_try_again(self) -> bool:
        """Whether the I/O thread must try to send again although no message will wake it."""
        return self._tries_again and bool(self._ledger.waiting)

    def send_waiting(self, failed: Failed) -> None:
        """Send as many waiting tasks as there is room for."""
        ledger, gate = self._ledger, self.gate
        while ledger.waiting and self.has_room():
            task = ledger.waiting[0]
            if task.state is not WAITING:
                if isinstance(task.verdict, EndedForMemory) and task.state is TO_FAIL:
                    ledger.reprieve(task)  # It had not begun, so it took no memory.
                    continue
                if task.state is TO_FAIL and task.verdict is not None:
                    failed.append((task, task.verdict))
                ledger.dequeue()
                continue
            if gate is not None:
                if not gate.lets_first(or_another=True):
                    return
                if ledger.waiting[0] is not task:
                    continue
            if not self.is_ready(task):
                if task.future.cancelled() and not begin(task):
                    ledger.dequeue()
                    continue
                return  # The I/O thread makes it ready first: see next_to_prepare.
            may_batch = gate is None or gate.may_travel_with_others(task)
            limit = self._fair_share() if may_batch else 1
            if limit > 1 and batches.batchable_body(task) is not None:
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
        """Whether it can be sent without pickling or copying."""
        return task.parts is not None and (not task.bulk or task.parcel is not None)

    def next_to_prepare(self) -> list[Task]:
        """The next tasks, if the first must be made ready (pickled, or copied into its shared
        file) and there is room for it. The I/O thread does that without the lock."""
        waiting = self._ledger.waiting
        if not waiting or self.is_ready(waiting[0]) or not self.has_room():
            return []
        if waiting[0].state is not WAITING:
            return []
        gate = self.gate
        if gate is not None and (not gate.lets_first(or_another=True) or self.is_ready(waiting[0])):
            return []
        return list(itertools.islice(waiting, batches.MAX_TASKS))

    def _fair_share(self) -> int:
        """How many of the waiting tasks one worker may get in one message."""
        return min(batches.MAX_TASKS, self._ledger.backlog // max(1, len(self.ready)))

    def _send_batch(self, limit: int) -> bool:
        """Send the next waiting tasks in one message, as many as may share it. Returns False if
        the pipe is full."""
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
            # The pipe is full, or the system has no memory for the message now.
            ledger.requeue(range(first, last + 1))
            self._on_full_pipe(error)
            return False
        self._tries_again = False
        self._batches.sent(last)
        if self.gate is not None:
            # The I/O thread itself runs this, so it need not be woken.
            self.gate.sent(batch[0])
        for task in batch:
            if task.options.timeout is not None:
                self._deadlines.watch(task.options.timeout)
        return True

    def _gather(self, limit: int) -> tuple[list[Task], list[bytes]]:
        """The tasks for one message, and their pickled calls. Their futures run, and the tasks are
        in flight."""
        ledger, gate, span = self._ledger, self.gate, 0
        batch: list[Task] = []
        bodies: list[bytes] = []
        while ledger.waiting and len(batch) < limit and span < batches.MAX_SPAN_NS:
            task = ledger.waiting[0]
            body = batches.batchable_body(task)
            if task.state is not WAITING or body is None:
                break
            if gate is not None and not gate.may_travel_with_others(task):
                break
            if not begin(task):
                ledger.dequeue()
                continue
            ledger.number(task)
            ledger.send_next(task)
            batch.append(task)
            bodies.append(body)
            span += task.timing.mean
        return batch, bodies

    def _batch_meta(self, batch: list[Task]) -> tuple[int, list[int]]:
        """What travels beside these calls (`_messages.wire.pack_call_meta`), and the indices of
        their names, if these differ. The wait of at most one of these tasks is measured."""
        names = [task.timing.index or self._enter_name(task) for task in batch]
        submitted = max([task.submitted for task in batch])
        if names.count(names[0]) == len(names):
            return wire.pack_call_meta(names[0], submitted), []
        return wire.pack_call_meta(0, submitted), names

    def _enter_name(self, task: Task) -> int:
        timing = task.timing
        timing.enter(self._channels.board.enter_name(timing.name))
        return timing.index

    def send(self, task: Task, failed: Failed) -> bool:
        """Send the first waiting task, which is ready and has its number. Returns False if the
        pipe is full."""
        ledger = self._ledger
        try:
            # Enter it into the books before it is sent: its outcome may come at once.
            ledger.send_next(task)
            meta = task.timing.index or self._enter_name(task)
            if task.submitted:
                meta = wire.pack_call_meta(meta, task.submitted)
            if faults.points:
                faults.at("client.sends_task")
            held = b"" if self.gate is None else self.gate.units_of(task)
            if task.parcel is not None:
                self._send_parcel(task, task.parcel, meta, held)
            elif task.parts is not None:
                tasks = self._channels.tasks
                channels.send(tasks, Kind.CALL, task.number, meta, task.parts, DONTWAIT, held=held)
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
        if self.gate is not None and self.gate.sent(task):
            self._wake()
        return True

    def _send_parcel(self, task: Task, parcel: Parcel, meta: int, held: bytes) -> None:
        parcel.send(self._channels.tasks, Kind.CALL, task.number, meta, DONTWAIT, held)
        self._sent.append(parcel)
        task.unwrap()

    def close_sent(self) -> None:
        """Close the shared files that have been sent. Call this without the client's lock: if the
        worker has closed its copy already, closing this one frees the memory, which takes long."""
        while self._sent:
            with contextlib.suppress(IndexError):  # Another thread may do the same.
                self._sent.pop().close()

    def _on_interrupted_send(self, task: Task) -> None:
        # The I/O thread does the rest, because no signal handler interrupts it.
        self.was_interrupted = True
        self._ledger.complete_send(task)

    def _on_full_pipe(self, error: OSError) -> None:
        """Plan what comes after a send that has failed with this error. If tasks are in flight,
        they fill the pipe, and their outcomes make the client try again. If none is in flight, the
        limit is that on descriptors in transit, which all pools of one user share. Then the I/O
        thread tries again after a pause. If the pipe was shut down, the I/O thread deals with
        that."""
        if isinstance(error, ConnectionError):
            self.is_cut = True
            self._wake()
        elif not self._ledger.in_flight and not self._tries_again:
            self._tries_again = True
            self._wake()
