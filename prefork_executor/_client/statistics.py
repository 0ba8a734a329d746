"""What an executor remembers of its past, and how past and present make a snapshot."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Sequence

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._support.named_tuples import NamedTuple
from .._system import machine
from .ledger import Ledger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..stats import ExecutorStats, MemoryStats

# What makes statistics is imported when they are asked for: so pools start sooner.

DECISIONS_KEPT = 256
MEMORY_FOR = 1.0
"""Seconds until a worker's memory is read again: reading it each time would triple the cost of
`stats`."""


class Reading(NamedTuple):
    """What `History.look` has seen."""

    header: Sequence[int]
    slots: list[Slot]
    names: list[str | None]
    waits: bytes
    waiting: int
    in_flight: int
    finished: int
    decisions: tuple[bytes, ...]
    """As they were packed (`_board/decisions.py`)."""
    peak: int
    main_not_shared: tuple[str, ...]
    memory: MemoryStats | None


class History:
    """Counts that only grow, and the latest decisions. Guarded by the client's lock."""

    def __init__(self) -> None:
        self.finished = 0
        self.main_not_shared: tuple[str, ...] = ()
        self._max_outstanding = 0
        self._header: Sequence[int] = (0,) * sb.HEADER_WORDS
        self._memory: dict[int, int | None] = {}
        self._memory_at = 0.0
        self._decisions: collections.deque[bytes] = collections.deque(maxlen=DECISIONS_KEPT)

    def count_finished(self, tasks: int) -> None:
        """So many more tasks have returned or raised."""
        self.finished += tasks

    def workers_import_main(self, reasons: tuple[str, ...]) -> None:
        """Each worker imports main for itself, for these reasons; empty: they share it."""
        self.main_not_shared = reasons

    def enter(self, decision: bytes) -> None:
        """The pool has made this decision, which is packed."""
        self._decisions.append(decision)

    def note_backlog(self, ledger: Ledger, board: Scoreboard) -> None:
        """Call this before tasks leave the books."""
        outstanding = ledger.outstanding
        if outstanding > self._max_outstanding:
            self._max_outstanding = outstanding
            peak = max(0, outstanding - board.states().count(sb.BUSY))
            board.words[sb.PEAK_BACKLOG] = max(peak, board.words[sb.PEAK_BACKLOG])

    def close(self, board: Scoreboard) -> None:
        """The board is about to be closed."""
        self._header = tuple(board.words[: sb.HEADER_WORDS])

    def read(self, board: Scoreboard | None, ledger: Ledger, memory: MemoryStats | None) -> Reading:
        """What must be read at one moment, with the client's lock held. ``board`` is None if it
        is not open."""
        from .._board.reader import BoardReader

        slots: list[Slot] = []
        waits = b""
        if board is not None:
            reader, words = BoardReader(board.copy, board.slots), board.words
            self._header, slots = reader.look(lambda: tuple(words[: sb.HEADER_WORDS]))
            waits = board.copy(*board.span_of_waits())
        return Reading(
            header=self._header,
            slots=slots,
            names=[_task_name(slot, ledger) for slot in slots],
            waits=waits,
            waiting=ledger.backlog,
            in_flight=len(ledger.in_flight),
            finished=self.finished,
            decisions=tuple(self._decisions),
            peak=max(self._header[sb.PEAK], len(slots)),
            main_not_shared=self.main_not_shared,
            memory=memory,
        )

    def snapshot(self, max_workers: int, reading: Reading) -> ExecutorStats:
        """A snapshot of what was read, and of the rest, which needs no lock."""
        from .._board.decisions import read_decision
        from .._board.reader import backlog, of_past, seconds_at_max, waits_of, worker_stats
        from ..stats import ExecutorStats

        now, header, memory = time.monotonic_ns(), reading.header, self._memory_of(reading.slots)
        return ExecutorStats(
            max_workers=max_workers,
            workers=tuple(
                worker_stats(slot, now, name, memory[slot.pid])
                for slot, name in zip(reading.slots, reading.names, strict=True)
            ),
            peak_workers=reading.peak,
            backlog=backlog(reading.waiting + reading.in_flight, reading.slots),
            max_backlog=header[sb.PEAK_BACKLOG],
            seconds_at_max=seconds_at_max(header, now),
            waits=waits_of(reading.waits, now),
            waiting=reading.waiting,
            in_flight=reading.in_flight,
            finished=reading.finished,
            decisions=tuple(map(read_decision, reading.decisions)),
            main_not_shared=reading.main_not_shared,
            memory=reading.memory,
            **of_past(header, len(reading.slots)),
        )

    def _memory_of(self, slots: Iterable[Slot]) -> dict[int, int | None]:
        now, known = time.monotonic(), self._memory
        if now - self._memory_at > MEMORY_FOR:
            self._memory_at, known = now, {}
        memory = self._memory = {
            slot.pid: known[slot.pid] if slot.pid in known else machine.resident_memory(slot.pid)
            for slot in slots
        }
        return memory


def _task_name(slot: Slot, ledger: Ledger) -> str | None:
    task = ledger.in_flight.get(slot.task) if slot.state == sb.BUSY else None
    return task.name if task is not None else None
