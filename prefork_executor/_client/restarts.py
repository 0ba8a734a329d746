"""Decides when to give up a pool whose workers or supervisors end before they have worked.

Workers
-------
If an initializer raises, it would raise in the next worker as well. So the pool gives up at once.
If a worker dies in its initializer, the reason is not known. So the pool tries MAX_START_DEATHS
workers in all. If there is no initializer, only the system can be the reason, and the pool tries
more workers.

Supervisors
-----------
The client replaces a supervisor that ends. If MAX_SUPERVISOR_DEATHS supervisors in a row end before
they are ready, the pool gives up. A supervisor that a signal from outside has ended does not count.

If a supervisor ends soon after it was ready, the cause may be temporary. So the client replaces
such supervisors without limit. The pauses between the starts double, as they do after crashes of
workers (`_pool/regulator.py`). The series ends with a supervisor that has lived for more than
SETTLED_AFTER seconds after it was ready, or during whose life a task has ended.

If a supervisor cannot be started because the system has no process, memory or descriptor for it,
the client tries again after pauses that double, MAX_NOT_STARTED times at most.
"""

from __future__ import annotations

import errno
import time

from .._pool.regulator import FREE_CRASHES, backoff
from .._support.timers import Timer

MAX_START_DEATHS = 3
"""If this many workers in a row die in their initializer, the pool gives up."""
MAX_START_DEATHS_WITHOUT_INITIALIZER = 10
"""The same for a pool that has no initializer."""
MAX_SUPERVISOR_DEATHS = 3
"""If this many supervisors in a row end before they are ready, the pool gives up."""
PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors that may pass: the system lacks something that it may have again later."""
MAX_NOT_STARTED = 8
"""If this many starts of a supervisor in a row fail, the pool gives up. With the pauses between
them, that takes about 13 seconds."""
SETTLED_AFTER = 1.0
"""Seconds after which a supervisor that was ready counts as sound, even if no task has ended."""


class StartFailures:
    """Counts the workers in a row that have failed to start."""

    def __init__(self, has_initializer: bool) -> None:
        self._has_initializer = has_initializer
        self._failures = 0

    def succeeded(self) -> None:
        """Note that a worker is ready: the next failure counts as the first."""
        self._failures = 0

    def failed(
        self, pid: int, how: str, failure: tuple[str, BaseException] | None
    ) -> tuple[str, bool]:
        """Count a worker that has failed. Returns a message, and whether to give up.

        Args:
            pid: the worker's.
            how: how it ended, as a verb phrase.
            failure: a phrase for what failed, and the exception that this raised; None if nothing
                raised.
        """
        self._failures += 1
        if failure is not None:
            what, error = failure
            return f"{what} in worker {pid}: {type(error).__name__}: {error}", True
        where = "in the initializer" if self._has_initializer else "as they started"
        limit = MAX_START_DEATHS
        if not self._has_initializer:
            limit = MAX_START_DEATHS_WITHOUT_INITIALIZER
        workers = "worker" if self._failures == 1 else "workers in a row"
        what = f"{self._failures} {workers} died {where}; the last, {pid}, {how}"
        return what, self._failures >= limit


class Restarts:
    """Decides when to replace a supervisor that has ended."""

    def __init__(self) -> None:
        self.timer = Timer()
        """For the start of the next supervisor, if one is needed."""
        self._ready_at: float | None = None
        self._is_forgiven = False
        self._never_ready = 0
        self._not_started = 0
        self._crashes = 0
        self._finished = 0

    def succeeded(self) -> None:
        """Note that the supervisor is ready."""
        self._ready_at = time.monotonic()
        self._never_ready = self._not_started = 0

    def forgive(self) -> None:
        """Note that the client ends the supervisor on purpose, so that its end does not count as a
        failure."""
        self._is_forgiven = True

    def ended(self, how: str, finished: int, *, from_outside: bool = False) -> tuple[str, bool]:
        """Plan the start of the next supervisor, after one has ended. Returns a message, and
        whether to give up instead.

        Args:
            how: how it ended, as a verb phrase.
            finished: how many tasks have returned or raised so far.
            from_outside: whether a signal from another process ended it.
        """
        now = time.monotonic()
        if not self._is_forgiven:
            self._never_ready += self._ready_at is None and not from_outside
            has_lived = self._ready_at is not None and now - self._ready_at > SETTLED_AFTER
            was_of_use = has_lived or finished > self._finished
            self._crashes = 1 if was_of_use else self._crashes + 1
        self._ready_at, self._is_forgiven, self._finished = None, False, finished
        if self._never_ready >= MAX_SUPERVISOR_DEATHS:
            what = f"{self._never_ready} supervisors in a row ended before they were ready"
            return f"{what}; the last {how}", True
        pause = backoff(self._crashes - FREE_CRASHES) if self._crashes > FREE_CRASHES else 0.0
        self.timer.set(pause)
        if not pause:
            return f"the supervisor {how}; starting another", False
        what = f"{self._crashes} supervisors in a row ended soon after their start; the last {how}"
        return f"{what}; starting another in {pause:.1f} s", False

    def not_started(self, error: Exception) -> str | None:
        """Plan another attempt, after the start of a supervisor has failed with this error. Returns
        a message, or None to give up."""
        is_passing = isinstance(error, OSError) and error.errno in PASSING
        # If the fork server meets these errors, this process sees others.
        is_passing = is_passing or isinstance(error, MemoryError | EOFError | ConnectionError)
        self._not_started += 1
        if not is_passing or self._not_started >= MAX_NOT_STARTED:
            return None
        pause = backoff(self._not_started)
        self.timer.set(pause)
        return f"no other supervisor could be started: {error}; trying again in {pause:.1f} s"

    def is_due(self) -> bool:
        """Whether to start the next supervisor now. Returns True once for each start."""
        is_due = self.timer.is_due()
        if is_due:
            self.timer.stop()
        return is_due
