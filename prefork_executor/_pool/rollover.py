"""Workers that new ones are to replace, without a time in which too few serve.

A reload replaces all workers. A raw pool also replaces single children that have reached a limit:
they are *worn*. Both kinds are *old* here. An old worker that holds nothing does not count as a
spare any more, so the regulator starts others if it lacks spares. When enough others have shown
that they serve, the old ones retire. If there is no room for others, as many old ones retire as
the lacking ones need.

A reload must not cost the old workers if the new ones die at once. So an old worker in a raw pool
retires only when it is idle. A worn one runs the same code as its successor. It may be told to
leave at any time, and leaves when it has done what it holds.
"""

from __future__ import annotations

import time

from .._board import scoreboard as sb
from .leaving import PoolWorker
from .regulator import Counts, Limits

SETTLED_AFTER = 1.0
"""Seconds after which a worker that has done nothing yet counts as sound."""
_NANO = 1_000_000_000


class Rollover:
    """The old workers of one pool.

    Args:
        workers: all that have not been reaped, by their process ids; the pool's own.
        is_raw: whether they are children of a raw pool. These are idle from the start, and a
            signal retires them.
    """

    def __init__(self, workers: dict[int, PoolWorker], *, is_raw: bool) -> None:
        self._workers = workers
        self._is_raw = is_raw
        self._old: set[int] = set()
        self._worn: set[int] = set()

    def __bool__(self) -> bool:
        """Whether an old worker still lives."""
        return bool(self._old)

    def __contains__(self, pid: int) -> bool:
        return pid in self._old

    def add_all(self) -> None:
        """Replace all workers there are."""
        self._old.update(self._workers)

    def add_worn(self, pid: int) -> None:
        """Replace this worker, which has reached a limit."""
        self._old.add(pid)
        self._worn.add(pid)

    def forget(self, pid: int) -> None:
        """The worker has ended."""
        self._old.discard(pid)
        self._worn.discard(pid)

    def clear(self) -> None:
        """Those that have not been told to leave stay."""
        self._old.clear()
        self._worn.clear()

    def are_left(self) -> bool:
        """Whether an old worker has not been told to leave yet."""
        return any(not self._workers[pid].is_told for pid in self._old)

    def limits(self, limits: Limits) -> Limits:
        """The pool's limits for now."""
        if not self.are_left():
            return limits
        # One new worker at least has to show that it serves before the old ones go.
        return limits._replace(
            min_spare=max(1, limits.min_spare), max_spare=max(1, limits.max_spare)
        )

    def due(self, counts: Counts, limits: Limits, ended: int) -> list[PoolWorker]:
        """The old workers that should retire now. ``ended``: how many have been reaped whose
        places are not free yet."""
        limits = self.limits(limits)
        old = [
            worker
            for worker in self._workers.values()
            if worker.pid in self._old and not worker.is_told and self._may_retire(worker)
        ]
        # First those that do not serve yet: they may be no better than the new ones.
        old.sort(key=lambda worker: worker.look().state)
        lacking = limits.min_spare - counts.spares
        room = limits.max_workers - counts.live
        going = ended + sum(map(_is_going, self._workers.values()))
        limit = max(0, lacking - room - going)
        return old if old and self.enough_serve(limits) else old[:limit]

    def _may_retire(self, worker: PoolWorker) -> bool:
        """Whether it would lose nothing if it were told to leave now. A signal may
        meet a worker that works; one without finishes what it holds."""
        if not self._is_raw or worker.pid in self._worn:
            return True
        return worker.look().state == sb.IDLE

    def enough_serve(self, limits: Limits) -> bool:
        """Whether as many workers that are to stay have shown that they serve as there should be
        spares."""
        new = [
            worker.look()
            for worker in self._workers.values()
            if worker.pid not in self._old and not worker.is_told
        ]
        now = time.monotonic_ns()
        return sum(self._serves(slot, now) for slot in new) >= limits.min_spare

    def _serves(self, slot: sb.Slot, now: int) -> bool:
        """Whether a worker has shown that it works: it has got past its start, and where
        every child is idle from the start, it has taken something or lived for a while."""
        if slot.state not in (sb.IDLE, sb.TAKING, sb.BUSY):
            return False
        if not self._is_raw or slot.task or slot.done or slot.state == sb.BUSY:
            return True
        # Not since its fork: on a machine with much to do a child may run late. But a look that is
        # made while the child writes may find its state without the time of it, which is 0 then.
        return slot.since >= slot.born and now - slot.since > SETTLED_AFTER * _NANO


def _is_going(worker: PoolWorker) -> bool:
    return worker.is_told or worker.look().state == sb.LEAVING
