"""What `PreforkExecutor.stats` returns: frozen snapshots, plain data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ExecutorStats", "ScalingDecision", "WorkerStats"]


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
    """

    pid: int
    state: str
    task: str | None
    in_state: float
    age: float
    tasks_done: int


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """One decision of the regulator that changed the pool.

    Attributes:
        time: when, in seconds since the epoch.
        workers: live workers before it.
        started: workers started by it.
        retired: idle workers retired by it.
        reason: why.
    """

    time: float
    workers: int
    started: int
    retired: int
    reason: str


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """An executor at one moment.

    Attributes:
        max_workers: the limit.
        workers: a row for each live worker.
        peak_workers: the most there have been.
        waiting: tasks not yet sent to the workers.
        in_flight: tasks sent and not yet resolved.
        finished: tasks that have returned or raised.
        deaths: workers that ended while they held a task.
        decisions: the latest scaling decisions, oldest first.
    """

    max_workers: int
    workers: tuple[WorkerStats, ...]
    peak_workers: int
    waiting: int
    in_flight: int
    finished: int
    deaths: int
    decisions: tuple[ScalingDecision, ...]

    @property
    def idle(self) -> int:
        """Workers that wait for a task."""
        return sum(worker.state in ("idle", "taking") for worker in self.workers)

    @property
    def busy(self) -> int:
        """Workers that run a task."""
        return sum(worker.state == "busy" for worker in self.workers)
