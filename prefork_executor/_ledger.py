"""The client's books: which task waits, and which is beyond recall.

Pure bookkeeping: no sockets, no processes, no futures' locks. The client feeds
it events and does what it answers.

A task is *waiting* until it is sent, then *in flight* under a number of its own
until its outcome has been read. A task that comes back, because it has not begun
or because its caller asked for retries, gets a new number when it is sent again,
so that an old mark can never be taken for a new one.

The window
----------
What lies in the task pipe is late-bound: any idle worker takes it. It is also
past cancelling, so only about two tasks a worker are sent ahead. That is counted
in weights: a task of unknown or long duration weighs ONE, a task whose function
was measured to be short weighs as much less as it is shorter, so that short
tasks keep the pipe filled and the client out of the way.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from ._future import TaskFuture
from ._pickling import Chunk, Part, task_name, user_function
from ._settings import NO_TERMS, Terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

ONE = 64
"""The weight of a task that is not known to be short."""
SHORT = 500_000
"""Nanoseconds from which on a task weighs ONE: much more than a round trip, so
that a worker never waits for the client, and far less than anybody would notice
when a cancelled task runs all the same."""
SMOOTHING = 8
"""The mean duration follows one observation by an eighth of the difference."""
AHEAD = 2
"""Tasks of weight ONE in flight for each worker: one that runs, one that waits."""
_MOST_TIMINGS = 4096
"""Functions whose duration is remembered."""


class Timing:
    """One function's name and the measured duration of its tasks."""

    __slots__ = ("code", "index", "is_left_to_io", "mean", "name", "weight")

    def __init__(self, name: str, code: types.CodeType | None = None) -> None:
        self.name = name
        # Only kept, so that its id cannot become another's.
        self.code = code
        self.mean = 0
        self.weight = ONE
        self.index = 0
        """Of the name in the board's table; 0: it is not there yet."""
        self.is_left_to_io = False
        """Whether the I/O thread had better read what its tasks send; see `_direct.py`."""

    def observe(self, duration: int) -> None:
        """Take a task's duration in nanoseconds into account."""
        # The first is taken whole; a longer one weighs in at once, for caution.
        if duration > self.mean:
            self.mean = duration if not self.mean else (self.mean + duration) // 2
        else:
            self.mean += (duration - self.mean) // SMOOTHING
        self.weight = min(ONE, max(1, self.mean * ONE // SHORT))


class Task:
    """One submitted call. ``parts`` is its payload, or None while it waits for
    what the workers' ``__main__`` holds; then ``call`` is the call itself.

    ``runs`` counts those of its runs that were lost, for :class:`Terms`. ``verdict``
    is what its future gets if it does not end well by itself: it is to be ended.
    ``record`` is what a recording keeps of it, if one is on. ``submitted`` says when it
    was, if its wait is to be measured; see `_wire.about`."""

    __slots__ = (
        *("call", "future", "number", "parts", "record", "runs", "submitted"),
        *("terms", "timing", "verdict", "weight"),
    )

    def __init__(
        self,
        future: TaskFuture,
        timing: Timing,
        parts: list[Part] | None,
        call: Call | None,
        terms: Terms = NO_TERMS,
    ) -> None:
        self.future = future
        self.timing = timing
        self.parts = parts
        self.call = call
        self.terms = terms
        self.number = 0
        self.runs = 0
        self.submitted = 0
        self.verdict: BaseException | None = None
        self.record: Any = None
        self.weight = ONE

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.timing.name

    @property
    def is_short(self) -> bool:
        """Whether its function is known to be."""
        return self.timing.weight < ONE

    @property
    def may_run_again(self) -> bool:
        """Whether its caller allows another run after one that was lost."""
        return self.runs < self.terms.retries


def _identity(fn: Any) -> tuple[object, types.CodeType | None]:
    """What tells one function from another, and its code. Not the function itself,
    which would be kept alive with all that it is bound to; nor the code alone,
    which all functions that one decorator has made share."""
    is_chunk = isinstance(fn, Chunk)
    fn = user_function(fn)
    code = getattr(fn, "__code__", None)
    if isinstance(code, types.CodeType):
        return (id(code), fn.__module__, fn.__qualname__, is_chunk), code
    return (task_name(fn), is_chunk), None


class Ledger:
    """All tasks of one executor that are not resolved."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Task] = collections.deque()
        self.in_flight: dict[int, Task] = {}
        self._weight = 0
        self._last_number = 0
        self._timings: dict[object, Timing] = {}

    @property
    def outstanding(self) -> int:
        """Tasks accepted and not resolved."""
        return len(self.waiting) + len(self.in_flight)

    def timing_of(self, fn: Any) -> Timing:
        """Where the durations of this function's tasks are kept."""
        key, code = _identity(fn)
        timing = self._timings.get(key)
        if timing is None:
            if len(self._timings) >= _MOST_TIMINGS:
                self._timings.clear()
            timing = self._timings[key] = Timing(task_name(fn), code)
        return timing

    def has_room(self, workers: int) -> bool:
        """Whether one more task may be sent ahead to so many workers."""
        return self._weight < (AHEAD * max(workers, 1) + 1) * ONE

    def sent(self, task: Task) -> None:
        """The task, which :meth:`number` has numbered, is sent now. Said before it
        is, because news of it may come at once."""
        task.weight = task.timing.weight
        self.in_flight[task.number] = task
        self._weight += task.weight

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
        task = self.in_flight.pop(number, None)
        if task is None:
            return None
        self._weight -= task.weight
        if duration:
            task.timing.observe(duration)
        return task

    def weigh_again(self) -> None:
        """After a signal handler has raised in the midst of any of this."""
        self._weight = sum(task.weight for task in self.in_flight.values())

    def take_back(self, numbers: Iterable[int]) -> None:
        """These tasks have not begun, or may run again: they are the next to be
        sent, in order."""
        back = [self.settle(number) for number in sorted(numbers)]
        self.waiting.extendleft(task for task in reversed(back) if task is not None)

    def find(self, future: Future[Any]) -> Task | None:
        """The task that this future stands for, if it is not resolved. Goes through
        them all: the books are not made for it."""
        for task in (*self.in_flight.values(), *self.waiting):
            if task.future is future:
                return task
        return None

    def withdraw(self) -> list[Task]:
        """Give up the tasks that can still be cancelled: those that were never
        sent. What has come back unbegun stays, as its future says that it runs."""
        return self.give_up([task for task in self.waiting if not task.number])

    def give_up(self, tasks: Iterable[Task]) -> list[Task]:
        """Give up these tasks: those of them that there still were."""
        wanted = {id(task) for task in tasks}
        gone = [task for task in self.in_flight.values() if id(task) in wanted]
        for task in gone:
            self.settle(task.number)
        gone += [task for task in self.waiting if id(task) in wanted]
        kept = [task for task in self.waiting if id(task) not in wanted]
        self.waiting.clear()
        self.waiting.extend(kept)
        return gone

    def clear(self) -> list[Task]:
        """Give up every task: the list of them all."""
        tasks = [*self.in_flight.values(), *self.waiting]
        self.in_flight.clear()
        self.waiting.clear()
        self._weight = 0
        return tasks
