"""A pool in simulated time, driven by the regulator and by nothing else.

A discrete-event simulation: workers, the task pipe, the client's reports and the
supervisor's looks, with the latencies that such things have. The supervisor
looks exactly when the real one does:

* the client rings, because more is outstanding than ``enough``;
* a worker has ended (SIGCHLD);
* a worker has gone idle, if ``max_spare`` is below the maximum (BELL);
* the time that the last decision named has come (timers count milliseconds).

Rings coalesce, and while the supervisor forks it looks at nothing. A look sees
what the real one would: a worker that was woken and has not asked yet is IDLE, one
that has a task and has not named it counts as idle while the pipe is empty.

At every event the bounds are checked; what else happened is on record.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prefork_executor._pool.regulator import Counts, Decision, Life, Limits, Memory, learn, regulate
from prefork_executor._pool.worker_pool import SETTLED_AFTER

# Seconds; on the scale of what a machine of today takes.
SUPERVISOR_WAKES = 60e-6
WORKER_WAKES = 40e-6
NAMING = 20e-6
REPORTING = 60e-6
FORKING = 0.7e-3
EXITING = 3e-3
TIMER = 1e-3

HOUR = 3600.0
START_UP = 0.015
"""Seconds that a simulated worker takes to be ready, at most."""
SLACK = 0.005
"""Seconds for the simulated latencies: waking up, forking, timers' milliseconds."""

Load = Iterable[tuple[float, float]]
"""When each task comes and how long it runs, in seconds, in order."""


def pool_of(most: int, min_spare: int = 1, idle_timeout: Any = 10.0) -> Limits:
    return Limits(most, min_spare, most, min_spare, idle_timeout)


@dataclasses.dataclass(slots=True)
class Worker:
    """``woken`` says that a message is on its way to it."""

    place: int
    born: float
    state: str = "starting"
    since: float = 0.0
    done: int = 0
    ready: float = 0.0
    worked: float = 0.0
    woken: bool = False
    told: bool = False
    holds_task: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A decision that changed the pool, and how many lived before it."""

    at: float
    live: int
    start: int
    retire: int
    reason: str


class Simulation:
    """One pool under one load.

    Args:
        limits: the pool's.
        load: its tasks.
        seed: of the start-up times.
        start_up: seconds from fork to ready, least and most.
        crashes: whether a worker born now dies as it starts.
        fork_fails: whether a fork fails now.
    """

    def __init__(
        self,
        limits: Limits,
        load: Load = (),
        *,
        seed: int = 0,
        start_up: tuple[float, float] = (2e-3, 15e-3),
        crashes: Callable[[float], bool] = lambda now: False,
        fork_fails: Callable[[float], bool] = lambda now: False,
    ) -> None:
        self.limits = limits
        self.now = 0.0
        self.worker_seconds = 0.0
        self.changes: list[Change] = []
        self.looks: list[float] = []
        self.forks: list[float] = []
        self.failed_forks: list[float] = []
        self.demand: list[tuple[float, int]] = [(0.0, 0)]
        self.waits: list[float] = []
        self.longest_lack = 0.0
        self.start_cost: float | None = None
        self._load = iter(load)
        self._chance = random.Random(seed)
        self._start_up = start_up
        self._crashes = crashes
        self._fork_fails = fork_fails
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._workers: dict[int, Worker] = {}
        self._ended: list[Worker] = []
        self._pipe: collections.deque[tuple[float, float]] = collections.deque()
        self._outstanding = 0
        self._enough: float = 0
        self._memory = Memory()
        self._seen = {"crashes": 0, "forks": 0, "failed_forks": 0}
        self._last_crash = -math.inf
        self._look_at = math.inf
        self._timer_at = 0.0
        self._blind_until = 0.0
        self._lacks_since: float | None = None
        self._next_task()
        self._at(0.0, self._look, 0.0)

    # --- what a test asks -------------------------------------------------------------------

    @property
    def live(self) -> int:
        """Workers not yet reaped."""
        return len(self._workers) + len(self._ended)

    @property
    def idle(self) -> int:
        return sum(worker.state == "idle" for worker in self._workers.values())

    def run(self, until: float) -> Simulation:
        while self._events and self._events[0][0] <= until:
            moment, _, event, args = heapq.heappop(self._events)
            self._pass_until(moment)
            event(*args)
            assert self.live <= self.limits.max_workers, f"too many live workers at {self.now}"
        self._pass_until(until)
        return self

    def _pass_until(self, moment: float) -> None:
        self.worker_seconds += self.live * (moment - self.now)
        self.now = moment

    def live_at(self, moment: float) -> int:
        """How many lived, or were about to be forked, after the decisions until then."""
        last = None
        for change in self.changes:
            if change.at > moment:
                break
            last = change
        return 0 if last is None else last.live + last.start - last.retire

    def changes_after(self, moment: float) -> list[Change]:
        return [change for change in self.changes if change.at > moment]

    def starts_needed(self) -> int:
        """Starts that no pool could do without which lets a worker go as soon as it
        was of no use for as long as any may be idle: the rises of the load's own moving maximum."""
        window, most, spare = (
            self.limits.dwell(self.start_cost),
            self.limits.max_workers,
            self.limits.min_spare,
        )
        assert window is not None
        needed = spare
        # When each level of demand ended that is not hidden by a later, higher one.
        recent: collections.deque[tuple[float, int]] = collections.deque([(0.0, 0)])
        for (moment, demand), (end, _) in itertools.pairwise(self.demand):
            while recent[0][0] < moment - window:
                recent.popleft()
            before = min(most, recent[0][1] + spare)
            needed += max(0, min(most, demand + spare) - before)
            while recent and recent[-1][1] <= demand:
                recent.pop()
            recent.append((end, demand))
        return needed

    # --- the client -------------------------------------------------------------------------

    def _at(self, moment: float, event: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._order), event, args))

    def _next_task(self) -> None:
        for moment, duration in itertools.islice(self._load, 1):
            self._at(moment, self._submit, duration)

    def _submit(self, duration: float) -> None:
        self._next_task()
        self._pipe.append((self.now, duration))
        for worker in self._workers.values():
            if worker.state == "idle" and not worker.woken:
                worker.woken = True
                self._at(self.now + WORKER_WAKES, self._ask, worker)
                break
        self._report(+1)

    def _report(self, tasks: int) -> None:
        self._outstanding += tasks
        self.demand.append((self.now, self._outstanding))
        if self._outstanding > self._enough:
            self._ring()

    # --- a worker ---------------------------------------------------------------------------

    def _ask(self, worker: Worker) -> None:
        if worker.place not in self._workers:
            return
        asked, worker.woken = worker.woken, False
        if worker.told and not asked:
            self._end(worker)
        elif self._pipe:
            submitted, duration = self._pipe.popleft()
            self.waits.append(self.now - submitted)
            worker.state, worker.holds_task = "taking", True
            self._at(self.now + NAMING, self._begin, worker, duration)
        elif worker.told:
            self._end(worker)
        elif worker.state != "idle":
            worker.state, worker.since = "idle", self.now
            if self.limits.max_spare < self.limits.max_workers:
                self._ring()

    def _begin(self, worker: Worker, duration: float) -> None:
        worker.state = "busy"
        self._watch_the_spares()
        self._at(self.now + duration, self._finish, worker, duration)

    def _finish(self, worker: Worker, duration: float) -> None:
        worker.done += 1
        worker.worked += duration
        worker.holds_task = False
        worker.state = "taking"
        self._watch_the_spares()
        self._at(self.now + REPORTING, self._report, -1)
        self._ask(worker)

    def _end(self, worker: Worker) -> None:
        worker.state = "leaving"
        self._at(self.now + EXITING, self._ended_now, worker)

    def _ended_now(self, worker: Worker) -> None:
        del self._workers[worker.place]
        self._ended.append(worker)
        self._ring()

    # --- the supervisor -----------------------------------------------------------------------

    def _ring(self) -> None:
        self._look_by(max(self.now, self._blind_until) + SUPERVISOR_WAKES)

    def _look_by(self, moment: float) -> None:
        if moment < self._look_at:
            self._look_at = moment
            self._at(moment, self._look, moment)

    def _look(self, planned: float) -> None:
        if planned not in (self._look_at, self._timer_at):
            return  # Another came before.
        self._look_at = self._timer_at = math.inf
        self.looks.append(self.now)
        decision, self._memory = regulate(self._count(), self.limits, self._memory)
        self._note(decision)
        self._retire(decision.retire)
        self._blind_until = self.now
        for _ in range(decision.start):
            self._blind_until += FORKING
            self._at(self._blind_until, self._fork)
        self._at(self._blind_until, self._listen, self.now, decision)

    def _listen(self, looked: float, decision: Decision) -> None:
        self._enough = math.inf if decision.enough is None else decision.enough
        if self._outstanding > self._enough or self._seen["failed_forks"]:
            self._ring()
        waits = [] if decision.check_in is None else [decision.check_in]
        if self._memory.crashes.length and self._workers:
            waits.append(SETTLED_AFTER)
        if waits:
            moment = max(self.now, looked + math.ceil(min(waits) / TIMER) * TIMER)
            self._timer_at = moment
            self._at(moment, self._look, moment)

    def _count(self) -> Counts:
        ended = self._reap()
        states = collections.Counter(
            "leaving" if worker.told else worker.state for worker in self._workers.values()
        )
        idle = states["idle"] + states["taking"]
        may_be_readable = self._pipe or not idle
        counts = Counts(
            now=self.now,
            starting=states["starting"],
            idle=idle,
            busy=states["busy"],
            leaving=states["leaving"],
            backlog=max(0, self._outstanding - states["busy"]) if may_be_readable else 0,
            outstanding=self._outstanding,
            settled=any(map(self._has_settled, self._workers.values())),
            start_cost=self.start_cost,
            **self._idle_times(),
            **self._seen,
        )
        self._seen = dict.fromkeys(self._seen, 0)
        assert not ended or counts.live < self.limits.max_workers
        return counts

    def _reap(self) -> int:
        ended = len(self._ended)
        for worker in self._ended:
            if worker.holds_task:
                self._at(self.now + REPORTING, self._report, -1)
            if not worker.told and not worker.done:
                self._seen["crashes"] += 1
                self._last_crash = self.now
        self._ended.clear()
        return ended

    def _idle_times(self) -> dict[str, Any]:
        ends = [self._times_out(w) for w in self._workers.values() if w.state == "idle"]
        fresh = [end for end in ends if end > self.now]
        idle_next = min(fresh, default=math.inf)
        return {
            "idle_long": len(ends) - len(fresh),
            "idle_next": None if idle_next == math.inf else idle_next,
        }

    def _times_out(self, worker: Worker) -> float:
        life = Life(worker.worked, worker.since - worker.ready - worker.worked)
        dwell = self.limits.dwell(self.start_cost, life)
        return math.inf if dwell is None else worker.since + dwell

    def _has_settled(self, worker: Worker) -> bool:
        if worker.born <= self._last_crash or worker.state == "starting":
            return False
        return worker.done > 0 or self.now - worker.born > SETTLED_AFTER

    def _note(self, decision: Decision) -> None:
        if decision.start or decision.retire:
            assert decision.reason
            self.changes.append(
                Change(self.now, self.live, decision.start, decision.retire, decision.reason)
            )

    def _retire(self, number: int) -> None:
        idle = [w for w in self._workers.values() if w.state == "idle" and not w.told]
        idle.sort(key=lambda worker: (self._times_out(worker), worker.since))
        for worker in idle[:number]:
            worker.told = True
            self._at(self.now + WORKER_WAKES, self._ask, worker)

    def _fork(self) -> None:
        if self._fork_fails(self.now):
            self.failed_forks.append(self.now)
            self._seen["failed_forks"] += 1
            return
        self.forks.append(self.now)
        self._seen["forks"] += 1
        place = next(n for n in itertools.count() if n not in self._workers)
        worker = self._workers[place] = Worker(place, self.now)
        # In the order of their places, which is that in which a message wakes them.
        self._workers = dict(sorted(self._workers.items()))
        ready = self.now + self._chance.uniform(*self._start_up)
        crashes = self._crashes(self.now)
        self._at(ready, self._ended_now if crashes else self._is_ready, worker)
        self._watch_the_spares()

    def _watch_the_spares(self) -> None:
        """Note how long spares lacked though there was room for them."""
        spares = sum(w.state in ("starting", "idle", "taking") for w in self._workers.values())
        lacks = spares < self.limits.min_spare and self.live < self.limits.max_workers
        if self._lacks_since is not None:
            self.longest_lack = max(self.longest_lack, self.now - self._lacks_since)
        if not lacks or self._lacks_since is None:
            self._lacks_since = self.now if lacks else None

    def _is_ready(self, worker: Worker) -> None:
        self.start_cost = learn(self.start_cost, self.now - worker.born)
        worker.ready = self.now
        self._ring()
        worker.state = "taking"
        self._ask(worker)


# --- loads ------------------------------------------------------------------------------------


def constant(rate: float, duration: float, hours: float) -> Load:
    """A task every 1 / rate seconds, all of one duration."""
    for number in range(int(rate * hours * 3600)):
        yield number / rate, duration


def at_random(
    rate: Callable[[float], float],
    duration: Callable[[random.Random], float],
    hours: float,
    seed: int = 0,
) -> Iterator[tuple[float, float]]:
    """Tasks that come independently of one another (a Poisson process), at a rate
    that depends on the time, each with a duration of its own."""
    chance, now = random.Random(seed), 0.0
    while True:
        now += chance.expovariate(rate(now))
        if now > hours * 3600:
            return
        yield now, duration(chance)


def burst(size: int, duration: float, start: float = 0.0, spacing: float = 15e-6) -> Load:
    """As one loop submits them."""
    for number in range(size):
        yield start + number * spacing, duration


def periodic(seconds: float, seed: int, *, period: float = 15.0) -> Iterator[tuple[float, float]]:
    """Tasks of 50 ms: two a second, and at the end of every period a hundred a second, for
    two seconds."""
    chance, now = random.Random(seed), 0.0
    while now < seconds:
        for rate, length in ((2.0, period - 2.0), (100.0, 2.0)):
            end = min(seconds, now + length)
            while (now := now + chance.expovariate(rate)) < end:
                yield now, 0.05
            now = end


def exponential(mean: float) -> Callable[[random.Random], float]:
    return lambda chance: chance.expovariate(1 / mean)


def heavy_tailed(least: float, most: float) -> Callable[[random.Random], float]:
    """Pareto: most tasks are short, most of the time goes into a few."""
    return lambda chance: min(most, least * chance.paretovariate(1.1))


def bursts(quiet: float, factor: float, period: float, share: float) -> Callable[[float], float]:
    """A rate that is ``factor`` times as high for a share of every period."""
    return lambda now: quiet * (factor if now % period < share * period else 1.0)


def sawtooth(low: float, high: float, period: float) -> Callable[[float], float]:
    """A rate that rises and falls between two values."""
    return lambda now: low + (high - low) * (1 - abs(1 - 2 * (now % period) / period))
