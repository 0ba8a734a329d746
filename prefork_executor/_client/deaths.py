"""What the deaths of workers cost, and what is done about them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .._board import scoreboard as sb
from .._messages import wire
from .._messages.wire import Death, Kind
from .._support import faults
from .._system import processes
from ..errors import ReloadFailed, WorkerDied, describe_end
from .books import Books
from .dispatch import Dispatcher
from .outcomes import Outcome
from .recovery import Recoveries
from .reloads import Reloads
from .restarts import StartFailures
from .roster import Roster
from .supervisors import Supervisors

logger = logging.getLogger("prefork_executor")


class Deaths:
    """All in the I/O thread.

    Args:
        books, recoveries, dispatcher, reloads, roster, supervisors: the client's.
        has_initializer: whether the caller has given one.
        break_off: called with a reason, and what was raised, if the pool cannot go on.
    """

    def __init__(
        self,
        books: Books,
        recoveries: Recoveries,
        dispatcher: Dispatcher,
        reloads: Reloads,
        roster: Roster,
        supervisors: Supervisors,
        *,
        has_initializer: bool,
        break_off: Callable[[str, BaseException | None], None],
    ) -> None:
        self._books = books
        self._ledger = books.ledger
        self._recoveries = recoveries
        self._dispatcher = dispatcher
        self._reloads = reloads
        self._roster = roster
        self._supervisors = supervisors
        self._break_off = break_off
        self._start_failures = StartFailures(has_initializer)
        self._failures: dict[int, tuple[str, BaseException]] = {}

    def worker_is_ready(self, pid: int) -> None:
        self._dispatcher.ready.add(pid)
        self._start_failures.succeeded()

    def failed_to_start(self, pid: int, phrase: str, error: BaseException) -> None:
        """It has said why. What comes of it waits for the worker's death, which lets it log
        in peace."""
        self._failures[pid] = (phrase, error)

    def forget(self) -> None:
        """No worker lives."""
        self._dispatcher.ready.clear()
        self._failures.clear()

    def died(self, death: Death, outcomes: list[Outcome]) -> None:
        """The supervisor tells of this death. ``outcomes`` are not in the books yet."""
        self._dispatcher.ready.discard(death.pid)
        exitcode, signal = processes.split_status(death.status)
        self._roster.ended(death.pid, death.born, -(signal or 0) if exitcode is None else exitcode)
        failure = self._failures.pop(death.pid, None)
        if (recorder := self._books.recorder) is not None:
            recorder.died(death, self._ledger.in_flight)
        is_at_start = failure is not None or death.state == sb.STARTING
        if is_at_start and not death.flags & wire.TOLD:
            how = describe_end(exitcode, signal)
            self._died_at_start(death.pid, how, failure, bool(death.flags & wire.NEW))
        elif death.state == sb.BUSY:
            reason = "out of memory" if death.flags & wire.OUT_OF_MEMORY else ""
            self.lose(death.task, outcomes, death.pid, exitcode, signal, reason)
            self.requeue_unbegun(death.task + 1, death.tail)
        elif death.state == sb.TAKING:
            with self._books.lock:
                self._recoveries.open()
        elif death.state == sb.IDLE:
            # A message may have woken it, and nobody else, just before it died.
            with self._books.lock:
                self._recoveries.drain_pipe()

    def requeue_unbegun(self, number: int, count: int) -> None:
        """These have been taken by a worker and will not begin there."""
        numbers = range(number, number + min(count, wire.MAX_CALLS))
        with self._books.lock:
            # Most often they have been recalled before. Then the pipe is left alone: what a
            # worker took meanwhile would begin before what had been sent before that.
            if unbegun := [n for n in numbers if n in self._ledger.in_flight]:
                self._recoveries.drain_pipe(unbegun)
        faults.at("client.took_back")

    def lose(
        self,
        number: int,
        outcomes: list[Outcome],
        pid: int,
        exitcode: int | None,
        signal: int | None,
        reason: str = "",
    ) -> None:
        """This task has ended with its worker, if its outcome has not come before."""
        # Outcomes of this batch come first: its result may be among them.
        task = self._ledger.in_flight.get(number)
        if task is None or any(done.number == number for done in outcomes):
            return
        error = WorkerDied(pid, exitcode, signal, task.name, reason)
        outcomes.append(Outcome(number, 0, None, error, is_death=True))

    def _died_at_start(
        self, pid: int, how: str, failure: tuple[str, BaseException] | None, is_new: bool
    ) -> None:
        what, is_hopeless = self._start_failures.failed(pid, how, failure)
        error = None if failure is None else failure[1]
        if is_new and self._reloads:
            self._give_up_reloads(what, error)
        elif self._dispatcher.ready:
            logger.error("%s; the workers that have started go on", what)
        elif is_hopeless:
            self._break_off(what, error)

    def _give_up_reloads(self, what: str, error: BaseException | None) -> None:
        with self._books.lock:
            last = self._reloads.last
            self._supervisors.tell(Kind.KEEP_OLD)
        logger.error("the reload was given up, the old workers stay: %s", what)
        failed = ReloadFailed(f"the reload was given up, the old workers stay: {what}")
        failed.__cause__ = error
        self._reloads.end(last, failed)
