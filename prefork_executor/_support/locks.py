"""Locks that are free again when a signal handler has raised.

``with lock:`` is not enough for that. ``threading.Condition`` acquires its lock in Python code,
where a handler may raise before the block has begun; and CPython 3.14 runs handlers between
the acquiring of any lock and the beginning of the block. Then nobody releases the lock, and
another thread that wants it waits for ever.

So whoever may be interrupted notes how often it holds the lock before, and when it leaves by an
exception releases what is more than that. It may hold it before: then it is itself a handler,
or was called by one.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Concatenate, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    S = TypeVar("S")


_HOW_OFTEN = "_recursion_count"
depth: Callable[[Any], int] = operator.methodcaller(
    _HOW_OFTEN if hasattr(threading.RLock(), _HOW_OFTEN) else "_is_owned"
)
"""How often this thread holds an RLock; where that cannot be told, whether it does."""


def release_to(lock: Any, before: int) -> None:
    """Release the lock until this thread holds it so often as :func:`depth` said before."""
    while depth(lock) > before:
        lock.release()


def leaves_unlocked(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """A method that leaves its object's ``_lock`` as it was, also if it raises."""

    @functools.wraps(method)
    def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        lock = self._lock  # type: ignore[attr-defined]
        before = depth(lock)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            release_to(lock, before)
            raise

    return wrapped
