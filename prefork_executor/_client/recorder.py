"""The books of a recording: which task ran where and when, and how it ended.

While the scoreboard says that a recording is on, a worker sends before each outcome when the task
began and how long it took (`Kind.SPAN`). A death notice says the same of a task that died with its
worker. So every span comes from the worker's or the supervisor's own clock, and has been read
before the task's future is resolved. When a task was submitted, and what its future got, is
noted here, in the caller's process.

The curves are not sampled. They are made from the same times: live workers from births and
deaths, busy ones from spans, waiting tasks from submissions and beginnings.

Any thread may call. One lock guards the books. `recording.py` writes them to files.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from .._board import scoreboard as sb
from .._board.decisions import read_decision
from .._board.scoreboard import Slot
from .._messages.wire import TOLD, Death
from .._support.locks import leaves_unlocked
from .._system import processes
from .._timeline.model import Curve, Life, Run, TaskRow, Timeline
from ..errors import TaskAborted, TaskTimeout, describe_end
from ..stats import ScalingDecision
from .ledger import Task

MAX_DECISIONS = 10_000
"""Decisions to keep. Each is a line, and readers need no more."""


class Record:
    """What is kept of a task until it has ended. It must not keep the future alive: the future
    has it in a callback."""

    __slots__ = (*("ended", "future", "is_given_up", "lost", "name", "runs", "seen", "submitted"),)

    def __init__(self, name: str, future: Future[Any]) -> None:
        self.name = name
        self.future = weakref.ref(future)
        self.submitted = time.monotonic_ns()
        self.ended = 0
        self.runs: list[Run] = []
        self.lost = 0  # The number under which it was lost with its worker.
        self.is_given_up = False
        self.seen: Run | None = None  # Its run as known when it was given up.

    def has(self, number: int) -> bool:
        """Whether the run of this number is known."""
        return bool(self.runs) and self.runs[-1].number == number

    @property
    def has_died(self) -> bool:
        """Whether its last run has ended with its worker."""
        return bool(self.runs) and self.runs[-1].number == self.lost


class Recorder:
    """Keeps what happens from its creation on.

    Args:
        max_tasks: tasks to keep at most, and workers.
        max_workers: the pool's limit.
    """

    def __init__(self, max_tasks: int, max_workers: int) -> None:
        self._max_tasks = max_tasks
        self._max_workers = max_workers
        self._lock = threading.RLock()
        self._begin = time.monotonic_ns()
        self._epoch = time.time()
        self._open: dict[int, Record] = {}
        self._given_up: dict[int, Record] = {}
        # For each slot, when the latest of its workers that have died was born.
        self._buried: dict[int, int] = {}
        self._rows: list[TaskRow] = []
        self._lives: list[Life] = []
        self._decisions: list[ScalingDecision] = []
        self._outcomes: dict[str, int] = {}
        self._left_out = self._lives_left_out = self._decisions_left_out = 0
        self._live, self._busy, self._waiting = (Curve(self._begin) for _ in range(3))
        self._end: int | None = None
        self._on_shutdown: Callable[[], None] = lambda: None

    def call_on_shutdown(self, fn: Callable[[], None]) -> None:
        """Have this called in the executor's own thread when every process of the pool has
        ended."""
        self._on_shutdown = fn

    # --- what happens ---------------------------------------------------------------------

    def pool_has_ended(self) -> None:
        """Every process of the pool has ended. Called in the executor's own thread."""
        self._on_shutdown()

    @leaves_unlocked
    def submitted(self, task: Task) -> None:
        """The task has been submitted, now or before the recording. Either no other thread has
        its future yet, or resolving it needs the client's lock, which this thread holds."""
        record = Record(task.name, task.future)
        task.keep(record)
        with self._lock:
            self._open[id(record)] = record
        # Not by add_done_callback: that takes a lock, within which a signal handler could raise.
        task.future._done_callbacks.append(functools.partial(self._resolved, record))

    @leaves_unlocked
    def ran(self, task: Task | None, run: Run) -> None:
        """A worker has reported a run. No task: it was given up, or this is a repetition."""
        with self._lock:
            record = self._record_of(task, run.number)
            if record is not None and not record.has(run.number):
                record.runs.append(run)
            if record is not None and self._given_up.pop(run.number, None) is not None:
                self._close(record, time.monotonic_ns())

    def _record_of(self, task: Task | None, number: int) -> Record | None:
        record: Record | None = task.record if task is not None else self._given_up.get(number)
        return record

    @leaves_unlocked
    def died(self, death: Death, in_flight: Mapping[int, Task]) -> None:
        """A worker has died, and with it the task that it held."""
        exitcode, signal = processes.split_status(death.status)
        is_natural = death.flags & TOLD or death.status == 0
        how = "" if is_natural else describe_end(exitcode, signal)
        with self._lock:
            if self._end is not None:
                return
            self._buried[death.slot] = death.born
            # The times in a forged message may be anything.
            now = time.monotonic_ns()
            born, at = min(death.born, now), min(death.at, now)
            self._add_life(Life(death.slot, death.pid, born, at, how))
            if death.state != sb.BUSY:
                return
            record = self._record_of(in_flight.get(death.task), death.task)
            if record is None or record.has(death.task):
                return
            record.lost = death.task
            self.ran(
                in_flight.get(death.task),
                Run(death.task, death.since, death.at, death.pid, death.slot),
            )

    @leaves_unlocked
    def gave_up(self, tasks: Iterable[Task], board: Iterable[Slot]) -> None:
        """The futures of these tasks now fail, though workers may still run them. The death
        notices of those workers will tell more."""
        now = time.monotonic_ns()
        runs = {
            slot.task: Run(slot.task, slot.since, now, slot.pid, slot.place)
            for slot in board
            if slot.state == sb.BUSY
        }
        with self._lock:
            for task in tasks:
                if task.number and task.record is not None and not task.record.has(task.number):
                    task.record.is_given_up = True
                    task.record.seen = runs.get(task.number)
                    self._given_up[task.number] = task.record

    @leaves_unlocked
    def decided(self, decision: bytes) -> None:
        """The pool has made this decision, which is packed."""
        with self._lock:
            if len(self._decisions) < MAX_DECISIONS:
                self._decisions.append(read_decision(decision))
            else:
                self._decisions_left_out += 1

    @leaves_unlocked
    def _resolved(self, record: Record, _future: Future[Any]) -> None:
        with self._lock:
            record.ended = time.monotonic_ns()
            if not record.is_given_up:
                self._close(record, time.monotonic_ns())

    # --- the end of a task ------------------------------------------------------------------

    def _close(self, record: Record, now: int, otherwise: str = "ended") -> None:
        if self._open.pop(id(record), None) is None or self._end is not None:
            return
        outcome, error = _outcome(record, otherwise)
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        ended = record.ended or now
        row = TaskRow(record.name, record.submitted, ended, outcome, error, tuple(record.runs))
        self._draw(row)
        if len(self._rows) < self._max_tasks:
            self._rows.append(row)
        else:
            self._left_out += 1

    def _draw(self, row: TaskRow) -> None:
        since = row.submitted
        for run in row.runs:
            self._waiting.step(min(since, run.begin), 1)
            self._waiting.step(run.begin, -1)
            self._busy.step(run.begin, 1)
            if row.outcome != "running" or run is not row.runs[-1]:
                self._busy.step(run.end, -1)
            since = run.end
        if not row.runs:
            self._waiting.step(since, 1)
            if row.outcome != "waiting":
                self._waiting.step(row.ended, -1)

    def _add_life(self, life: Life, is_over: bool = True) -> None:
        self._live.step(life.born, 1)
        if is_over:
            self._live.step(life.end, -1)
        if len(self._lives) < self._max_tasks:
            self._lives.append(life)
        else:
            self._lives_left_out += 1

    # --- the end of the recording -------------------------------------------------------------

    @leaves_unlocked
    def end(self, board: Sequence[Slot], in_flight: Mapping[int, Task]) -> None:
        """Note which workers live and which tasks run. This is the last call."""
        with self._lock:
            now = time.monotonic_ns()
            for slot in board:
                if self._buried.get(slot.place) == slot.born:
                    continue  # It has died, and its slot is not cleared yet.
                self._add_life(Life(slot.place, slot.pid, slot.born, now, ""), is_over=False)
                task = in_flight.get(slot.task) if slot.state == sb.BUSY else None
                if task is not None and task.record is not None and not task.future.done():
                    self._still_runs(task.record, slot, now)
            for record in list(self._open.values()):
                if record.seen is not None:
                    record.runs.append(record.seen)
                    record.lost = record.seen.number
                self._close(record, now, "waiting")
            self._end = now

    def _still_runs(self, record: Record, slot: Slot, now: int) -> None:
        if not record.has(slot.task):
            record.runs.append(Run(slot.task, slot.since, now, slot.pid, slot.place))
            self._close(record, now, "running")

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`end` has been called."""
        return self._end is not None

    def timeline(self, version: str) -> Timeline:
        """All that was kept, after :meth:`end`."""
        assert self._end is not None
        return Timeline(
            begin=self._begin,
            end=self._end,
            epoch=self._epoch,
            max_workers=self._max_workers,
            rows=self._rows,
            lives=self._lives,
            decisions=self._decisions,
            outcomes=self._outcomes,
            live=self._live,
            busy=self._busy,
            waiting=self._waiting,
            left_out=self._left_out,
            lives_left_out=self._lives_left_out,
            decisions_left_out=self._decisions_left_out,
            version=version,
        )


def _outcome(record: Record, otherwise: str) -> tuple[str, str]:
    """How a task ended, in a word, and the name of the exception."""
    future = record.future()
    if future is None or not future.done():
        return otherwise, ""
    if future.cancelled():
        return "cancelled", ""
    error = future.exception()
    if error is None:
        return "returned", ""
    return _why(error, record), type(error).__name__


def _why(error: BaseException, record: Record) -> str:
    if isinstance(error, TaskTimeout):
        return "timed out"
    if isinstance(error, TaskAborted):
        return "aborted"
    if record.has_died:
        return "died"
    return "raised" if record.runs else "failed"
