"""The pool under asyncio, uvloop and trio, by anyio::

    async with AsyncPool(max_workers=4) as pool:
        print(await pool.run(pow, 2, 100))
        async for size in pool.map(os.path.getsize, paths, limit=100):
            ...

What is awaited here is structured, as anyio's tasks are. A task that is cancelled ends its work in
the pool, waits for that end, and goes on only then. When the ``async with`` block has been left,
nothing of it runs.

Who does what
-------------
Futures are done in a thread of the pool. It tells the event loop by the one call that a loop
takes from threads, and waits for nothing. All else happens in the loop's thread.

A map has a *feeder*, a task in the pool's own task group. It reads the source and submits, as
long as there is room. So the map gives results while it waits for the source. The feeder does not
refer to the iterator that the program has. If the program drops that, the map ends.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from prefork_executor import ExecutorView, PreforkExecutor

from ._extras import needed
from ._loops import InLoop, Signal, submitted, tell_loop

with needed("anyio", "anyio"):
    import anyio
    from anyio.abc import TaskGroup
    from anyio.lowlevel import checkpoint, current_token

__all__ = ["AsyncPool", "MapResults"]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

Executor = PreforkExecutor | ExecutorView
TASKS_PER_WORKER = 2
"""Items of a map in flight for each worker, by default: while a worker has one, the next one
comes."""


class AsyncPool:
    """A pool to be used with ``await``. Use it in ``async with``.

    At the end of the block the pool waits for its tasks and ends. If an exception or a
    cancellation ends the block, the tasks are aborted.

    Args:
        max_workers: as for :class:`~prefork_executor.PreforkExecutor`.
        executor: an executor that exists, to use instead of one of its own. It is not shut
            down. Then no other argument may be given.
        options: those of :class:`~prefork_executor.PreforkExecutor`, by name.

    Raises:
        TypeError, ValueError: a bad argument.
    """

    def __init__(
        self, max_workers: int | None = None, *, executor: Executor | None = None, **options: Any
    ) -> None:
        if executor is not None and (max_workers is not None or options):
            given = [*(["max_workers"] if max_workers is not None else []), *options]
            raise TypeError(f"{', '.join(given)} cannot be given with executor=, which has its own")
        self._is_own = executor is None
        self._executor = PreforkExecutor(max_workers, **options) if executor is None else executor
        self._life = _Life()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._executor!r}>"

    @property
    def executor(self) -> Executor:
        """The executor that does the work."""
        return self._executor

    def with_options(self, **options: Any) -> AsyncPool:
        """The same pool, for tasks with other options.

        Args:
            options: those of :meth:`PreforkExecutor.with_options
                <prefork_executor.PreforkExecutor.with_options>`.
        """
        view = copy.copy(self)
        view._executor = self._executor.with_options(**options)
        return view

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``fn(*args, **kwargs)`` returns in a worker. While ``max_backlog`` tasks wait, this
        waits for room before it submits the call.

        If the awaiting task is cancelled, the call is aborted: if it runs, it is ended with its
        worker, by SIGTERM, and if that does not help within three seconds, by SIGKILL. This waits
        for its end.

        Raises:
            BaseException: what the call raised, or what says how its worker ended.
            RuntimeError: the pool is not in use.
        """
        await checkpoint()
        self._life.check_open()
        future = await submitted(_signal, self._executor, fn, *args, **kwargs)
        self._life.keep(future)
        try:
            await _end_of([future])
            return future.result()
        except GeneratorExit:
            # Nobody runs this coroutine any more, so it cannot wait.
            _abort(self._executor, [future])
            raise
        except BaseException:
            await _aborted(self._executor, [future])
            raise
        finally:
            del future  # A traceback through this frame would keep it alive.

    def map(
        self,
        fn: Callable[[S], T],
        source: Iterable[S] | AsyncIterable[S],
        *,
        ordered: bool = True,
        limit: int | None = None,
    ) -> MapResults[T]:
        """``fn(item)`` for each item of the source, in the workers.

        Args:
            fn: called with an item.
            source: an iterable or an async iterable. It is read only when there is room for
                another item. An iterable is read in the event loop's thread, so it must not
                wait.
            ordered: whether results come in the order of the items. False: as the tasks end.
            limit: items in flight at most: read, and their results not yet taken. None: two for
                each worker that there may be.

        Returns:
            An async iterator over the results. An error of a task or of the source is raised in
            its place, after which the map is over. If a task has raised StopAsyncIteration, a
            RuntimeError is raised instead. When the map is over, for whatever reason, also because
            it was cancelled, closed or dropped, its tasks are aborted.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
            RuntimeError: the pool is not in use.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        if not isinstance(source, AsyncIterable | Iterable):
            kind = type(source).__name__
            raise TypeError(f"source must be an iterable or an async iterable, not {kind}")
        if limit is None:
            limit = TASKS_PER_WORKER * self._executor._max_workers
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise TypeError(f"limit must be an int or None, not {type(limit).__name__}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._life.check_open()
        return MapResults(_Map(self._life, self._executor, fn, source, ordered, limit))

    async def __aenter__(self) -> AsyncPool:
        await self._life.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        life = self._life
        life.is_open = False
        for one in list(life.maps):
            one.end()
        try:
            if error is None:
                await _end_of(life.unfinished)
        finally:
            if life.unfinished:
                await _aborted(self._executor, life.unfinished)
            if self._is_own:
                with anyio.CancelScope(shield=True):
                    await _in_thread(self._executor.shutdown)
            # The group would wrap errors that are not its own.
            is_cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            left = (kind, error, traceback) if is_cancelled else (None, None, None)
            is_handled = await life.group.__aexit__(*left)
        return is_handled if is_cancelled else None


class _Life:
    """What a pool and its views have in common."""

    group: TaskGroup

    def __init__(self) -> None:
        self.is_open = False
        self.maps: set[_Map[Any, Any]] = set()
        self.unfinished: set[Future[Any]] = set()
        self._has_begun = False

    async def begin(self) -> None:
        if self._has_begun:
            raise RuntimeError("an AsyncPool can be used once: make another")
        self._has_begun = True
        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.is_open = True

    def check_open(self) -> None:
        if not self.is_open:
            why = "has ended" if self._has_begun else "has not begun: use it in `async with`"
            raise RuntimeError(f"the AsyncPool {why}")

    def keep(self, future: Future[Any]) -> None:
        self.unfinished.add(future)
        future.add_done_callback(self.unfinished.discard)


# --- maps ---------------------------------------------------------------------------------------


class MapResults(AsyncIterator[T], Generic[T]):
    """What :meth:`AsyncPool.map` returns: an async iterator over the results."""

    def __init__(self, one: _Map[Any, T]) -> None:
        self._map = one

    async def __anext__(self) -> T:
        return await self._map.next()

    async def aclose(self) -> None:
        """End the map, abort its tasks, and wait for their end."""
        await self._map.aclose()

    def __del__(self) -> None:
        # Any thread may collect this, and may hold any lock.
        one = getattr(self, "_map", None)
        if one is not None and not one.is_over:
            one.end_soon()


class _Map(Generic[S, T]):
    """One map. Everything but ``end_soon`` is called in the loop's thread."""

    def __init__(
        self,
        life: _Life,
        executor: Executor,
        fn: Callable[[S], T],
        source: Iterable[S] | AsyncIterable[S],
        ordered: bool,
        limit: int,
    ) -> None:
        self._life = life
        self._executor = executor
        self._fn = fn
        self._source = source
        self._ordered = ordered
        self._limit = limit
        self._in_loop: InLoop | None = None
        """None: nobody has asked for a result yet, and nothing has begun."""
        self._scope = anyio.CancelScope()
        self._changed = anyio.Event()
        self._futures: collections.deque[Future[T]] = collections.deque()
        """In flight, in the order of the items."""
        self._done: collections.deque[Future[T]] = collections.deque()
        """Of these the ones that are done, as they ended. Not used in order."""
        self._is_fed = False
        self._is_exhausted = False
        self._error: BaseException | None = None
        """What the source has raised."""
        self.is_over = False

    # --- for whoever takes the results ----------------------------------------------------------

    async def next(self) -> T:
        """The next result. Raises what its task, or the source, has raised."""
        try:
            await checkpoint()
            if self.is_over:
                raise StopAsyncIteration
            if self._in_loop is None:
                self._begin()
            while (future := self._take()) is None:
                if self._is_fed and not self._futures:
                    self._raise_end()
                await self._changed.wait()
                if self.is_over:
                    self._raise_over()
            return _result_of(future)
        except GeneratorExit:
            self.end_soon()
            raise
        except BaseException:
            await self.aclose()
            raise
        finally:
            future = None  # A traceback through this frame would keep it alive.

    def _begin(self) -> None:
        self._life.check_open()
        self._in_loop = _in_this_loop()
        self._life.maps.add(self)
        self._life.group.start_soon(self._feed)

    def _take(self) -> Future[T] | None:
        """A future that is done and whose turn it is."""
        if self._ordered:
            if not self._futures or not self._futures[0].done():
                return None
            future = self._futures.popleft()
        else:
            if not self._done:
                return None
            future = self._done.popleft()
            self._futures.remove(future)
        self._tell()  # There is room for another.
        return future

    def _raise_end(self) -> None:
        """All results were taken."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._is_exhausted = True
        raise StopAsyncIteration

    def _raise_over(self) -> None:
        """Another task has ended the map while this one waited."""
        if self._is_exhausted:
            raise StopAsyncIteration
        raise anyio.ClosedResourceError

    async def aclose(self) -> None:
        """End, and wait for the end of the tasks."""
        futures = list(self._futures)
        self.end()
        if any(not future.done() for future in futures):
            with anyio.CancelScope(shield=True):
                await _end_of(futures)

    def end(self) -> None:
        """Read no more, and abort the tasks. Does not wait."""
        if self.is_over:
            return
        self.is_over = True
        self._life.maps.discard(self)
        self._scope.cancel()
        _abort(self._executor, self._futures)
        self._futures.clear()
        self._done.clear()
        self._tell()

    def end_soon(self) -> None:
        """Have the loop's thread do that."""
        if self._in_loop is not None:
            tell_loop(self._in_loop, self.end)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- the feeder -------------------------------------------------------------------------------

    async def _feed(self) -> None:
        with self._scope:
            try:
                async with contextlib.aclosing(_items(self._source)) as items:
                    while await self._has_room():
                        item = await anext(items)
                        if self.is_over:
                            return  # A cancellation comes only where something is awaited.
                        future = await submitted(_signal, self._executor, self._fn, item)
                        self._add(future)
            except StopAsyncIteration:
                pass
            except Exception as error:  # noqa: BLE001 - whoever takes the results gets it
                self._error = error
            except BaseException:
                # Otherwise the results would seem complete.
                self._error = RuntimeError("the source of the map was cancelled")
                raise
            finally:
                self._is_fed = True
                self._tell()

    async def _has_room(self) -> bool:
        """Wait until there is room for another item."""
        await checkpoint()
        while len(self._futures) >= self._limit:
            await self._changed.wait()
        return True

    def _add(self, future: Future[T]) -> None:
        self._life.keep(future)
        self._futures.append(future)
        if self.is_over:
            self._executor.abort(future)
        future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[T]) -> None:
        """In the pool's thread."""
        assert self._in_loop is not None
        tell_loop(self._in_loop, self._note, future)

    def _note(self, future: Future[T]) -> None:
        if not self.is_over:
            if not self._ordered:
                self._done.append(future)
            self._tell()


async def _items(source: Iterable[S] | AsyncIterable[S]) -> AsyncGenerator[S, None]:
    """The items of either kind of iterable. When this is closed, an async generator is, too."""
    if not isinstance(source, AsyncIterable):
        for item in source:
            yield item
        return
    iterator = aiter(source)
    try:
        async for item in iterator:
            yield item
    finally:
        if isinstance(iterator, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await iterator.aclose()


# --- futures and the loop -------------------------------------------------------------------------


def _in_this_loop() -> InLoop:
    """How threads have this event loop call a function."""
    token = current_token()
    loop: Any = getattr(token, "native_token", token)  # Older releases give the loop itself.
    of_trio: InLoop | None = getattr(loop, "run_sync_soon", None)
    return of_trio or loop.call_soon_threadsafe


def _signal() -> Signal:
    return Signal(_in_this_loop(), anyio.Event())


def _result_of(future: Future[T]) -> T:
    """The result of a map's task."""
    try:
        return future.result()
    except StopAsyncIteration as error:
        # By itself it would end the loop over the results, as if there were no more.
        raise RuntimeError("a task of the map raised StopAsyncIteration") from error
    finally:
        del future  # A traceback through this frame would keep it alive.


async def _end_of(futures: Iterable[Future[Any]]) -> None:
    """Wait until all of these are done."""
    for future in list(futures):
        if not future.done():
            signal = _signal()
            future.add_done_callback(signal.set)
            await signal.wait()


async def _aborted(executor: Executor, futures: Iterable[Future[Any]]) -> None:
    """Abort these, and wait until they have ended, whoever is cancelled meanwhile."""
    futures = list(futures)
    _abort(executor, futures)
    with anyio.CancelScope(shield=True):
        await _end_of(futures)


def _abort(executor: Executor, futures: Iterable[Future[Any]]) -> None:
    # The last first: they wait, and would begin if those that run were ended before.
    for future in reversed(list(futures)):
        if not future.done():
            executor.abort(future)


async def _in_thread(fn: Callable[[], object]) -> None:
    """Call this function in a thread of its own, and wait for its end."""
    signal = _signal()

    def call() -> None:
        try:
            fn()
        finally:
            signal.set()

    thread = threading.Thread(target=call, name="prefork-executor-shutdown")
    thread.start()
    await signal.wait()
    thread.join()
