"""The iterators that `Pool.imap` returns, and what submits their tasks.

A *feed* takes items from the iterable and submits them in a thread of its own, far enough ahead
to keep the workers busy for a while. So the iterable may be endless, and may itself wait; and the
feed submits all of it, even if no caller takes the results. It puts the futures into a queue for
the iterator: in the order of the calls, or, unordered, as they end.

If the iterator is gone, the feed keeps no results. With a ``buffersize`` it does not submit the
rest either, since then the iterator asks for more.

How far ahead
-------------
A callback for each task would cost a good part of a short task's time. So only some tasks wake a
feeder that has submitted enough. These *marks* are so close together that more of them are
under way than there are workers. Whichever tasks are slow, another worker soon reaches a mark.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import multiprocessing.pool
import operator
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from ..errors import CallPicklingError, ResultPicklingError
from .async_results import as_original, throw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..maps import Call

    _IMapIterator = multiprocessing.pool.IMapIterator[Any]
    _IMapUnorderedIterator = multiprocessing.pool.IMapUnorderedIterator[Any]
else:
    _IMapIterator = multiprocessing.pool.IMapIterator
    _IMapUnorderedIterator = multiprocessing.pool.IMapUnorderedIterator

MIN_AHEAD, MAX_AHEAD = 4, 512
"""Tasks for each worker that are submitted ahead, at first and at most."""
AT_ONCE = 64
"""Items taken at once, at most, from an iterable that has them at hand."""
SOON = 0.03
"""Seconds. If half of what a feed has submitted ends within this time, the feed submits twice as
far ahead from then on."""
NOT_HERE = "the pool belongs to process {}, and only that process learns how its tasks end"
TERMINATED = "the pool was terminated before all of the iterable was submitted"


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


END = _failed(StopIteration())
"""Marks the end of the results."""


class _Nowhere:
    """Replaces a queue from which nothing will be taken."""

    def put(self, future: Future[Any]) -> None:
        pass

    def qsize(self) -> int:
        return 0


class Feed:
    """The tasks of one ``imap``: submits them, and queues their futures.

    Args:
        workers: how many workers there may be.
        buffersize: tasks ahead of the results taken, at most. None: any number.
        is_ordered: whether futures are queued in the order of the calls, or as they end.
        is_at_hand: whether the iterable has all its items already.
    """

    def __init__(
        self,
        workers: int,
        buffersize: int | None,
        *,
        is_ordered: bool,
        is_at_hand: bool,
    ) -> None:
        self._workers = workers
        self._buffersize = buffersize
        self._is_ordered = is_ordered
        self._at_once = AT_ONCE if is_at_hand else 1
        self._ahead = MIN_AHEAD * workers
        self._process = os.getpid()
        self._results: Any = queue.SimpleQueue()
        # Futures that have not ended, and some that have.
        self._running: collections.deque[Future[Any]] = collections.deque()
        self._submitted = 0
        self._next_mark = 0
        self._total: int | None = None
        self._lock = threading.Lock()
        self._taken = 0
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waits = False
        self._is_closed = self._is_cut = False
        self._end: Callable[[Future[Any]], object] = Future.cancel
        self._thread: threading.Thread | None = None

    def start(
        self,
        submit_all: Callable[[list[Call]], list[Future[Any]]],
        calls: Iterator[Call],
        on_fed: Callable[[], None],
    ) -> None:
        """Begin, in a thread of its own. Only that thread keeps these objects: a caller who
        has the results needs neither the iterable nor the pool.

        Args:
            submit_all: submits calls, and returns their futures.
            calls: what to submit.
            on_fed: called when all is submitted.
        """
        self._thread = threading.Thread(
            target=self._feed,
            args=(submit_all, calls, on_fed),
            name="prefork-pool-feeder",
            daemon=True,
        )
        self._thread.start()

    # --- in the feeder ----------------------------------------------------------------------

    def _feed(
        self,
        submit_all: Callable[[list[Call]], list[Future[Any]]],
        calls: Iterator[Call],
        on_fed: Callable[[], None],
    ) -> None:
        try:
            while room := self._room():
                batch = list(itertools.islice(calls, min(room, self._at_once)))
                if not batch or self._is_closed:
                    return
                self._take(submit_all(batch))
        except BaseException as error:
            self._submitted += 1
            self._results.put(_failed(error))
        finally:
            self._total = self._submitted
            self._results.put(END)
            on_fed()

    def _take(self, futures: list[Future[Any]]) -> None:
        self._running.extend(futures)
        before, self._submitted = self._submitted, self._submitted + len(futures)
        put = self._results.put
        for future in futures:
            if self._is_ordered:
                put(future)
            else:
                future.add_done_callback(put)
        while self._next_mark < self._submitted:
            futures[self._next_mark - before].add_done_callback(self._on_mark)
            self._next_mark += max(1, self._ahead // (2 * self._workers + 2))
        if self._is_closed:
            for future in futures:
                self._end(future)

    def _room(self) -> int:
        """Wait until there is room. Returns for how many tasks; 0 if the feed was closed."""
        while not self._is_closed:
            running = self._running
            while running and running[0].done():
                running.popleft()
            room = min(self._ahead - len(running), self._room_for_results())
            if room <= 0:
                self._running = collections.deque(f for f in running if not f.done())
                # Set it before the last look: a thread that changes anything after that rings.
                self._waits = True
                room = min(self._ahead - len(self._running), self._room_for_results())
            if room > 0:
                self._waits = False
                return room
            self._wait()
        return 0

    def _wait(self) -> None:
        since = time.monotonic()
        is_all = len(self._running) >= self._ahead
        self._bell.get()
        if is_all and time.monotonic() - since < SOON:
            self._ahead = min(2 * self._ahead, MAX_AHEAD * self._workers)

    def _room_for_results(self) -> int:
        if self._buffersize is None:
            return self._ahead
        others = 0 if self._is_ordered else len(self._running)
        return self._buffersize - int(self._results.qsize()) - others

    # --- in other threads ---------------------------------------------------------------------

    def _on_mark(self, _: Future[Any]) -> None:
        self._ring()

    def _ring(self) -> None:
        """Have the feeder check again whether there is room."""
        if self._waits:
            self._waits = False
            self._bell.put(None)

    def next(self, timeout: float | None) -> Future[Any]:
        """The next future.

        Raises:
            StopIteration: there is none.
            multiprocessing.TimeoutError: it is not there after ``timeout`` seconds.
            BrokenProcessPool: this is a fork of the process that submits.
        """
        results = self._results
        while True:
            if results.empty() and self._process != os.getpid():
                raise BrokenProcessPool(NOT_HERE.format(self._process))
            try:
                found = results.get(timeout=None if timeout is None else max(0.0, timeout))
            except queue.Empty:
                raise multiprocessing.TimeoutError from None
            if found is not END:
                break
            if self._is_ordered or self._is_cut or self._taken == self._total:
                results.put(END)  # For the next call.
                raise StopIteration
        if not self._is_ordered:
            # A task may end after all have been submitted.
            with self._lock:
                self._taken += 1
                is_last = self._taken == self._total
            if is_last:
                results.put(END)
        if self._buffersize is not None:
            self._ring()
        future: Future[Any] = found
        return future

    def stop(self, end: Callable[[Future[Any]], object] = Future.cancel) -> None:
        """Submit no more. Call ``end`` with the futures that are just being submitted."""
        self._end = end
        self._is_closed = True
        self._ring()

    def close(self, error: BaseException | None = None) -> None:
        """Submit no more, and cancel what has not begun. This error follows the results that
        there are."""
        self.stop()
        for future in self.futures():
            future.cancel()
        if error is not None and self._total is None:
            self._results.put(_failed(error))
        self._is_cut = True
        self._results.put(END)

    def lift(self) -> None:
        """Ignore ``buffersize`` from now on: the caller takes no results for now."""
        self._buffersize = None
        self._ring()

    def on_iterator_gone(self) -> None:
        """No caller can take the results any more."""
        if self._buffersize is not None:
            self.close()
        self._results = _Nowhere()

    def join(self) -> None:
        """Wait until all is submitted."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def is_fed(self) -> bool:
        """Whether all is submitted."""
        return self._total is not None

    def futures(self) -> list[Future[Any]]:
        """The futures that have not ended."""
        return [future for future in self._running.copy() if not future.done()]


class IMapIterator(_IMapIterator):
    """What ``imap`` returns: the results, in the order of the items."""

    def __init__(self, feed: Feed, length: int | None, *, is_chunked: bool) -> None:
        self._feed = feed
        self._left = length
        self._is_chunked = is_chunked
        self._items: Iterator[Any] = iter(())
        # If a caller gives up waiting for a future, it is kept here.
        self._awaited: list[Future[Any]] = []
        self._is_closed = False
        weakref.finalize(self, feed.on_iterator_gone).atexit = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator saves a step of ours for each item of a chunk. As in multiprocessing, it
        # ends with an error.
        return self._each() if self._is_chunked else self

    def _each(self) -> Iterator[Any]:
        while True:
            yield from self._items
            try:
                first = self.next()
            except StopIteration:
                return
            yield first

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            StopIteration: there is none.
            multiprocessing.TimeoutError: it is not there after ``timeout`` seconds.
            Exception: what this call raised. If that is StopIteration, a RuntimeError is raised
                instead. The next ``next`` returns the next call's result.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            for item in self._items:
                return item
            if self._is_closed:
                raise StopIteration
            result = self._result(self._next(end), end)
            if not self._is_chunked:
                return result
            self._items = iter(result)

    def __next__(self) -> Any:  # type: ignore[override]
        if self._is_chunked:
            for item in self._items:
                return item
        if self._is_chunked or self._is_closed or self._awaited:
            return self.next()
        return self._result(self._feed.next(None), None)

    def _next(self, end: float | None) -> Future[Any]:
        with contextlib.suppress(IndexError):
            return self._awaited.pop()
        return self._feed.next(None if end is None else end - time.monotonic())

    def _result(self, future: Future[Any], end: float | None) -> Any:
        try:
            result = future.result(None if end is None else max(0.0, end - time.monotonic()))
        except TimeoutError:
            if future.done():
                raise
            self._awaited.append(future)
            raise multiprocessing.TimeoutError from None
        except StopIteration as error:
            # By itself it would end the loop over the results, as if there were no more.
            raise RuntimeError("a task raised StopIteration") from error
        except (CallPicklingError, ResultPicklingError) as error:
            throw(as_original(error))
        finally:
            del future  # A traceback through this frame would keep it and its result alive.
        if self._left:
            self._left -= len(result) if self._is_chunked else 1
        return result

    def __length_hint__(self) -> int:
        # The items left of the current chunk have been counted as taken.
        at_hand = operator.length_hint(self._items)
        return NotImplemented if self._left is None else self._left + at_hand

    def close(self) -> None:
        """Take no more results, and cancel what has not begun."""
        self._is_closed = True
        self._items = iter(())
        self._feed.close()

    def stop(self, end: Callable[[Future[Any]], object] = Future.cancel) -> bool:
        """Read no more of the iterable. Results of submitted tasks still come. Call ``end`` with
        the futures that are just being submitted. Returns whether all of it had been read."""
        was_fed = self._feed.is_fed
        self._feed.stop(end)
        return was_fed

    @property
    def futures(self) -> Sequence[Future[Any]]:
        """The executor's futures that have not ended, one a task."""
        return self._feed.futures()


class IMapUnorderedIterator(IMapIterator, _IMapUnorderedIterator):
    """What ``imap_unordered`` returns: the results as the tasks end."""
