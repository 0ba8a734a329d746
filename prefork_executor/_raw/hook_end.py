"""Until when a data hook may run at the end of the pool.

A hook that blocks must not keep the pool from ending. So ``pf_done`` gives it up at a deadline.
A second SIGTERM or SIGINT means that the user does not want to wait. ``pf_done`` blocks signals,
so this signal is pending. Then the hook is given up HURRY seconds after the pool has begun to wait
for it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from typing import Any

from .._system import signals

HURRY = 1.0
"""Seconds that a hook has to read the last yells after a second signal."""
TICK = 0.1
"""Seconds between two looks whether a hook in the main process must end."""
_URGENT = {signal.SIGTERM, signal.SIGINT}


class HookOverdue(BaseException):
    """Ends a hook in the main process at its deadline. Hooks catch Exception, and not this."""


class HookDeadline:
    """The deadline of one pool's hook; made when the pool begins to wait for it.

    Args:
        seconds: how long the hook may go on; None: for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        now = time.monotonic()
        self._at = math.inf if seconds is None else now + seconds
        self._hurry_at = now + HURRY

    @property
    def is_over(self) -> bool:
        """Whether the hook must end now."""
        now = time.monotonic()
        return now >= self._at or (now >= self._hurry_at and bool(_URGENT & signal.sigpending()))

    def run(self, hook: Callable[..., object], *args: Any) -> None:
        """Call a hook in this process.

        Raises:
            HookOverdue: the deadline has ended it.
        """
        mask = signals.current_mask()
        handler = signals.set_handler(signal.SIGALRM, self._tick)
        timer = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            signals.restore_mask(mask - {signal.SIGALRM})
            hook(*args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signals.set_handler(signal.SIGALRM, handler or signal.SIG_DFL)
            signals.restore_mask(mask)

    def _tick(self, _number: int, _frame: object) -> None:
        if self.is_over:
            raise HookOverdue
