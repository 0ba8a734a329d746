"""Reloads that have been asked for, until they are complete or have failed."""

from __future__ import annotations

from concurrent.futures import Future

from .books import Books
from .outcomes import resolve


class Reloads:
    """Each has a number, which the supervisor tells when all its workers are new."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._futures: dict[int, Future[None]] = {}
        self._last = 0

    def __bool__(self) -> bool:
        """Whether any is under way."""
        return bool(self._futures)

    def begin(self, reloaded: Future[None]) -> int:
        """With the lock held: the number of one more."""
        self._last += 1
        self._futures[self._last] = reloaded
        return self._last

    @property
    def last(self) -> int:
        """The number of the one that was asked for last."""
        return self._last

    def end(self, last: int, error: BaseException | None = None) -> None:
        """Every reload up to this one is complete, or has failed."""
        futures = self._futures
        with self._books.lock:
            ended = [futures.pop(number) for number in list(futures) if number <= last]
        for reloaded in ended:
            if error is None:
                resolve(reloaded.set_result, None)
            else:
                resolve(reloaded.set_exception, error)

    def end_all(self, error: BaseException | None = None) -> None:
        """The same for all: what workers come now are new, or none come."""
        self.end(self._last, error)
