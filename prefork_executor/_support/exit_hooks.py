"""What becomes of open pools when the interpreter ends, and in a fork of the process.

At its end the interpreter waits for every pool to finish its work, as it does for
ProcessPoolExecutor; but if it ends of Ctrl-C, that is no time to begin tasks, and those
that run are ended. A child that the user forks has copies of the parent's pools, which
are not its own: they are disowned before any line of the user's runs there.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Pool(Protocol):
        """What a pool must be able to do to be looked after here."""

        def shutdown(self, *, wait: bool, cancel: bool) -> None: ...

        def end(self, reason: str) -> None: ...

        def disown(self) -> None: ...


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_first: list[Callable[[], None]] = []
_is_ending = False


def before_pools_end(fn: Callable[[], None]) -> None:
    """Have this called when the interpreter ends, before the pools are waited for."""
    _first.append(fn)


def look_after(pool: Pool) -> None:
    """From now on, as long as somebody refers to it."""
    _pools.add(pool)


def interpreter_is_ending() -> bool:
    return _is_ending


def _finish_all() -> None:
    global _is_ending
    _is_ending = True
    for fn in _first:
        fn()
    if _was_interrupted():
        for pool in list(_pools):
            pool.end("the program was interrupted")
    for pool in list(_pools):
        pool.shutdown(wait=True, cancel=False)


def _was_interrupted() -> bool:
    """Whether the interpreter ends because of an interrupt that nobody has caught. In
    an interactive one it may have been any of those before."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def _disown_all() -> None:
    for pool in list(_pools):
        pool.disown()
    _pools.clear()


# Private, but what concurrent.futures itself uses: atexit's own hooks run only
# after the non-daemon threads were waited for, and ours would wait for us.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_disown_all)
