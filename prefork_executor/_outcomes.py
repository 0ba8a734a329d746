"""The ends of tasks, and what is told to their futures.

The futures are the caller's as much as ours: anybody may resolve or cancel one,
their callbacks may raise whatever they like, and a signal handler may raise in the
middle of anything the main thread does. None of it may cost another task its
outcome, or run a task twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import RUNNING
from typing import Any, NamedTuple

from ._ledger import Task

logger = logging.getLogger("prefork_executor")


class Outcome(NamedTuple):
    """A task's end, read and unpickled."""

    number: int
    duration: int
    result: Any
    error: BaseException | None


def say_running(future: Future[Any]) -> None:
    """Tell a future that it runs, before anybody else has it. Takes no lock: a signal
    handler that raises as a future's lock is taken would leave it locked for ever."""
    future._state = RUNNING


def begin(task: Task) -> bool:
    """Tell a task's future, once, that it runs. False: it was cancelled, or somebody
    else has resolved it."""
    if task.number:
        return True
    try:
        return task.future.set_running_or_notify_cancel()
    except RuntimeError:
        return False


def resolve(setter: Callable[[Any], None], value: Any) -> None:
    try:
        setter(value)
    except InvalidStateError:
        logger.exception("a future of the pool was resolved by somebody else")
    except BaseException:
        # Even SystemExit: it must not cost the other futures their outcomes.
        logger.exception("a done-callback of a future raised")


def fail_all(failed: list[tuple[Task, BaseException]]) -> None:
    for task, error in failed:
        if begin(task):
            resolve(task.future.set_exception, error)


def is_about_the_task(error: BaseException) -> bool:
    """Whether sending failed for lack of room, or of the buffer that was to be sent.
    Anything else was raised by a signal handler; the system's errors have a number."""
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, ValueError | BufferError | MemoryError)
