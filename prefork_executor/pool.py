"""`Pool`: the methods of ``multiprocessing.Pool``, over an executor.

A program that uses ``multiprocessing.Pool`` changes an import:

    from prefork_executor import Pool

It keeps what programs see of the original: the methods, their results and errors, the
life of a pool (``close``, ``join``, ``terminate``), ``isinstance``, and the attributes that
programs read. None of the original's machinery is set up. An executor does the work, and only
its public methods are used.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.pool
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from multiprocessing.pool import CLOSE, RUN, TERMINATE

from ._pool_results.async_results import AsyncResult, MapResult
from ._pool_results.iterators import TERMINATED, Feed, IMapIterator, IMapUnorderedIterator
from ._support import exit_hooks
from ._support.arguments import check_buffersize, check_count, check_function
from ._system.machine import available_cpus
from .executor import PreforkExecutor
from .maps import Maps, at_hand, calls_of, length_of, starred_calls_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar, overload

    from .recording import Recording
    from .stats import ExecutorStats

    T = TypeVar("T")
    A = TypeVar("A")
    B = TypeVar("B")
    C = TypeVar("C")
    Many = list[Any] | tuple[Any, Any, Any, Any, *tuple[Any, ...]]
    """Arguments whose types are not checked: those in a list, and more than three."""
    NoKeywords = Mapping[str, NoReturn]

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool"]

CHUNKS_PER_WORKER = 4
"""Chunks for each worker into which a map is divided by default, as in the original."""
ELASTIC = ("min_spare_workers", "max_spare_workers", "start_workers", "idle_timeout")
"""Options that say how the pool grows and shrinks. Without any of them its size is fixed."""
LEAVE_WITHIN = 3.0
"""Seconds that workers without a task have to leave before they are ended."""
STARTED_WITHIN = 10.0
"""Seconds to wait for the first workers when a program asks for the pool's processes."""


class _Life:
    """What a pool shares with the pools that :meth:`Pool.with_options` makes of it."""

    def __init__(self, executor: Any, processes: int, *, is_own: bool, first: int = 0) -> None:
        self.executor = executor
        self.processes = processes
        self.is_own = is_own
        self.first = first
        """Workers to start with the pool."""
        self.is_shown = False
        self.state = RUN
        self.pid = os.getpid()
        self.feeds: weakref.WeakSet[Feed] = weakref.WeakSet()
        self.unfinished: set[Future[Any]] = set()
        """Futures of this pool's tasks, if the executor is not its own: to wait for and end."""

    def check_running(self) -> None:
        if self.state != RUN:
            raise ValueError("Pool not running")

    def close(self) -> None:
        if self.state == RUN:
            # Otherwise a pool without a task would end without running its initializers.
            self.workers()
            self.state = CLOSE
            self.on_fed()

    def on_fed(self) -> None:
        """All of an iterable has been submitted. If nothing more can come, shut down."""
        if self.state != RUN and self.is_own and all(feed.is_fed for feed in list(self.feeds)):
            self.executor.shutdown(wait=False)

    def terminate(self) -> None:
        self.state = TERMINATE
        if self.pid != os.getpid():
            return  # This is a copy in a fork of the program. It has no processes.
        for feed in list(self.feeds):
            feed.close(RuntimeError(TERMINATED))
        if not self.is_own:
            for future in list(self.unfinished):
                self.end(future)
            return
        self.executor.shutdown(wait=False, cancel_futures=True)
        # Workers without a task leave on their own, so what they have printed is not lost.
        is_busy = self.executor.stats().in_flight
        if is_busy or not self.executor.join(LEAVE_WITHIN):
            self.executor.terminate_workers()
            self.executor.join()

    def keep(self, future: Future[Any]) -> None:
        """Note a task of this pool in an executor that is not its own."""
        self.unfinished.add(future)
        future.add_done_callback(self.unfinished.discard)
        if self.state == TERMINATE:
            self.end(future)

    def end(self, future: Future[Any]) -> bool:
        abort = getattr(self.executor, "abort", None)
        return bool(future.cancel() if abort is None else abort(future))

    def join(self) -> None:
        if self.state == RUN:
            raise ValueError("Pool is still running")
        for feed in list(self.feeds):
            if self.state == CLOSE:  # Otherwise an iterable that waits may hold it up.
                feed.lift()
                feed.join()
        if self.is_own:
            self.executor.shutdown(wait=True)
        else:
            concurrent.futures.wait(list(self.unfinished))

    def workers(self) -> list[Any]:
        """The processes of the pool. The first call waits until some are there."""
        processes = getattr(self.executor, "_processes", None)
        if processes is None:
            return []
        end = time.monotonic() + STARTED_WITHIN
        while self.is_own and not self.is_shown and self.state == RUN:
            is_late = self.executor._broken or time.monotonic() > end
            self.is_shown = is_late or len(processes) >= self.first
            if not self.is_shown:
                time.sleep(0.001)
        return list(processes.values())


_open: weakref.WeakSet[Pool] = weakref.WeakSet()


def _terminate_all() -> None:
    """Terminate all pools at the program's end, as the original does."""
    for pool in list(_open):
        pool._terminate_at_end()


exit_hooks.before_pools_end(_terminate_all)


class Pool(multiprocessing.pool.Pool):
    """``multiprocessing.Pool``, on a :class:`PreforkExecutor`.

    If a worker dies, only its own task fails, with :class:`~prefork_executor.WorkerDied`. The
    pool goes on.

    Args:
        processes: the number of workers. None: the CPUs that this process may use.
        initializer, initargs: called as ``initializer(*initargs)`` in every new worker.
        maxtasksperchild: tasks after which a worker is replaced. A chunk is one task.
            None: never.
        context: how the pool starts, as ``mp_context`` of :class:`PreforkExecutor`.
        executor: an existing executor, to use instead of one of the pool's own. The pool
            does not shut it down. Then ``processes`` only says how many chunks a map is
            divided into, and no other option may be given.
        options: of :class:`PreforkExecutor`, by name. By default the pool starts all its
            workers at once and keeps them, as the original does. With any of
            ``min_spare_workers``, ``max_spare_workers``, ``start_workers`` and
            ``idle_timeout`` it grows and shrinks, as executors do.

    Raises:
        TypeError, ValueError: a bad argument.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        executor: Any = None,
        **options: Any,
    ) -> None:
        self._is_view = False
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and not (
            isinstance(maxtasksperchild, int) and maxtasksperchild > 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if executor is not None:
            given = {
                "initializer": initializer,
                "initargs": tuple(initargs),
                "maxtasksperchild": maxtasksperchild,
                "context": context,
                **options,
            }
            _check_nothing_given([name for name, value in given.items() if value])
            self._set(_Life(executor, processes or _workers_of(executor), is_own=False), executor)
            return
        if not any(name in options for name in ELASTIC):
            options = {**_fixed(processes), **options}
        own = PreforkExecutor(
            processes,
            context,
            initializer,
            tuple(initargs),
            max_tasks_per_child=maxtasksperchild,
            **options,
        )
        first = options.get("start_workers") or options.get("min_spare_workers", 1)
        own.start()
        self._set(_Life(own, own._max_workers, is_own=True, first=first), own)
        _open.add(self)

    def _set(self, life: _Life, executor: Any) -> None:
        self._life = life
        self._executor = executor

    # --- the original's methods ------------------------------------------------------------

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> T:
        """``func(*args, **kwds)``, in a worker. Waits for the result."""
        result: T = self.apply_async(func, args, kwds).get()
        return result

    if TYPE_CHECKING:  # Without keywords, up to three arguments in a tuple are checked.

        @overload  # type: ignore[override]
        def apply_async(
            self,
            func: Callable[[], T],
            args: tuple[()] = ...,
            kwds: NoKeywords = ...,
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[[A], T],
            args: tuple[A],
            kwds: NoKeywords = ...,
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[[A, B], T],
            args: tuple[A, B],
            kwds: NoKeywords = ...,
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[[A, B, C], T],
            args: tuple[A, B, C],
            kwds: NoKeywords = ...,
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[..., T],
            args: Many,
            kwds: Mapping[str, Any] = ...,
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[..., T],
            args: Iterable[Any] = ...,
            *,
            kwds: Mapping[str, Any],
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...
        @overload
        def apply_async(
            self,
            func: Callable[..., T],
            args: Iterable[Any],
            kwds: Mapping[str, Any],
            callback: Callable[[T], object] | None = ...,
            error_callback: Callable[[BaseException], object] | None = ...,
        ) -> AsyncResult: ...

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """The same, without waiting.

        Args:
            func, args, kwds: what to call.
            callback: called with the result, in a thread of the pool.
            error_callback: called with the error if the call fails.
        """
        return AsyncResult(self._submit(func, *args, **kwds), callback, error_callback)

    def map(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[T]:
        """``list(map(func, iterable))``, in the workers. Waits for the results."""
        results: list[T] = self.map_async(func, iterable, chunksize).get()
        return results

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """The same, without waiting.

        Args:
            func: called with each item.
            iterable: read at once.
            chunksize: items that travel as one task. None: enough to make four chunks for
                each worker.
            callback: called with the list of results, in a thread of the pool.
            error_callback: called with the error if a call fails.
        """
        items = list(iterable)
        chunksize = self._chunksize(func, len(items), chunksize)
        calls = calls_of(func, [iter(items)], chunksize)
        return self._map_async_of(calls, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """``list(itertools.starmap(func, iterable))``, in the workers. Waits for the
        results."""
        results: list[T] = self.starmap_async(func, iterable, chunksize).get()
        return results

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """The same, without waiting. The arguments are those of :meth:`map_async`."""
        rows = list(iterable)
        chunksize = self._chunksize(func, len(rows), chunksize)
        calls = starred_calls_of(func, iter(rows), chunksize)
        return self._map_async_of(calls, chunksize, callback, error_callback)

    def imap(  # type: ignore[override]
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Like ``map(func, iterable)``, in the workers.

        Args:
            func: called with each item.
            iterable: read in a thread, a little ahead of the workers.
            chunksize: items that travel as one task.
            buffersize: tasks ahead of the results taken, at most. None: any number, so
                that results may wait in memory.

        Returns:
            An iterator over the results. Its ``next`` takes a timeout. Its ``close()``
            cancels what has not begun.
        """
        feed, length = self._feed(func, iterable, chunksize, buffersize, is_ordered=True)
        return IMapIterator(feed, length, is_chunked=chunksize != 1)

    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapUnorderedIterator:
        """The same, with the results as the tasks end."""
        feed, length = self._feed(func, iterable, chunksize, buffersize, is_ordered=False)
        return IMapUnorderedIterator(feed, length, is_chunked=chunksize != 1)

    def close(self) -> None:
        """Take no more tasks. Those there are, and those from an iterable that is being read,
        still run. Does not wait."""
        self._life.close()

    def terminate(self) -> None:
        """End every worker, whatever it does. Waits until they have ended, unless a callback
        calls this. Results that are not there yet get an error."""
        self._life.terminate()

    def join(self) -> None:
        """Wait, after :meth:`close` or :meth:`terminate`, until all workers have ended.

        Raises:
            ValueError: the pool is running.
        """
        self._life.join()

    # --- what the original does not have --------------------------------------------------------

    @property
    def executor(self) -> Any:
        """The executor that does the work: ``reload()``, ``add_yell_hook()`` and more."""
        return self._life.executor

    def with_options(self, **options: Any) -> Pool:
        """The same pool, for tasks with other options.

        Args:
            options: those of :meth:`PreforkExecutor.with_options`. ``timeout``: the seconds
                that a task may run. ``retries``: how often it is run again after its worker
                has died or its time was up.
        """
        view = object.__new__(type(self))
        view._is_view = True
        view._set(self._life, self._executor.with_options(**options))
        return view

    def abort(self, result: AsyncResult | IMapIterator) -> bool:
        """End the tasks of a result, or of an ``imap``, whether they run or wait. Does not wait
        for their end. Their results are :class:`~prefork_executor.TaskAborted`.

        Returns:
            Whether there was something to abort.
        """
        # An iterable that is still being read counts, too.
        was_fed = not isinstance(result, IMapIterator) or result.stop(self._life.end)
        ended = [self._life.end(future) for future in result.futures if not future.done()]
        return any(ended) or not was_fed

    def stats(self) -> ExecutorStats:
        """See :meth:`PreforkExecutor.stats`."""
        stats: ExecutorStats = self._life.executor.stats()
        return stats

    def record(self, *paths: str | os.PathLike[str], max_tasks: int = 100_000) -> Recording:
        """See :meth:`PreforkExecutor.record`."""
        recording: Recording = self._life.executor.record(*paths, max_tasks=max_tasks)
        return recording

    # --- inside ---------------------------------------------------------------------------

    def _submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        life = self._life
        if life.state != RUN:
            life.check_running()
        future: Future[Any] = self._executor.submit(fn, *args, **kwargs)
        if not life.is_own:
            life.keep(future)
        return future

    def _submit_all(self, calls: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
        if self._life.state == TERMINATE:
            raise RuntimeError(TERMINATED)
        executor = self._executor
        if isinstance(executor, Maps):
            futures = executor.submit_all(calls)
        else:
            futures = [executor.submit(*call) for call in calls]
        if not self._life.is_own:
            for future in futures:
                self._life.keep(future)
        return futures

    def _chunksize(self, func: Callable[..., Any], length: int, chunksize: int | None) -> int:
        self._life.check_running()
        check_function("func", func)
        if chunksize is None:
            return -(-length // (CHUNKS_PER_WORKER * self._processes)) or 1
        check_count("chunksize", chunksize, minimum=1, takes_bool=True)
        return chunksize

    def _map_async_of(
        self,
        calls: Iterator[tuple[Any, ...]],
        chunksize: int,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult:
        futures = self._submit_all(calls)
        return MapResult(futures, chunksize, callback, error_callback)

    def _feed(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        *,
        is_ordered: bool,
    ) -> tuple[Feed, int | None]:
        self._life.check_running()
        check_function("func", func)
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        buffersize = check_buffersize(buffersize)
        length = length_of(iterable)
        calls = calls_of(func, [iter(iterable)], chunksize)
        is_at_hand = at_hand(iterable)
        feed = Feed(self._processes, buffersize, is_ordered=is_ordered, is_at_hand=is_at_hand)
        self._life.feeds.add(feed)
        feed.start(self._submit_all, calls, self._life.on_fed)
        return feed, length

    # --- what programs read, and what the original's code calls -------------------------------

    @property
    def _processes(self) -> int:
        return self._life.processes

    @property
    def _pool(self) -> list[Any]:
        return self._life.workers()

    @property
    def _state(self) -> str:
        return self._life.state

    @_state.setter
    def _state(self, state: str) -> None:
        self._life.state = state

    @property
    def _ctx(self) -> Any:
        return getattr(self._life.executor, "_mp_context", None) or multiprocessing.get_context()

    def _repopulate_pool(self) -> None:
        """Does nothing: the pool regulates itself."""

    def _check_running(self) -> None:
        self._life.check_running()

    def _terminate_at_end(self) -> None:
        if self._life.state != TERMINATE and self._life.pid == os.getpid():
            self._life.terminate()

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        size = f"state={self._state} pool_size={self._processes}"
        return f"<{name} {size} of {self._life.executor!r}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        life = getattr(self, "_life", None)
        if life is None or self._is_view or not life.is_own:
            return
        if life.state == RUN and life.pid == os.getpid():
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)


def _fixed(processes: int | None) -> dict[str, Any]:
    count = available_cpus() if processes is None else processes
    return {"min_spare_workers": count, "start_workers": count}


def _workers_of(executor: Any) -> int:
    known = getattr(executor, "_max_workers", None)
    return known if isinstance(known, int) else (os.cpu_count() or 1)


def _check_nothing_given(names: list[str]) -> None:
    if names:
        raise TypeError(f"{', '.join(names)} cannot be given with executor=, which has its own")
