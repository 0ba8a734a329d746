"""How objects that the I/O thread has made are freed where threads have no GIL.

There an object belongs to the thread that has made it. If another thread drops the last
reference, the owner frees the object the next time it runs any Python code. The I/O thread makes
the results, and when there is no work it sleeps, for any length of time. For so long a big result
to which nothing refers would stay in memory.

So after it has made results, the I/O thread wakes up now and then: FIRST seconds later, and
then whenever half as much time again has passed. An object that was kept for some time is freed
after half of that time at most, and the thread wakes up forty times in a day. It never does so
where Python is built with the GIL: there the thread that drops the last reference frees the
object. A build without the GIL behaves as described even while it uses the GIL, because it was
told to or has loaded an extension that needs it.
"""

from __future__ import annotations

import sys
import time

from .._support.timers import Timer

FIRST = 0.01
"""Seconds. A few wake-ups of some microseconds each are not noticeable."""


class Ownership:
    """When the I/O thread should wake up only to free its objects."""

    def __init__(self) -> None:
        self._is_needed = "t" in sys.abiflags
        self._made_at = 0.0
        self.timer = Timer()
        """For the next time it should wake up."""

    def woke(self, *, is_early: bool) -> None:
        """The I/O thread runs, and so has freed what it could. ``is_early``: a message woke it,
        and it will make something of that. Otherwise the time had come."""
        if not self._is_needed:
            return
        now = time.monotonic()
        if is_early:
            self._made_at = now
            self.timer.set(FIRST)
        elif self.timer.is_due():
            self.timer.set(max(FIRST, (now - self._made_at) / 2))
