"""What callers ask for and the I/O thread does, because no signal handler can come in there."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from .._messages.channels import PoolChannels
from ..errors import TaskAborted
from .books import Books
from .dispatch import Dispatcher
from .ledger import Task
from .outcomes import fail_all
from .recovery import Recoveries
from .supervisors import Supervisors


class Requests:
    """Asked for with the client's lock held; done in order.

    Args:
        books, recoveries, channels, dispatcher, supervisors: the client's.
        break_off: called with a reason, and what was raised, if the pool cannot go on.
    """

    def __init__(
        self,
        books: Books,
        recoveries: Recoveries,
        channels: PoolChannels,
        dispatcher: Dispatcher,
        supervisors: Supervisors,
        break_off: Callable[[str, BaseException | None], None],
    ) -> None:
        self.queue: collections.deque[Callable[[], None]] = collections.deque()
        self._books = books
        self._ledger = books.ledger
        self._recoveries = recoveries
        self._channels = channels
        self._dispatcher = dispatcher
        self._supervisors = supervisors
        self._break_off = break_off

    # --- in a caller's thread, with the lock held -------------------------------------------

    def cancel_waiting(self) -> None:
        """All tasks that have not been sent."""
        self._ask(self._cancel_waiting)

    def abort(self, task: Task) -> None:
        """This one, wherever it is."""
        self._ask(functools.partial(self._abort, task))

    def end_workers(self, number: int, reason: str) -> None:
        """All there are now, by this signal, and with them all tasks there are now."""
        doomed = [*self._ledger.in_flight.values(), *self._ledger.waiting]
        # Or one of those that end now would take what is submitted next.
        end = self._dispatcher.hold_for_end()
        self._ask(functools.partial(self._end_workers, doomed, number, reason, end))

    def end_worker(self, pid: int, number: int) -> None:
        """This one, by this signal, as soon as the supervisor reads it."""
        if self._supervisors.tell_to_end_worker(pid, number):
            self._ask(self._supervisors.expect_sign)

    def stop(self, reason: str) -> None:
        """The whole pool."""
        self._dispatcher.hold()
        self._ask(functools.partial(self._break_off, reason, None))

    def _ask(self, request: Callable[[], None]) -> None:
        self.queue.append(request)
        self._channels.wake()

    # --- in the I/O thread -----------------------------------------------------------------

    def do_all(self) -> None:
        """Until there is none."""
        while self.queue:
            self.queue.popleft()()

    def _cancel_waiting(self) -> None:
        with self._books.lock:
            cancelled = self._ledger.take_unsent()
            self._dispatcher.report()
        _cancel_all(cancelled)

    def _abort(self, task: Task) -> None:
        with self._books.lock:
            verdict = TaskAborted(task.name)
            if self._ledger.in_flight.get(task.number) is task:
                self._recoveries.drain_pipe()
            is_dropped = False
            if self._ledger.in_flight.get(task.number) is task:
                self._ledger.condemn(task, verdict)
                self._books.deadlines.look_now()
            elif is_dropped := self._ledger.drop(task, verdict):
                self._dispatcher.report()
        if is_dropped:
            fail_all([(task, verdict)])

    def _end_workers(self, doomed: list[Task], number: int, reason: str, end: int) -> None:
        with self._books.lock:
            self._recoveries.drain_pipe()
            gone = self._ledger.discard(doomed)
            if self._books.recorder is not None:
                self._books.recorder.gave_up(gone, self._channels.board.read_all())
            self._recoveries.forget()
            # If it closes, nobody is forked for those that end.
            self._supervisors.end_when_done()
            self._supervisors.tell_to_end_workers(number, end)
            self._dispatcher.end_is_told(end)
            self._dispatcher.report()
        _cancel_all([task for task in gone if not task.number])
        fail_all([(task, BrokenProcessPool(reason)) for task in gone if task.number])


def _cancel_all(tasks: list[Task]) -> None:
    for task in tasks:
        if task.future.cancel():
            task.future.set_running_or_notify_cancel()
