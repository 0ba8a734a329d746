"""Messages of several short tasks, and what the client does if one of these tasks takes long.

A message costs more than a short task. So waiting tasks whose functions have been short so far
travel together: a message has a fair share of the waiting tasks. Their outcomes travel together as
well. But a function that was short may take long this time. Then the tasks behind it in its message
must not wait for it while other workers are idle. Nor must the outcomes of the tasks before it,
which the worker keeps in its slot's area (`_board/scoreboard.py`).

So while such messages are in flight, the client looks every SLOW_AFTER seconds for a worker that
has been at one task for longer than that. Then it

* recalls the rest of the message. The client writes the slot's RECALL word, and then reads which
  task the worker has named. The tasks after that in the message have not begun and never will: a
  worker names a task, and then checks whether the message was recalled, before it begins the
  task. So the client sends them again. (If the worker sees the recall just after it has named a
  task, it gives that task back itself.)
* copies the outcomes from the area, and enters them into the books when a barrier has come round
  (`barriers.py`). By then the client has read what these tasks yelled before they ended. The worker
  also sends these outcomes later. The client ignores outcomes that are in the books already.

When a worker dies or leaves in the middle of a message, its death notice says which task it held
and how many came after that. The supervisor sends on what lies in the area.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Container

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._support import faults
from .._support.timers import Timer
from .barriers import Barriers
from .ledger import Ledger, Task
from .recovery import Recoveries

SLOW_AFTER = 0.005
"""Seconds after which a task of such a message counts as long. Such a task usually takes a
hundredth of that, and users hardly notice so short a delay."""
MAX_TASKS = 32
"""Tasks in one message. More would save little, and be less fair."""
MAX_SPAN_NS = 500_000
"""Nanoseconds that the tasks of one message may be expected to take together. When they reach this,
no further task is added."""
BATCHABLE_NS = 100_000
"""Nanoseconds that a function's tasks may take, on average, if they are to travel with others."""
MAX_CALL_BYTES = 960
"""Bytes that a pickled call may have if it is to travel with others. MAX_TASKS calls of this size
fit a packet."""


def batchable_body(task: Task) -> bytes | None:
    """The task's pickled call if it may travel with others, else None."""
    parts = task.parts
    if parts is None or len(parts) > 1 or not 0 < task.timing.mean <= BATCHABLE_NS:
        return None
    body = parts[0]
    return body if isinstance(body, bytes) and len(body) <= MAX_CALL_BYTES else None


class Batches:
    """The messages of several tasks that are in flight. Call all methods with the client's lock
    held."""

    def __init__(
        self, ledger: Ledger, recoveries: Recoveries, barriers: Barriers, board: Scoreboard
    ) -> None:
        self._ledger = ledger
        self._recoveries = recoveries
        self._barriers = barriers
        self._board = board
        self._last_tasks: set[int] = set()
        self._told: set[int] = set()
        self._found: dict[int, bytes] = {}
        self.timer = Timer()
        """For the next look."""

    def sent(self, last: int) -> None:
        """A message has been sent. Its last task has this number."""
        self._last_tasks.add(last)
        if not self.timer.is_set:
            self.timer.set(SLOW_AFTER)

    def look(self) -> None:
        """If it is time, look for tasks that take long. Recall the tasks behind them, and copy the
        outcomes of the tasks before them until a barrier has come round."""
        if not self.timer.is_due():
            return
        now = time.monotonic()
        faults.at("client.looks_for_slow")
        slots = self._board.read_all()
        slow = [slot for slot in slots if _is_slow(slot, now)]
        news = [slot for slot in slow if slot.unsent and slot.task not in self._told]
        for slot in news:
            kept = self._kept(slot)
            if self._barriers.send(functools.partial(self._believe, slot.task)):
                self._told.add(slot.task)
                self._found[slot.task] = kept
        for slot in slow:
            if slot.tail:
                # Recall a message only once: the slot names the same task while that runs. Do not
                # recall it from the only worker: no other worker could take the tasks. And the
                # task that the worker gives back itself would come after those sent again.
                if slot.task + slot.tail in self._last_tasks and len(slots) > 1:
                    self._recall(slot)
            elif slot not in news:
                self._last_tasks.discard(slot.task)
        self._last_tasks &= self._ledger.in_flight.keys()
        self._told &= self._ledger.in_flight.keys()
        if self._last_tasks or news:
            self.timer.set(SLOW_AFTER)
        else:
            self.timer.stop()

    def _believe(self, task: int, _just_read: Container[int]) -> bytes:
        """Return the outcomes that were copied from the area when this task was found to take
        long: its barrier has come round. Returns none if the workers have ended meanwhile."""
        return self._found.pop(task, b"")

    def _recall(self, slot: Slot) -> None:
        """Recall the tasks of the message that the worker has not begun, and requeue them."""
        last = slot.task + slot.tail
        # The tasks in the pipe were sent later, so they must not begin before the recalled ones.
        # Without this, the worker could take one of them next.
        self._recoveries.drain_pipe()
        self._board.words[self._board.base(slot.place) + sb.RECALL] = last
        fences.everywhere(self._board)  # Also between the worker's naming and its check.
        named = self._board.read(slot.place)
        if named.state == sb.BUSY and named.task + named.tail == last:
            self._recoveries.drain_pipe(range(named.task + 1, last + 1))

    def _kept(self, slot: Slot) -> bytes:
        """A copy of the outcomes in the worker's area. Empty if the worker has gone on
        meanwhile."""
        board, place = self._board, slot.place
        fences.everywhere(board)  # UNSENT was written before this task was named, or later.
        unsent = board.words[board.base(place) + sb.UNSENT]
        fences.everywhere(board)  # The bytes that UNSENT counts were written before it.
        kept = bytes(board.area(place)[:unsent])
        fences.everywhere(board)  # If they were overwritten, another task was named first.
        again = board.read(place)
        return kept if (again.state, again.task) == (slot.state, slot.task) else b""

    def forget(self) -> None:
        """Forget all messages, because all workers have ended."""
        self._last_tasks.clear()
        self._found.clear()
        self.timer.stop()


def _is_slow(slot: Slot, now: float) -> bool:
    return slot.state == sb.BUSY and now - slot.since / 1e9 > SLOW_AFTER
