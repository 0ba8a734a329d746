"""What `PreforkExecutor.stats` returns: frozen snapshots of plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

__all__ = [
    "ExecutorStats",
    "MemoryStats",
    "PoolStats",
    "ScalingDecision",
    "Waits",
    "WorkerStats",
]


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker, according to its slot of the scoreboard.

    Attributes:
        pid: its process id.
        state: starting, idle, taking, busy or leaving.
        task: the name of the task it runs, or None.
        in_state: seconds since it became idle or busy.
        age: seconds since it was forked.
        tasks_done: tasks it has finished.
        memory: bytes of its resident memory, including what it shares with other processes.
            At most a second old. None: the worker has just ended, or the system does not
            tell.
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
    """A decision of the regulator that changed the pool, or that says what keeps the pool from
    growing; or one about memory, whose reason begins with "memory".

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

    Not every task is measured. A task that finds no other waiting always is. Of the others, one
    in 16 is, and one in 64 of those known to be short, but at most one in a message. The
    percentiles are of the measured tasks that began in the last minute: the last 32 for each
    place of a worker. For a task that runs again, the wait is the time until that run.

    Attributes:
        p50: the seconds within which half of them began. None if there are no samples.
        p90, p99: the same for 90 and 99 of a hundred.
        samples: how many were measured.
    """

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """The memory of a pool with ``max_memory``, as it was when that was last looked at: some
    tenths of a second ago, if tasks run. docs/memory.md has what it means.

    Attributes:
        bound: bytes that all workers may take together.
        taken: bytes that they take. A page that several share counts for each of them in part.
        left: bytes that the machine, or the tightest of its control groups, has left.
        stalled: percent of the last ten seconds in which everybody waited for memory; 0 where
            the kernel does not tell.
        held: tasks that wait for memory.
        ended: runs that were ended because the pool was above its bound; the tasks run again.
        exceeded: tasks that failed because they were above it by themselves.
        peaks: what a function's tasks add to their workers at most, by its name, largest first.
    """

    bound: int
    taken: int
    left: int
    stalled: float
    held: int
    ended: int
    exceeded: int
    peaks: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What is known of every pool at one moment, from inside and outside.

    Attributes:
        max_workers: the limit.
        workers: a row for each live worker.
        peak_workers: the most that there have been.
        backlog: tasks that no worker has begun. For raw pools: connections that wait in the
            queues of the ``listeners`` that the pool was given.
        max_backlog: the largest backlog so far.
        times_at_max: how often the pool has reached ``max_workers``.
        seconds_at_max: how long it has been there, in total.
        waits: how long tasks waited.
        forks: workers that were started.
        retirements: workers that left in order, because they were told to or on their own.
        deaths: workers that ended while they held a task.
        other_deaths: workers that ended unexpectedly without a task, for example while they
            started, or because they were killed while idle.
        decisions: the latest scaling decisions, oldest first.
        start_cost: seconds from a worker's fork until it is ready, its initializer included:
            a mean in which later starts count for more. None: none was seen, as in raw pools.
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
    start_cost: float | None = None

    @property
    def idle(self) -> int:
        """Workers that are waiting for a task."""
        return sum(worker.state in ("idle", "taking") for worker in self.workers)

    @property
    def busy(self) -> int:
        """Workers that are running a task."""
        return sum(worker.state == "busy" for worker in self.workers)

    @property
    def states(self) -> dict[str, int]:
        """How many workers are starting, idle, busy and leaving. A worker that is just taking a
        task counts as idle."""
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
            forkserver. Each phrase names a thing in the module that workers must not share.
            Empty: workers share one import, or there is none.
        memory: if the executor has ``max_memory`` and has begun, what there is to be said of
            that; else None.
    """

    waiting: int
    in_flight: int
    finished: int
    main_not_shared: tuple[str, ...] = ()
    memory: MemoryStats | None = None
