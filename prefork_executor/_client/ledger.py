"""The client's books: which tasks wait, and which are in flight.

The ledger only keeps books. It has no socket, no process and no lock of a future. The client tells
it what has happened, and does what it answers.

A task is *waiting* until it is sent. Then it is *in flight*, under a number of its own, until its
outcome has been read. A task may come back, because it has not begun or because its caller asked
for retries. It then gets a new number when it is sent again, so that a slot that still has the old
number is never taken for the new run. `task_states.py` has all states of a task. Only the ledger
makes the transitions.

The window
----------
Any idle worker takes a task from the task pipe. But a task in the pipe can no longer be cancelled.
So the client sends only about two tasks for each worker ahead. It counts them by weight. A task of
unknown or long duration weighs FULL_WEIGHT. A task whose function was measured to be short weighs
less, in proportion to its duration. So short tasks keep the pipe filled, and workers do not wait
for the client.
"""

from __future__ import annotations

import collections
import time
import types
import weakref
from collections.abc import Callable, Iterable

from .._messages import channels, wire
from .._messages.wire import INLINE_LIMIT
from .._pickling.calls import Chunk, Part, dump_call, dump_for, task_name, user_function
from .._server.settings import TaskOptions
from ..errors import IllegalTransition
from .futures import TaskFuture
from .ranking import Ranks
from .task_states import GIVEN_UP, NEXT, TO_FAIL, WAITING, Event
from .timings import FULL_WEIGHT, Timing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._messages.channels import Parcel
    from .._messages.payload_files import PayloadFiles
    from .._pickling.calls import HeldModules, MainSnapshot

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    Payload = tuple[list[Part], Any]
    """The parts of a pickled call, and what they refer to in ``__main__``."""

AHEAD = 2
"""Tasks of weight FULL_WEIGHT in flight for each worker: one runs, one waits."""
BYTES_PER_WEIGHT = 128 * 1024
"""Bytes of a payload that weigh 1. So a payload of 8 MiB or more weighs FULL_WEIGHT, because a
payload that is sent ahead is in memory twice."""
_MAX_TIMINGS = 4096
"""The number of functions whose durations are remembered."""
_SENT, _SETTLED = Event.SENT, Event.SETTLED


class UnpickledCall:
    """A call that is not pickled yet, because enough pickled calls wait."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def payload(self, _task: str, snapshot: MainSnapshot, modules: HeldModules) -> Payload:
        """The payload to send. Raises pickle.PicklingError, or what the user's code raises."""
        return dump_call(*self._call, snapshot, modules)


class UnboundPayload:
    """A payload that was pickled for workers whose main module is, or was expected to be,
    ``made_for``. It must be checked whether the present workers have what it refers to."""

    __slots__ = ("_made_for", "_names", "_parts")

    def __init__(self, parts: list[Part], names: Any, made_for: MainSnapshot) -> None:
        self._parts = parts
        self._names = names
        self._made_for = made_for

    def payload(self, task: str, snapshot: MainSnapshot, modules: HeldModules) -> Payload:
        """The payload to send. Raises pickle.PicklingError, or what the user's code raises."""
        return dump_for(self._parts, self._names, self._made_for, snapshot, modules, task)


class Task:
    """One submitted call.

    Its payload:

    * ``parts`` is the payload. None while it must still be made, from ``deferred``.
    * ``names`` is what the payload refers to in ``__main__``. ``snapshot`` is the workers' main
      module for which the payload was made.
    * ``size`` is how many bytes pickling it at submit has taken.
    * ``bulk`` is how many bytes must be copied into a shared file; 0: it needs none. ``parcel`` is
      that file, ready to be sent.

    Its course:

    * ``state``: only the ledger changes it (`task_states.py`).
    * ``verdict`` is the error that its future gets if the task must be ended and has no result.
    * ``lost_runs`` counts the runs that were lost, for :class:`TaskOptions`.
    * ``record`` is what a recording keeps of it, if one is on.
    * ``submitted`` is when it was submitted, if its wait is measured; see
      `_messages.wire.pack_call_meta`."""

    __slots__ = (
        *("bulk", "deferred", "future", "lost_runs", "names", "number", "options", "parcel"),
        *("order", "parts", "rank", "record", "size", "snapshot", "state", "submitted", "timing"),
        *("verdict", "weight"),
    )

    def __init__(
        self,
        future: TaskFuture,
        timing: Timing,
        options: TaskOptions,
        payload: Payload | None,
        snapshot: MainSnapshot,
    ) -> None:
        self.future = future
        self.timing = timing
        self.options = options
        self.parts: list[Part] | None
        self.names: Any
        self.snapshot = snapshot
        self.parcel: Parcel | None = None
        self.deferred: UnpickledCall | UnboundPayload | None = None
        self.state = WAITING
        self.number = 0
        self.lost_runs = 0
        self.rank: float = options.priority
        self.order = 0
        self.submitted = 0
        self.verdict: BaseException | None = None
        self.record: Any = None
        self.weight = FULL_WEIGHT
        if payload is None:
            self.parts = self.names = None
            self.size = self.bulk = 0
        else:
            self.size = self.bind(payload, snapshot)

    def bind(self, payload: Payload, snapshot: MainSnapshot) -> int:
        """Set the payload, which was made for workers with this main module. Returns the size of
        its first part in bytes: the rest are buffers that belong to the caller's objects."""
        self.parts, self.names = parts, names = payload
        self.snapshot = snapshot
        self.deferred = None
        first = parts[0]
        size = len(first) if type(first) is bytes else _size(first)
        self.bulk = sum(map(_size, parts)) if len(parts) > 1 or size > INLINE_LIMIT else 0
        if names is not None and not snapshot.is_known:
            self.unbind()
        return size

    def raise_to(self, rank: float) -> None:
        """Raise it to this rank, because it has waited long. Only the ledger calls this."""
        self.rank = rank

    def measure_wait(self) -> None:
        """Note that it is submitted now, so that its wait is measured."""
        self.submitted = time.monotonic_ns() >> wire.TICK

    def keep(self, record: Any) -> None:
        """Keep what a recording records of it."""
        self.record = record

    def defer(self, call: Call) -> None:
        """Keep the call, which is pickled later."""
        self.deferred = UnpickledCall(call)

    def unbind(self) -> None:
        """Note that its payload was made for other workers: it must be checked before it is
        sent."""
        if self.parts is not None and self.names is not None:
            self.deferred = UnboundPayload(self.parts, self.names, self.snapshot)
            self.parts = self.parcel = None

    def wrap(self, files: PayloadFiles) -> None:
        """Copy its payload into one of the files. Raises what :func:`_messages.channels.wrap`
        raises."""
        if self.parts is not None:
            self.parcel = channels.wrap(self.parts, files)

    def unwrap(self) -> Parcel | None:
        """Give up its shared file. Returns it."""
        parcel, self.parcel = self.parcel, None
        return parcel

    def after(self, event: str) -> None:
        """Go on to the state that this event leads to. Only the ledger calls this.

        Raises:
            IllegalTransition: the event cannot come in the present state.
        """
        following = NEXT[event].get(self.state)
        if following is None:
            what = f"task {self.name}, number {self.number}"
            raise IllegalTransition(what, self.state.name, event)
        self.state = following

    def condemn(self, verdict: BaseException) -> None:
        """Note that it must be ended, and that its future then gets this error. Only the ledger
        calls this."""
        self.after(Event.CONDEMNED)
        self.verdict = verdict

    def lose_run(self, *, counts: bool) -> None:
        """Note that it runs again. ``counts``: whether the lost run is one of those for which the
        caller allows retries. Only the ledger calls this."""
        self.after(Event.LOST)
        self.lost_runs += counts
        self.verdict = None

    def reprieve(self) -> None:
        """Note that it need not be ended any more. Only the ledger calls this."""
        self.after(Event.REPRIEVED)
        self.verdict = None

    def let_go(self, verdict: BaseException) -> None:
        """Note that it will not be sent, and drop its payload. It keeps its place in the queue.
        Only the ledger calls this."""
        self.after(Event.DROPPED)
        self.verdict = verdict
        self.parts = self.deferred = self.names = self.parcel = None
        self.size = 0

    @property
    def name(self) -> str:
        """The name of its function, for messages."""
        return self.timing.name

    @property
    def is_short(self) -> bool:
        """Whether its function is known to be short."""
        return self.timing.weight < FULL_WEIGHT

    @property
    def may_run_again(self) -> bool:
        """Whether its caller allows another run after one that was lost."""
        return self.lost_runs < self.options.retries


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else memoryview(part).nbytes


def _identity(fn: Any) -> tuple[object, types.CodeType | None]:
    """A key that identifies the function, and its code.

    The key is not the function itself: that would stay alive, with all that it is bound to. Nor is
    it the code alone: all functions that one decorator has made share their code."""
    if type(fn) is types.FunctionType:
        # This case is written out because most tasks are of plain functions.
        return (id(fn.__code__), fn.__module__, fn.__qualname__, False), fn.__code__
    is_chunk = isinstance(fn, Chunk)
    fn = user_function(fn)
    code = getattr(fn, "__code__", None)
    if isinstance(code, types.CodeType):
        return (id(code), fn.__module__, fn.__qualname__, is_chunk), code
    return (task_name(fn), is_chunk), None


def _no_function() -> None:
    """Stands for a weak reference to no function."""


class Ledger:
    """The tasks of one executor that are not resolved."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Task] = collections.deque()
        self.in_flight: dict[int, Task] = {}
        self.waiting_bytes = 0
        """Bytes of the waiting payloads that were pickled at submit."""
        self.awaiting: set[Any] = set()
        """Calls that wait for futures; see `dependents.py`."""
        self._dropped = 0
        self._weight = 0
        self._last_number = 0
        # For each task in flight that has told it: the bytes that it has added to its worker, and
        # those left there by earlier tasks. None: this pool has no bound for its memory.
        self._peaks: dict[int, tuple[int, int]] | None = None
        self._ranks = Ranks()
        self._timings: dict[object, Timing] = {}
        # The latest function and its timing, because many tasks in a row have the same function.
        self._latest: tuple[Any, Timing] = (_no_function, Timing(""))

    @property
    def outstanding(self) -> int:
        """The number of tasks that were accepted and are not resolved."""
        return len(self.waiting) + len(self.in_flight) - self._dropped

    @property
    def backlog(self) -> int:
        """The number of tasks that wait to be sent."""
        return len(self.waiting) - self._dropped

    @property
    def is_empty(self) -> bool:
        """Whether there is no task, and no call that waits for futures before it becomes one."""
        return not self.outstanding and not self.awaiting

    def await_futures(self, call: object) -> None:
        """Note that this call waits for futures before it becomes a task."""
        self.awaiting.add(call)

    def await_no_more(self, call: object) -> bool:
        """Note that this call does not wait for futures any more. Returns whether it did."""
        was_awaiting = call in self.awaiting
        self.awaiting.discard(call)
        return was_awaiting

    def take_awaiting(self) -> list[Any]:
        """Forget the calls that wait for futures. Returns them."""
        calls = list(self.awaiting)
        self.awaiting.clear()
        return calls

    def enqueue(self, task: Task) -> None:
        """Accept a task: it waits."""
        if task.rank or self._ranks.is_used:
            self._enqueue_by_rank(task)
        else:
            self.waiting.append(task)
        self.waiting_bytes += task.size

    def _enqueue_by_rank(self, task: Task) -> None:
        if not self._ranks.is_used:
            self._ranks.count(self.waiting)
        task.order = self._ranks.next_order()
        self.waiting.insert(self._ranks.place_at_end(task.rank), task)
        self._ranks.joined(task.rank)

    def passes_others(self, task: Task) -> bool:
        """Whether tasks have been sent that should begin after this waiting task. It is enough to
        look at the last task that was sent. If an earlier one had a lower rank than that, the
        client would have taken it back."""
        if not self._ranks.is_used or not self.in_flight:
            return False
        last = next(reversed(self.in_flight.values()))
        return last.options.priority < task.options.priority

    def dequeue(self) -> Task:
        """Take the first waiting task out of the queue, without sending it. Returns it."""
        task = self.waiting.popleft()
        if self._ranks.is_used:
            self._ranks.left(task.rank)
        self.waiting_bytes -= task.size
        if task.state is GIVEN_UP:
            self._dropped -= 1
        task.after(Event.PASSED_OVER)
        if not self.waiting:
            self.waiting_bytes = 0  # A signal handler may have raised before one was counted.
        return task

    @property
    def timings(self) -> Iterable[Timing]:
        """The timings of all functions that are remembered."""
        return self._timings.values()

    def learn_peaks(self) -> None:
        """From now on, learn how much memory the tasks of each function take."""
        self._peaks = {}

    def note_peak(self, number: int, added: int, left: int) -> None:
        """Note the memory of a task whose outcome follows. See `Timing.observe_peak`."""
        if self._peaks is not None and number in self.in_flight:
            self._peaks[number] = added, left

    def bring_forward(self, place: int) -> None:
        """Move the waiting task in this place to the front of the queue."""
        self._ranks.bring_forward(self.waiting, place)

    def drop(self, task: Task, verdict: BaseException) -> bool:
        """Give up a waiting task. It keeps its place until :meth:`dequeue`, so this takes the same
        short time for any task. Returns False if the task is in flight or has ended."""
        if task.state not in (WAITING, TO_FAIL) or task.future.has_ended:
            return False
        self.waiting_bytes -= task.size
        self._dropped += 1
        task.let_go(verdict)
        return True

    def timing_of(self, fn: Any) -> Timing:
        """The timing of this function."""
        latest, timing = self._latest
        if latest() is fn and (type(fn) is Chunk or timing.code is fn.__code__):
            return timing
        key, code = _identity(fn)
        if (known := self._timings.get(key)) is not None:
            timing = known
        else:
            if len(self._timings) >= _MAX_TIMINGS:
                self._timings.clear()
            timing = self._timings[key] = Timing(task_name(fn), code)
        if type(fn) is types.FunctionType or type(fn) is Chunk:
            self._latest = weakref.ref(fn), timing
        return timing

    def has_room(self, workers: int) -> bool:
        """Whether one more task may be sent ahead, with this many workers."""
        return self._weight < (AHEAD * max(workers, 1) + 1) * FULL_WEIGHT

    def send_next(self, task: Task) -> None:
        """Enter this task as in flight. It is the first waiting one, and :meth:`number` has given
        its number. Call this before the task is sent, because its outcome may come at once."""
        waiting = self.waiting
        task.weight = task.timing.weight
        if task.bulk:
            task.weight = max(task.weight, min(FULL_WEIGHT, task.bulk // BYTES_PER_WEIGHT))
        self.in_flight[task.number] = task
        task.after(_SENT)
        self._weight += task.weight
        if self._ranks.is_used:
            waiting.remove(task)  # A signal handler may have submitted a task that goes before it.
            self._ranks.left(task.rank)
            self._ranks.begun(waiting)
        else:
            waiting.popleft()
        self.waiting_bytes = self.waiting_bytes - task.size if waiting else 0

    def complete_send(self, task: Task) -> None:
        """Complete :meth:`send_next`, in which a signal handler may have raised. If the task is
        among those in flight, take it out of the queue. :meth:`recount` corrects the counts."""
        if self.in_flight.get(task.number) is task:
            if task.state is WAITING:
                task.after(_SENT)
            if task in self.waiting:
                self.waiting.remove(task)

    def number(self, task: Task) -> int:
        """Give the task the next number."""
        self._last_number += 1
        task.number = self._last_number
        return task.number

    def was_sent(self, number: int) -> bool:
        """Whether a task has ever been sent under this number."""
        return 0 < number <= self._last_number

    def settle(self, number: int, duration: int | None = None) -> Task | None:
        """Take the task with this number out of the books, because its outcome is known.
        ``duration`` is in nanoseconds; 0 or None: not known. Returns the task, or None if it was
        not in flight."""
        task = self._leave_flight(number)
        if task is None:
            return None
        task.after(_SETTLED)
        if duration:
            task.timing.observe(duration)
        if self._peaks is not None:
            peak = self._peaks.pop(number, (0, 0))
            if duration:
                task.timing.observe_peak(*peak)
        return task

    def _leave_flight(self, number: int) -> Task | None:
        task = self.in_flight.pop(number, None)
        if task is not None:
            self._weight -= task.weight
        return task

    def recount(self) -> None:
        """Count everything anew, after a signal handler may have raised in any of these methods."""
        if self.waiting:
            # A second handler may have raised before this was called.
            self.complete_send(self.waiting[0])
        self._weight = sum(task.weight for task in self.in_flight.values())
        self._count_waiting()

    def _count_waiting(self) -> None:
        if self._ranks.is_used:
            self._ranks.count(self.waiting)
        self.waiting_bytes = sum(task.size for task in self.waiting)
        self._dropped = sum(task.state is GIVEN_UP for task in self.waiting)

    def condemn(self, task: Task, verdict: BaseException) -> None:
        """Note that this task, which is in flight, must be ended, and that its future then gets the
        verdict."""
        task.condemn(verdict)

    def requeue(self, numbers: Iterable[int]) -> None:
        """Put these tasks, which have not begun, back to the front of the queue, in their order."""
        left = [self._leave_flight(number) for number in sorted(numbers)]
        back = [task for task in left if task is not None]
        for task in back:
            task.after(Event.CAME_BACK)
        self._put_back(back)

    def run_again(self, number: int, *, is_lost: bool = True) -> None:
        """Put this task, whose run has brought no outcome, back to the front of the queue.
        ``is_lost``: whether the run counts among those for which the caller allows retries."""
        task = self._leave_flight(number)
        if task is not None:
            if self._peaks is not None:
                self._peaks.pop(number, None)
            task.lose_run(counts=is_lost)
            self._put_back([task])

    def reprieve(self, task: Task) -> None:
        """Let this task wait again. It had to be ended for its memory, and has come back before it
        began."""
        task.reprieve()

    def _put_back(self, tasks: list[Task]) -> None:
        if self._ranks.is_used or any(task.rank for task in tasks):
            self._put_back_by_rank(tasks)
        else:
            self.waiting.extendleft(reversed(tasks))
        self.waiting_bytes += sum(task.size for task in tasks)

    def _put_back_by_rank(self, tasks: list[Task]) -> None:
        if not self._ranks.is_used:
            self._ranks.count(self.waiting)
        self._ranks.came_back(len(tasks))
        for task in reversed(tasks):
            self.waiting.insert(self._ranks.place_at_front(task.rank), task)
            self._ranks.joined(task.rank)

    def take_unsent(self) -> list[Task]:
        """Discard the tasks that can still be cancelled, which are those that were never sent. A
        task that has come back stays, because its future says that it runs. Returns the tasks."""
        return self.discard([task for task in self.waiting if not task.number])

    def discard(self, tasks: Iterable[Task]) -> list[Task]:
        """Take these tasks out of the books. Returns those that were still in them."""
        wanted = {id(task) for task in tasks if task.state is not GIVEN_UP}
        gone = [task for task in self.in_flight.values() if id(task) in wanted]
        for task in gone:
            self._leave_flight(task.number)
        gone += [task for task in self.waiting if id(task) in wanted]
        for task in gone:
            task.after(Event.DISCARDED)
        kept = [task for task in self.waiting if id(task) not in wanted]
        self.waiting.clear()
        self.waiting.extend(kept)
        self._count_waiting()
        return gone

    def clear(self) -> list[Task]:
        """Take all tasks out of the books. Returns those whose futures have not been told yet."""
        tasks = [*self.in_flight.values(), *self.waiting]
        tasks = [task for task in tasks if task.state is not GIVEN_UP]
        self.in_flight.clear()
        self.waiting.clear()
        for task in tasks:
            task.after(Event.DISCARDED)
        self._weight = 0
        self._count_waiting()
        return tasks
