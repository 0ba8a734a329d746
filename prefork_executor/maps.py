"""``map`` and ``starmap`` for every object that can ``submit``.

:class:`Maps` makes both from ``submit`` alone, so every executor of this package has the
same ones: `PreforkExecutor`, its views, and the executor over a Dask cluster.
:func:`calls_of` says what they submit, for classes that handle the futures themselves, as
:class:`prefork_executor.Pool` does.
"""

from __future__ import annotations

import collections
import functools
import itertools
import operator
import queue
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future

from ._support.arguments import (
    check_buffersize,
    check_count,
    check_function,
    check_iterable,
    check_seconds,
)
from ._support.handlers import let_through
from ._support.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, overload

    T = TypeVar("T")
    A = TypeVar("A")
    B = TypeVar("B")
    C = TypeVar("C")
    Submit = Callable[..., Future[Any]]
    Call = tuple[Any, ...]
    """A function, and its positional arguments."""

__all__ = [
    "Maps",
    "at_hand",
    "calls_of",
    "cancel_all",
    "function_of",
    "length_of",
    "starred_calls_of",
]


class Maps:
    """An executor's ``map`` and ``starmap``, over its ``submit``."""

    def _submitter(self) -> Callable[[], Submit | None]:
        """A function that returns the executor's ``submit``, or None if the executor is gone. The
        iterator of a map keeps this function, which must not keep the executor alive."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call."""
        raise NotImplementedError

    def submit_all(self, calls: Iterable[Call]) -> list[Future[Any]]:
        """Schedule several calls: ``submit(*call)`` for each, but cheaper where possible.

        Args:
            calls: each is a function and its positional arguments. They are read a few
                dozen at a time, so the iterable should not have to wait for them.

        Returns:
            Their futures, in order.

        Raises:
            What the iterable or ``submit`` raises. Then all these calls are cancelled.
        """
        futures: list[Future[Any]] = []
        try:
            futures.extend(self.submit(*call) for call in calls)
        except BaseException:
            # The iterable has raised, or a signal handler has, as at Ctrl-C.
            cancel_all(futures)
            raise
        return futures

    if TYPE_CHECKING:  # For up to three iterables the types of their items are checked.

        @overload
        def map(
            self,
            fn: Callable[[A], T],
            items_1: Iterable[A],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
            ordered: bool = True,
        ) -> Iterator[T]: ...
        @overload
        def map(
            self,
            fn: Callable[[A, B], T],
            items_1: Iterable[A],
            items_2: Iterable[B],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
            ordered: bool = True,
        ) -> Iterator[T]: ...
        @overload
        def map(
            self,
            fn: Callable[[A, B, C], T],
            items_1: Iterable[A],
            items_2: Iterable[B],
            items_3: Iterable[C],
            /,
            *,
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
            ordered: bool = True,
        ) -> Iterator[T]: ...
        @overload
        def map(
            self,
            fn: Callable[..., T],
            items_1: Iterable[Any],
            items_2: Iterable[Any],
            items_3: Iterable[Any],
            items_4: Iterable[Any],
            /,
            *more: Iterable[Any],
            timeout: float | None = None,
            chunksize: int = 1,
            buffersize: int | None = None,
            ordered: bool = True,
        ) -> Iterator[T]: ...

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]:
        """Like ``map(fn, *iterables)``, in the pool.

        Args:
            fn: called with an item of each iterable.
            iterables: read at once; with ``buffersize``, as results are taken. If they
                can tell how many items they have, the returned iterator can, too
                (``operator.length_hint``). Progress bars use that.
            timeout: seconds from this call on within which the results must come.
            chunksize: items that travel as one task. Time limits and retries apply to
                a task, so to a whole chunk.
            buffersize: tasks submitted ahead of the results taken, at most.
                None: all.
            ordered: whether results come in the order of the items. False: as the
                tasks end.

        Returns:
            An iterator over the results. If a task has failed, it raises the task's error and
            is then exhausted. Its ``close()`` cancels what has not begun.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
            TimeoutError: from the iterator. What has not begun is cancelled.
        """
        check_function("fn", fn)
        sources = [check_iterable(f"iterables[{i}]", items) for i, items in enumerate(iterables)]
        options = _checked(timeout, chunksize, buffersize)
        calls = calls_of(fn, sources, options.chunksize)
        is_at_hand = all(map(at_hand, iterables))
        return self._map(calls, length_of(*iterables), options, ordered, is_at_hand)

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]:
        """Like ``itertools.starmap(fn, iterable)``, in the pool: each item holds the arguments
        of one call. Everything else is as for :meth:`map`."""
        check_function("fn", fn)
        rows = check_iterable("iterable", iterable)
        options = _checked(timeout, chunksize, buffersize)
        calls = starred_calls_of(fn, rows, options.chunksize)
        return self._map(calls, length_of(iterable), options, ordered, at_hand(iterable))

    def _map(
        self,
        calls: Iterator[Call],
        length: int | None,
        options: _MapOptions,
        ordered: bool,
        is_at_hand: bool,
    ) -> Iterator[Any]:
        # Items that an iterable has yet to produce should not hold up those that are there.
        submit_all = self.submit_all if is_at_hand else functools.partial(Maps.submit_all, self)
        futures = submit_all(itertools.islice(calls, options.buffersize))
        following = _following(self._submitter(), calls) if options.buffersize else iter(())
        take = _in_order if ordered else _as_they_come
        tasks = take(futures, following, options.end)
        is_flat = options.chunksize == 1
        items = tasks if is_flat else itertools.chain.from_iterable(_emptied(tasks))
        return _Results(items, tasks, futures, length)


class _MapOptions(NamedTuple):
    end: float | None
    chunksize: int
    buffersize: int | None


def _checked(timeout: float | None, chunksize: int, buffersize: int | None) -> _MapOptions:
    seconds = check_seconds("timeout", timeout)
    check_count("chunksize", chunksize, minimum=1, takes_bool=True)
    end = None if seconds is None else time.monotonic() + seconds
    return _MapOptions(end, min(chunksize, sys.maxsize), check_buffersize(buffersize))


# --- what is submitted ------------------------------------------------------------------------


def calls_of(
    fn: Callable[..., Any], sources: list[Iterator[Any]], chunksize: int = 1
) -> Iterator[Call]:
    """The calls that a map of ``fn`` submits.

    Args:
        fn: the function of the map.
        sources: each has one argument of every call.
        chunksize: how many calls become one. The result of that is the list of their results.
    """
    if not sources:
        return iter(())
    if chunksize == 1:
        return zip(itertools.repeat(fn), *sources, strict=False)
    if len(sources) == 1:
        return _columns_of_one(fn, sources[0], chunksize)
    return _columns(fn, zip(*sources, strict=False), chunksize)


def starred_calls_of(
    fn: Callable[..., Any], rows: Iterator[Iterable[Any]], chunksize: int = 1
) -> Iterator[Call]:
    """The same for a starmap, where a row has all arguments of a call."""
    if chunksize == 1:
        return ((fn, *row) for row in rows)
    tuples = (row if type(row) is tuple else tuple(row) for row in rows)
    return _columns(fn, tuples, chunksize)


def _columns_of_one(fn: Callable[..., Any], items: Iterator[Any], size: int) -> Iterator[Call]:
    """A chunk's arguments travel in columns: the tuple of all first arguments, and so on. This
    leaves a tenth to pickle."""
    from ._pickling.calls import Chunk  # Few programs that import this module need it at once.

    chunk = Chunk(fn)
    while column := tuple(itertools.islice(items, size)):
        yield chunk, column


def _columns(fn: Callable[..., Any], rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[Call]:
    """The same if all calls have the same number of arguments. If not, arguments stay in rows."""
    from ._pickling.calls import Chunk, Spread

    chunk, spread = Chunk(fn), Chunk(Spread(fn))
    while batch := tuple(itertools.islice(rows, size)):
        if batch[0] and len(set(map(len, batch))) == 1:
            yield (chunk, *zip(*batch, strict=True))
        else:
            yield spread, batch


_AT_HAND = (list, tuple, range, str, bytes, bytearray, dict, set, frozenset)


def at_hand(iterable: object) -> bool:
    """Whether the iterable has all its items already, so that it never waits for one."""
    return type(iterable) in _AT_HAND


def cancel_all(futures: Iterable[Future[Any]]) -> None:
    """Cancel the futures that have not begun."""
    for future in futures:
        future.cancel()


def length_of(*iterables: Iterable[Any]) -> int | None:
    """How many items they have together, as far as they can tell, or else None."""
    try:
        hints = [operator.length_hint(items, -1) for items in iterables]
        return None if -1 in hints else min(hints, default=0)
    except Exception as error:  # noqa: BLE001 - the user's code raised it, and this is just a hint
        let_through(error)
    return None


def function_of(called: Any) -> Any:
    """The user's function, taken out of the wrappers of :func:`calls_of` and out of partials."""
    from ._pickling.calls import user_function

    return user_function(called)


def _following(
    submitter: Callable[[], Submit | None], calls: Iterator[Call]
) -> Iterator[Future[Any]]:
    """Submits one call after the other until the executor is gone."""
    for call in calls:
        submit = submitter()
        if submit is None:
            return
        yield submit(*call)


# --- what comes of it -------------------------------------------------------------------------


class _Results(Iterator["T"]):
    """What a map returns: its results, and how many are to come, if that is known."""

    def __init__(
        self,
        items: Iterator[T],
        tasks: Generator[Any, None, None],
        begun: list[Future[Any]],
        length: int | None,
    ) -> None:
        self._items = items
        self._tasks = tasks
        self._begun = begun
        self._left = length

    def __iter__(self) -> Iterator[T]:
        # This avoids a step of ours for each item. The hint is read before.
        return self._items

    def __next__(self) -> T:
        item = next(self._items)
        if self._left:
            self._left -= 1
        return item

    def __length_hint__(self) -> int:
        return NotImplemented if self._left is None else self._left

    def close(self) -> None:
        """Take no more results, and cancel what has not begun."""
        self._tasks.close()
        cancel_all(self._begun)  # Empty once a result has been asked for.


def _in_order(
    begun: list[Future[Any]], following: Iterator[Future[Any]], end: float | None
) -> Generator[Any, None, None]:
    futures = collections.deque(begun)
    begun.clear()
    try:
        while futures:
            futures.extend(itertools.islice(following, 1))
            yield _result_of(futures.popleft(), end)
    finally:
        cancel_all(futures)


def _as_they_come(
    begun: list[Future[Any]], following: Iterator[Future[Any]], end: float | None
) -> Generator[Any, None, None]:
    done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    futures = set(begun)
    begun.clear()
    try:
        for future in list(futures):
            future.add_done_callback(done.put)
        while futures:
            for future in itertools.islice(following, 1):
                futures.add(future)
                future.add_done_callback(done.put)
            yield _result_of(_next_done(futures, done, end), end)
    finally:
        cancel_all(futures)


def _next_done(
    futures: set[Future[Any]], done: queue.SimpleQueue[Future[Any]], end: float | None
) -> Future[Any]:
    """Takes one that is done out of these futures."""
    while True:
        try:
            future = done.get_nowait()
        except queue.Empty:
            future = next(iter(futures))
            # In a fork of this process all futures are done, and no callback says so.
            if not future.done():
                future = _wait_for(done, end)
        if future in futures:
            futures.remove(future)
            return future


def _wait_for(done: queue.SimpleQueue[Future[Any]], end: float | None) -> Future[Any]:
    try:
        return done.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None


def _result_of(future: Future[T], end: float | None) -> T:
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        # A traceback through this frame would keep the future and its result alive.
        del future


def _emptied(chunks: Iterator[list[T]]) -> Iterator[Iterator[T]]:
    """Each chunk's items. None is kept once it has been taken."""
    for chunk in chunks:
        chunk.reverse()
        yield map(list.pop, itertools.repeat(chunk, len(chunk)))
