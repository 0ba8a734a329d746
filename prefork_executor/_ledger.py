"""The client's books: which task waits, which is beyond recall, which died with whom.

Pure bookkeeping: no sockets, no processes, no futures' locks. The client feeds
it events and does what it answers.

A task is *waiting* until it is sent, then *in flight* under a number of its own
until its outcome has been read. A task that comes back unbegun gets a new number
when it is sent again, so that an old mark can never be taken for a new one.

The window
----------
What lies in the task pipe is late-bound: any idle worker takes it. It is also
past cancelling, so only about two tasks a worker are sent ahead. That is counted
in weights: a task of unknown or long duration weighs ONE, a task whose function
was measured to be short weighs as much less as it is shorter, so that short
tasks keep the pipe filled and the client out of the way.

A death in TAKING
-----------------
Between asking the pipe and saying which task it got a worker may die with a task
that nobody can name. Such a death opens an :class:`Audit`:

1. The pipe is emptied: what is in it was never taken and will be sent again.
   *Suspects* are then the tasks that had been sent, are not resolved, and did
   not come out of the pipe: some worker took each of them.
2. *Takers* are the workers seen in TAKING. Each may still be about to name a
   suspect, so the audit waits until each has been seen to have left that state
   or has died. (The pipe has only newer tasks since, so nobody takes a suspect.)
3. Then the scoreboard is read once more, and tasks named in BUSY slots are taken
   off the suspects. Then a marker is sent through the yell channel. When it has
   come round, every outcome and death notice of those who finished or died
   before that reading has been read.
4. A suspect that is still unresolved was in the dead worker's hands and had not
   begun: BUSY is marked before the first line of the user's. It is sent again.

Each of these orders is needed; without it a task that runs is sent again and
runs twice (the suite's model of the audit shows how, for each):

* A worker marks its leaving of TAKING (the TAKES count) after it has named its
  task, and sends an outcome before it marks TAKING again.
* A slot is cleared after the death notice was sent.
* The names of step 3 are read after every taker was seen to have left. One
  reading cannot tell both: its words are read one after another, so it may hold
  a STATE from before the task was named and a count from after.
* The outcomes that lie before the marker are in the books when it is acted on.

A death in IDLE
---------------
The kernel wakes one waiting worker for each message. The one it woke may die
before it asks the pipe, and then the message lies there while the others sleep.
So after a death in IDLE, too, the pipe is emptied and its tasks are sent again.
A worker that is told to leave as a message wakes it takes the message first.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from . import _scoreboard as sb
from ._pickling import Chunk, Part, task_name, user_function
from ._scoreboard import Slot

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


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Timing:
    """One function's name and the measured duration of its tasks."""

    __slots__ = ("code", "mean", "name", "weight")

    def __init__(self, name: str, code: types.CodeType | None = None) -> None:
        self.name = name
        # Only kept, so that its id cannot become another's.
        self.code = code
        self.mean = 0
        self.weight = ONE

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
    what the workers' ``__main__`` holds; then ``call`` is the call itself."""

    __slots__ = ("call", "future", "number", "parts", "timing", "weight")

    def __init__(
        self,
        future: Future[Any],
        timing: Timing,
        parts: list[Part] | None,
        call: Call | None,
    ) -> None:
        self.future = future
        self.timing = timing
        self.parts = parts
        self.call = call
        self.number = 0
        self.weight = ONE

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.timing.name


class Audit:
    """One inquiry after a death in TAKING; see the head of this module."""

    def __init__(self, suspects: Iterable[int], board: Sequence[Slot]) -> None:
        self.suspects = set(suspects) - _held(board)
        self.marker: int | None = None
        self._takers = {
            slot.place: (slot.pid, slot.takes) for slot in board if slot.state == sb.TAKING
        }

    def look(self, read_board: Callable[[], Sequence[Slot]]) -> bool:
        """Take a look at the scoreboard. True when every taker has left and the
        marker is to be sent."""
        if self._takers:
            board = {slot.place: slot for slot in read_board()}
            for place in [place for place in self._takers if self._has_left(board.get(place))]:
                del self._takers[place]
        if self._takers:
            return False
        self.suspects -= _held(read_board())
        return True

    def _has_left(self, slot: Slot | None) -> bool:
        return (
            slot is None
            or slot.state != sb.TAKING
            or (slot.pid, slot.takes) != self._takers[slot.place]
        )


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


def _held(board: Sequence[Slot]) -> set[int]:
    return {slot.task for slot in board if slot.state == sb.BUSY}


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
        self._weight += task.weight
        self.in_flight[task.number] = task

    def number(self, task: Task) -> int:
        """Give the task the next number."""
        self._last_number += 1
        task.number = self._last_number
        return task.number

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

    def take_back(self, numbers: Iterable[int]) -> None:
        """These tasks have not begun: they are the next to be sent, in order."""
        back = [self.settle(number) for number in sorted(numbers)]
        self.waiting.extendleft(task for task in reversed(back) if task is not None)

    def withdraw(self) -> list[Task]:
        """Give up the tasks that can still be cancelled: those that were never
        sent. What has come back unbegun stays, as its future says that it runs."""
        tasks = list(self.waiting)
        self.waiting.clear()
        self.waiting.extend(task for task in tasks if task.number)
        return [task for task in tasks if not task.number]

    def clear(self) -> list[Task]:
        """Give up every task: the list of them all."""
        tasks = [*self.in_flight.values(), *self.waiting]
        self.in_flight.clear()
        self.waiting.clear()
        self._weight = 0
        return tasks
