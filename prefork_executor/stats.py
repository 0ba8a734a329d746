"""What `PreforkExecutor.stats` returns: frozen snapshots, plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = ["ExecutorStats", "PoolStats", "ScalingDecision", "Waits", "WorkerStats"]


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker as its slot of the scoreboard says.

    Attributes:
        pid: its process id.
        state: starting, idle, taking, busy or leaving.
        task: the name of the task it runs, or None.
        in_state: seconds since it became idle or busy.
        age: seconds since it was forked.
        tasks_done: tasks it has finished.
        memory: bytes of its resident memory, those that it shares with other processes
            included; at most a second old. None: it has just ended, or the system does
            not tell.
    """

    pid: int
    state: str
    task: str | None
    in_state: float
    age: float
    tasks_done: int
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """One decision of the regulator that changed the pool, or that says what keeps it
    from growing.

    Attributes:
        time: when, in seconds since the epoch.
        workers: live workers before it.
        started: workers started by it.
        retired: workers retired by it.
        reason: why.
    """

    time: float
    workers: int
    started: int
    retired: int
    reason: str


@dataclass(frozen=True, slots=True)
class Waits:
    """How long tasks have waited for a worker, from their submission to their beginning.

    Not every task is measured: each one that finds no other waiting, and of the rest one
    in 16, or in 64 of those known to be short; at most one of those that travel in one
    message. The percentiles are of the measured ones that began in the last minute, the last
    32 for each place that a worker may have. For a task that runs again, it is the time
    until that run.

    Attributes:
        p50: seconds that half of them waited at most; None if there are no samples.
        p90, p99: the same for 90 and 99 of a hundred.
        samples: how many there are.
    """

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What can be said of every pool at one moment, from inside and outside.

    Attributes:
        max_workers: the limit.
        workers: a row for each live worker.
        peak_workers: the most there have been.
        backlog: tasks that no worker has begun. 0 for raw pools, which cannot know.
        max_backlog: the most there have been.
        times_at_max: how often there came to be as many workers as there may be.
        seconds_at_max: how long there were, in all.
        waits: how long tasks waited.
        forks: workers that were started.
        retirements: workers that left in order, because they were told to or by themselves.
        deaths: workers that ended while they held a task.
        other_deaths: workers that ended unbidden while they held none: as they started,
            say, or killed while they were idle.
        decisions: the latest scaling decisions, oldest first.
    """

    max_workers: int
    workers: tuple[WorkerStats, ...]
    peak_workers: int
    backlog: int
    max_backlog: int
    times_at_max: int
    seconds_at_max: float
    waits: Waits
    forks: int
    retirements: int
    deaths: int
    other_deaths: int
    decisions: tuple[ScalingDecision, ...]

    @property
    def idle(self) -> int:
        """Workers that wait for a task."""
        return sum(worker.state in ("idle", "taking") for worker in self.workers)

    @property
    def busy(self) -> int:
        """Workers that run a task."""
        return sum(worker.state == "busy" for worker in self.workers)

    @property
    def states(self) -> dict[str, int]:
        """How many workers are starting, idle, busy and leaving. One that is just taking
        a task counts as idle."""
        found = Counter("idle" if row.state == "taking" else row.state for row in self.workers)
        return {state: found[state] for state in ("starting", "idle", "busy", "leaving")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats(PoolStats):
    """An executor at one moment: all that :class:`PoolStats` has, and

    Attributes:
        waiting: tasks not yet sent to the workers.
        in_flight: tasks sent and not yet resolved.
        finished: tasks that have returned or raised.
        main_not_shared: why each worker imports the main module for itself, under spawn and
            forkserver: what the module holds that workers must not share, a phrase for each
            thing. Empty: they share one import, or have none.
    """

    waiting: int
    in_flight: int
    finished: int
    main_not_shared: tuple[str, ...] = ()
