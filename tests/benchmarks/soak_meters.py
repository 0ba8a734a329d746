"""What a soak watches from the side: memory, descriptors, threads and processes."""

from __future__ import annotations

import array
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import psutil

SAMPLES = 600
"""Samples of a run, about."""
LEAST_INTERVAL = 0.1
"""Seconds between two of them, at least."""
MIB = 2**20


class Series:
    """What one meter has shown, and when."""

    def __init__(self) -> None:
        self._times = array.array("d")
        self._values = array.array("d")

    def add(self, value: float) -> None:
        """It shows this now."""
        self._times.append(time.monotonic())
        self._values.append(value)

    @property
    def most(self) -> float:
        """The largest value."""
        return max(self._values, default=0.0)

    @property
    def growth(self) -> float:
        """By how much it has grown in the second half, as a straight line through that says."""
        half = len(self._times) // 2
        times, values = self._times[half:], self._values[half:]
        if len(times) < 2:
            return 0.0
        middle, mean = sum(times) / len(times), sum(values) / len(values)
        spread = sum((at - middle) ** 2 for at in times)
        covariance = sum((at - middle) * (x - mean) for at, x in zip(times, values, strict=True))
        return covariance / spread * (times[-1] - times[0]) if spread else 0.0


class Meters(threading.Thread):
    """Reads all meters again and again, until told to stop.

    Args:
        seconds: how long the run takes.
        supervisor: says which process is the supervisor, if that is known.
    """

    def __init__(self, seconds: float, supervisor: Callable[[], psutil.Process | None]) -> None:
        super().__init__(name="meters")
        self.series: dict[str, Series] = {}
        self._interval = max(LEAST_INTERVAL, seconds / SAMPLES)
        self._supervisor = supervisor
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self._stop_asked.wait(self._interval):
            for name, value in self._read():
                self.series.setdefault(name, Series()).add(value)

    def stop(self) -> None:
        """Read no more."""
        self._stop_asked.set()
        self.join()

    def _read(self) -> Iterator[tuple[str, float]]:
        caller = psutil.Process()
        yield "memory of the caller, MiB", caller.memory_info().rss / MIB
        yield "descriptors of the caller", len(os.listdir("/proc/self/fd"))
        yield "threads of the caller", threading.active_count()
        yield "processes below the caller", len(caller.children(recursive=True))
        if (supervisor := self._supervisor()) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory, descriptors = supervisor.memory_info().rss, supervisor.num_fds()
                if memory:  # Else it has ended, and waits to be reaped.
                    yield "memory of the supervisor, MiB", memory / MIB
                    yield "descriptors of the supervisor", descriptors
