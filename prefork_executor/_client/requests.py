"""What callers ask for and the I/O thread does.

The I/O thread does it because no signal handler interrupts that thread.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from .._messages.channels import PoolChannels
from ..errors import TaskAborted
from .dispatch import Dispatcher
from .futures import TaskFuture
from .ledger import Task
from .outcomes import fail_all
from .recovery import Recoveries
from .shared_state import SharedState
from .supervisors import Supervisors


class Requests:
    """The requests that the I/O thread has not carried out yet.

    Callers make a request with the client's lock held. The I/O thread carries out the requests in
    the order in which they were made.

    Args:
        shared, recoveries, channels, dispatcher, supervisors: the client's.
        break_off: called with a reason, and an exception or None, if the pool cannot go on.
    """

    def __init__(
        self,
        shared: SharedState,
        recoveries: Recoveries,
        channels: PoolChannels,
        dispatcher: Dispatcher,
        supervisors: Supervisors,
        break_off: Callable[[str, BaseException | None], None],
    ) -> None:
        self.queue: collections.deque[Callable[[], None]] = collections.deque()
        self._shared = shared
        self._ledger = shared.ledger
        self._recoveries = recoveries
        self._channels = channels
        self._dispatcher = dispatcher
        self._supervisors = supervisors
        self._break_off = break_off

    # --- in a caller's thread, with the lock held -------------------------------------------

    def cancel_waiting(self) -> None:
        """Cancel all tasks that have never been sent."""
        self._ask(self._cancel_waiting)

    def abort(self, task: Task) -> None:
        """End this task, whether it waits, is in the pipe, or runs."""
        self._ask(functools.partial(self._abort, task))

    def end_workers(self, number: int, reason: str) -> None:
        """End all present workers by the signal ``number``, and give up all present tasks.
        ``reason`` is for their futures."""
        doomed = [*self._ledger.in_flight.values(), *self._ledger.waiting]
        # Otherwise a worker that is about to end could take a task that is submitted next.
        end = self._dispatcher.hold_for_end()
        self._ask(functools.partial(self._end_workers, doomed, number, reason, end))

    def end_worker(self, pid: int, number: int) -> None:
        """Tell the supervisor to end the worker ``pid`` by the signal ``number``."""
        if self._supervisors.tell_to_end_worker(pid, number):
            self._ask(self._supervisors.expect_sign)

    def reorder(self) -> None:
        """Take back the tasks that no worker has taken, because a waiting task should begin before
        them."""
        if self._reorder not in self.queue:
            self._ask(self._reorder)

    def stop(self, reason: str) -> None:
        """Break the pool for this reason."""
        self._dispatcher.hold()
        self._ask(functools.partial(self._break_off, reason, None))

    def _ask(self, request: Callable[[], None]) -> None:
        self.queue.append(request)
        self._channels.wake()

    # --- in the I/O thread -----------------------------------------------------------------

    def do_all(self) -> None:
        """Carry out all requests."""
        while self.queue:
            self.queue.popleft()()

    def _cancel_waiting(self) -> None:
        with self._shared.lock:
            awaiting = self._ledger.take_awaiting()
            cancelled = self._ledger.take_unsent()
            self._dispatcher.report()
        _cancel_all([task.future for task in cancelled])
        _cancel_all([call.future for call in awaiting])

    def _reorder(self) -> None:
        with self._shared.lock:
            # The tasks that no worker has taken wait again, in their order.
            self._recoveries.drain_pipe()

    def _abort(self, task: Task) -> None:
        with self._shared.lock:
            verdict = TaskAborted(task.name)
            if self._ledger.in_flight.get(task.number) is task:
                self._recoveries.drain_pipe()
            is_dropped = False
            if self._ledger.in_flight.get(task.number) is task:
                self._ledger.condemn(task, verdict)
                self._shared.deadlines.look_now()
            elif is_dropped := self._ledger.drop(task, verdict):
                self._dispatcher.report()
        if is_dropped:
            fail_all([(task, verdict)])

    def _end_workers(self, doomed: list[Task], number: int, reason: str, end: int) -> None:
        with self._shared.lock:
            self._recoveries.drain_pipe()
            gone = self._ledger.discard(doomed)
            self._dispatcher.outlive(gone)
            if self._shared.recorder is not None:
                self._shared.recorder.gave_up(gone, self._channels.board.read_all())
            self._recoveries.forget()
            # If the client is closing, tell the supervisor to shut down before it ends the
            # workers, so that it forks no others in their place.
            self._supervisors.end_when_done()
            self._supervisors.tell_to_end_workers(number, end)
            self._dispatcher.end_is_told(end)
            self._dispatcher.report()
        _cancel_all([task.future for task in gone if not task.number])
        fail_all([(task, BrokenProcessPool(reason)) for task in gone if task.number])


def _cancel_all(futures: list[TaskFuture]) -> None:
    for future in futures:
        if future.cancel():
            future.set_running_or_notify_cancel()
