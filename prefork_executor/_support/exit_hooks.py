"""What happens to open pools when the interpreter ends, and in a fork of the process.

When the interpreter ends, it waits for every pool to finish its work, as it does for
ProcessPoolExecutor. If Ctrl-C ended it, the pools begin no more tasks and end those that
run. A child that the user forks has copies of the parent's pools. They do not belong to the
child, so they are disowned before any of the user's code runs there.
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
        """What a pool must be able to do."""

        def shutdown(self, *, wait: bool, cancel: bool) -> None: ...

        def end(self, reason: str) -> None: ...

        def disown(self) -> None: ...


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_first: list[Callable[[], None]] = []
_in_forks: list[Callable[[], None]] = []
_is_ending = False


def before_pools_end(fn: Callable[[], None]) -> None:
    """Call this function when the interpreter ends, before it waits for the pools."""
    _first.append(fn)


def after_fork(fn: Callable[[], None]) -> None:
    """Call this function in every child that the program forks, when the pools are disowned."""
    _in_forks.append(fn)


def look_after(pool: Pool) -> None:
    """Finish this pool when the interpreter ends, if something still refers to it then."""
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
    """Whether an uncaught KeyboardInterrupt ends the interpreter. In an
    interactive interpreter the last exception may be an old one: there the answer is no."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, KeyboardInterrupt) and not hasattr(sys, "ps1")


def _disown_all() -> None:
    for pool in list(_pools):
        pool.disown()
    _pools.clear()
    for fn in _in_forks:
        fn()


# Private, but concurrent.futures uses it as well. Hooks of atexit run only after the
# interpreter has waited for all non-daemon threads, and our thread would wait for the hook.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_disown_all)
