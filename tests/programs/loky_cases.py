"""loky's tests of its executor, for the pool that ``PROGRAMS_EXECUTOR`` names.

Run by ``test_loky_suite.py`` where loky's repository is importable as ``tests``; its code is
not ours to copy. What only loky has (reducers, environments, its own errors and attributes)
no other pool can pass: what counts is that both do as well.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Any

import pytest

import prefork_executor
from tests import _executor_mixin, _test_process_executor  # type: ignore[attr-defined]

_KINDS: dict[str, Any] = {
    "ProcessPoolExecutor": concurrent.futures.ProcessPoolExecutor,
    "PreforkExecutor": prefork_executor.PreforkExecutor,
}
_Kind = _KINDS[os.environ["PROGRAMS_EXECUTOR"]]


class Adapted(_Kind):
    """The pool with the arguments that loky's tests give theirs."""

    def __init__(
        self, max_workers: int | None = None, context: BaseContext | None = None, **options: Any
    ) -> None:
        if "timeout" in options and _Kind is prefork_executor.PreforkExecutor:
            options["idle_timeout"] = options.pop("timeout")
            options["min_spare_workers"] = 0
        super().__init__(max_workers, context, **options)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False
    ) -> None:
        """As loky's, which can kill the workers."""
        if kill_workers and hasattr(_Kind, "kill_workers"):
            self.kill_workers()
        super().shutdown(wait, cancel_futures=cancel_futures)


class _Mixin:
    """Stands for theirs, which looks into the executor after each test."""

    executor: Any
    executor_type = Adapted
    context: Any = None
    worker_count = 5

    @pytest.fixture(autouse=True)
    def _with_executor(self) -> Iterator[None]:
        event = self.context.Event()
        _executor_mixin._test_event = event
        options = {"initializer": _executor_mixin.initializer_event, "initargs": (event,)}
        self.executor = Adapted(self.worker_count, self.context, **options)
        yield
        event.set()
        if self.executor is not None:
            self.executor.shutdown(kill_workers=True)

    def check_no_running_workers(self, **options: Any) -> None:
        """Theirs: counts the children."""
        _executor_mixin.ExecutorMixin.check_no_running_workers(**options)


def _prime(_self: object) -> None:
    """Theirs starts workers, which a test here does by itself."""


def _cases() -> Iterator[type]:
    bases = ("ExecutorShutdownTest", "WaitTests", "AsCompletedTests", "ExecutorTest")
    context = multiprocessing.get_context(os.environ["PROGRAMS_START_METHOD"])
    body = {"context": context, "_prime_executor": _prime, "__module__": __name__}
    for base in bases:
        yield type(f"Test{base}", (_Mixin, getattr(_test_process_executor, base)), body)


globals().update({case.__name__: case for case in _cases()})
