"""Messages of several tasks, and what happens if one of these takes long.

A message costs more than a short task. So waiting tasks whose functions have been short so far
travel together, a fair share of those that wait. Their outcomes travel together as well. But a
function that was short may take long this time. Then the tasks behind it in its message must
not wait for it while other workers are idle, nor must the outcomes before it, which the worker
keeps in its slot's area (`_board/scoreboard.py`).

So while such messages are in flight, the client looks every SLOW_AFTER seconds for a worker that
has been at one task for longer than that. Then it

* recalls the rest. It says so in the slot's RECALL word, and then reads which task the
  worker has named. Those after it in the message have not begun and never will: the
  worker names a task, and then checks whether the message was recalled, before it
  begins the task. They are sent again. (If the worker has just named one when it sees the
  recall, it gives that task back itself.)
* takes the outcomes from the area, and believes them when a marker has come round. By
  then it has read what these tasks yelled earlier. The outcomes also come by message later,
  and are then known already.

When a worker dies or leaves in the middle of a message, its death notice says which task it held
and how many came after that. The supervisor sends on what lies in the area.
"""

from __future__ import annotations

import time

from .._board import fences
from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._support import faults
from .ledger import Ledger, Task
from .recovery import Recoveries

SLOW_AFTER = 0.005
"""Seconds after which a task of such a message counts as long. This is a hundred times what such
a task usually takes, and hardly noticeable."""
MAX_TASKS = 32
"""Tasks in one message. More would save little, and be less fair."""
MAX_SPAN_NS = 500_000
"""Nanoseconds that all tasks of one message may take, as far as is known."""
BATCHABLE_NS = 100_000
"""Nanoseconds up to which a task may travel with others."""
MAX_CALL_BYTES = 960
"""Bytes of a pickled call up to which it may travel with others: MAX_TASKS of these fit a
packet."""


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

    def __init__(self, ledger: Ledger, recoveries: Recoveries, board: Scoreboard) -> None:
        self._ledger = ledger
        self._recoveries = recoveries
        self._board = board
        self._last_tasks: set[int] = set()
        self._told: set[int] = set()
        self._found: dict[int, bytes] = {}
        self.look_at: float | None = None
        """When the next look is due, on the monotonic clock; None if none is."""

    def sent(self, last: int) -> None:
        """A message has been sent. Its last task has this number."""
        self._last_tasks.add(last)
        if self.look_at is None:
            self.look_at = time.monotonic() + SLOW_AFTER

    def look(self) -> None:
        """If it is time: recall what waits behind a long task, and note the outcomes that lie
        in areas until a marker has come round."""
        now = time.monotonic()
        if self.look_at is None or now < self.look_at:
            return
        faults.at("client.looks_for_slow")
        slots = self._board.read_all()
        slow = [slot for slot in slots if _is_slow(slot, now)]
        news = [slot for slot in slow if slot.unsent and slot.task not in self._told]
        for slot in news:
            kept = self._kept(slot)
            if (marker := self._recoveries.mark()) is not None:
                self._told.add(slot.task)
                self._found[marker] = kept
        for slot in slow:
            if slot.tail:
                # Only once: the named task stays in its slot while it runs. And not from the only
                # worker: no other could take it, and what that worker gives back itself would
                # come after what has been sent again.
                if slot.task + slot.tail in self._last_tasks and len(slots) > 1:
                    self._recall(slot)
            elif slot not in news:
                self._last_tasks.discard(slot.task)
        self._last_tasks &= self._ledger.in_flight.keys()
        self._told &= self._ledger.in_flight.keys()
        self.look_at = now + SLOW_AFTER if self._last_tasks or news else None

    def on_marker(self, marker: int) -> bytes:
        """A marker has come round. Returns the outcomes that were found before it was sent, as
        the body of an OUTCOMES packet, which may be empty."""
        return self._found.pop(marker, b"")

    def _recall(self, slot: Slot) -> None:
        last = slot.task + slot.tail
        # Tasks in the pipe were sent later. Otherwise the worker could go on with one of them.
        self._recoveries.drain_pipe()
        self._board.words[self._board.base(slot.place) + sb.RECALL] = last
        fences.everywhere(self._board)  # Also between the worker's naming and its check.
        named = self._board.read(slot.place)
        if named.state == sb.BUSY and named.task + named.tail == last:
            self._recoveries.drain_pipe(range(named.task + 1, last + 1))

    def _kept(self, slot: Slot) -> bytes:
        board, place = self._board, slot.place
        fences.everywhere(board)  # UNSENT was written before this task was named, or later.
        unsent = board.words[board.base(place) + sb.UNSENT]
        fences.everywhere(board)  # The bytes that UNSENT counts were written before it.
        kept = bytes(board.area(place)[:unsent])
        fences.everywhere(board)  # If they were overwritten, another task was named first.
        again = board.read(place)
        return kept if (again.state, again.task) == (slot.state, slot.task) else b""

    def forget(self) -> None:
        """All workers have ended."""
        self._last_tasks.clear()
        self._found.clear()
        self.look_at = None


def _is_slow(slot: Slot, now: float) -> bool:
    return slot.state == sb.BUSY and now - slot.since / 1e9 > SLOW_AFTER
