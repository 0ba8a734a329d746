"""Ends tasks in the books, and resolves their futures.

A task ends with its outcome, or with its worker. If the task had to be ended, it has a *verdict*:
then its future gets the verdict, with the error of the outcome as its cause. But if the outcome is
a result, the future gets the result, because that is what the caller wanted. A task whose run was
lost, to a death or to its time limit, runs again if its caller allows another run.

The caller has the futures, too. Other code may resolve or cancel one, a callback may raise
anything, and a signal handler may raise at any point of the main thread. None of these may cost
another task its outcome, or have a task run twice.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError

from .._messages import channels, wire
from .._messages.channels import Packet
from .._messages.payload_files import PayloadFiles
from .._messages.wire import Kind
from .._pickling import calls, exceptions
from .._support.handlers import is_by_handler
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from ..errors import ProtocolError, TaskTimeout
from .futures import wake_all
from .ledger import Ledger, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .futures import TaskFuture
    from .recorder import Recorder

    End = tuple[Task, Any, BaseException | None]
    """A task that has ended, with its result and its error."""


class EndedForMemory(Exception):  # noqa: N818 - the pool lacks memory; the task made no error
    """The verdict of a task that was ended because the pool was above its bound for memory. Its
    future never gets this verdict: the task runs again, and that does not count as a retry."""


class Outcome(NamedTuple):
    """The end of a task's run, read and unpickled. ``is_death``: the task ended with its worker."""

    number: int
    duration: int
    result: Any
    error: BaseException | None
    is_death: bool = False


def open_outcome(packet: Packet, ledger: Ledger, files: PayloadFiles) -> Outcome:
    """Unpickle what a worker sent."""
    number = packet.number
    try:
        parts = channels.open_parts(packet, files)
    except BaseException as error:
        return Outcome(number, packet.extra, None, _unpickling_error(ledger, number, error))
    return open_pickled(packet.kind, number, packet.extra, parts, ledger)


def open_pickled(
    kind: int, number: int, duration: int, parts: Sequence[memoryview | bytes], ledger: Ledger
) -> Outcome:
    """Unpickle an outcome whose parts have been read."""
    try:
        if kind == Kind.FAILURE:
            return Outcome(number, duration, None, exceptions.load_failure(parts))
        return Outcome._make((number, duration, calls.loads(parts), None, False))
    except BaseException as error:
        return Outcome(number, duration, None, _unpickling_error(ledger, number, error))


def _unpickling_error(ledger: Ledger, number: int, error: BaseException) -> pickle.UnpicklingError:
    """The error for a future whose result could not be unpickled."""
    task = ledger.in_flight.get(number)
    name = task.name if task is not None else "?"
    wrapped = pickle.UnpicklingError(
        f"the result of task {name} could not be unpickled in the caller's process: "
        f"{type(error).__name__}: {error}"
    )
    wrapped.__cause__ = error
    return wrapped


def open_all(
    body: memoryview, outcomes: list[Outcome], ledger: Ledger, recorder: Recorder | None
) -> None:
    """Unpickle the outcomes of one message, and add them to the list."""
    was_sent = ledger.was_sent
    try:
        for kind, number, duration, pickled in wire.unpack_outcomes(body):
            if not was_sent(number):
                raise ProtocolError(f"an outcome of task {number}")
            if kind == Kind.SPAN:
                task = ledger.in_flight.get(number)
                _record_run(recorder, task, number, duration, pickled)
                continue
            outcomes.append(open_pickled(kind, number, duration, [pickled], ledger))
    except ProtocolError as error:
        logger.error("malformed outcomes were dropped: %s", error)


def _record_run(
    recorder: Recorder | None, task: Task | None, number: int, duration: int, body: memoryview
) -> None:
    begin, pid, slot = wire.unpack_span(body)
    if recorder is not None:
        from .._timeline.model import Run  # The recorder has imported it.

        recorder.ran(task, Run(number, begin, begin + duration, pid, slot))


def settle(ledger: Ledger, done: Outcome) -> End | None:
    """Enter an outcome into the books. Returns the task with its result and its error. Returns None
    if its future gets nothing, because the task had ended before or runs again."""
    task = ledger.in_flight.get(done.number)
    if task is None:
        return None
    error, verdict = done.error, task.verdict
    if error is not None and isinstance(verdict, EndedForMemory):
        ledger.run_again(done.number, is_lost=False)
        return None
    if error is not None:
        is_lost = done.is_death if verdict is None else isinstance(verdict, TaskTimeout)
        if is_lost and task.may_run_again:
            ledger.run_again(done.number)
            return None
        if verdict is not None:
            verdict.__cause__ = error
            error = verdict
        if is_lost and task.lost_runs:
            error.add_note(f"It was run {task.lost_runs + 1} times, and lost each time.")
    ledger.settle(done.number, done.duration)
    return task, done.result, error


def begin(task: Task) -> bool:
    """Mark a task's future as running, unless the task was sent before. Returns False if the future
    was cancelled, or if other code has resolved it. Called in the I/O thread."""
    return bool(task.number) or task.future.begin()


def resolve(setter: Callable[..., object], *values: Any) -> None:
    """Call this method of a future. What it raises is logged."""
    try:
        setter(*values)
    except InvalidStateError:
        logger.exception("a future of the pool was resolved by other code")
    except BaseException:
        # Also SystemExit: it must not cost the other futures their outcomes.
        logger.exception("a done-callback of a future raised")


def resolve_all(ends: list[End | None]) -> None:
    """Resolve the futures of these tasks, in order. Empties the list.

    A thread that waits for one of them is woken when all have their results, or before a callback
    runs. Without the GIL, a thread that was woken earlier would run at once, and wait for the next
    future before that has its result. So it would sleep and be woken for each future."""
    ends.reverse()
    ended: list[TaskFuture] = []
    while ends:
        end = ends.pop()
        if end is None:
            continue
        task, result, error = end
        if error is None:
            resolve(task.future.finish_among, ended, result)
        else:
            wake_all(ended)
            resolve(task.future.set_exception, error)
        # This thread's variables must not keep the caller's result alive.
        del end, result, error
    wake_all(ended)


def fail_all(failed: list[tuple[Task, BaseException]]) -> None:
    """Set these errors on the tasks' futures."""
    for task, error in failed:
        # An interrupted caller may have set the result before it was entered into the books.
        if not task.future.has_result and begin(task):
            resolve(task.future.set_exception, error)


def is_about_the_task(error: BaseException) -> bool:
    """Whether sending has failed because of the task: for lack of memory or descriptors, or because
    of its buffer. A signal handler has raised any other error. Errors of the system have an
    errno."""
    if is_by_handler(error):
        return False
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, ValueError | BufferError | MemoryError)
