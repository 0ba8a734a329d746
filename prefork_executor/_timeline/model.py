"""What a recording has kept, as plain data, and its curves. No sockets, and no processes.

Times are nanoseconds on the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .._support.named_tuples import NamedTuple
from ..stats import ScalingDecision

MIN_BUCKET_NS = 1_000_000
"""Nanoseconds of a curve's buckets at first. Of shorter changes only the mean is seen."""
MAX_BUCKETS = 4096
"""Buckets of one curve. When they are not enough, each becomes twice as long."""


class Run(NamedTuple):
    """One run of a task in a worker. ``number`` is the number that the task had then."""

    number: int
    begin: int
    end: int
    pid: int
    slot: int


class TaskRow(NamedTuple):
    """A submitted task. All its ``runs`` except the last were lost. The last was lost, too, if
    ``outcome`` says so. ``error`` is the name of the exception that its future got."""

    name: str
    submitted: int
    ended: int
    outcome: str
    error: str
    runs: tuple[Run, ...]

    @property
    def waited(self) -> int:
        """Nanoseconds until it began, or until it became certain that it never would."""
        return max(0, (self.runs[0].begin if self.runs else self.ended) - self.submitted)


class Life(NamedTuple):
    """A worker from its fork on. ``how`` says how it ended: empty if it left in order, or
    still lives."""

    slot: int
    pid: int
    born: int
    end: int
    how: str


class Point(NamedTuple):
    """A stretch of a curve: where it begins, its mean, and its level at the end."""

    at: int
    mean: float
    level: int


class Curve:
    """A number of things over time, in buckets that become longer when they are not enough.

    Steps may come in any order of time. The means are exact, whatever a bucket's length."""

    def __init__(self, begin: int, max_buckets: int = MAX_BUCKETS) -> None:
        self._begin = begin
        self._max_buckets = max_buckets
        self._width = MIN_BUCKET_NS
        self._steps: list[int] = []
        self._areas: list[int] = []

    def step(self, at: int, by: int) -> None:
        """From then on there are ``by`` more. A step before the beginning counts from there."""
        since = max(0, at - self._begin)
        while since // self._width >= self._max_buckets:
            self._coarsen()
        bucket = since // self._width
        lack = bucket + 1 - len(self._steps)
        if lack > 0:
            self._steps += [0] * lack
            self._areas += [0] * lack
        self._steps[bucket] += by
        self._areas[bucket] += by * ((bucket + 1) * self._width - since)

    def _coarsen(self) -> None:
        steps, areas, width = self._steps, self._areas, self._width
        if len(steps) % 2:
            steps.append(0)
            areas.append(0)
        self._areas = [areas[i] + steps[i] * width + areas[i + 1] for i in range(0, len(steps), 2)]
        self._steps = [steps[i] + steps[i + 1] for i in range(0, len(steps), 2)]
        self._width = 2 * width

    def points(self, end: int, max_buckets: int = MAX_BUCKETS) -> list[Point]:
        """The curve up to that time, one point a bucket, at most ``max_buckets`` of them."""
        length = max(1, end - self._begin)
        curve = copy.copy(self)  # Coarsening makes new lists. It only may append a 0 to the old.
        while length > max_buckets * curve._width:
            curve._coarsen()
        return list(curve._points(length))

    def _points(self, length: int) -> Iterator[Point]:
        level, width = 0, self._width
        for bucket in range((length + width - 1) // width):
            inside = bucket < len(self._steps)
            step, area = (self._steps[bucket], self._areas[bucket]) if inside else (0, 0)
            # The last bucket may be cut short. What its steps cover beyond that does not count.
            span = min(width, length - bucket * width)
            mean = (level * span + area - step * (width - span)) / span
            level += step
            yield Point(self._begin + bucket * width, mean, level)


@dataclass(frozen=True, slots=True)
class Timeline:
    """All that was kept.

    ``epoch`` is the time at which the recording began, in seconds since 1970. ``outcomes``
    counts all tasks. ``rows`` has the tasks that were kept, and ``left_out`` says how many were
    not. ``lives_left_out`` and ``decisions_left_out`` say the same of workers and decisions.
    """

    begin: int
    end: int
    epoch: float
    max_workers: int
    rows: Sequence[TaskRow]
    lives: Sequence[Life]
    decisions: Sequence[ScalingDecision]
    outcomes: dict[str, int]
    live: Curve
    busy: Curve
    waiting: Curve
    left_out: int
    lives_left_out: int
    decisions_left_out: int
    version: str

    @property
    def tasks(self) -> int:
        """How many tasks there were."""
        return sum(self.outcomes.values())

    @property
    def failures(self) -> int:
        """How many tasks neither returned, nor are under way, nor were cancelled."""
        fine = ("returned", "cancelled", "running", "waiting")
        return sum(count for outcome, count in self.outcomes.items() if outcome not in fine)


def quantile(values: Sequence[int], share: float) -> int:
    """Of these sorted values, the one below which this share of them lies; 0 if there are
    none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0
