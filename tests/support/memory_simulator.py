"""A pool whose tasks take memory, in simulated time, driven by the rules of memory.

Time goes in ticks, one look each. A task's memory grows evenly to its peak and goes when it ends,
but for what stays in its worker. At every tick the promises are checked that hold at every
moment; what else happened is on record.
"""

from __future__ import annotations

import collections
import dataclasses
import random

from prefork_executor._client.memory_rules import (
    MAX_PASSED,
    Idle,
    Judgement,
    Memory,
    Past,
    Request,
    Runner,
    Sight,
    choose,
    is_light,
    judge,
)
from prefork_executor._client.timings import Timing

MIB = 2**20
BASE = 10 * MIB
LOOKAHEAD = 64


@dataclasses.dataclass(eq=False, slots=True)
class Task:
    """``given`` is what its caller says of its peak. ``outcome`` is what became of it."""

    function: str
    peak: int
    ticks: int
    rises: int = 1
    may_run_again: bool = True
    given: int | None = None
    past: Past | None = None
    number: int = 0
    began: int = 0
    runs: int = 0
    passed: int = 0
    outcome: str = ""

    def adds(self, now: int) -> int:
        """What it has added by then."""
        return self.peak * min(self.rises, now - self.began + 1) // self.rises


@dataclasses.dataclass(eq=False, slots=True)
class Worker:
    pid: int
    left_behind: int = 0
    task: Task | None = None
    is_ending: bool = False
    is_leaving: bool = False

    def takes(self, now: int) -> int:
        # A task uses first what others have left.
        return BASE + max(self.left_behind, 0 if self.task is None else self.task.adds(now))


class Simulation:
    """One pool.

    Args:
        bound: bytes that all workers may take.
        workers: as many there may be.
        tasks: in the order in which they are submitted, all at the beginning.
        leaves_behind: the share of its peak that a task leaves in its worker.
        other_programs: what other programs take, by the tick, of ``has`` bytes.
    """

    def __init__(
        self,
        bound: int,
        workers: int,
        tasks: list[Task],
        *,
        leaves_behind: float = 0.0,
        has: int = 2**50,
        other_programs: dict[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.bound = bound
        self.now = 0
        self.waiting = collections.deque(tasks)
        self.learned = {task.function: Timing(task.function) for task in tasks}
        self.ended = self.failed = 0
        self.most = 0
        self.looks_above = 0
        self.judgements: list[Judgement] = []
        self._tasks = list(tasks)
        self._workers = [Worker(pid) for pid in range(workers)]
        self._last_pid = workers
        self._leaves_behind = leaves_behind
        self._has = has
        self._other = other_programs or {}
        self._taken_by_others = 0
        self._memory = Memory()
        self._head: Task | None = None
        self._passed = 0
        self._last_number = 0
        self._chance = random.Random(seed)

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    @property
    def taken(self) -> int:
        return sum(worker.takes(self.now) for worker in self._workers)

    def run(self, ticks: int) -> Simulation:
        """Until all is done, or so many ticks have passed."""
        for _ in range(ticks):
            if not self.waiting and not self.running:
                break
            self.tick()
        return self

    def tick(self) -> None:
        self.now += 1
        self._taken_by_others = self._other.get(self.now, self._taken_by_others)
        self._end_what_is_done()
        self._look()
        self.most = max(self.most, self.taken)

    def _end_what_is_done(self) -> None:
        for worker in list(self._workers):
            task = worker.task
            if worker.is_ending or worker.is_leaving:
                self._replace(worker)
            elif task is not None and self.now - task.began >= task.ticks:
                left = worker.left_behind
                self.learned[task.function].observe_peak(max(0, task.peak - left), left)
                worker.left_behind = max(left, int(task.peak * self._leaves_behind))
                worker.task = None
                task.outcome = "done"

    def _replace(self, worker: Worker) -> None:
        self._last_pid += 1
        task = worker.task
        self._workers[self._workers.index(worker)] = Worker(self._last_pid)
        if task is not None and not task.outcome:
            self.waiting.appendleft(task)  # As a requeue does.

    def _peak(self, task: Task) -> int | None:
        return self.learned[task.function].peak if task.given is None else task.given

    def _request(self, task: Task) -> Request:
        return Request.of(self._peak(task), task.function, task.past)

    def _sight(self) -> Sight:
        takes = {worker: worker.takes(self.now) for worker in self._workers}
        runners = [
            Runner(
                task.number,
                task.began,
                takes[worker],
                self._request(task).peak,
                task.may_run_again,
                task.function,
            )
            for worker in self._workers
            if (task := worker.task) is not None
        ]
        idle = [Idle(w.pid, takes[w]) for w in self._workers if w.task is None]
        left = self._has - self._taken_by_others - self.taken
        return Sight(self.bound, min(takes.values()), runners, [], idle, 0, self._has, max(0, left))

    def _look(self) -> None:
        sight = self._sight()
        head = self.waiting[0] if self.waiting else None
        wanted = None
        if head is not None and self.running and not self._request(head).alone:
            peak = self._request(head).peak
            wanted = None if sight.offer().fits(peak) else (peak or sight.probe)
        judgement, self._memory = judge(sight, self._memory, wanted)
        self.looks_above += sight.is_above
        self.judgements.append(judgement)
        self._obey(judgement)
        self._begin_some(sight, judgement)

    def _obey(self, judgement: Judgement) -> None:
        for worker in self._workers:
            task = worker.task
            if worker.pid in judgement.leave:
                assert task is None
                worker.is_leaving = True
            if task is None:
                continue
            if task.number == judgement.end:
                assert task.may_run_again, "a task was ended that may not run again"
                assert len(self.running) > 1, "the only task was ended"
                self.ended += 1
                task.past = (task.past or Past()).after_end(worker.takes(self.now) - BASE)
                worker.is_ending = True
            elif task.number == judgement.fail:
                assert worker.takes(self.now) > self.bound, "a task failed that was not too large"
                self.failed += 1
                task.outcome = "failed"
                worker.is_ending = True

    def _begin_some(self, sight: Sight, judgement: Judgement) -> None:
        offer, may_probe = sight.offer(), True
        seen: dict[object, int] = {}
        for runner in sight.runners:
            growth = sight.growth(runner)
            seen[runner.function] = max(growth, seen.get(runner.function, 0))
        free = [w for w in self._workers if w.task is None and not w.is_leaving]
        while free and self.waiting:
            if self.waiting[0] is not self._head:
                self._head, self._passed = self.waiting[0], 0
            running = [worker.task for worker in self._workers if worker.task is not None]
            is_alone = any(self._request(task).alone for task in running)
            requests = [self._request(task) for task in list(self.waiting)[:LOOKAHEAD]]
            place = choose(
                requests,
                offer,
                seen,
                may_probe=may_probe,
                passed=self._passed,
                under_way=-1 if is_alone else len(running),
                holds=judgement.holds,
            )
            if place is None:
                return
            request, task = requests[place], self.waiting[place]
            self._check_beginning(request, sight, judgement, running_before=len(running))
            self._note_passed(place, request)
            may_probe = may_probe and request.peak is not None
            offer = offer.less(request.peak)
            del self.waiting[place]
            worker = free.pop(self._chance.randrange(len(free)))
            self._last_number += 1
            task.number, task.began, task.runs = self._last_number, self.now, task.runs + 1
            worker.task = task

    def _check_beginning(
        self, request: Request, sight: Sight, judgement: Judgement, running_before: int
    ) -> None:
        if running_before:
            assert not sight.is_above, "a task began above the bound"
            assert not judgement.holds
            assert not request.alone

    def _note_passed(self, place: int, request: Request) -> None:
        if place and not is_light(request.peak):
            self._passed += 1
            self.waiting[0].passed += 1
            assert self.waiting[0].passed <= MAX_PASSED * (1 + self.waiting[0].runs)

    def is_all_well(self) -> bool:
        """Whether every task has come to the end that it should have come to."""
        return all(task.outcome for task in self._tasks)

    def growth_beyond(self) -> int:
        """By how much the workers have taken more than the bound, at most."""
        return max(0, self.most - self.bound)
