"""Where to strike a pool: what the chaos test and the soak share."""

from __future__ import annotations

import os
import random
from typing import NamedTuple

import psutil
from injection import is_alive

from prefork_executor import PreforkExecutor
from prefork_executor.stats import ExecutorStats

LOOKS = 200
"""Glances at the board, at most, for a worker in the state that is to be hit."""


class Victim(NamedTuple):
    """A worker, the state it was just seen in, and the process that has forked it."""

    worker: psutil.Process
    state: str
    supervisor: psutil.Process


class Hunt:
    """Finds processes of one executor, and of nobody else."""

    def __init__(self, executor: PreforkExecutor, rng: random.Random) -> None:
        self._executor = executor
        self._rng = rng
        self._most_slots = self._most_processes = 0

    @property
    def most_workers(self) -> int:
        """The most that were seen at a time, on the board or alive."""
        return max(self._most_slots, self._most_processes)

    def find(self, wanted: str) -> Victim | None:
        """A worker in this state, or after some looking in any state. None: there is none,
        or its supervisor has just died, and it with that.

        Raises:
            psutil.NoSuchProcess: it has just ended.
        """
        found = self._look_for(wanted)
        if found is None:
            return None
        worker, state = found
        supervisor = worker.parent()
        if supervisor is None or not self._is_ours(supervisor):
            return None
        alive = sum(map(is_alive, supervisor.children()))
        self._most_processes = max(self._most_processes, alive)
        return Victim(worker, state, supervisor)

    def _look_for(self, wanted: str) -> tuple[psutil.Process, str] | None:
        for _ in range(LOOKS):
            workers = self._look().workers
            for worker in workers:
                if worker.state == wanted:
                    return psutil.Process(worker.pid), wanted
        if not workers:
            return None
        worker = self._rng.choice(workers)
        return psutil.Process(worker.pid), worker.state

    def _look(self) -> ExecutorStats:
        stats = self._executor.stats()
        self._most_slots = max(self._most_slots, len(stats.workers))
        return stats

    def _is_ours(self, supervisor: psutil.Process) -> bool:
        # Below it: this process, or the fork server, and the one that the template is from.
        return os.getpid() in (parent.pid for parent in supervisor.parents()[:3])
