"""One face for the pools that faults.py measures: a thin adapter for each.

Only what the pools' own documentation offers is called, so that what is measured
is what their users get.
"""

from __future__ import annotations

import abc
import importlib.metadata
import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import loky
import loky.backend.fork_exec
import pebble

from prefork_executor import PreforkExecutor

WORKERS = 2


class UnsupportedError(Exception):
    """The pool has no such thing; the message says what it lacks."""


@dataclass(frozen=True)
class Options:
    """What a scenario may ask of a new pool.

    Attributes:
        initializer: called in every worker.
        initargs: its arguments.
        task_limit: seconds after which a task is ended.
        forked: workers are to be forked from the client, where the pool can do so.
    """

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    task_limit: float | None = None
    forked: bool = False

    @property
    def context(self) -> Any:
        """A multiprocessing context."""
        return multiprocessing.get_context("fork" if self.forked else None)


class Pool(abc.ABC):
    """A pool of WORKERS processes."""

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None
    """None: it comes with Python."""
    fork_function: ClassVar[tuple[Any, str]] = (os, "fork")
    """What the client's process calls to start a process of the pool."""
    has_supervisor: ClassVar[bool] = False
    ends_tasks: ClassVar[bool] = True
    """Whether there is a public way to end the tasks that run."""

    @abc.abstractmethod
    def __init__(self, options: Options) -> None: ...

    @abc.abstractmethod
    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """Schedule a call."""

    @abc.abstractmethod
    def shutdown(self) -> None:
        """Finish what was submitted, and end."""

    @abc.abstractmethod
    def leave(self, error: BaseException) -> None:
        """What its with block does at its end, when this exception ends it."""

    @abc.abstractmethod
    def terminate(self) -> None:
        """End all tasks and workers, and wait for that."""

    @classmethod
    def version(cls) -> str:
        """The version measured."""
        if cls.distribution is None:
            return f"Python {platform.python_version()}"
        return importlib.metadata.version(cls.distribution)


class ExecutorPool(Pool):
    """What all that implement concurrent.futures.Executor have in common."""

    executor: Executor

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """See Pool."""
        return self.executor.submit(fn, *args)

    def shutdown(self) -> None:
        """See Pool."""
        self.executor.shutdown()

    def leave(self, error: BaseException) -> None:
        """See Pool."""
        self.executor.__exit__(type(error), error, error.__traceback__)


class OurPool(ExecutorPool):
    """prefork_executor.PreforkExecutor."""

    name = "PreforkExecutor"
    distribution = "prefork-executor"
    has_supervisor = True

    def __init__(self, options: Options) -> None:
        limit: dict[str, Any] = {}
        if options.task_limit is not None:
            limit["task_timeout"] = options.task_limit
        self.executor: PreforkExecutor = PreforkExecutor(
            WORKERS, options.context, options.initializer, options.initargs, **limit
        )

    def terminate(self) -> None:
        """See Pool."""
        self.executor.terminate_workers()
        self.executor.shutdown()


class StandardPool(ExecutorPool):
    """concurrent.futures.ProcessPoolExecutor."""

    name = "ProcessPoolExecutor"
    ends_tasks = hasattr(ProcessPoolExecutor, "terminate_workers")

    def __init__(self, options: Options) -> None:
        _refuse_limit(options)
        self.executor: ProcessPoolExecutor = ProcessPoolExecutor(
            WORKERS, options.context, options.initializer, options.initargs
        )

    def terminate(self) -> None:
        """See Pool."""
        terminate_workers: Any = getattr(self.executor, "terminate_workers", None)
        if terminate_workers is None:
            raise UnsupportedError("no such call")
        terminate_workers()
        self.executor.shutdown()


class LokyPool(ExecutorPool):
    """loky.ProcessPoolExecutor: what get_reusable_executor hands out, without the
    one for all that it keeps, so that a scenario may let go of it."""

    name = "loky"
    distribution = "loky"
    fork_function = (loky.backend.fork_exec, "fork_exec")

    def __init__(self, options: Options) -> None:
        _refuse_limit(options)
        self.executor: Any = loky.ProcessPoolExecutor(
            WORKERS, initializer=options.initializer, initargs=options.initargs
        )

    def terminate(self) -> None:
        """See Pool."""
        self.executor.shutdown(kill_workers=True)


class PebblePool(Pool):
    """pebble.ProcessPool."""

    name = "pebble"
    distribution = "pebble"

    def __init__(self, options: Options) -> None:
        self.pool = pebble.ProcessPool(
            WORKERS,
            initializer=options.initializer,
            initargs=options.initargs,
            context=options.context,
        )
        self.limit = options.task_limit

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """See Pool."""
        future: Future[Any] = self.pool.schedule(fn, args=args, timeout=self.limit)
        return future

    def shutdown(self) -> None:
        """See Pool."""
        self.pool.close()
        self.pool.join()

    def leave(self, error: BaseException) -> None:
        """See Pool."""
        self.pool.__exit__(type(error), error, error.__traceback__)

    def terminate(self) -> None:
        """See Pool."""
        self.pool.stop()
        self.pool.join()


def _refuse_limit(options: Options) -> None:
    if options.task_limit is not None:
        raise UnsupportedError("no limit for a task")


POOLS: dict[str, type[Pool]] = {
    pool.name: pool for pool in (OurPool, StandardPool, LokyPool, PebblePool)
}
