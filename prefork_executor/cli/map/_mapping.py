"""The engine of ``prefork-executor map``: lines go to the pool, results come back.

The main thread sends lines and takes results, one event after the other. A thread beside it
waits for the input, and the pool's I/O thread says which tasks have ended. So results are
written even if the next line of a slow input has not come. Memory is bounded, whatever the
length of the input: only so many lines are ahead of the results.

A task has as many lines as take TARGET together, by what the latest tasks took. Nothing is lost
by that, whatever a line does:

- A worker begins no further line when the task has run for ``_worker.ENOUGH``. The lines that
  have not begun come back and are sent again. So a task lasts at most one line longer than that,
  and a time limit for a line is one for its task, plus ENOUGH.
- The journal says which lines were done when a worker died. Those keep their results, the one
  that ran fails or runs again, and the others are sent again.
"""

from __future__ import annotations

import collections
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from prefork_executor import ExecutorView, PreforkExecutor, TaskTimeout, WorkerDied

from . import _worker
from ._journal import REGION, Entry, Outcome, Region
from ._lines import FAILED, Item
from ._target import Job
from ._worker import Call, Error

AHEAD = 1000
"""Lines ahead of the results at most, or those of half of the tasks that may be on their way, if
these are more."""
MAX_BYTES = 64 << 20
"""Bytes of lines that may be ahead. A single longer line may be, too."""
TARGET = 0.005
"""Seconds that a task shall take. A task costs about 0.1 ms beside its lines."""
MAX_LINES = 500
"""Lines in a task, if their number is not given."""
MAX_TASK_BYTES = REGION // 2
"""Bytes of lines in a task. A single longer line may be in it, too."""
WEIGHT = 0.25
"""How much a task's measure counts against those before it."""


class Run(NamedTuple):
    """A line's last run: the worker, the beginning (seconds since 1970), how long it took, and
    its end as a shell and GNU parallel number it: exit value and signal."""

    pid: int
    began: float
    seconds: float
    exit_value: int
    signal: int


class Result(NamedTuple):
    """A line of the output, with its end, and the error that the function raised, if any.
    ``run`` is None if the output was known, or nobody asks for it."""

    item: Item
    line: bytes
    error: Error | None
    run: Run | None = None


class Rules(NamedTuple):
    """How lines are run.

    Args:
        chunksize: lines in a task. None: as many as take TARGET.
        timeout: seconds that a line may run.
        retries: how often a line is run again after a death or a time-out.
        retries_errors: whether it is also run again after an exception.
        is_ordered: whether results come in the order of the lines.
        halts: told how many lines have failed, and how many have ended; says whether to
            begin no more.
    """

    chunksize: int | None
    timeout: float | None
    retries: int
    retries_errors: bool
    is_ordered: bool
    halts: Callable[[int, int], bool]


class HaltedError(Exception):
    """The rule for that has ended the run. All results there were have been given."""


class _Task:
    """Lines on their way, the region of the journal that they use, and their number there."""

    def __init__(
        self, items: list[Item], region: int, number: int, future: Future[list[Outcome]]
    ) -> None:
        self.items = items
        self.region = region
        self.number = number
        self.future = future


class _Reader:
    """Reads the input in a thread of its own, a batch for each request. It puts each batch among
    the events, None after the last, or the error that has ended it."""

    def __init__(
        self, batches: Iterable[list[Item]], put: Callable[[list[Item] | BaseException | None], Any]
    ) -> None:
        self._batches = batches
        self._put = put
        self._requests = threading.Semaphore(0)
        self.is_asked = self.is_over = False
        # A daemon: a read of an input that never comes must not keep the program alive.
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self) -> None:
        """Ask for a batch, unless it is asked for one, or there are no more."""
        if not self.is_asked and not self.is_over:
            self.is_asked = True
            self._requests.release()

    def came(self, batch: list[Item] | BaseException | None) -> list[Item]:
        """The lines that an event has brought. Raises its error."""
        self.is_asked = False
        if isinstance(batch, BaseException):
            raise batch
        self.is_over = batch is None
        return batch or []

    def end(self) -> None:
        """Read no more."""
        self.is_over = True
        self._requests.release()

    def _read(self) -> None:
        try:
            for batch in self._batches:
                self._requests.acquire()
                if self.is_over:
                    return
                self._put(batch)
            self._requests.acquire()
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._put(error)


class Mapping:
    """Runs lines in the pool.

    Args:
        journal: the memory for the journal, which the workers have, too.
        tasks: for how many tasks it has room. So many are on their way at most.
        ended: called with each result as it comes, which need not be its place in the order.
            None: nobody asks for the lines' runs.
    """

    def __init__(
        self,
        executor: PreforkExecutor,
        job: Job,
        rules: Rules,
        journal: Any,
        tasks: int,
        ended: Callable[[Result], object] | None,
    ) -> None:
        self._call = Call(job)
        self._rules = rules
        self._ended = ended
        self._view = functools.cache(functools.partial(_view, executor))
        self._regions = [Region(journal, index) for index in range(tasks)]
        self._free = list(range(tasks))
        self._number = 0
        self._size = _Size(rules.chunksize)
        self._inbox: collections.deque[Item] = collections.deque()
        self._again: collections.deque[Item] = collections.deque()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: set[_Task] = set()
        self._window = _Window(rules.is_ordered)
        self._runs_before: dict[int, int] = {}
        self._failed = self._done = 0
        self._is_halted = False

    def results(self, batches: Iterable[list[Item]], pause: Pause) -> Iterator[Result]:
        """The result of each line. While this waits, it does what is due in the pauses.

        Args:
            batches: the lines, a few at a time, as they come.

        Raises:
            HaltedError: after all results, because the rule for that says so.
            BrokenProcessPool: the pool cannot go on.
            KeyboardInterrupt: a worker has been interrupted.
        """
        reader = _Reader(batches, self._events.put)
        try:
            while self._has_more(reader):
                self._submit_what_fits()
                if len(self._inbox) < 2 * self._size.lines:
                    reader.ask()
                yield from self._window.ready()
                if self._running or reader.is_asked:
                    self._take(pause.awaited(self._events.get), reader)
                    while not self._events.empty():
                        self._take(self._events.get(), reader)
            yield from self._window.ready()
        finally:
            reader.end()
        if self._is_halted:
            raise HaltedError

    def _has_more(self, reader: _Reader) -> bool:
        if self._is_halted:
            return bool(self._running)
        return bool(self._running or self._again or self._inbox or not reader.is_over)

    # --- lines go ------------------------------------------------------------------------------

    def _submit_what_fits(self) -> None:
        while self._free and not self._is_halted and (lines := self._again or self._inbox):
            if lines[0].known is not None:
                item = lines.popleft()
                self._window.enter(item)
                self._window.settle(Result(item, item.known or b"", None))
            elif chunk := self._chunk(lines):
                self._submit(chunk)
            else:
                return  # There are enough lines ahead.

    def _chunk(self, lines: collections.deque[Item]) -> list[Item]:
        """Lines for one task. Empty if there are enough lines ahead."""
        most = max(AHEAD, self._size.lines * len(self._regions) // 2)
        is_new = lines is self._inbox
        size = 0
        chunk: list[Item] = []
        while lines and len(chunk) < self._size.lines and lines[0].known is None:
            item = lines[0]
            size += item.size
            if chunk and size > MAX_TASK_BYTES:
                break
            if is_new and not self._window.has_room(item, most):
                break
            if self._runs_before and item.number in self._runs_before:
                # It has other retries left than others have, so it is alone.
                return chunk or [lines.popleft()]
            chunk.append(lines.popleft())
            if is_new:
                self._window.enter(item)
        return chunk

    def _submit(self, items: list[Item]) -> None:
        self._number += 1
        region = self._free.pop()
        lines = [item.line for item in items]
        view = self._view(*self._limits(items))
        future = view.submit(self._call, region, self._number, *lines)
        task = _Task(items, region, self._number, future)
        self._running.add(task)
        future.add_done_callback(lambda _: self._events.put(task))

    def _limits(self, items: list[Item]) -> tuple[float | None, int]:
        """The time limit and the retries of a task with these lines."""
        limit, retries = self._rules.timeout, self._rules.retries
        if len(items) == 1:
            return limit, retries - self._runs_before.get(items[0].number, 0)
        # Which line fails, and is to run again, is only known at its end.
        return None if limit is None else limit + _worker.ENOUGH, 0

    # --- results come --------------------------------------------------------------------------

    def _take(self, event: Any, reader: _Reader) -> None:
        if isinstance(event, _Task):
            self._collect(event)
        else:
            self._inbox.extend(reader.came(event))

    def _collect(self, task: _Task) -> None:
        self._running.remove(task)
        region = self._regions[task.region]
        if task.future.cancelled():
            pass  # The run has been halted.
        elif error := task.future.exception():
            self._settle_broken(task, region.read(task.number), error)
        else:
            outcomes = task.future.result()
            self._size.learn(outcomes, len(task.items))
            self._settle_all(task, region.head(task.number)._replace(outcomes=outcomes))
            self._again.extendleft(reversed(task.items[len(outcomes) :]))
        self._free.append(task.region)

    def _settle_all(self, task: _Task, entry: Entry) -> None:
        """Those lines that have an outcome."""
        before = 0.0
        for item, (text, raised, seconds) in zip(task.items, entry.outcomes, strict=False):
            line, exit_value = (text + b"\n", 0) if raised is None else (FAILED, 1)
            run = None
            if self._ended is not None:
                run = Run(entry.pid, entry.began + before, seconds - before, exit_value, 0)
                before = seconds
            may_retry = raised is not None and self._rules.retries_errors
            self._settle(Result(item, line, raised, run), entry.runs, may_retry)

    def _settle_broken(self, task: _Task, entry: Entry, error: BaseException) -> None:
        """The task did not come to its end."""
        self._settle_all(task, entry)
        left = task.items[len(entry.outcomes) :]
        if left:
            self._fail(left[0], error, entry, len(task.items) > 1)
        self._again.extendleft(reversed(left[1:]))

    def _fail(self, item: Item, error: BaseException, entry: Entry, is_chunk: bool) -> None:
        """The worker or the pool did not get to this line's result."""
        if isinstance(error, KeyboardInterrupt):
            raise error  # The terminal sends Ctrl-C to all processes. The worker was quicker.
        if isinstance(error, BrokenProcessPool) and not isinstance(error, WorkerDied):
            raise error
        if isinstance(error, TaskTimeout) and self._rules.timeout is not None:
            error = TaskTimeout(error.task, self._rules.timeout, error.pid)
        run = _last_run(entry, error)
        # Where the line was alone, the executor itself has run it again.
        may_retry = is_chunk and isinstance(error, WorkerDied | TaskTimeout)
        result = Result(item, FAILED, _worker.describe(error), run)
        self._settle(result, max(1, entry.runs), may_retry)

    def _settle(self, result: Result, runs: int, may_retry: bool) -> None:
        """A line has ended, or runs once more."""
        if self._runs_before:
            runs += self._runs_before.pop(result.item.number, 0)
        if may_retry and runs <= self._rules.retries and not self._is_halted:
            self._runs_before[result.item.number] = runs
            self._again.appendleft(result.item)
            return
        self._done += 1
        if self._ended is not None:
            self._ended(result)
        self._window.settle(result)
        if result.error is not None:
            self._failed += 1
        if not self._is_halted and self._rules.halts(self._failed, self._done):
            self._halt()

    def _halt(self) -> None:
        self._is_halted = True
        for task in self._running:
            task.future.cancel()


class Pause:
    """What is done while there is nothing else to do: here nothing."""

    def due_in(self) -> float | None:
        """Seconds until something is to be done. None: it need not be."""
        return None

    def do(self) -> None:
        """Do what is due."""

    def awaited(self, get: Callable[[bool, float | None], Any]) -> Any:
        """What comes out of the queue. In the pauses, what is due is done."""
        while True:
            try:
                return get(True, self.due_in())
            except queue.Empty:
                self.do()


def _view(executor: PreforkExecutor, timeout: float | None, retries: int) -> ExecutorView:
    return executor.with_options(timeout=timeout, retries=retries)


def _last_run(entry: Entry, error: BaseException) -> Run:
    """The run of the line that has none."""
    before = entry.outcomes[-1][2] if entry.outcomes else 0.0
    now = time.time()
    began = entry.began + before if entry.runs else now
    return Run(entry.pid, began, max(0.0, now - began), *_end(error))


def _end(error: BaseException) -> tuple[int, int]:
    """Exit value and signal, as GNU parallel logs them: -1 for a time-out."""
    if isinstance(error, WorkerDied):
        return error.exitcode or 0, error.signal or 0
    return (-1 if isinstance(error, TaskTimeout) else 1), 0


class _Size:
    """How many lines the next task gets."""

    def __init__(self, given: int | None) -> None:
        self._is_given = given is not None
        self._seconds: float | None = None
        self._most = MAX_LINES
        self.lines = given or 1

    def learn(self, outcomes: list[Outcome], sent: int) -> None:
        """A task has taken so long for so many lines, of those that were sent."""
        if self._is_given:
            return
        latest = outcomes[-1][2] / len(outcomes)
        before = latest if self._seconds is None else self._seconds
        self._seconds = before + WEIGHT * (latest - before)
        # Where lines come back, fewer are sent, until tasks of that size are done again.
        self._most = len(outcomes) if len(outcomes) < sent else min(MAX_LINES, self._most + sent)
        self.lines = min(self._most, max(1, int(TARGET / max(self._seconds, 1e-9))))


class _Window:
    """The lines ahead of the results, and those results whose turn has not come."""

    def __init__(self, is_ordered: bool) -> None:
        self._is_ordered = is_ordered
        self._lines = self._bytes = 0
        self._next: int | None = None
        self._results: dict[int, Result] = {}

    def has_room(self, item: Item, most: int) -> bool:
        """Whether this line may go, where ``most`` are ahead at most. The first one always
        may."""
        fits = self._lines < most and self._bytes + item.size <= MAX_BYTES
        return fits or not self._lines

    def enter(self, item: Item) -> None:
        """A line goes."""
        if self._next is None:
            self._next = item.number
        self._lines += 1
        self._bytes += item.size

    def settle(self, result: Result) -> None:
        """A line has its result."""
        self._results[result.item.number] = result

    def ready(self) -> Iterator[Result]:
        """Take those results whose turn it is."""
        while self._results:
            number = self._next if self._is_ordered else next(iter(self._results))
            if number is None or (result := self._results.pop(number, None)) is None:
                return
            self._lines -= 1
            self._bytes -= result.item.size
            self._next = number + 1
            yield result
