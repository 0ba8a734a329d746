"""Which of the tasks that run are to be ended, and when to look for them.

A task's time begins when its worker marks it BUSY, not when it is submitted. Nobody
tells the client of that moment; it looks at the scoreboard. A look is due when the
first of the limited tasks could be over its time: one that runs, by the moment at
which it began; one that has been sent and does not run, as if it began now. So
there are about two looks for each span of a time limit, whatever the number of tasks.

A task is over its time when two looks have found it so, LOOK_TWICE apart, and all that
the yell channel held at the first was read in between, which a marker tells. Its outcome
may be on its way, held up by a caller's callback, say: that is no fault of the task's.

Who is to be ended is decided here, from the client's books. It is the supervisor that
ends it, and only if the worker still holds that very task (`WorkerPool.end_task`); so
it may be asked again, and is until the task has its outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from ..errors import TaskTimeout
from .ledger import Ledger, Task
from .task_states import IN_FLIGHT, TO_END

LOOK_TWICE = 0.02
"""Seconds between the two looks that find a task over its time."""
LOOK_AGAIN = 0.005
"""Seconds until the next look for a task to be aborted that no worker has named yet."""
ASK_AGAIN = 0.1
"""Seconds until the end of a task is asked for again that has no outcome yet."""
NEVER = 2**64
"""The number of no marker."""
_NANO = 1_000_000_000


class Deadlines:
    """What is known of the tasks in flight that are to be ended now or later."""

    def __init__(self) -> None:
        self.look_at: float | None = None
        """When the next look is due, on the monotonic clock; None: never."""
        self._late: dict[int, int | None] = {}
        self._asked: dict[int, float] = {}
        self._last_marker = 0

    def watch(self, timeout: float) -> bool:
        """A task that may run for so many seconds is sent. True if that moves the
        next look, which whoever waits for it has to know."""
        return self._look_in(timeout)

    def look_now(self) -> None:
        """There is a task to be ended at once."""
        self._look_in(0.0)

    def _look_in(self, seconds: float) -> bool:
        at = time.monotonic() + seconds
        if self.look_at is not None and self.look_at <= at:
            return False
        self.look_at = at
        return True

    def due(
        self,
        ledger: Ledger,
        read_board: Callable[[], Sequence[Slot]],
        mark: Callable[[], int | None],
    ) -> list[Slot]:
        """The slots of the workers whose tasks are to be ended. Plans the next look.

        Args:
            ledger: the client's. Those that are over their time are condemned there.
            read_board: reads the scoreboard.
            mark: sends a marker; its number, or None if that has to wait for the next look.
        """
        now = time.monotonic()
        if self.look_at is None or now < self.look_at:
            return []
        self.look_at = None
        in_flight = ledger.in_flight
        self._late = {task: mark for task, mark in self._late.items() if task in in_flight}
        self._asked = {task: when for task, when in self._asked.items() if task in in_flight}
        running = {slot.task: slot for slot in read_board() if slot.state == sb.BUSY}
        ends = []
        for number, task in in_flight.items():
            slot = running.get(number)
            if task.state is IN_FLIGHT and (verdict := self._verdict(task, slot, now)) is not None:
                ledger.condemn(task, verdict)
            if task.state is TO_END and slot is None:
                self._look_in(LOOK_AGAIN)
            elif task.state is TO_END and slot is not None:
                ends += [slot] if self._is_to_ask(number, now) else []
        if None in self._late.values():
            marker = mark()
            self._late = {task: last or marker for task, last in self._late.items()}
        return ends

    def _is_to_ask(self, number: int, now: float) -> bool:
        left = self._asked.get(number, 0.0) + ASK_AGAIN - now
        if left <= 0:
            self._asked[number] = now
        self._look_in(left if left > 0 else ASK_AGAIN)
        return left <= 0

    def _verdict(self, task: Task, slot: Slot | None, now: float) -> TaskTimeout | None:
        """That on a task that is over its time."""
        timeout = task.options.timeout
        if timeout is None:
            return None
        left = timeout if slot is None else slot.since / _NANO + timeout - now
        if slot is None or left > 0:
            self._late.pop(task.number, None)  # A reading that mixed two tasks, then.
            self._look_in(left)
        elif (self._late.setdefault(task.number, None) or NEVER) <= self._last_marker:
            return TaskTimeout(task.name, timeout, slot.pid)
        else:
            self._look_in(LOOK_TWICE)
        return None

    def on_marker(self, marker: int) -> None:
        """This one has come round; what was read before it is settled before the next look."""
        self._last_marker = max(self._last_marker, marker)
