"""What the I/O thread has made, and others let go of, where threads have no GIL.

There an object belongs to the thread that has made it. If another thread lets go of it last,
it is its owner who frees it, the next time that it runs any Python code. The I/O thread makes
the results, and when there is no work it sleeps, for as long as you like: so long a big result
would stay in memory that nobody refers to.

So after it has made results, the I/O thread wakes up now and then: FIRST seconds later, and
then always when half as much time again has passed. What was kept for some time is freed after
half as much at most, and in a day it wakes up forty times. It never does where Python is built
with the GIL: there whoever lets go frees. A build without it is as described also while it uses
the GIL, because it was told to or has loaded an extension that needs it.
"""

from __future__ import annotations

import sys
import time

FIRST = 0.01
"""Seconds. A few wake-ups of some microseconds each are not to be noticed."""


class Ownership:
    """When the I/O thread had better wake up, only to free what is its own."""

    def __init__(self) -> None:
        self._is_needed = "t" in sys.abiflags
        self._made_at = 0.0
        self.look_at: float | None = None
        """When the next time is, on the monotonic clock; None: never."""

    def woke(self, *, is_early: bool) -> None:
        """The I/O thread runs, and so has freed what it could. It was woken early by news, of
        which it will make something; or only the time has come."""
        if not self._is_needed:
            return
        now = time.monotonic()
        if is_early:
            self._made_at = now
            self.look_at = now + FIRST
        elif self.look_at is not None and now >= self.look_at:
            self.look_at = now + max(FIRST, (now - self._made_at) / 2)
