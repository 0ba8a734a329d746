"""What ``prefork-executor top`` knows of a pool after several looks at it."""

from __future__ import annotations

import collections

from prefork_executor.status import PoolStatus, WorkerStatus

LETTERS = {"starting": "S", "idle": "_", "taking": "_", "busy": "W", "leaving": "G"}
"""A letter for each state, as on Apache's scoreboard."""
OPEN = "."
"""The letter of a place without a worker."""
LEGEND = "_ waiting, W working, S starting, G leaving, . open"
COURSE_KEPT = 512
"""Looks whose figures are kept: as many as the widest terminal shows."""


class Looks:
    """The latest look at a pool, the one before, and the course of two numbers."""

    def __init__(self) -> None:
        self.now: PoolStatus | None = None
        self._before: PoolStatus | None = None
        self.workers: collections.deque[int] = collections.deque(maxlen=COURSE_KEPT)
        self.backlog: collections.deque[int] = collections.deque(maxlen=COURSE_KEPT)

    def add(self, pool: PoolStatus) -> None:
        """Add the next look."""
        self._before, self.now = self.now, pool
        self.workers.append(len(pool.workers))
        self.backlog.append(pool.backlog)

    def rate(self) -> str:
        """Tasks a second since the previous look."""
        before, now = self._before, self.now
        if before is None or now is None or now.time <= before.time:
            return "-"
        rate = (now.tasks_done - before.tasks_done) / (now.time - before.time)
        return f"{max(0.0, rate):.1f}" if rate < 10 else f"{rate:.0f}"

    def cpu(self, row: WorkerStatus) -> float:
        """Percent of a processor that this worker has used since the previous look."""
        before, now = self._before, self.now
        if before is None or now is None or row.cpu is None or now.time <= before.time:
            return 0.0
        old = next((old.cpu for old in before.workers if old.pid == row.pid), 0.0)
        return max(0.0, row.cpu - (old or 0.0)) / (now.time - before.time) * 100


def letters(pool: PoolStatus, most: int) -> str:
    """A letter for each place of a worker, ``most`` at most."""
    places = [OPEN] * min(pool.max_workers, most)
    for row in pool.workers:
        if row.slot < len(places):
            places[row.slot] = LETTERS[row.state]
    return "".join(places)
