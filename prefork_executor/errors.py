"""Every exception this package raises; the class says whose fault it was.

===================  ==========================================================
the caller's         ``TypeError`` and ``ValueError`` at the call that gave the
                     bad argument; ``pickle.PicklingError`` in the future whose
                     task or result cannot travel
a worker's death     :class:`WorkerDied`, in the future of the task it held
the pool's           ``BrokenProcessPool`` itself: the pool cannot go on at all
                     (its initializer fails, its supervisor cannot be started)
ours                 :class:`ProtocolError`: a message that none of the pool's
                     own processes would have written
===================  ==========================================================

All of them survive pickling, because a task may itself use an executor and
let its exception travel on.
"""

from __future__ import annotations

import signal as _signal
from concurrent.futures.process import BrokenProcessPool

__all__ = ["ProtocolError", "RemoteExceptionStandIn", "WorkerDied"]


class WorkerDied(BrokenProcessPool):
    """The worker that held this task died before the task's result arrived.

    Only this task is affected: the pool replaces the worker and goes on.

    Attributes:
        pid: the dead worker's process id.
        exitcode: its exit status, 0 to 255, or None if a signal killed it.
        signal: the number of the signal that killed it, or None if it exited.
        task: the name of the task it held.
    """

    def __init__(
        self, pid: int, exitcode: int | None = None, signal: int | None = None, task: str = ""
    ) -> None:
        super().__init__(pid, exitcode, signal, task)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.task = task

    def __str__(self) -> str:
        held = f" while it held task {self.task}" if self.task else ""
        return (
            f"worker {self.pid} {describe_end(self.exitcode, self.signal)}{held}; "
            "only this task is affected, the pool goes on"
        )


class RemoteExceptionStandIn(Exception):  # noqa: N818 - it stands for any exception
    """Stands in for a task's exception that could not be brought to the caller.

    It prints as the original did and carries its notes, cause, context and
    traceback, and those of its attributes and args that could travel; in place
    of an arg that could not stands its repr. Where the original's class or a base
    of it can be imported by the caller, the stand-in also derives from that, so
    that ``except ThatBase`` catches it.

    Attributes:
        original_type: qualified name of the original's class.
        original_str: what ``str(original)`` gave.
        original_repr: what ``repr(original)`` gave.
        original_attributes: those attributes that could not travel, by name,
            as their repr.
        reason: why the original itself could not travel.
    """

    original_type: str = ""
    original_str: str = ""
    original_repr: str = ""
    original_attributes: dict[str, str]
    reason: str = ""

    def __str__(self) -> str:
        return self.original_str if self.original_type else super().__str__()

    def __repr__(self) -> str:
        return self.original_repr if self.original_type else super().__repr__()


class ProtocolError(Exception):
    """A message on one of the pool's channels is malformed. This is a bug in
    the pool, or something foreign wrote to a descriptor of the pool."""


def describe_end(exitcode: int | None, signal: int | None) -> str:
    """Say how a process ended, as a verb phrase: ``was killed by SIGKILL``."""
    if signal is None:
        return f"exited with status {exitcode}"
    try:
        name = _signal.Signals(signal).name
    except ValueError:
        name = f"signal {signal}"
    return f"was killed by {name}"
