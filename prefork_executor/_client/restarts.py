"""Workers and supervisors that end before they have worked, and when to give up.

An initializer that raises would raise again, so the pool gives up at once. A worker that dies in
its initializer does not say why, so a few more are tried. If there is no initializer, only the
system can be the reason, and many more are tried.

A supervisor that ends is replaced. If a few in a row end on their own before they are ready, the
pool gives up. Those that a signal from outside has ended do not count. Supervisors that end soon
after they were ready may suffer from something temporary. They are replaced again and again,
after pauses that double, as with workers that crash (`_pool/regulator.py`). A supervisor that has
lived for a while, or has seen a task end, ends that row.
If a supervisor cannot be started, because the system has no process, memory or descriptor for it
now, the start is repeated in the same way, but not for ever.
"""

from __future__ import annotations

import errno
import time

from .._pool.regulator import FREE_CRASHES, backoff

MAX_START_DEATHS = 3
"""Workers in a row that die in their initializer until the pool is broken."""
MAX_START_DEATHS_WITHOUT_INITIALIZER = 10
"""The same without an initializer, when only the system can be to blame."""
MAX_SUPERVISOR_DEATHS = 3
"""Supervisors in a row that die before they are ready until the pool is broken."""
PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors for lack of something that the system may have again later."""
MAX_NOT_STARTED = 8
"""Supervisors in a row that may fail to start. With the pauses between them, the pool gives up
after about a quarter of a minute."""
SETTLED_AFTER = 1.0
"""Seconds after which a supervisor that was ready counts as sound, whatever it has done."""


class StartFailures:
    """Counts the failures in a row."""

    def __init__(self, has_initializer: bool) -> None:
        self._has_initializer = has_initializer
        self._failures = 0

    def succeeded(self) -> None:
        """A worker is ready: the next failure counts as the first."""
        self._failures = 0

    def failed(
        self, pid: int, how: str, failure: tuple[str, BaseException] | None
    ) -> tuple[str, bool]:
        """Another worker has failed. ``how`` is a verb phrase. ``failure`` is a phrase for what
        failed, and what it raised, if it did. Returns a message, and whether to give up."""
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
    """Says when to replace a supervisor that has ended."""

    def __init__(self) -> None:
        self.at: float | None = None
        """When to start the next, on the monotonic clock; None if it is not needed."""
        self._ready_at: float | None = None
        self._is_forgiven = False
        self._never_ready = 0
        self._not_started = 0
        self._crashes = 0
        self._finished = 0

    def succeeded(self) -> None:
        """The supervisor is ready."""
        self._ready_at = time.monotonic()
        self._never_ready = self._not_started = 0

    def forgive(self) -> None:
        """The supervisor is being ended on purpose: that does not count as a failure."""
        self._is_forgiven = True

    def ended(self, how: str, finished: int, *, from_outside: bool = False) -> tuple[str, bool]:
        """The supervisor has ended. ``how`` is a verb phrase. ``finished`` is how many tasks have
        returned or raised so far. ``from_outside``: a signal from another process ended it.
        Plans the next one, unless the pool gives up. Returns a message, and whether it does."""
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
        self.at = now + pause
        if not pause:
            return f"the supervisor {how}; starting another", False
        what = f"{self._crashes} supervisors in a row ended soon; the last {how}"
        return f"{what}; starting another in {pause:.1f} s", False

    def not_started(self, error: Exception) -> str | None:
        """The next supervisor could not be started. Plans another attempt and returns a message.
        Returns None if the pool gives up."""
        is_passing = isinstance(error, OSError) and error.errno in PASSING
        # The same errors, as the fork server's client sees them.
        is_passing = is_passing or isinstance(error, MemoryError | EOFError | ConnectionError)
        self._not_started += 1
        if not is_passing or self._not_started >= MAX_NOT_STARTED:
            return None
        pause = backoff(self._not_started)
        self.at = time.monotonic() + pause
        return f"no other supervisor could be started: {error}; trying again in {pause:.1f} s"

    def is_due(self) -> bool:
        """Whether to start the next one now. Says so only once."""
        if self.at is None or time.monotonic() < self.at:
            return False
        self.at = None
        return True
