"""Makes statistics of a board's bytes, wherever these come from: the client's own mapping,
or a file of somebody else's, which may hold anything. So nothing here raises for what the
words say, nor is led astray by it for longer than a board is large.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from ..stats import ScalingDecision, Waits, WorkerStats
from . import scoreboard as sb
from .decisions import printable, read_decision
from .scoreboard import Sections, Slot
from .worker_states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WINDOW = 60_000_000_000
"""Nanoseconds: a wait counts among the percentiles for so long after it was measured."""
_STATES = {int(state): state.name.lower() for state in State}
_LOOKS = 10
"""How often to look for a moment at which what the board says of its workers agrees."""
_SLOT_BYTES = sb.SLOT_WORDS * sb.WORD_BYTES

Source = Callable[[int, int], bytes]
"""Gives so many bytes of the board's file from a place on; fewer at its end."""


def words_of(data: bytes) -> Sequence[int]:
    """The whole words that there are."""
    return struct.unpack_from(f"={len(data) // sb.WORD_BYTES}Q", data)


def read_header(source: Source) -> Sequence[int]:
    """The words of the header: as many as there must be, zeroes if the file is too short."""
    found = words_of(source(0, sb.HEADER_WORDS * sb.WORD_BYTES))
    return (*found, *(0,) * (sb.HEADER_WORDS - len(found)))


class BoardReader:
    """Reads one board with this many slots.

    Args:
        source: gives its bytes.
        slots: how many it has, as was checked.
    """

    def __init__(self, source: Source, slots: int) -> None:
        self._source = source
        self._all = slots
        self._sections = Sections.of(slots)
        self._names: dict[int, str] = {}
        self._decisions: dict[int, tuple[int, tuple[ScalingDecision, ...]]] = {}

    def _used(self, header: Sequence[int]) -> int:
        return min(self._all, header[sb.USED])

    def slots(self, header: Sequence[int]) -> list[Slot]:
        """Those that have a worker which has not ended."""
        start, used = sb.HEADER_WORDS * sb.WORD_BYTES, self._used(header)
        words = words_of(self._source(start, used * _SLOT_BYTES))
        slots = [
            sb.slot_of(at // sb.SLOT_WORDS, words[at : at + sb.NAME + 1])
            for at in range(0, len(words) - sb.SLOT_WORDS + 1, sb.SLOT_WORDS)
            if words[at + sb.PID] and not words[at + sb.ENDED]
        ]
        return [slot for slot in slots if slot.state in _STATES and slot.state]

    def look(self, header: Callable[[], Sequence[int]]) -> tuple[Sequence[int], list[Slot]]:
        """The header, and the slots that have a worker which has not ended, of one moment: in
        between, no worker has been forked or has ended. If that goes on all the time, nearly."""
        for _ in range(_LOOKS):
            found = header()
            slots = self.slots(found)
            if found[sb.FORKS] == len(slots) + _ended(found):
                break
        return found, slots

    def name_of(self, slot: Slot) -> str | None:
        """The name of the task that it runs; None if it runs none, or it has no name."""
        if slot.state != sb.BUSY or not 0 < slot.name < sb.MAX_NAMES:
            return None
        start = self._sections.names + slot.name * sb.NAME_BYTES
        return printable(self._source(start, sb.NAME_BYTES).split(b"\0", 1)[0]) or None

    def decisions(self, header: Sequence[int]) -> tuple[ScalingDecision, ...]:
        """The latest, oldest first. Those that were overwritten meanwhile are left out."""
        scaling = self._in_ring(header, sb.DECISIONS, self._sections.decisions)
        memory = self._in_ring(header, sb.MEMORY_SAID, self._sections.memory_decisions)
        if not memory:
            return scaling
        return tuple(sorted((*scaling, *memory), key=lambda decision: decision.time))

    def _in_ring(
        self, header: Sequence[int], counter: int, start: int
    ) -> tuple[ScalingDecision, ...]:
        count = header[counter]
        if count != self._decisions.get(counter, (0, ()))[0]:
            size = sb.DECISIONS_KEPT * sb.DECISION_BYTES
            ring = self._source(start, size).ljust(size, b"\0")
            now = read_header(self._source)[counter]
            # The one after these may be being written, over the oldest.
            first = max(0, now - sb.DECISIONS_KEPT + 1)
            kept = range(first, min(count, first + sb.DECISIONS_KEPT))
            self._decisions[counter] = count, tuple(_entry(ring, number) for number in kept)
        return self._decisions.get(counter, (0, ()))[1]

    def waits(self, header: Sequence[int], now: int) -> Waits:
        """Those of the last minute."""
        size = self._used(header) * sb.WAITS * 2 * sb.WORD_BYTES
        return waits_of(self._source(self._sections.waits, size), now)


def _entry(ring: bytes, number: int) -> ScalingDecision:
    start = number % sb.DECISIONS_KEPT * sb.DECISION_BYTES
    return read_decision(ring[start : start + sb.DECISION_BYTES])


def waits_of(rings: bytes, now: int) -> Waits:
    """Those of the last minute in these rings of waits."""
    words = words_of(rings)
    pairs = zip(words[::2], words[1::2], strict=False)
    return percentiles(sorted(wait for wait, begun in pairs if begun and now - begun < WINDOW))


def percentiles(waits: Sequence[int]) -> Waits:
    """Of nanoseconds, smallest first."""
    if not waits:
        return Waits()
    # The smallest of which so many in a hundred are no larger.
    p50, p90, p99 = (waits[(len(waits) * share + 99) // 100 - 1] / 1e9 for share in (50, 90, 99))
    return Waits(p50, p90, p99, len(waits))


def seconds_at_max(header: Sequence[int], now: int) -> float:
    """How long there were as many workers as there may be."""
    since = header[sb.FULL_SINCE]
    return (header[sb.FULL_FOR] + (max(0, now - since) if since else 0)) / 1e9


def _ended(header: Sequence[int]) -> int:
    return header[sb.RETIREMENTS] + header[sb.DEATHS] + header[sb.OTHER_DEATHS]


def of_past(header: Sequence[int], live: int) -> dict[str, Any]:
    """What :class:`~prefork_executor.stats.PoolStats` takes as it stands in the header; with
    so many workers, each fork being one of them or one that has ended."""
    return {
        "times_at_max": header[sb.FULL_TIMES],
        "forks": live + _ended(header),
        "retirements": header[sb.RETIREMENTS],
        "deaths": header[sb.DEATHS],
        "other_deaths": header[sb.OTHER_DEATHS],
        "start_cost": header[sb.START_COST] / 1e9 or None,
    }


def worker_stats(slot: Slot, now: int, task: str | None, memory: int | None) -> WorkerStats:
    """A row for a worker."""
    return WorkerStats(
        pid=slot.pid,
        state=_STATES[slot.state],
        task=task,
        in_state=max(0, now - slot.since) / 1e9,
        age=max(0, now - slot.born) / 1e9,
        tasks_done=slot.done,
        memory=memory,
    )


def backlog(outstanding: int, slots: Sequence[Slot]) -> int:
    """Tasks that nobody has begun."""
    return max(0, outstanding - sum(slot.state == sb.BUSY for slot in slots))
