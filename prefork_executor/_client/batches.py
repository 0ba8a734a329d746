"""Messages of several tasks, and what becomes of them if one of these turns out to be long.

A message costs more than a short task. So tasks that wait, and that are known to be
short by their function's earlier ones, travel together, a fair share of those that wait.
Their outcomes travel together as well. What was short so far may be long this time:
then the tasks behind it in its message must not wait for it while other workers are idle,
nor the outcomes before it, which the worker keeps in its slot's area (`_board/scoreboard.py`).

So while there are such messages in flight, the client looks every SLOW_AFTER seconds for a
worker that has been at one task for longer than that, and

* recalls the rest: it says so in the slot's RECALL word, and then reads which task the
  worker has named. Those after it in the message have not begun and never will, because
  the worker names a task, and then looks whether the message was recalled, before it
  begins. They are sent again. (One that was named just before the worker found that out
  is given back by the worker itself.)
* takes the outcomes from the area, and believes them when a marker has come round: what
  the tasks have yelled before lies in the channel. They come by message later, too, and
  are known then.

A worker that dies, or leaves, in the midst of a message: its death notice says which task
it held and how many came after that. The supervisor sends on what lies in the area.
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
"""Seconds after which a task that was to be short is taken for long: a hundred times
longer than any that travels with others, and hardly to be noticed."""
MAX_TASKS = 32
"""Tasks in one message. More would hardly be cheaper, and less fair."""
MAX_SPAN_NS = 500_000
"""Nanoseconds that the tasks of one message take in all, as far as is known."""
BATCHABLE_NS = 100_000
"""Nanoseconds up to which a task may travel with others."""
MAX_CALL_BYTES = 960
"""Bytes of a pickled call up to which it may travel with others: as many as there may be
fit a packet."""


def batchable_body(task: Task) -> bytes | None:
    """The task's pickled call if it may travel with others, else None."""
    parts = task.parts
    if parts is None or len(parts) > 1 or not 0 < task.timing.mean <= BATCHABLE_NS:
        return None
    body = parts[0]
    return body if isinstance(body, bytes) and len(body) <= MAX_CALL_BYTES else None


class Batches:
    """What is known of the messages with several tasks that are in flight. All with
    the client's lock held."""

    def __init__(self, ledger: Ledger, recoveries: Recoveries, board: Scoreboard) -> None:
        self._ledger = ledger
        self._recoveries = recoveries
        self._board = board
        self._last_tasks: set[int] = set()
        self._told: set[int] = set()
        self._found: dict[int, bytes] = {}
        self.look_at: float | None = None
        """When the next look is due, on the monotonic clock; None: never."""

    def sent(self, last: int) -> None:
        """A message has been sent whose last task has this number."""
        self._last_tasks.add(last)
        if self.look_at is None:
            self.look_at = time.monotonic() + SLOW_AFTER

    def look(self) -> None:
        """If it is time, have a look: recall what waits behind a long task, and note
        the outcomes that lie in areas until a marker has come round."""
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
                # Once: what it has named stays in its slot as long as the task runs. And not from
                # the only worker: nobody else could take it, and what that worker gives back by
                # itself would come after what has been sent again.
                if slot.task + slot.tail in self._last_tasks and len(slots) > 1:
                    self._recall(slot)
            elif slot not in news:
                self._last_tasks.discard(slot.task)
        self._last_tasks &= self._ledger.in_flight.keys()
        self._told &= self._ledger.in_flight.keys()
        self.look_at = now + SLOW_AFTER if self._last_tasks or news else None

    def on_marker(self, marker: int) -> bytes:
        """A marker has come round: what was found before it was sent, as the body of an
        OUTCOMES packet, which may be empty."""
        return self._found.pop(marker, b"")

    def _recall(self, slot: Slot) -> None:
        last = slot.task + slot.tail
        # What lies in the pipe was sent later. Or the worker could go on with that.
        self._recoveries.drain_pipe()
        self._board.words[self._board.base(slot.place) + sb.RECALL] = last
        fences.everywhere(self._board)  # Between naming a task and looking as well.
        named = self._board.read(slot.place)
        if named.state == sb.BUSY and named.task + named.tail == last:
            self._recoveries.drain_pipe(range(named.task + 1, last + 1))

    def _kept(self, slot: Slot) -> bytes:
        board, place = self._board, slot.place
        fences.everywhere(board)  # UNSENT was written before this task was named, or later.
        unsent = board.words[board.base(place) + sb.UNSENT]
        fences.everywhere(board)  # What UNSENT says is there was written before it.
        kept = bytes(board.area(place)[:unsent])
        fences.everywhere(board)  # If it was overwritten, another task was named before.
        again = board.read(place)
        return kept if (again.state, again.task) == (slot.state, slot.task) else b""

    def forget(self) -> None:
        """No worker lives."""
        self._last_tasks.clear()
        self._found.clear()
        self.look_at = None


def _is_slow(slot: Slot, now: float) -> bool:
    return slot.state == sb.BUSY and now - slot.since / 1e9 > SLOW_AFTER
