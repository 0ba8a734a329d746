"""Decides which tasks a worker's death has cost, and which are sent again."""

from __future__ import annotations

from collections.abc import Callable

from .._board import scoreboard as sb
from .._messages import wire
from .._messages.wire import Death, Kind
from .._support import faults
from .._support.logs import logger
from .._system import processes
from ..errors import ReloadFailed, WorkerDied, describe_end
from .dispatch import Dispatcher
from .outcomes import Outcome
from .recovery import Recoveries
from .reloads import Reloads
from .restarts import StartFailures
from .roster import Roster
from .shared_state import SharedState
from .supervisors import Supervisors
from .task_states import IN_FLIGHT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .memory_watch import MemoryWatch


class Deaths:
    """Handles the deaths of workers. Call all methods in the I/O thread.

    Args:
        shared, recoveries, dispatcher, reloads, roster, supervisors: the client's.
        has_initializer: whether the caller has given one.
        break_off: called with a reason, and an exception or None, if the pool cannot go on.
    """

    def __init__(
        self,
        shared: SharedState,
        recoveries: Recoveries,
        dispatcher: Dispatcher,
        reloads: Reloads,
        roster: Roster,
        supervisors: Supervisors,
        *,
        has_initializer: bool,
        break_off: Callable[[str, BaseException | None], None],
    ) -> None:
        self._shared = shared
        self._ledger = shared.ledger
        self._recoveries = recoveries
        self._dispatcher = dispatcher
        self._reloads = reloads
        self._roster = roster
        self._supervisors = supervisors
        self._break_off = break_off
        self._start_failures = StartFailures(has_initializer)
        self._failures: dict[int, tuple[str, BaseException]] = {}

    def worker_is_ready(self, pid: int) -> None:
        """Note that this worker takes tasks."""
        self._dispatcher.ready.add(pid)
        self._start_failures.succeeded()

    def failed_to_start(self, pid: int, phrase: str, error: BaseException) -> None:
        """Note why this worker could not start. The client acts on it only when the worker has
        died, so that the worker can finish its log messages."""
        self._failures[pid] = (phrase, error)

    def forget(self) -> None:
        """Forget all workers: none lives."""
        self._dispatcher.ready.clear()
        self._failures.clear()

    def died(self, death: Death, outcomes: list[Outcome]) -> None:
        """Act on a death notice of the supervisor. ``outcomes`` have been read, and are not in the
        books yet."""
        self._dispatcher.ready.discard(death.pid)
        exitcode, signal = processes.split_status(death.status)
        self._roster.ended(death.pid, death.born, -(signal or 0) if exitcode is None else exitcode)
        failure = self._failures.pop(death.pid, None)
        if (recorder := self._shared.recorder) is not None:
            recorder.died(death, self._ledger.in_flight)
        is_at_start = failure is not None or death.state == sb.STARTING
        if is_at_start and not death.flags & wire.TOLD:
            how = describe_end(exitcode, signal)
            self._died_at_start(death.pid, how, failure, bool(death.flags & wire.NEW))
        elif death.state == sb.BUSY:
            reason = "out of memory" if death.flags & wire.OUT_OF_MEMORY else ""
            if reason and self._shared.memory is not None:
                self._learn_of_kill(death, self._shared.memory)
            self.lose(death.task, outcomes, death.pid, exitcode, signal, reason)
            self.requeue_unbegun(death.task + 1, death.tail)
        elif death.state == sb.TAKING:
            with self._shared.lock:
                self._recoveries.open()
        elif death.state == sb.IDLE:
            # A message may have woken only this worker, just before it died.
            with self._shared.lock:
                self._recoveries.drain_pipe()

    def _learn_of_kill(self, death: Death, watch: MemoryWatch) -> None:
        """Expect more memory of the task's function, because the system has killed its worker."""
        with self._shared.lock:
            task = self._ledger.in_flight.get(death.task)
            if task is not None and task.state is IN_FLIGHT:
                watch.killed(task, death.pid)

    def requeue_unbegun(self, number: int, count: int) -> None:
        """Requeue these tasks, which a worker had taken and has not begun."""
        numbers = range(number, number + min(count, wire.MAX_CALLS))
        with self._shared.lock:
            # Most often the client has recalled them before. Then it does not empty the pipe: a
            # worker could meanwhile take a later task, which would begin before earlier ones.
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
        """Append the outcome WorkerDied for this task, unless its own outcome has come before."""
        # The task's own outcome may be among those that are not in the books yet.
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
        with self._shared.lock:
            last = self._reloads.last
            self._supervisors.tell(Kind.KEEP_OLD)
        logger.error("the reload was given up, the old workers stay: %s", what)
        failed = ReloadFailed(f"the reload was given up, the old workers stay: {what}")
        failed.__cause__ = error
        self._reloads.end(last, failed)
