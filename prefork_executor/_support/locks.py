"""Locks that are free again after a signal handler has raised.

``with lock:`` does not guarantee that. ``threading.Condition`` acquires its lock in Python code,
where a handler may raise before the block has begun. CPython 3.14 runs handlers even between
acquiring a lock of any kind and the beginning of the block. Then no code releases the lock, and
another thread that wants it waits for ever.

So code that may be interrupted notes first how often its thread holds the lock. If an exception
leaves it, it releases the lock down to that number. The number may be above 0: then the code is
itself a signal handler, or was called by one.
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
"""How often this thread holds an RLock; for other locks, whether it is held."""


def release_to(lock: Any, before: int) -> None:
    """Release the lock until this thread holds it only as often as :func:`depth` said before."""
    while depth(lock) > before:
        lock.release()


def leaves_unlocked(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """A method that leaves its object's ``_lock`` as it found it, even if it raises."""

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
