"""What has come of each line of a task, in memory that the caller and all workers share.

A task may have several lines. If its worker dies, the result of the task is lost. So the worker
notes here each line's outcome, as soon as there is one. From that the caller knows which lines
are done, which one the worker died of, and which have not begun: no line runs twice, and none
fails because of another.

The memory has a region for each task that may be on its way. The caller says which region a task
uses, and gives each task another number. One worker at a time writes into a region, and the
caller reads it when the task has ended. At the front of a region is its HEAD. The outcomes
follow it, each as a pickle. The worker counts an outcome's bytes in the head when they are all
there, so what it died of writing is not read.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any, NamedTuple

REGION = 64 * 1024
"""Bytes of a region. If an outcome does not fit in, the task ends with that line."""
HEAD = struct.Struct("<QQQQd")
"""The task's number, how often it has begun, the bytes of the outcomes of its latest run, and
that run's process id and time of beginning (seconds since 1970)."""

Outcome = tuple[bytes, Any, float]
"""A line's result as JSON, or the error that the function raised, and the seconds from the
beginning of the task to its end."""


class Entry(NamedTuple):
    """What the journal has of a task: how often it has begun, and of its latest run the worker,
    the time of its beginning and the outcomes. ``runs`` is 0 if it never began."""

    runs: int
    pid: int
    began: float
    outcomes: list[Outcome]


class Region:
    """One task's part of the memory."""

    def __init__(self, memory: Any, index: int) -> None:
        self._memory = memoryview(memory).cast("B")[index * REGION : (index + 1) * REGION]

    def begin(self, number: int, pid: int, now: float) -> None:
        """In a worker: a run of the task with this number begins."""
        known, runs, *_ = HEAD.unpack_from(self._memory)
        self._head = (number, runs + 1 if known == number else 1)
        self._rest = (pid, now)
        self._used = 0
        self._write_head()

    def add(self, outcome: Outcome) -> bool:
        """In a worker: a line has ended. Returns whether there was room for this."""
        record = pickle.dumps(outcome)
        at = HEAD.size + self._used
        if at + len(record) > REGION:
            return False
        self._memory[at : at + len(record)] = record
        self._used += len(record)
        self._write_head()
        return True

    def _write_head(self) -> None:
        HEAD.pack_into(self._memory, 0, *self._head, self._used, *self._rest)

    def head(self, number: int) -> Entry:
        """What there is of the task with this number, without the outcomes."""
        known, runs, _, pid, began = HEAD.unpack_from(self._memory)
        return Entry(runs, pid, began, []) if known == number else Entry(0, 0, 0.0, [])

    def read(self, number: int) -> Entry:
        """What there is of the task with this number."""
        entry = self.head(number)
        used = HEAD.unpack_from(self._memory)[2] if entry.runs else 0
        file = io.BytesIO(self._memory[HEAD.size : HEAD.size + used])
        while file.tell() < used:
            entry.outcomes.append(pickle.load(file))
        return entry


def size_for(tasks: int) -> int:
    """Bytes of memory for so many tasks at a time."""
    return tasks * REGION
