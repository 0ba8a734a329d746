"""What a pool is given to do in a soak, and whether each task came out as it must."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import chaos_tasks
from chaos_tasks import YELLS, payload, read_ledger
from soak_strikes import Striker

from prefork_executor import PreforkExecutor, TaskAborted, TaskTimeout, WorkerDied

BOUND = 120.0
"""Seconds after which a future that is not resolved counts as one that never will be."""
FEW, MANY = 3, 120
"""Tasks submitted at once, at most: fewer than there are workers, or many more, of which
short ones share their messages."""
LIFE = 0.03
"""Seconds until the next are submitted, at most."""
FORKS, ABORTS, CANCELS, CALMS = 0.1, 0.3, 0.3, 0.1
"""So often, of the times at which some are submitted, the caller forks; a task is ended;
one is cancelled; and the strikes stop until all are resolved."""
LOOKED_AT = 3
"""Futures at which a fork of the caller looks."""
CHILD_HANGS, CHILD_IS_WRONG = 3, 2
"""Exit codes of such a fork."""
MOST_TOLD = 20
"""Violations that are told one by one."""


@dataclass(frozen=True)
class Kind:
    """Some of the tasks.

    Attributes:
        fn: what they run.
        weight: how many they are, in proportion.
        due: how they end if nobody does anything to them.
        retries, timeout: as for ``with_options``.
    """

    fn: Callable[[str, int, bytes], Any]
    weight: float
    due: str = "result"
    retries: int = 0
    timeout: float | None = None


KINDS = (
    Kind(chaos_tasks.trivial, 60),
    Kind(chaos_tasks.trivial, 5, retries=2),
    Kind(chaos_tasks.nap, 20),
    Kind(chaos_tasks.carry, 5),
    Kind(chaos_tasks.say, 5),
    Kind(chaos_tasks.fail, 5, due="its own exception"),
    Kind(chaos_tasks.exit_at_once, 0.2, due="WorkerDied"),
    Kind(chaos_tasks.exit_at_once, 0.1, due="WorkerDied", retries=1),
    Kind(chaos_tasks.stay, 0.2, due="TaskTimeout", timeout=0.05),
)


class Given(NamedTuple):
    """A task whose future was not looked at yet. ``brakes`` is what the striker's count of them
    was before it was submitted."""

    kind: Kind
    future: Future[Any]
    brakes: int
    at: float


class Violations:
    """What must not be."""

    def __init__(self) -> None:
        self.count = 0
        self.told: list[str] = []

    def add(self, what: str) -> None:
        """One more."""
        self.count += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(what)


class Heard:
    """What tasks yell, until they are asked for. Each says all numbers from 0 on, in order."""

    def __init__(self, violations: Violations) -> None:
        self.counts: dict[int, int] = {}
        self._violations = violations

    def hear(self, _pid: int, data: tuple[int, int, bytes]) -> None:
        """As the pool's hook."""
        number, i, big = data
        heard = self.counts.get(number, 0)
        self.counts[number] = heard + 1
        if i != heard or big not in (b"", payload(number)):
            self._violations.add(f"task {number} was heard to say {i} after {heard} others")


class Work:
    """Tasks without end, and what becomes of them.

    Args:
        executor: runs them.
        striker: what disturbs them.
        heard: what they say.
        directory: for the ledger of the tasks, and the record of how they ended.
        rng: decides what comes next.
        most: tasks that are not resolved, at most.
        violations: gets what is wrong.
    """

    def __init__(
        self,
        executor: PreforkExecutor,
        striker: Striker,
        heard: Heard,
        directory: Path,
        rng: random.Random,
        most: int,
        violations: Violations,
    ) -> None:
        self.submitted = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.forks: collections.Counter[str] = collections.Counter()
        self._executor = executor
        self._striker = striker
        self._heard = heard
        self._violations = violations
        self._ledger = directory / "ledger"
        self._ledger.touch()
        self._ends = directory / "ends"
        self._record = open(self._ends, "w", encoding="ascii")  # noqa: SIM115 - until close()
        self._rng = rng
        self._most = most
        self._given: dict[int, Given] = {}
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked_to_end: set[int] = set()
        self._cancelled: set[int] = set()
        self._children: dict[int, float] = {}
        self.exits = 0
        """How often workers may have been ended by their tasks."""

    @property
    def unresolved(self) -> int:
        """Tasks whose futures were not looked at yet."""
        return len(self._given)

    # --- submitting --------------------------------------------------------------------------

    def submit_some(self) -> None:
        """A few tasks or many, of all kinds."""
        count = self._rng.randint(1, self._rng.choice([FEW, MANY]))
        count = min(count, self._most - self.unresolved)
        weights = [kind.weight for kind in KINDS]
        for kind in self._rng.choices(KINDS, weights, k=count):
            number, future = self._submit(kind)
            future.add_done_callback(functools.partial(self._note_end, number))

    def _note_end(self, number: int, _: Future[Any]) -> None:
        self._ended.put(number)

    def _submit(self, kind: Kind) -> tuple[int, Future[Any]]:
        number, self.submitted = self.submitted, self.submitted + 1
        if kind.due == "WorkerDied":
            self.exits += 1 + kind.retries
        data = payload(number) if kind.fn is chaos_tasks.carry else b""
        brakes = self._striker.brakes
        submitter = self._executor.with_options(retries=kind.retries, timeout=kind.timeout)
        future: Future[Any] = submitter.submit(kind.fn, str(self._ledger), number, data)
        self._given[number] = Given(kind, future, brakes, time.monotonic())
        return number, future

    def ask_and_wait(self) -> None:
        """One task after the other, each waited for."""
        for _ in range(self._rng.randint(1, 5)):
            number, future = self._submit(KINDS[0])
            try:
                future.exception(BOUND)
                self._judge(number)
            except TimeoutError:
                return  # It is among those that wait, and will be complained of.

    def disturb(self) -> None:
        """Now and then end a task, cancel one, fork."""
        if self._given and self._rng.random() < ABORTS:
            number = self._rng.choice(list(self._given))
            self._asked_to_end.add(number)
            self._executor.abort(self._given[number].future)
        if self._given and self._rng.random() < CANCELS:
            number = max(self._given) - self._rng.randint(0, 10)
            if number in self._given and self._given[number].future.cancel():
                self._cancelled.add(number)
        if self._rng.random() < FORKS:
            self._fork()

    # --- what has become of them ----------------------------------------------------------------

    def take_ended(self, seconds: float) -> None:
        """Look at those that have ended, waiting so long for the first."""
        self._reap()
        deadline = time.monotonic() + seconds
        while True:
            try:
                number = self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            self._judge(number)

    def await_all(self, why: str) -> None:
        """All of them, and complain of those that are not resolved in time."""
        deadline = time.monotonic() + BOUND
        while self._given and time.monotonic() < deadline:
            self.take_ended(0.01)
        for number, given in self._given.items():
            name = f"task {number} ({given.kind.fn.__name__})"
            waited = time.monotonic() - given.at
            self._violations.add(f"{name} is not resolved after {waited:.0f} s, {why}")
        self._given.clear()

    def _judge(self, number: int) -> None:
        given = self._given.pop(number, None)
        if given is None:
            return  # It was complained of before.
        pid = 0
        try:
            end = self._end_of(number, given)
            if isinstance(error := _error(given.future), WorkerDied):
                pid = error.pid
        except AssertionError as wrong:
            end = "wrong"
            self._violations.add(f"task {number} ({given.kind.fn.__name__}): {wrong}")
        self.outcomes[end] += 1
        says = given.kind.fn is chaos_tasks.say
        heard = self._heard.counts.pop(number, 0)
        if says and end == "result" and heard != YELLS:
            self._violations.add(f"task {number} was heard {heard} times instead of {YELLS}")
        self._asked_to_end.discard(number)
        self._cancelled.discard(number)
        self._record.write(f"{number} {given.kind.retries} {pid} {end}\n")

    def _end_of(self, number: int, given: Given) -> str:
        kind, future = given.kind, given.future
        were_all_ended = self._striker.have_all_ended_since(given.brakes)
        if future.cancelled():
            assert number in self._cancelled or were_all_ended, "cancelled by nobody"
            return "cancelled"
        error = _error(future)
        if error is None:
            expected = payload(number)[::-1] if kind.fn is chaos_tasks.carry else number
            assert kind.due == "result", "has a result"
            assert future.result(0) == expected, "has another's result"
            return "result"
        if isinstance(error, ValueError):
            assert kind.due == "its own exception", f"unexpected: {error!r}"
            assert error.args == (number,), f"has another's exception: {error!r}"
            return "its own exception"
        if isinstance(error, TaskTimeout):
            assert kind.due == "TaskTimeout", "timed out without a limit"
            return "TaskTimeout"
        if isinstance(error, TaskAborted):
            assert number in self._asked_to_end, "aborted by nobody"
            return "TaskAborted"
        if isinstance(error, WorkerDied):
            return "WorkerDied"
        assert isinstance(error, BrokenProcessPool), f"unexpected: {error!r}"
        assert were_all_ended, f"nobody has ended all workers: {error!r}"
        return "BrokenProcessPool"

    # --- forks of the caller -----------------------------------------------------------------

    def _fork(self) -> None:
        numbers = self._rng.sample(list(self._given), min(LOOKED_AT, self.unresolved))
        looks = self._rng.random() < 0.5
        pid = os.fork()
        if not pid:
            code = CHILD_IS_WRONG
            try:
                signal.alarm(int(BOUND))
                futures = [self._given[number].future for number in numbers]
                code = look_from_fork(self._executor, futures) if looks else 0
            finally:
                os._exit(code)
        self._children[pid] = time.monotonic()
        self.forks["caller forked, child looks at futures" if looks else "caller forked"] += 1

    def _reap(self, *, wait: bool = False) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
            if not found:
                continue
            del self._children[pid]
            code = os.waitstatus_to_exitcode(status)
            if code:
                self._violations.add(f"a fork of the caller: {CODES.get(code, f'exit {code}')}")

    def close(self) -> None:
        """No more comes."""
        self._reap(wait=True)
        self._record.close()
        for number in self._heard.counts:
            self._violations.add(f"task {number} was heard after its end")

    # --- the ledger against the futures ---------------------------------------------------------

    def check_ledger(self) -> dict[str, int]:
        """Whether what the tasks have written, and what their futures said, is one story.
        Returns what can be counted in it."""
        begun, ended = read_ledger(self._ledger)
        dead: dict[int, list[int]] = collections.defaultdict(list)
        unbegun = 0
        for number, retries, pid, end in self._read_ends():
            began, finished = begun.get(number, []), ended.get(number, [])
            for wrong in contradictions(began, finished, retries, pid, end):
                self._violations.add(f"task {number}, {end}: {wrong}")
            unbegun += end == "WorkerDied" and not began
            if end == "WorkerDied":
                dead[pid].append(number)
        for pid, numbers in dead.items():
            for one, next_one in itertools.pairwise(sorted(numbers)):
                # If they were never both unresolved, the process id has come again.
                if next_one - one < self._most:
                    self._violations.add(f"tasks {one} and {next_one} died with worker {pid}")
        return {
            "starts in the ledger": sum(map(len, begun.values())),
            "WorkerDied before its first line": unbegun,
        }

    def _read_ends(self) -> Iterator[tuple[int, int, int, str]]:
        with open(self._ends, encoding="ascii") as lines:
            for line in lines:
                number, retries, pid, end = line.rstrip("\n").split(" ", 3)
                yield int(number), int(retries), int(pid), end


def contradictions(
    begun: list[int], ended: list[int], retries: int, pid: int, end: str
) -> Iterator[str]:
    """Between the processes in which a task has begun and ended, and its future's end."""
    if len(begun) > 1 + retries:
        yield f"began {len(begun)} times"
    if end == "cancelled" and begun:
        yield "began"
    if end in ("result", "its own exception") and (not begun or begun[-1] not in ended):
        yield f"began in {begun}, ended in {ended}"
    # The last run of one that was retried may have died before it wrote anything.
    if end == "WorkerDied" and len(begun) > retries and begun[-1] != pid:
        yield f"began in {begun}, died in {pid}"


def look_from_fork(executor: PreforkExecutor, futures: list[Future[Any]]) -> int:
    """In a fork of the caller: all must be told, at once, that this is none of theirs."""
    looks = [look for future in futures for look in (future.result, future.exception)]
    for look in looks:
        try:
            look(timeout=BOUND / 10)
        except TimeoutError:
            return CHILD_HANGS
        except BaseException:
            continue
    try:
        executor.submit(abs, -1)
    except BrokenProcessPool:
        return 0
    return CHILD_IS_WRONG


CODES = {
    CHILD_HANGS: "a future hangs in it",
    CHILD_IS_WRONG: "the executor's copy can be used in it",
    -int(signal.SIGALRM): "it hangs",
}


def _error(future: Future[Any]) -> BaseException | None:
    return None if future.cancelled() else future.exception(0)
