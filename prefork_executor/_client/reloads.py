"""Reloads that are under way."""

from __future__ import annotations

from concurrent.futures import Future

from .outcomes import resolve
from .shared_state import SharedState


class Reloads:
    """Each reload has a number. The supervisor sends it when all workers are new."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._futures: dict[int, Future[None]] = {}
        self._last = 0

    def __bool__(self) -> bool:
        """Whether a reload is under way."""
        return bool(self._futures)

    def begin(self, reloaded: Future[None]) -> int:
        """With the lock held: begin another. Returns its number."""
        self._last += 1
        self._futures[self._last] = reloaded
        return self._last

    @property
    def last(self) -> int:
        """The number of the latest reload."""
        return self._last

    def end(self, last: int, error: BaseException | None = None) -> None:
        """Every reload up to this one is complete, or has failed."""
        futures = self._futures
        with self._shared.lock:
            ended = [futures.pop(number) for number in list(futures) if number <= last]
        for reloaded in ended:
            if error is None:
                resolve(reloaded.set_result, None)
            else:
                resolve(reloaded.set_exception, error)

    def end_all(self, error: BaseException | None = None) -> None:
        """The same for all: the next workers will be new, or there will be none."""
        self.end(self._last, error)
