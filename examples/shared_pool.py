"""An application and two libraries share one pool, and know nothing of each other.

python examples/shared_pool.py
"""

from __future__ import annotations

import os

from prefork_executor import shared_executor


def resize(image: str) -> tuple[str, int]:
    """A task of the first library."""
    return image.lower(), os.getpid()


def rate(text: str) -> tuple[int, int]:
    """A task of the second library."""
    return len(text), os.getpid()


class Thumbnails:
    """A library that keeps the shared executor for as long as the program runs."""

    def __init__(self) -> None:
        self._executor = shared_executor()

    def make(self, images: list[str]) -> list[tuple[str, int]]:
        """The thumbnails, each with the id of the worker that made it."""
        return list(self._executor.map(resize, images))


def ratings(texts: list[str]) -> list[tuple[int, int]]:
    """The ratings, by a library that uses the pool for one call, with limits for its own tasks."""
    with shared_executor(task_timeout=60.0, retries=1) as executor:
        return list(executor.map(rate, texts))


def main() -> None:
    """The application says how large the pool is. The libraries need not care."""
    application = shared_executor(max_workers=2)
    made, rated = Thumbnails().make(["A", "B", "C"]), ratings(["x", "yy", "zzz"])
    print([image for image, _ in made], [length for length, _ in rated])
    workers = {pid for _, pid in made} | {pid for _, pid in rated}
    print("one pool:", len(workers) <= 2, application.stats().max_workers)


if __name__ == "__main__":
    main()
