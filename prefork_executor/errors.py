"""Every exception that this package raises. The class says where the cause lies.

===================  ==========================================================
the caller's         ``TypeError`` and ``ValueError`` at the call that gave the
                     bad argument; :class:`CallPicklingError` and
                     :class:`ResultPicklingError`, which are ``pickle.PicklingError``,
                     in the future whose task or result cannot travel
a worker's death     :class:`WorkerDied`, in the future of the task it held
the caller's wish    :class:`TaskTimeout` and :class:`TaskAborted`, in the future of a
                     task that was ended because its caller had asked for it
a new generation's   :class:`ReloadFailed`, in the future that ``reload()`` returned
the pool's           ``BrokenProcessPool`` itself: the pool cannot go on at all
                     (its initializer fails, its supervisor cannot be started)
the watcher's        :class:`NoSuchPool`, :class:`SeveralPools`, :class:`PoolEnded` and
                     :class:`UnreadablePool`, at the calls of
                     :mod:`prefork_executor.status`
ours                 :class:`ProtocolError`: a message that none of the pool's
                     own processes would have written; :class:`IllegalTransition`:
                     what cannot happen in the state that something was in
===================  ==========================================================

All of them survive pickling, because a task may itself use an executor and
let its exception travel on.
"""

from __future__ import annotations

import signal as _signal
from concurrent.futures.process import BrokenProcessPool
from pickle import PicklingError

__all__ = [
    "CallPicklingError",
    "IllegalTransition",
    "NoSuchPool",
    "PoolEnded",
    "ProtocolError",
    "ReloadFailed",
    "RemoteExceptionStandIn",
    "ResultPicklingError",
    "SeveralPools",
    "StatusError",
    "TaskAborted",
    "TaskTimeout",
    "UnreadablePool",
    "WorkerDied",
]


class WorkerDied(BrokenProcessPool):
    """The worker that held this task died before the task's result arrived.

    Only this task is affected: the pool replaces the worker and goes on.

    Attributes:
        pid: the dead worker's process id.
        exitcode: its exit status, 0 to 255, or None if a signal killed it.
        signal: the number of the signal that killed it, or None if it exited.
        task: the name of the task it held.
        reason: why it died, if more is known than how. Otherwise empty.
    """

    def __init__(
        self,
        pid: int,
        exitcode: int | None = None,
        signal: int | None = None,
        task: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(pid, exitcode, signal, task, reason)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.task = task
        self.reason = reason

    def __str__(self) -> str:
        held = f" while it held task {self.task}" if self.task else ""
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"worker {self.pid} {describe_end(self.exitcode, self.signal)}{why}{held}; "
            "only this task is affected, the pool goes on"
        )


class TaskTimeout(TimeoutError):  # noqa: N818 - the name is part of the interface
    """The task ran longer than it was allowed to, and was ended with its worker.

    Its ``__cause__`` says how the task ended: the worker's death, or what a SIGTERM
    handler of the task's own raised.

    Attributes:
        task: the task's name.
        timeout: seconds that it was allowed to run.
        pid: the process id of the worker that ran it.
    """

    def __init__(self, task: str, timeout: float, pid: int) -> None:
        super().__init__(task, timeout, pid)
        self.task = task
        self.timeout = timeout
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"task {self.task} ran for more than {self.timeout:g} s in worker {self.pid} "
            "and was ended; only this task is affected, the pool goes on"
        )


class TaskAborted(Exception):  # noqa: N818 - the name is part of the interface
    """The task was ended, or taken back before it began, by ``abort()``.

    Attributes:
        task: the task's name.
    """

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"task {self.task} was aborted at the caller's request"


class ReloadFailed(Exception):  # noqa: N818 - it says what has failed
    """A new worker could not start, so the old ones stay. Its ``__cause__`` is what the
    initializer raised, if it did."""


class CallPicklingError(PicklingError):
    """The task's function or an argument cannot be sent to a worker. The message says which,
    and its ``__cause__`` is what pickle raised."""


class ResultPicklingError(PicklingError):
    """The task's result cannot be sent to the caller. The message says which part of it, and
    its ``__cause__`` is what pickle raised.

    Attributes:
        result: what ``repr(result)`` gave in the worker.
    """

    result = ""


class RemoteExceptionStandIn(Exception):  # noqa: N818 - it stands for any exception
    """Stands in for a task's exception that could not be brought to the caller.

    It prints as the original did. It has the original's notes, cause, context and traceback,
    and the attributes and args that could travel. Args that could not are replaced by their
    repr. If the caller can import the original's class or one of its bases, the stand-in also
    derives from that, so that ``except ThatBase`` catches it.

    Attributes:
        original_type: qualified name of the original's class.
        original_str: what ``str(original)`` gave.
        original_repr: what ``repr(original)`` gave.
        original_attributes: the attributes that could not travel, by name, as their
            repr.
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


class StatusError(Exception):
    """A pool cannot be seen from outside. The message says why, and what to do."""


class NoSuchPool(StatusError):  # noqa: N818 - says what happened
    """There is no such process, or it belongs to no pool."""


class SeveralPools(StatusError):  # noqa: N818 - says what happened
    """More than one pool could be meant.

    Attributes:
        choices: process ids, each of which means one of them.
    """

    def __init__(self, message: str, choices: tuple[int, ...] = ()) -> None:
        super().__init__(message, choices)
        self.choices = choices

    def __str__(self) -> str:
        return str(self.args[0])


class PoolEnded(StatusError):  # noqa: N818 - says what happened
    """The watched pool has ended."""


class UnreadablePool(StatusError):  # noqa: N818 - says what happened
    """The pool may not be read, or cannot be. For example, another version of this package has
    made it."""


class IllegalTransition(RuntimeError):  # noqa: N818 - it says what has happened
    """Something of the pool was in a state in which what happened to it cannot happen. This is
    a bug in the pool.

    Attributes:
        what: whose state it was.
        state: the state's name.
        event: the name of what happened.
    """

    def __init__(self, what: str, state: str, event: str) -> None:
        super().__init__(what, state, event)
        self.what = what
        self.state = state
        self.event = event

    def __str__(self) -> str:
        return (
            f"{self.event} in state {self.state} of {self.what}; "
            "a bug in the pool, please report it with this text"
        )


class ProtocolError(Exception):
    """A message on one of the pool's channels is malformed. Either the pool has a bug, or other
    code wrote to a descriptor of the pool."""


def describe_end(exitcode: int | None, signal: int | None) -> str:
    """Say how a process ended, as a verb phrase: ``was killed by SIGKILL``."""
    if signal is None:
        return f"exited with status {exitcode}"
    try:
        name = _signal.Signals(signal).name
    except ValueError:
        name = f"signal {signal}"
    return f"was killed by {name}"
