"""What a worker does for ``prefork-executor map``: lines in, lines of JSON out.

The workers parse and dump JSON, so that the caller only moves bytes.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any

from . import _target
from ._journal import Outcome, Region
from ._target import Job

if TYPE_CHECKING:
    import asyncio

Error = dict[str, str]
"""``type``, ``message`` and ``traceback`` of an exception."""
ENOUGH = 0.02
"""Seconds after which a task begins no further line. Lines that have not begun are sent again."""


class _Here:
    """What this worker has: the journal's memory, and the signals of Ctrl-C it has received."""

    journal: Any = None
    interrupts = 0
    runner: asyncio.Runner | None = None


def start_worker(journal: Any) -> None:
    """Functions may print. That is not a result, so it goes where messages go."""
    _Here.journal = journal
    os.dup2(2, 1)
    # The worker's own handler. It raises while a task runs, and spares the worker itself.
    interrupt = signal.getsignal(signal.SIGINT)

    def note_interrupt(number: int, frame: FrameType | None) -> None:
        _Here.interrupts += 1
        if callable(interrupt):
            interrupt(number, frame)

    signal.signal(signal.SIGINT, note_interrupt)


def end_worker() -> None:
    """Close the event loop, if there is one."""
    if _Here.runner is not None:
        _Here.runner.close()


def find(job: Job) -> None:
    """Find the function in a worker. Raises what that raises."""
    _target.found(job)


class Call:
    """What a task runs. Messages and recordings call it by the function's name."""

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.is_code:
            self.__module__, self.__qualname__ = "builtins", job.name
        else:
            self.__module__, _, self.__qualname__ = job.target.partition(":")

    def __call__(self, region: int, number: int, *lines: bytes) -> list[Outcome]:
        """Called in a worker. Returns what has come of each line that it has begun.

        Args:
            region: the task's region of the journal.
            number: the task's number there.
            lines: at least one of them is run. ENOUGH says how many more.
        """
        fn = _target.found(self.job)
        journal = Region(_Here.journal, region)
        pid = os.getpid()
        journal.begin(number, pid, time.time())
        began = time.monotonic()
        outcomes = []
        for line in lines:
            text, error = _run_one(fn, self.job, line)
            if os.getpid() != pid:
                os._exit(0)  # The function has forked, and the other process has come back, too.
            seconds = time.monotonic() - began
            outcome = (text, error, seconds)
            outcomes.append(outcome)
            if not journal.add(outcome) or seconds > ENOUGH:
                break
        return outcomes


def _run_one(fn: Callable[..., Any], job: Job, line: bytes) -> tuple[bytes, Error | None]:
    try:
        return _dumped(_called(fn, job, line.decode()), job.name), None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _Here.interrupts:
            raise
        # Even SystemExit, or a KeyboardInterrupt that the function raised itself: one line must
        # not end the work on the others.
        return b"", describe(error, skip=2)


def _called(fn: Callable[..., Any], job: Job, text: str) -> Any:
    positional, named = _target.arguments(job, text)
    result = fn(*positional, **named)
    return _awaited(result) if isinstance(result, CoroutineType) else result


def _awaited(coroutine: Any) -> Any:
    """The result of a coroutine. All lines of a worker share one event loop, so what an async
    function keeps for the next line still belongs to it."""
    import asyncio  # Most functions are none of its.

    if _Here.runner is None:
        _Here.runner = asyncio.Runner()
    return _Here.runner.run(coroutine)


def _dumped(result: Any, name: str) -> bytes:
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"what {name} returned is not JSON: {error}. Let it return None, bool, int, float, "
            "str, and lists and dicts of them: str(x) of a date or a path, x.tolist() of an "
            "array, list(x) of what a generator yields, None for nan"
        ) from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can only escape.
        return json.dumps(result).encode()


def describe(error: BaseException, skip: int = 0) -> Error:
    """An exception as text. ``skip``: how many frames at the traceback's beginning are ours."""
    trace = error.__traceback__
    for _ in range(skip):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}
