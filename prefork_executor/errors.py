"""Every exception that this package raises. The class says where the cause lies.

===================  ==========================================================
the caller's         ``TypeError`` and ``ValueError`` at the call that gave the
                     bad argument; :class:`CallPicklingError` and
                     :class:`ResultPicklingError`, which are ``pickle.PicklingError``,
                     in the future whose task or result cannot travel
a worker's death     :class:`WorkerDied`, in the future of the task it held
the caller's wish    :class:`TaskTimeout` and :class:`TaskAborted`, in the future of a
                     task that was ended because its caller had asked for it
a task's size        :class:`TaskMemoryExceeded`, in the future of a task that takes more
                     than ``max_memory`` by itself
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
    "BacklogFull",
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
    "TaskMemoryExceeded",
    "TaskTimeout",
    "UnreadablePool",
    "WorkerDied",
]


class WorkerDied(BrokenProcessPool):
    """The worker that held this task died before the task's result arrived.

    Only this task is affected: the pool replaces the worker and goes on.

    What to do: ``signal`` and ``exitcode`` say how it died. A SIGKILL that your program has not
    sent comes most often from the kernel, for lack of memory: set ``max_memory``. SIGSEGV and
    SIGABRT come from native code: run the program with ``PYTHONFAULTHANDLER=1`` to see where. If
    the task may run twice, ``retries=1`` runs it again in another worker.

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

    What to do: if the task may take so long, raise ``timeout`` (of ``with_options``) or
    ``task_timeout`` (of the executor). If it hangs now and then, ``retries=1`` runs it again.
    ``prefork-executor trace`` shows where a task hangs.

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

    What to do: nothing, the program has asked for it. What the task had done before its end
    remains done.

    Attributes:
        task: the task's name.
    """

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"task {self.task} was aborted at the caller's request"


class BacklogFull(Exception):  # noqa: N818 - the name is part of the interface
    """As many tasks wait as ``max_backlog`` allows. Raised by ``submit_nowait``; the call was not
    accepted.

    What to do: try again later, refuse the work, or use ``submit``, which waits for room.

    Attributes:
        limit: what ``max_backlog`` allows.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        tasks = "1 task waits" if self.limit == 1 else f"{self.limit} tasks wait"
        return f"the backlog is full: {tasks}, as many as max_backlog allows"


class TaskMemoryExceeded(MemoryError):  # noqa: N818 - the name is part of the interface
    """The task's worker took more memory than ``max_memory`` allows all workers together, so
    the task was ended, with its worker. It is not retried, because it would take as much again.

    What to do: give the task less data at a time, or raise ``max_memory`` above ``bytes``.

    Attributes:
        task: the task's name.
        bytes: what its worker took.
        bound: what ``max_memory`` allows.
        pid: the process id of the worker that ran it.
    """

    def __init__(self, task: str, bytes: int, bound: int, pid: int) -> None:
        super().__init__(task, bytes, bound, pid)
        self.task = task
        self.bytes = bytes
        self.bound = bound
        self.pid = pid

    def __str__(self) -> str:
        return (
            f"task {self.task} alone took {self.bytes:,} bytes in worker {self.pid}, more than "
            f"max_memory allows ({self.bound:,}), and was ended; only this task is affected, "
            "the pool goes on"
        )


class ReloadFailed(Exception):  # noqa: N818 - it says what has failed
    """A new worker could not start, so the old ones stay. If the initializer raised
    an exception, that is its ``__cause__``.

    What to do: fix what its ``__cause__`` or the log names, and call ``reload()`` again. Until
    then the pool goes on with the old workers.
    """


class CallPicklingError(PicklingError):
    """The task's function or an argument cannot be sent to a worker. The message says which,
    and its ``__cause__`` is what pickle raised.

    What to do: pass what the object is made from (a path instead of an open file, an address
    instead of a connection), and make the object in the task or in ``initializer``.
    """


class ResultPicklingError(PicklingError):
    """The task's result cannot be sent to the caller. The message says which part of it, and
    its ``__cause__`` is what pickle raised. The task itself has run.

    What to do: return plain data, or write the object to a file and return its path.

    Attributes:
        result: what ``repr(result)`` gave in the worker.
    """

    result = ""

    def __init__(self, *args: object, result: str = "") -> None:
        super().__init__(*args)
        self.result = result


class RemoteExceptionStandIn(Exception):  # noqa: N818 - it stands for any exception
    """Stands in for a task's exception that could not be brought to the caller.

    It prints as the original did. It has the original's notes, cause, context and traceback,
    and the attributes and args that could travel. Args that could not are replaced by their
    repr. If the caller can import the original's class or one of its bases, the stand-in also
    derives from that, so that ``except ThatBase`` catches it.

    What to do: look at ``reason``. Most often the class is defined inside a function, or takes
    other arguments than it passes to ``super().__init__()``.

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


def plain_stand_in(
    original_type: str, original_str: str, original_repr: str, reason: str
) -> RemoteExceptionStandIn:
    """A stand-in that derives from no other class, and has none of the original's attributes."""
    stand_in = RemoteExceptionStandIn(original_str)
    stand_in.original_type = original_type
    stand_in.original_str = original_str
    stand_in.original_repr = original_repr
    stand_in.original_attributes = {}
    stand_in.reason = reason
    return stand_in


class StatusError(Exception):
    """A pool cannot be seen from outside. The base of the errors below.

    What to do: see its message.
    """


class NoSuchPool(StatusError):  # noqa: N818 - says what happened
    """There is no such process, or it belongs to no pool.

    What to do: ``prefork-executor list`` has the pools of this user. A pool starts with its first
    task.
    """


class SeveralPools(StatusError):  # noqa: N818 - says what happened
    """More than one pool matches.

    What to do: give one of ``choices``.

    Attributes:
        choices: process ids, one for each of these pools.
    """

    def __init__(self, message: str, choices: tuple[int, ...] = ()) -> None:
        super().__init__(message, choices)
        self.choices = choices

    def __str__(self) -> str:
        return str(self.args[0])


class PoolEnded(StatusError):  # noqa: N818 - says what happened
    """The watched pool has ended.

    What to do: stop watching it.
    """


class UnreadablePool(StatusError):  # noqa: N818 - says what happened
    """The caller may not read the pool, or cannot. For example, the pool belongs to another
    version of this package.

    What to do: run the command as the pool's user, and from the environment of its program.
    """


class IllegalTransition(RuntimeError):  # noqa: N818 - it says what has happened
    """An event happened that cannot happen in the state that the client, a task or a worker was
    in. This is a bug in the pool.

    What to do: please report it with its whole text.

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
            "a bug in the pool: please report it with this text"
        )


class ProtocolError(Exception):
    """A message on one of the pool's channels is malformed. Either the pool has a bug, or other
    code wrote to a descriptor of the pool.

    What to do: look for code in the tasks that writes to descriptors that it has not opened, or
    that closes all descriptors. If there is none, please report it.
    """


def describe_end(exitcode: int | None, signal: int | None) -> str:
    """Say how a process ended, as a verb phrase: ``was killed by SIGKILL``."""
    if signal is None:
        return f"exited with status {exitcode}"
    try:
        name = _signal.Signals(signal).name
    except ValueError:
        name = f"signal {signal}"
    return f"was killed by {name}"
