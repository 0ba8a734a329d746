"""Threads in the main process of a raw pool, which forks.

A child has only the thread that forked it. A lock that another thread held at the fork stays
locked in the child for ever.
"""

from __future__ import annotations

import threading

from .._support.logs import logger


def require_main_thread() -> None:
    """Raise RuntimeError in any other thread than the main one."""
    current = threading.current_thread()
    if current is not threading.main_thread():
        raise RuntimeError(
            f"a raw pool can be made in the main thread only, and this is thread {current.name!r}: "
            "the pool handles signals, and Python does that in the main thread"
        )


class ThreadWatch:
    """Warns of other threads, once for each."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def look(self) -> None:
        """Before a fork: warn of threads that were not there before."""
        if threading.active_count() == 1:
            return
        main = threading.main_thread()
        new = [
            thread
            for thread in threading.enumerate()
            if thread is not main and id(thread) not in self._known
        ]
        if new:
            self._known.update(map(id, new))
            logger.warning(
                "the main process of a raw pool has other threads: %s. A lock that one of them "
                "holds when a child is forked stays locked in the child. Start threads in the "
                "children instead, after the fork",
                ", ".join(sorted(thread.name for thread in new)),
            )
