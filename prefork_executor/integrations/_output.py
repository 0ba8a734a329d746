"""Where workers print: to the caller's standard output and error.

Workers inherit the descriptors 1 and 2 of the process that starts their supervisor. That is the
caller. But under forkserver it is the fork server, whose descriptors are from the time when it
was started: in pytest, from another test. And what workers print is buffered, or goes to an
object in memory that a fork has copied.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import reduction
from typing import Any

from prefork_executor import PreforkExecutor

STREAMS = {1: "stdout", 2: "stderr"}


def follow_output(executor: PreforkExecutor) -> None:
    """Have the workers print, line by line, where the caller prints when the pool starts.

    Raises:
        RuntimeError: the executor has had its first task, or was shut down.
    """
    executor.add_initializer(print_to, *map(_Descriptor, STREAMS))


class _Descriptor:
    """A descriptor of this process. Pickling it sends the descriptor along."""

    def __init__(self, number: int) -> None:
        self.number = number

    def take(self) -> int:
        """Its number in this process."""
        return self.number

    def __reduce__(self) -> Any:
        return _Travelled, (reduction.DupFd(self.number),)


class _Travelled:
    """A descriptor of another process, which multiprocessing has sent along."""

    def __init__(self, duplicate: Any) -> None:
        self._duplicate = duplicate

    def take(self) -> int:
        """Its number in this process."""
        return int(self._duplicate.detach())


def print_to(out: _Descriptor | _Travelled, err: _Descriptor | _Travelled) -> None:
    """In a new worker: use these as standard output and error."""
    for number, descriptor in zip(STREAMS, (out, err), strict=True):
        os.dup2(descriptor.take(), number)
    print_lines()


def print_lines() -> None:
    """Make sys.stdout and sys.stderr write each line at once to a real descriptor."""
    for number, name in STREAMS.items():
        stream = getattr(sys, name)
        try:
            stream.fileno()
            stream.reconfigure(line_buffering=True)
        except (AttributeError, OSError):
            # It writes to memory, or is None. The new file lives as long as the worker.
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
