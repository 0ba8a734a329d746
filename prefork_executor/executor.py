"""`PreforkExecutor`: concurrent.futures.Executor over a self-regulating prefork pool."""

from __future__ import annotations

import collections
import itertools
import math
import multiprocessing
import numbers
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from . import _posix
from ._client import Client
from ._pickling import Chunk
from ._regulator import Limits
from ._worker import Settings
from .stats import ExecutorStats

__all__ = ["PreforkExecutor"]

T = TypeVar("T")

MOST_WORKERS = 4096
"""Beyond this the default limits of every system are in the way."""
_ENDED_BY = "the workers were ended at the caller's request: {}_workers() was called"


class PreforkExecutor(Executor):
    """Runs calls in a pool of processes that grows and shrinks with the work.

    A drop-in for ProcessPoolExecutor. The pool starts small, grows when tasks
    wait, keeps ``min_spare_workers`` idle ones ready while there is room, and
    lets idle workers go; a worker's death costs the one task it held.

    Nothing is started before the first task. Then a supervisor process is
    started, by ``mp_context``, which forks all workers; so the caller's process
    may have threads.

    Args:
        max_workers: workers at most, those that are leaving included. None: the
            CPUs this process may use (affinity and cgroup quota), at least 1.
        mp_context: how the supervisor starts: ``"fork"``, ``"forkserver"``,
            ``"spawn"`` or a multiprocessing context. None: Python's default.
        initializer: called as ``initializer(*initargs)`` in every new worker.
            If it raises, the pool is broken, and says so.
        initargs: its arguments; locks and queues of the context are welcome.
        max_tasks_per_child: tasks after which a worker is replaced, under every
            start method. None: never.
        min_spare_workers: idle workers kept ready while there is room.
        max_spare_workers: idle workers above this retire at once. None: as many
            as ``max_workers``.
        start_workers: workers started with the pool. None: ``min_spare_workers``.
        idle_timeout: seconds of idleness after which a spare above
            ``min_spare_workers`` retires. None: never.
        on_yell: called as ``on_yell(pid, data)`` in a thread of the caller's
            process for what tasks send by :func:`prefork_executor.yell`, in
            order, before the task's own result. What it raises is logged.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number out of range, or limits that contradict each other.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        min_spare_workers: int = 1,
        max_spare_workers: int | None = None,
        start_workers: int | None = None,
        idle_timeout: float | None = 10.0,
        on_yell: Callable[[int, Any], object] | None = None,
    ) -> None:
        limits = _limits(
            max_workers, min_spare_workers, max_spare_workers, start_workers, idle_timeout
        )
        context = _context(mp_context)
        _check_callable("initializer", initializer)
        _check_callable("on_yell", on_yell)
        if not isinstance(initargs, Iterable):
            raise TypeError(f"initargs must be iterable, not {type(initargs).__name__}")
        if max_tasks_per_child is not None:
            _check_count("max_tasks_per_child", max_tasks_per_child, least=1)
        settings = Settings(
            tell_main=context.get_start_method() != "fork",
            limits=limits,
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks_per_child=max_tasks_per_child,
        )
        self._client = Client(context, settings, on_yell)
        finalizer = weakref.finalize(self, self._client.abandon)
        # At the interpreter's end the client has a better hook of its own.
        finalizer.atexit = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``. Never blocks.

        The call is pickled before this returns, except for large buffers that
        pickle takes out of band, NumPy arrays of over 32 KiB above all: those are
        copied when the task is sent.

        Returns:
            The call's future. Its exception is what the call raised, with its
            remote traceback; or ``pickle.PicklingError``, if the call or its
            result cannot be pickled; or :class:`~prefork_executor.WorkerDied`,
            if its worker died while it held this task.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError: the executor was shut down, or the interpreter ends.
            BrokenProcessPool: the pool cannot go on; the message says why.
        """
        if not callable(fn):
            raise TypeError(f"submit() needs a callable, not {type(fn).__name__}")
        return self._client.submit(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like ``map(fn, *iterables)``, in the pool, results in order.

        Args:
            fn: called with an item of each iterable.
            iterables: read at once, or as results are taken if ``buffersize``.
            timeout: seconds from this call on for the results to come.
            chunksize: items that travel as one task.
            buffersize: tasks submitted ahead of the results taken, at most.
                None: all.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
            TimeoutError: from the iterator; what has not begun is cancelled.
        """
        if not callable(fn):
            raise TypeError(f"map() needs a callable, not {type(fn).__name__}")
        if timeout is not None and not isinstance(timeout, numbers.Real):
            raise TypeError(f"timeout must be a number or None, not {type(timeout).__name__}")
        _check_count("chunksize", chunksize, least=1)
        if buffersize is not None:
            _check_count("buffersize", buffersize, least=1)
        end = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1:
            return self._map(fn, calls, end, buffersize)
        chunks = ((chunk,) for chunk in _batched(calls, chunksize))
        results = self._map(Chunk(fn), chunks, end, buffersize)
        return itertools.chain.from_iterable(_emptied(results))

    def _map(
        self,
        fn: Callable[..., Any],
        calls: Iterator[tuple[Any, ...]],
        end: float | None,
        buffersize: int | None,
    ) -> Iterator[Any]:
        first = itertools.islice(calls, buffersize)
        futures = collections.deque(self.submit(fn, *args) for args in first)
        # The iterator alone must not keep an executor from being collected.
        return _results(weakref.ref(self), fn, calls if buffersize else None, futures, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, finish those there are, end every process.

        Args:
            wait: return only when all that is done.
            cancel_futures: cancel the tasks that have not been sent to a worker.
        """
        self._client.shutdown(wait=wait, cancel=cancel_futures)

    def join(self, timeout: float | None = None) -> bool:
        """Wait, after :meth:`shutdown`, until every process of the pool has ended.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Returns:
            Whether they have. Always at once if called from a callback of the
            executor's own thread.

        Raises:
            RuntimeError: the executor was not shut down.
        """
        return self._client.join(timeout)

    def terminate_workers(self) -> None:
        """End every worker by SIGTERM, and with them the executor. Does not wait.

        Tasks not yet sent to a worker are cancelled. The futures of all others get
        BrokenProcessPool at once, whatever their workers make of the signal. A
        worker that does not end of it gets SIGKILL ten seconds later.
        :meth:`join` waits for that.
        """
        self._client.end_workers(signal.SIGTERM, _ENDED_BY.format("terminate"))

    def kill_workers(self) -> None:
        """End every worker by SIGKILL, and with them the executor. Does not wait.

        As :meth:`terminate_workers`, but no worker can clean up or go on.
        """
        self._client.end_workers(signal.SIGKILL, _ENDED_BY.format("kill"))

    def stats(self) -> ExecutorStats:
        """A frozen snapshot of the pool. Costs the pool nothing."""
        return self._client.stats()


def _results(
    executor: weakref.ref[PreforkExecutor],
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]] | None,
    futures: collections.deque[Future[Any]],
    end: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            if calls is not None:
                _submit_next(executor(), fn, calls, futures)
            yield _result_of(futures.popleft(), end)
    finally:
        for future in futures:
            future.cancel()


def _submit_next(
    executor: PreforkExecutor | None,
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]],
    futures: collections.deque[Future[Any]],
) -> None:
    if executor is not None:
        for args in itertools.islice(calls, 1):
            futures.append(executor.submit(fn, *args))


def _result_of(future: Future[T], end: float | None) -> T:
    try:
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        # A traceback through this frame would keep the future and its result.
        del future


def _batched(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _emptied(chunks: Iterator[list[T]]) -> Iterator[Iterator[T]]:
    """Each chunk's items, none of them kept once it was taken."""
    for chunk in chunks:
        chunk.reverse()
        yield (chunk.pop() for _ in range(len(chunk)))


# --- arguments -----------------------------------------------------------------------------


def _limits(
    max_workers: int | None,
    min_spare: int,
    max_spare: int | None,
    start: int | None,
    idle_timeout: float | None,
) -> Limits:
    if max_workers is None:
        max_workers = _posix.available_cpus()
    _check_max_workers(max_workers)
    _check_count("min_spare_workers", min_spare, least=0)
    if max_spare is None:
        max_spare = max_workers
    _check_count("max_spare_workers", max_spare, least=0)
    if start is None:
        start = min(min_spare, max_workers)
    _check_count("start_workers", start, least=0)
    _check_order("min_spare_workers", min_spare, "max_workers", max_workers)
    _check_order("min_spare_workers", min_spare, "max_spare_workers", max_spare)
    _check_order("start_workers", start, "max_workers", max_workers)
    _check_order("max_spare_workers", max_spare, "max_workers", max_workers)
    return Limits(
        max_workers=int(max_workers),
        min_spare=int(min_spare),
        max_spare=int(max_spare),
        start_workers=int(start),
        idle_timeout=_idle_timeout(idle_timeout),
    )


def _check_max_workers(max_workers: int) -> None:
    _check_int("max_workers", max_workers)
    if max_workers <= 0:
        # The standard library's words, which programs may look for.
        raise ValueError("max_workers must be greater than 0")
    if max_workers > MOST_WORKERS:
        raise ValueError(f"max_workers must be at most {MOST_WORKERS}, not {max_workers}")


def _check_int(name: str, value: object) -> None:
    # NumPy's integers count as well.
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")


def _check_count(name: str, value: int, least: int) -> None:
    _check_int(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def _check_order(name: str, value: int, bound_name: str, bound: int) -> None:
    if value > bound:
        raise ValueError(f"{name} ({value}) must not be above {bound_name} ({bound})")


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {type(value).__name__}")


def _idle_timeout(value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"idle_timeout must be seconds or None, not {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"idle_timeout must be at least 0 seconds, not {value}")
    return None if math.isinf(value) else float(value)


def _context(mp_context: BaseContext | str | None) -> BaseContext:
    if mp_context is None:
        return multiprocessing.get_context()
    if isinstance(mp_context, str):
        try:
            return multiprocessing.get_context(mp_context)
        except ValueError as error:
            raise ValueError(f"mp_context: {error}") from None
    if not isinstance(mp_context, BaseContext):
        raise TypeError(
            "mp_context must be a start method's name or a multiprocessing context, "
            f"not {type(mp_context).__name__}"
        )
    return mp_context
