"""Decides which running tasks must be ended, and when the client looks for them.

A task's time begins when its worker writes BUSY with the task's number, not when the task is
submitted. The client gets no message at that moment, so it looks at the scoreboard. The next look
is due when the first task with a time limit could be over its time. For a task that runs, that
follows from the moment at which it began. A task that was sent and does not run yet is counted as
if it began now. So there are about two looks in each span of a time limit, however many tasks
there are.

A task is over its time when two conditions hold. Two looks, LOOK_TWICE seconds apart, have found
that its time is up. And the client has read all that lay in the yell channel at the first of these
looks, which a barrier tells (`barriers.py`). Without the second condition, a task could be ended
although its outcome lies in the channel, because a callback of the caller holds up the I/O thread.

This module decides from the client's books which tasks to end. The supervisor ends a task, and
only if the worker still holds it (`WorkerPool.end_task`). So the client may ask more than once. It
asks every ASK_AGAIN seconds until the task has its outcome.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Container, Iterable, Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._support.timers import Timer
from ..errors import TaskTimeout
from .barriers import Then
from .ledger import Ledger, Task
from .task_states import IN_FLIGHT, TO_END

LOOK_TWICE = 0.02
"""Seconds between the two looks that must find that a task is over its time."""
LOOK_AGAIN = 0.005
"""Seconds until the next look for a task that must be ended and that no slot names yet."""
ASK_AGAIN = 0.1
"""Seconds after which the client asks again for the end of a task that still has no outcome."""
_NANO = 1_000_000_000


class _Late:
    """What is known of a task whose time was up at a look."""

    __slots__ = ("is_marked", "is_settled")

    def __init__(self) -> None:
        self.is_marked = False
        """Whether a barrier has been sent since that look."""
        self.is_settled = False
        """Whether the client has entered into the books all that was sent before that look."""


class Deadlines:
    """Knows which tasks in flight must be ended, and when to look next."""

    def __init__(self) -> None:
        self.timer = Timer()
        """For the next look."""
        self._late: dict[int, _Late] = {}
        self._asked: dict[int, float] = {}

    def watch(self, timeout: float) -> bool:
        """Plan a look for a task that is sent now and may run for ``timeout`` seconds. Returns
        whether the next look is now earlier than it was. Then the I/O thread must be woken."""
        return self.timer.set_at_most(timeout)

    def look_now(self) -> None:
        """Plan a look at once, because a task has been aborted."""
        self.timer.set_at_most(0.0)

    def due(
        self,
        ledger: Ledger,
        read_board: Callable[[], Sequence[Slot]],
        send_barrier: Callable[[Then], bool],
    ) -> list[Slot]:
        """Look at the scoreboard if it is time, and plan the next look. Returns the slots of the
        workers whose tasks the supervisor must end now.

        Args:
            ledger: the client's. Tasks that are over their time are condemned there.
            read_board: reads the scoreboard.
            send_barrier: sends a barrier (`barriers.py`). If it returns False, the next look tries
                again.
        """
        if not self.timer.is_due():
            return []
        self.timer.stop()
        now = time.monotonic()
        in_flight = ledger.in_flight
        self._late = {task: late for task, late in self._late.items() if task in in_flight}
        self._asked = {task: when for task, when in self._asked.items() if task in in_flight}
        running = {slot.task: slot for slot in read_board() if slot.state == sb.BUSY}
        ends = []
        for number, task in in_flight.items():
            slot = running.get(number)
            if task.state is IN_FLIGHT and (verdict := self._verdict(task, slot, now)) is not None:
                ledger.condemn(task, verdict)
            if task.state is TO_END and slot is None:
                self.timer.set_at_most(LOOK_AGAIN)
            elif task.state is TO_END and slot is not None:
                ends += [slot] if self._is_to_ask(number, now) else []
        new = [late for late in self._late.values() if not late.is_marked]
        if new and send_barrier(functools.partial(_settle, new)):
            for late in new:
                late.is_marked = True
        return ends

    def _is_to_ask(self, number: int, now: float) -> bool:
        """Whether to ask now for the end of this task. Plans the next time."""
        left = self._asked.get(number, 0.0) + ASK_AGAIN - now
        if left <= 0:
            self._asked[number] = now
        self.timer.set_at_most(left if left > 0 else ASK_AGAIN)
        return left <= 0

    def _verdict(self, task: Task, slot: Slot | None, now: float) -> TaskTimeout | None:
        """The error for a task that is over its time. None for any other task; if that has a
        time limit, plans the next look at it."""
        timeout = task.options.timeout
        if timeout is None:
            return None
        left = timeout if slot is None else slot.since / _NANO + timeout - now
        if slot is None or left > 0:
            # If it was late at an earlier look, that look mixed the words of two tasks.
            self._late.pop(task.number, None)
            self.timer.set_at_most(left)
        elif self._late.setdefault(task.number, _Late()).is_settled:
            return TaskTimeout(task.name, timeout, slot.pid)
        else:
            self.timer.set_at_most(LOOK_TWICE)
        return None


def _settle(seen: Iterable[_Late], _just_read: Container[int]) -> None:
    """Note that the outcomes sent before the barrier will be in the books at the next look."""
    for late in seen:
        late.is_settled = True
