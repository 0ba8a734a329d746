"""The engine of ``prefork-executor map``: lines go to the pool, results come in their order.

A thread reads and submits lines, as far ahead of the results as the window allows. The main
thread takes the results and writes them. So results are written even if the next line of a
slow input has not come, and memory is bounded, whatever the length of the input.
"""

from __future__ import annotations

import collections
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

from prefork_executor import PreforkExecutor, WorkerDied

from . import _map_worker
from ._lines import FAILED, Output
from ._map_worker import Call, Error, Job

T = TypeVar("T")

AHEAD = 1000
"""Tasks ahead of the results at most, or four for each worker, if that is more."""
MAX_BYTES = 64 << 20
"""Bytes of lines that may be ahead. A single longer line may be, too."""
WRITE_EVERY = 0.1
"""Seconds after which a result is written, if nothing prevents it."""
MAX_PENDING = 1 << 20
"""Bytes of results that wait to be written together, at most."""


class Item(NamedTuple):
    """A line of the input. ``size`` is in bytes, with its end. ``known`` is its line of the
    output if it need not run."""

    number: int
    line: bytes
    size: int
    known: bytes | None = None


class Result(NamedTuple):
    """A line of the output, with its end, and the error that the function raised, if any."""

    item: Item
    line: bytes
    error: Error | None


Ahead = tuple[list[Item], Future[list[tuple[bytes, Error | None]]] | None]
"""Items that run as one task. Without a future: items whose output is known."""


class Window:
    """The entries ahead of the results, in order. One thread puts, another takes.

    They seldom wake each other: the thread that puts sleeps until half of the window is free."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: collections.deque[Ahead] = collections.deque()
        self._bytes = 0
        self._is_over = self._is_full = False
        self._error: BaseException | None = None
        self._change = threading.Condition()

    def put(self, make: Callable[[], Ahead], size: int) -> bool:
        """Wait for room, and put what ``make`` makes. Returns False if the taker has gone."""
        with self._change:
            if not self._has_room(size, self._max_entries):
                self._is_full = True
                self._change.wait_for(lambda: self._is_over or not self._is_full)
            if self._is_over:
                return False
            self._entries.append(make())
            self._bytes += size
            if len(self._entries) == 1:
                self._change.notify_all()
            return True

    def _has_room(self, size: int, max_entries: int) -> bool:
        fits = len(self._entries) < max_entries and self._bytes + size <= MAX_BYTES
        return not self._entries or fits

    def take(self, timeout: float | None) -> Ahead | None:
        """The next entry. None: there are no more.

        Raises:
            TimeoutError: it has not come within ``timeout`` seconds.
            BaseException: what has ended the other thread.
        """
        with self._change:
            if not self._change.wait_for(lambda: self._entries or self._is_over, timeout):
                raise TimeoutError
            if self._entries:
                entry = self._entries.popleft()
                self._bytes -= sum(item.size for item in entry[0])
                if self._is_full and self._has_room(MAX_BYTES // 2, self._max_entries // 2):
                    self._is_full = False
                    self._change.notify_all()
                return entry
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        """No more entries will be put."""
        with self._change:
            self._is_over = True
            self._error = self._error or error
            self._change.notify_all()


class Mapping:
    """Runs items in the pool.

    Args:
        chunksize: lines in one task.
    """

    def __init__(
        self, executor: PreforkExecutor, job: Job, chunksize: int, max_workers: int
    ) -> None:
        self._executor = executor
        self._call = Call(job)
        self._chunksize = chunksize
        self._max_entries = max(AHEAD // chunksize, 4 * max_workers)

    def results(self, items: Iterable[Item], sink: Sink) -> Iterator[Result]:
        """The result of each item, in order. While this waits for one, it writes what is
        pending in the sink."""
        window = Window(self._max_entries)
        # A daemon: a read of an input that never comes must not keep the program alive.
        thread = threading.Thread(target=self._feed, args=(items, window), daemon=True)
        thread.start()
        try:
            while (entry := _awaited(window.take, sink)) is not None:
                yield from self._opened(entry, sink)
        finally:
            window.end()
        thread.join()

    def _feed(self, items: Iterable[Item], window: Window) -> None:
        try:
            for chunk in _chunks(items, self._chunksize):
                entry = self._entry_of(chunk)
                if not window.put(entry, sum(item.size for item in chunk)):
                    return
            window.end()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            window.end(error)

    def _entry_of(self, chunk: list[Item]) -> Callable[[], Ahead]:
        if chunk[0].known is not None:
            return lambda: (chunk, None)
        lines = [item.line for item in chunk]
        return lambda: (chunk, self._executor.submit(self._call, *lines))

    def _opened(self, entry: Ahead, sink: Sink) -> Iterator[Result]:
        items, future = entry
        if future is None:
            for item in items:
                yield Result(item, item.known or b"", None)
            return
        error = _awaited(future.exception, sink)
        if error is None:
            for item, (text, raised) in zip(items, future.result(), strict=True):
                yield Result(item, FAILED if raised else text + b"\n", raised)
            return
        if isinstance(error, KeyboardInterrupt):
            raise error  # The terminal sends Ctrl-C to all processes. The worker was quicker.
        if isinstance(error, BrokenProcessPool) and not isinstance(error, WorkerDied):
            raise error
        for item in items:
            yield Result(item, FAILED, _map_worker.describe(error))


def _awaited(get: Callable[[float | None], T], sink: Sink) -> T:
    """What ``get`` returns when given the seconds to wait. Meanwhile the sink writes."""
    while True:
        try:
            return get(sink.due_in())
        except TimeoutError:
            sink.write_if_due()


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items for one task. Either all of them are known or none."""
    chunk: list[Item] = []
    for item in items:
        if chunk and (len(chunk) == size or (chunk[0].known is None) != (item.known is None)):
            yield chunk
            chunk = []
        chunk.append(item)
        if size == 1:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class Sink:
    """Where results go: lines to the output, errors to their file. Writes many at once.

    Args:
        tell: called with a line about each error if there is no file of errors.
    """

    def __init__(
        self, output: Output, errors: Output | None, tell: Callable[[str], object]
    ) -> None:
        self._output = output
        self._errors = errors
        self._tell = tell
        self._size = 0
        self._written_at = time.monotonic()
        self.failed = 0

    def add(self, result: Result) -> None:
        """Take a result. If it is time, write."""
        if result.error is not None:
            self._note(result.item, result.error)
        self._output.add(result.line)
        self._size += len(result.line)
        if self._size > MAX_PENDING:
            self.write()
        else:
            self.write_if_due()

    def _note(self, item: Item, error: Error) -> None:
        self.failed += 1
        if self._errors is None:
            self._tell(f"line {item.number}: {error['type']}: {error['message']}")
            return
        text = item.line.decode(errors="backslashreplace")
        record = json.dumps({"line": item.number, "input": text, **error}) + "\n"
        self._errors.add(record.encode())
        self._size += len(record)

    def due_in(self) -> float | None:
        """Seconds until the next write is due. None: there is nothing to write."""
        if not self._output.is_pending:
            return None
        return max(0.0, self._written_at + WRITE_EVERY - time.monotonic())

    def write_if_due(self) -> None:
        """Write, if results have waited long enough."""
        if self.due_in() == 0.0:
            self.write()

    def write(self) -> None:
        """Write all results. Errors come first, and go to the disk at once; see _lines.py."""
        if self._errors is not None and self._errors.is_pending:
            self._errors.write()
            self._errors.sync()
        self._output.write()
        self._size = 0
        self._written_at = time.monotonic()

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        self._output.sync()

    def close(self) -> None:
        """Close the files."""
        self._output.close()
        if self._errors is not None:
            self._errors.close()


@contextlib.contextmanager
def ended_on_error(executor: PreforkExecutor) -> Iterator[None]:
    """On any error, end the pool at once, running tasks included."""
    try:
        yield
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        executor.terminate_workers()
        raise
    finally:
        executor.shutdown()
