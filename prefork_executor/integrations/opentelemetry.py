"""OpenTelemetry's context, which travels with the tasks::

    traced = ContextExecutor(executor)
    with tracer.start_as_current_span("order"):
        traced.submit(price, basket)

A span made in the worker has the caller's span as its parent, and baggage comes along. What
the global propagators inject travels, so they must be the same on both sides.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from prefork_executor import ExecutorView, PreforkExecutor

from ._extras import needed
from ._wrapped import Wrapped

with needed("opentelemetry", "opentelemetry"):
    from opentelemetry import context, propagate, trace

__all__ = ["ContextExecutor"]

P = ParamSpec("P")
T = TypeVar("T")
FLUSH_TIMEOUT = 5000
"""Milliseconds that a worker has to export its last spans. A worker that has not left after ten
seconds is killed."""


class ContextExecutor(Executor):
    """An executor's ``submit`` and ``map``, whose tasks run in the context of the call.
    The futures are the executor's own, so ``executor.abort`` takes them.

    Args:
        executor: an executor, or a view of one.
    """

    def __init__(self, executor: PreforkExecutor | ExecutorView) -> None:
        self._executor = executor

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As :meth:`PreforkExecutor.submit`."""
        return self._executor.submit(_InContext(fn), *args, **kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As :meth:`PreforkExecutor.map`."""
        return self._executor.map(
            _InContext(fn),
            *iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down the executor itself: see :meth:`PreforkExecutor.shutdown`."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


class _InContext(Wrapped):
    """A function that runs in the context in which this object was made."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.carrier: dict[str, str] = {}
        propagate.inject(self.carrier)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _flush_at_exit(os.getpid())
        token = context.attach(propagate.extract(self.carrier))
        try:
            return self.fn(*args, **kwargs)
        finally:
            context.detach(token)


@functools.cache
def _flush_at_exit(_pid: int) -> None:
    """Have this process export, once, what it still holds when it ends. An inherited provider
    has registered its shutdown only in the process that made it."""
    atexit.register(_flush)


def _flush() -> None:
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush(FLUSH_TIMEOUT)
