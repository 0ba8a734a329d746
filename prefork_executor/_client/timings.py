"""What is known of a function from its tasks: how long they take, and how much memory."""

from __future__ import annotations

import types

FULL_WEIGHT = 64
"""The weight of a task that is not known to be short."""
FULL_WEIGHT_NS = 500_000
"""A task of this many nanoseconds or more weighs FULL_WEIGHT. That is much longer than a round
trip, so that no worker waits for the client. It is also so short that users do not notice if a
cancelled task of that length runs all the same."""
SMOOTHING = 8
"""A new observation changes the mean duration by an eighth of the difference. A smaller peak of
memory changes the known peak in the same way."""


class Timing:
    """One function's name and the measured duration of its tasks."""

    __slots__ = ("code", "index", "is_left_to_io", "mean", "name", "peak", "weight")

    def __init__(self, name: str, code: types.CodeType | None = None) -> None:
        self.name = name
        # Kept only so that no other object can get its id.
        self.code = code
        self.mean = 0
        self.weight = FULL_WEIGHT
        self.index = 0
        """The index of the name in the board's table; 0: the table does not have it yet."""
        self.is_left_to_io = False
        """Whether waiting callers leave the messages of its tasks to the I/O thread
        (`direct.py`)."""
        self.peak: int | None = None
        """The most bytes that one of its tasks is expected to add to its worker; None: unknown."""

    def enter(self, index: int) -> None:
        """Note that the board's table has the name, under this index."""
        self.index = index

    def leave_to_io(self, is_left: bool) -> None:
        """Say whether waiting callers leave the messages of its tasks to the I/O thread."""
        self.is_left_to_io = is_left

    def observe(self, duration: int) -> None:
        """Take a task's duration in nanoseconds into account."""
        # The first duration becomes the mean. A longer one counts by half, to be cautious.
        if duration > self.mean:
            self.mean = duration if not self.mean else (self.mean + duration) // 2
        else:
            self.mean += (duration - self.mean) // SMOOTHING
        self.weight = min(FULL_WEIGHT, max(1, self.mean * FULL_WEIGHT // FULL_WEIGHT_NS))

    def observe_peak(self, added: int, left: int = 0) -> None:
        """Take a task's memory into account.

        Args:
            added: bytes that the task has added to its worker at most.
            left: bytes that earlier tasks had left in the worker. The task may have needed up to
                that many bytes more.
        """
        peak, most = self.peak, added + left
        if peak is None:
            self.peak = most
        elif added > peak:
            self.peak = added
        elif most < peak:
            self.peak = peak - (peak - most) // SMOOTHING
