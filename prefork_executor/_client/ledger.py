"""The client's books: which task waits, and which is in flight.

Pure bookkeeping: no sockets, no processes, no futures' locks. The client feeds
it events and does what it answers.

A task is *waiting* until it is sent, then *in flight* under a number of its own
until its outcome has been read. A task that comes back, because it has not begun
or because its caller asked for retries, gets a new number when it is sent again,
so that an old mark can never be taken for a new one. `task_states.py` has all the states
of a task. The ledger makes the transitions, and nobody else.

The window
----------
What lies in the task pipe is late-bound: any idle worker takes it. It is also
past cancelling, so only about two tasks a worker are sent ahead. That is counted
in weights: a task of unknown or long duration weighs FULL_WEIGHT, a task whose function
was measured to be short weighs as much less as it is shorter, so that short
tasks keep the pipe filled and the client out of the way.
"""

from __future__ import annotations

import collections
import types
import weakref
from collections.abc import Callable, Iterable

from .._messages import channels
from .._messages.wire import INLINE_LIMIT
from .._pickling.calls import Chunk, Part, dump_call, dump_for, task_name, user_function
from .._server.settings import TaskOptions
from ..errors import IllegalTransition
from .futures import TaskFuture
from .task_states import GIVEN_UP, NEXT, TO_FAIL, WAITING, Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._messages.channels import Parcel
    from .._messages.payload_files import PayloadFiles
    from .._pickling.calls import HeldModules, MainSnapshot

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    Payload = tuple[list[Part], Any]
    """Its parts, and what they refer to in ``__main__``."""

FULL_WEIGHT = 64
"""The weight of a task that is not known to be short."""
FULL_WEIGHT_NS = 500_000
"""Nanoseconds from which on a task weighs FULL_WEIGHT: much more than a round trip, so
that a worker never waits for the client, and far less than anybody would notice
when a cancelled task runs all the same."""
SMOOTHING = 8
"""The mean duration follows one observation by an eighth of the difference."""
AHEAD = 2
"""Tasks of weight FULL_WEIGHT in flight for each worker: one that runs, one that waits."""
BYTES_PER_WEIGHT = 128 * 1024
"""Bytes of a payload that weigh 1, so that one of 8 MiB weighs FULL_WEIGHT at least: what is sent
ahead lies in memory twice."""
_MAX_TIMINGS = 4096
"""Functions whose duration is remembered."""
_SENT, _SETTLED = Event.SENT, Event.SETTLED


class Timing:
    """One function's name and the measured duration of its tasks."""

    __slots__ = ("code", "index", "is_left_to_io", "mean", "name", "weight")

    def __init__(self, name: str, code: types.CodeType | None = None) -> None:
        self.name = name
        # Only kept, so that its id cannot become another's.
        self.code = code
        self.mean = 0
        self.weight = FULL_WEIGHT
        self.index = 0
        """Of the name in the board's table; 0: it is not there yet."""
        self.is_left_to_io = False
        """Whether the I/O thread had better read what its tasks send; see `direct.py`."""

    def observe(self, duration: int) -> None:
        """Take a task's duration in nanoseconds into account."""
        # The first is taken whole; a longer one weighs in at once, for caution.
        if duration > self.mean:
            self.mean = duration if not self.mean else (self.mean + duration) // 2
        else:
            self.mean += (duration - self.mean) // SMOOTHING
        self.weight = min(FULL_WEIGHT, max(1, self.mean * FULL_WEIGHT // FULL_WEIGHT_NS))


class UnpickledCall:
    """A call that is not pickled yet, because enough are that wait."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def payload(self, _task: str, snapshot: MainSnapshot, modules: HeldModules) -> Payload:
        """What is to be sent. Raises pickle.PicklingError, or what the user's code raises."""
        return dump_call(*self._call, snapshot, modules)


class UnboundPayload:
    """A payload of which it is to be seen whether the workers have what it refers to. It was
    made for others, that held ``made_for``, or were expected to."""

    __slots__ = ("_made_for", "_names", "_parts")

    def __init__(self, parts: list[Part], names: Any, made_for: MainSnapshot) -> None:
        self._parts = parts
        self._names = names
        self._made_for = made_for

    def payload(self, task: str, snapshot: MainSnapshot, modules: HeldModules) -> Payload:
        """What is to be sent. Raises pickle.PicklingError, or what the user's code raises."""
        return dump_for(self._parts, self._names, self._made_for, snapshot, modules, task)


class Task:
    """One submitted call. ``parts`` is its payload; None while it is still to be made, from
    ``deferred``. ``names`` is what the payload refers to in ``__main__``, and ``snapshot`` the
    workers' main module for which that is right. ``size`` is how many bytes were made to
    pickle it at submit, ``bulk`` how many are to be copied if it needs a file, else 0;
    ``parcel`` is that file, ready to be sent.

    ``state`` is the ledger's to change, see `task_states.py`. ``verdict`` is what its future gets
    if it is to be ended and does not end well by itself. ``lost_runs`` counts those of its runs
    that were lost, for :class:`TaskOptions`.
    ``record`` is what a recording keeps of it, if one is on. ``submitted`` says when it
    was, if its wait is to be measured; see `_messages.wire.pack_call_meta`."""

    __slots__ = (
        *("bulk", "deferred", "future", "lost_runs", "names", "number", "options", "parcel"),
        *("parts", "record", "size", "snapshot", "state", "submitted", "timing", "verdict"),
        "weight",
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
        """This is its payload, right for these workers. Returns how many bytes of it are in
        no other's hands."""
        self.parts, self.names = parts, names = payload
        self.snapshot = snapshot
        self.deferred = None
        first = parts[0]
        size = len(first) if type(first) is bytes else _size(first)
        self.bulk = sum(map(_size, parts)) if len(parts) > 1 or size > INLINE_LIMIT else 0
        if names is not None and not snapshot.is_known:
            self.unbind()
        return size

    def defer(self, call: Call) -> None:
        """It is to be pickled later."""
        self.deferred = UnpickledCall(call)

    def unbind(self) -> None:
        """The workers are others than those that its payload was made for."""
        if self.parts is not None and self.names is not None:
            self.deferred = UnboundPayload(self.parts, self.names, self.snapshot)
            self.parts = self.parcel = None

    def wrap(self, files: PayloadFiles) -> None:
        """Copy its payload into one of the files. Raises what :func:`_messages.channels.wrap`
        raises."""
        if self.parts is not None:
            self.parcel = channels.wrap(self.parts, files)

    def unwrap(self) -> Parcel | None:
        """Its file is not needed for it any more."""
        parcel, self.parcel = self.parcel, None
        return parcel

    def after(self, event: str) -> None:
        """Go on to the state that this leads to. For the ledger alone.

        Raises:
            IllegalTransition: it leads nowhere from where the task is.
        """
        following = NEXT[event].get(self.state)
        if following is None:
            what = f"task {self.name}, number {self.number}"
            raise IllegalTransition(what, self.state.name, event)
        self.state = following

    def condemn(self, verdict: BaseException) -> None:
        """It is to be ended, and its future gets this. For the ledger alone."""
        self.after(Event.CONDEMNED)
        self.verdict = verdict

    def lose_run(self) -> None:
        """It is to run again. For the ledger alone."""
        self.after(Event.LOST)
        self.lost_runs += 1
        self.verdict = None

    def let_go(self, verdict: BaseException) -> None:
        """It will not be sent: keep nothing of it but its place. For the ledger alone."""
        self.after(Event.DROPPED)
        self.verdict = verdict
        self.parts = self.deferred = self.names = self.parcel = None
        self.size = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.timing.name

    @property
    def is_short(self) -> bool:
        """Whether its function is known to be."""
        return self.timing.weight < FULL_WEIGHT

    @property
    def may_run_again(self) -> bool:
        """Whether its caller allows another run after one that was lost."""
        return self.lost_runs < self.options.retries


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else memoryview(part).nbytes


def _identity(fn: Any) -> tuple[object, types.CodeType | None]:
    """What tells one function from another, and its code. Not the function itself,
    which would be kept alive with all that it is bound to; nor the code alone,
    which all functions that one decorator has made share."""
    if type(fn) is types.FunctionType:
        # Written out, because most tasks are of these.
        return (id(fn.__code__), fn.__module__, fn.__qualname__, False), fn.__code__
    is_chunk = isinstance(fn, Chunk)
    fn = user_function(fn)
    code = getattr(fn, "__code__", None)
    if isinstance(code, types.CodeType):
        return (id(code), fn.__module__, fn.__qualname__, is_chunk), code
    return (task_name(fn), is_chunk), None


def _no_function() -> None:
    """A reference to none."""


class Ledger:
    """All tasks of one executor that are not resolved."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Task] = collections.deque()
        self.in_flight: dict[int, Task] = {}
        self.waiting_bytes = 0
        """Of payloads that were pickled at submit, and wait."""
        self._dropped = 0
        self._weight = 0
        self._last_number = 0
        self._timings: dict[object, Timing] = {}
        # The latest function, of most tasks that come one after the other; and its timing.
        self._latest: tuple[Any, Timing] = (_no_function, Timing(""))

    @property
    def outstanding(self) -> int:
        """Tasks accepted and not resolved."""
        return len(self.waiting) + len(self.in_flight) - self._dropped

    @property
    def backlog(self) -> int:
        """Tasks that wait to be sent."""
        return len(self.waiting) - self._dropped

    def enqueue(self, task: Task) -> None:
        """Accept a task: it waits."""
        self.waiting.append(task)
        self.waiting_bytes += task.size

    def dequeue(self) -> Task:
        """Pass over the task that is the next to wait. Returns it."""
        task = self.waiting.popleft()
        self.waiting_bytes -= task.size
        if task.state is GIVEN_UP:
            self._dropped -= 1
        task.after(Event.PASSED_OVER)
        if not self.waiting:
            self.waiting_bytes = 0  # A signal handler may have raised before one was counted.
        return task

    def drop(self, task: Task, verdict: BaseException) -> bool:
        """Give up one task. Its place is left to :meth:`dequeue`, so this takes no time. False
        if it is in flight or has ended."""
        if task.state not in (WAITING, TO_FAIL) or task.future.has_ended:
            return False
        self.waiting_bytes -= task.size
        self._dropped += 1
        task.let_go(verdict)
        return True

    def timing_of(self, fn: Any) -> Timing:
        """Where the durations of this function's tasks are kept."""
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
        """Whether one more task may be sent ahead to so many workers."""
        return self._weight < (AHEAD * max(workers, 1) + 1) * FULL_WEIGHT

    def send_next(self) -> None:
        """The task that is the next to wait, and that :meth:`number` has numbered, is sent now.
        Said before it is, because news of it may come at once."""
        waiting = self.waiting
        task = waiting[0]
        task.weight = task.timing.weight
        if task.bulk:
            task.weight = max(task.weight, min(FULL_WEIGHT, task.bulk // BYTES_PER_WEIGHT))
        self.in_flight[task.number] = task
        task.after(_SENT)
        self._weight += task.weight
        waiting.popleft()
        self.waiting_bytes = self.waiting_bytes - task.size if waiting else 0

    def complete_send(self, task: Task) -> None:
        """A signal handler may have raised in :meth:`send_next`. If the task is among those in
        flight, it waits no more. The counts are left to :meth:`recount`."""
        if self.in_flight.get(task.number) is task:
            if task.state is WAITING:
                task.after(_SENT)
            if self.waiting and self.waiting[0] is task:
                self.waiting.popleft()

    def number(self, task: Task) -> int:
        """Give the task the next number."""
        self._last_number += 1
        task.number = self._last_number
        return task.number

    def was_sent(self, number: int) -> bool:
        """Whether a task has ever been sent under this number."""
        return 0 < number <= self._last_number

    def settle(self, number: int, duration: int | None = None) -> Task | None:
        """The task with this number has its outcome, after so many nanoseconds,
        or has died (0, which is no duration). None if it had one already."""
        task = self._leave_flight(number)
        if task is None:
            return None
        task.after(_SETTLED)
        if duration:
            task.timing.observe(duration)
        return task

    def _leave_flight(self, number: int) -> Task | None:
        task = self.in_flight.pop(number, None)
        if task is not None:
            self._weight -= task.weight
        return task

    def recount(self) -> None:
        """After a signal handler has raised in the midst of any of this."""
        if self.waiting:
            self.complete_send(self.waiting[0])  # If another has raised before that was called.
        self._weight = sum(task.weight for task in self.in_flight.values())
        self._count_waiting()

    def _count_waiting(self) -> None:
        self.waiting_bytes = sum(task.size for task in self.waiting)
        self._dropped = sum(task.state is GIVEN_UP for task in self.waiting)

    def condemn(self, task: Task, verdict: BaseException) -> None:
        """This one, which is in flight, is to be ended, and its future gets the verdict."""
        task.condemn(verdict)

    def requeue(self, numbers: Iterable[int]) -> None:
        """Put these back before all that wait, in order: they have not begun."""
        left = [self._leave_flight(number) for number in sorted(numbers)]
        back = [task for task in left if task is not None]
        for task in back:
            task.after(Event.CAME_BACK)
        self._put_back(back)

    def run_again(self, number: int) -> None:
        """The run of this task, which is in flight, was lost: it is the first to wait."""
        task = self._leave_flight(number)
        if task is not None:
            task.lose_run()
            self._put_back([task])

    def _put_back(self, tasks: list[Task]) -> None:
        self.waiting.extendleft(reversed(tasks))
        self.waiting_bytes += sum(task.size for task in tasks)

    def take_unsent(self) -> list[Task]:
        """Discard the tasks that can still be cancelled: those that were never sent. What
        has come back unbegun stays, as its future says that it runs."""
        return self.discard([task for task in self.waiting if not task.number])

    def discard(self, tasks: Iterable[Task]) -> list[Task]:
        """Forget these tasks. Returns those of them that there still were."""
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
        """Forget every task. Returns them all."""
        tasks = [*self.in_flight.values(), *self.waiting]
        tasks = [task for task in tasks if task.state is not GIVEN_UP]
        self.in_flight.clear()
        self.waiting.clear()
        for task in tasks:
            task.after(Event.DISCARDED)
        self._weight = 0
        self._count_waiting()
        return tasks
