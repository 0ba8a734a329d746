"""What a `Pool` returns for submitted tasks: their futures, with the interface of
``multiprocessing.pool``.

A caller waits for the futures themselves. If there is a callback, it waits for an event instead:
in multiprocessing, too, a result is ready only when its callback has been called.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.pool
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

from ..errors import CallPicklingError, ResultPicklingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    _AsyncResult = multiprocessing.pool.AsyncResult[Any]
    _MapResult = multiprocessing.pool.MapResult[Any]
else:
    _AsyncResult = multiprocessing.pool.AsyncResult
    _MapResult = multiprocessing.pool.MapResult


def as_original(error: BaseException) -> BaseException:
    """The exception that multiprocessing.Pool raises where an executor raises this one."""
    cause = error.__cause__
    if isinstance(error, ResultPicklingError):
        wrapped: Any = MaybeEncodingError(cause, None)
        wrapped.value = error.result  # MaybeEncodingError would take the repr of a string.
        wrapped.args = (wrapped.exc, wrapped.value)
        wrapped.__cause__ = error
        error = wrapped
    elif isinstance(error, CallPicklingError) and isinstance(cause, Exception):
        if str(error) not in getattr(cause, "__notes__", ()):
            cause.add_note(str(error))
        error = cause
    return error


def throw(error: BaseException) -> NoReturn:
    try:
        raise error
    finally:
        del error  # Its traceback refers to this frame.


def _error_of(future: Future[Any]) -> BaseException | None:
    """The error of a future that has ended."""
    try:
        error = future.exception(0)
    except CancelledError as cancelled:
        return cancelled
    return None if error is None else as_original(error)


def _wait_for(future: Future[Any], timeout: float | None) -> bool:
    """Whether the future ends within ``timeout`` seconds."""
    if not future.done():
        try:
            future.exception(timeout)
        except (TimeoutError, CancelledError):
            return future.done()
    return True


class _DoneEvent:
    """Whether the callback has been called: an event that is cheap to make."""

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        self.is_set = True
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        if not self.is_set:
            seconds = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
            if self._lock.acquire(timeout=seconds):
                self._lock.release()  # For the next thread that waits.
        return self.is_set


class AsyncResult(_AsyncResult):
    """What ``apply_async`` returns."""

    _told: _DoneEvent | None = None

    def __init__(
        self,
        future: Future[Any],
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._future = future
        if callback is not None or error_callback is not None:
            self._told = _DoneEvent()
            self._callback = callback
            self._error_callback = error_callback
            future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[Any]) -> None:
        assert self._told is not None
        try:
            error = _error_of(future)
            if error is not None:
                if self._error_callback is not None:
                    self._error_callback(error)
            elif self._callback is not None:
                self._callback(future.result(0))
        finally:
            self._told.set()

    @property
    def futures(self) -> Sequence[Future[Any]]:
        """The executor's futures, one a task."""
        return (self._future,)

    def ready(self) -> bool:
        """Whether the task has ended and the callbacks have been called."""
        return self._future.done() if self._told is None else self._told.is_set

    def successful(self) -> bool:
        """Whether the task has ended without an error.

        Raises:
            ValueError: the task has not ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return _error_of(self._future) is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task has ended, ``timeout`` seconds at most."""
        if self._told is None:
            _wait_for(self._future, timeout)
        else:
            self._told.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result.

        Raises:
            multiprocessing.TimeoutError: the result is not there after ``timeout`` seconds.
            Exception: what the call raised; WorkerDied, and the executor's other errors.
        """
        if self._told is not None and not self._told.wait(timeout):
            raise multiprocessing.TimeoutError
        try:
            return self._future.result(timeout)
        except TimeoutError:
            if self._future.done():
                raise
            raise multiprocessing.TimeoutError from None
        except (CallPicklingError, ResultPicklingError) as error:
            throw(as_original(error))


class MapResult(AsyncResult, _MapResult):
    """What ``map_async`` and ``starmap_async`` return. It has ended when all its tasks
    have. If some fail, it has the error of the first of them."""

    def __init__(
        self,
        futures: list[Future[Any]],
        chunksize: int,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._futures = futures
        self._chunksize = chunksize
        self._value: list[Any] | None = None
        self._error: BaseException | None = None
        self._is_complete = False
        if futures and (callback is not None or error_callback is not None):
            self._told = _DoneEvent()
            self._callback = callback
            self._error_callback = error_callback
            self._left = set(futures)
            self._last = [True]
            for future in futures:
                future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[Any]) -> None:
        self._left.discard(future)
        if self._left:
            return
        assert self._told is not None
        try:
            self._last.pop()
        except IndexError:
            return  # Another thread has seen the same.
        try:
            self._complete()
            if self._error is not None:
                if self._error_callback is not None:
                    self._error_callback(self._error)
            elif self._callback is not None:
                self._callback(self._value)
        finally:
            self._told.set()

    def _complete(self) -> None:
        """All tasks have ended: take their results, and drop the futures."""
        if self._is_complete:
            return
        futures = self._futures
        self._error = next(filter(None, map(_error_of, futures)), None)
        if self._error is None:
            results = [future.result(0) for future in futures]
            is_flat = self._chunksize == 1
            self._value = results if is_flat else list(itertools.chain.from_iterable(results))
        self._is_complete = True
        self._futures = []

    @property
    def futures(self) -> Sequence[Future[Any]]:
        """The executor's futures, one a task. None are left when all have ended."""
        return self._futures

    @property
    def _number_left(self) -> int:
        # Progress bars read it.
        return sum(not future.done() for future in self._futures)

    def ready(self) -> bool:
        """Whether all tasks have ended and the callbacks have been called."""
        if self._told is not None:
            return self._told.is_set
        return all(future.done() for future in self._futures)

    def successful(self) -> bool:
        """Whether all tasks have ended without an error.

        Raises:
            ValueError: not all have ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        self._complete()
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all tasks have ended, ``timeout`` seconds at most."""
        if self._told is not None:
            self._told.wait(timeout)
            return
        end = None if timeout is None else time.monotonic() + timeout
        # The last is most likely to end last. Then this thread is woken only once.
        for future in reversed(self._futures):
            if not _wait_for(future, None if end is None else max(0.0, end - time.monotonic())):
                return

    def get(self, timeout: float | None = None) -> Any:
        """The results, as a list.

        Raises:
            multiprocessing.TimeoutError: not all are there after ``timeout`` seconds.
            Exception: what a call raised; WorkerDied, and the executor's other errors.
        """
        self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError
        self._complete()
        if self._error is not None:
            throw(self._error)
        return self._value
