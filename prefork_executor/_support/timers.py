"""When a thread that waits for messages should look around although none has come.

Each part that needs such looks has a timer of its own. The thread asks all timers together how
long it may wait, and then each part asks its own timer whether it is due.

A timer does not wake the thread. If another thread sets one, and the thread waits already, the
other thread must wake it; `Timer.set_at_most` says whether that is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Timed(Protocol):
        """A timer, or a part that knows when it is to be looked at."""

        @property
        def due_at(self) -> float | None:
            """In seconds on the monotonic clock; None: never."""


class Timer:
    """The moment of a part's next look. Not set at first."""

    __slots__ = ("due_at",)

    def __init__(self) -> None:
        self.due_at: float | None = None

    @property
    def is_set(self) -> bool:
        return self.due_at is not None

    def is_due(self) -> bool:
        """Whether it is set, and the moment has come."""
        return self.due_at is not None and time.monotonic() >= self.due_at

    def set(self, seconds: float) -> None:
        """Be due in so many seconds."""
        self.due_at = time.monotonic() + seconds

    def set_at_most(self, seconds: float) -> bool:
        """Be due in so many seconds, unless it is due earlier anyway. Returns whether that has
        changed anything."""
        at = time.monotonic() + seconds
        if self.due_at is not None and self.due_at <= at:
            return False
        self.due_at = at
        return True

    def stop(self) -> None:
        """Be due no more."""
        self.due_at = None


def seconds_left(timers: Iterable[Timed]) -> float | None:
    """The seconds until the first of these is due, 0 if one is; None if none is set."""
    moments = [at for timer in timers if (at := timer.due_at) is not None]
    return max(0.0, min(moments) - time.monotonic()) if moments else None
