"""Calls that have futures among their arguments, and begin when these are done.

A call's future may be an argument of the next call::

    cleaned = executor.submit(clean, path)
    stored = executor.submit(store, cleaned)

The second call waits here, in the caller's process, for the futures among its arguments. When all
are done, it becomes a task like any other, with their results as arguments. If one of them has
failed, the call does not run, and its future gets the same error. If one was cancelled, the call's
future is cancelled.

A call can only wait for futures that were there before it. So no calls wait for each other.

While a call waits here, it is no task: no worker is started for it, and it is no part of the
backlog. But an executor that is shut down ends only when no call waits.

Who goes on with a call
-----------------------
The futures' callbacks run in whatever thread ends these futures, and a signal handler may raise
there at any line. So a callback only says which call to look at, and wakes the I/O thread. The I/O
thread, which no handler interrupts, goes on with the call: in one step, with the client's lock
held, the call leaves those that wait and is a task. If a callback was interrupted, a look at all
waiting calls, LOOK_INTERVAL later at the latest, finds the call.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future

from .._messages.channels import PoolChannels
from .._support.timers import Timer
from ..errors import TaskAborted
from .direct import DirectReader
from .futures import TaskFuture
from .ledger import Task
from .outcomes import resolve
from .shared_state import SharedState
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._server.settings import TaskOptions

    Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

LOOK_INTERVAL = 1.0
"""Seconds between two looks at all waiting calls."""


class DependentCall:
    """One call that waits for futures.

    Args:
        name: of the task that it will be.
        future: its own.
        call: the function and its arguments, with the futures.
        options: its task's.
    """

    def __init__(self, name: str, future: TaskFuture, call: Call, options: TaskOptions) -> None:
        self.name = name
        self.future = future
        self.options = options
        self.is_aborted = False
        self._call: Call | None = call
        self._left = list(dict.fromkeys(self.awaited()))

    def awaited(self) -> Iterator[Future[Any]]:
        """The futures among its arguments."""
        _, args, kwargs = self._call or (None, (), {})
        for arg in (*args, *kwargs.values()):
            if issubclass(type(arg), Future):
                yield arg

    def abort(self) -> None:
        """Its future is to get TaskAborted."""
        self.is_aborted = True

    def is_ready(self) -> bool:
        """Whether there is nothing to wait for any more. Only in the I/O thread."""
        if self.is_aborted or self.future.cancelled():
            return True
        while self._left and self._left[-1].done():
            self._left.pop()
        return not self._left

    def complete(self) -> Call:
        """The call with the results in the futures' places.

        Raises:
            CancelledError: one of the futures was cancelled.
            BaseException: the error of one of them.
        """
        assert self._call is not None
        fn, args, kwargs = self._call
        values = {future: future.result() for future in self.awaited()}

        def value(arg: Any) -> Any:
            return values[arg] if issubclass(type(arg), Future) else arg

        return fn, tuple(map(value, args)), {name: value(arg) for name, arg in kwargs.items()}

    def forget(self) -> None:
        """Keep nothing of the call: the futures it has waited for refer to it."""
        self._call = None
        self._left.clear()


class Dependents:
    """The calls of one executor that wait for futures.

    Args:
        shared, main, direct: the client's.
    """

    def __init__(self, shared: SharedState, main: WorkersMain, direct: DirectReader) -> None:
        self._shared = shared
        self._main = main
        self._direct = direct
        self._channels: PoolChannels | None = None
        self._told: collections.deque[DependentCall] = collections.deque()
        self.timer = Timer()
        """For the next look at all calls that wait."""

    def open(self, channels: PoolChannels) -> None:
        """The pool has been started."""
        self._channels = channels

    # --- in any thread ----------------------------------------------------------------------

    def submit(self, call: Call, options: TaskOptions) -> TaskFuture:
        """See PreforkExecutor.submit, for a call with futures among its arguments."""
        shared, future = self._shared, TaskFuture(self._direct)
        name = shared.ledger.timing_of(call[0]).name
        dependent = DependentCall(name, future, call, options)
        future.attach(dependent)
        with shared.lock:
            shared.lifecycle.check_open()
            shared.ledger.await_futures(dependent)
        try:
            future.add_done_callback(lambda _: self._tell(dependent))
            for awaited in dict.fromkeys(dependent.awaited()):
                awaited.add_done_callback(lambda _: self._tell(dependent))
        except BaseException:
            with shared.lock:
                shared.ledger.await_no_more(dependent)
            self._wake()
            raise
        if not self.timer.is_set:
            self._wake()
        return future

    def abort(self, call: DependentCall) -> None:
        """End this call, as the executor's ``abort`` does."""
        call.abort()
        self._tell(call)

    def _tell(self, call: DependentCall) -> None:
        self._told.append(call)
        self._wake()

    def _wake(self) -> None:
        if self._channels is not None:
            self._channels.wake()

    # --- in the I/O thread ----------------------------------------------------------------------

    def go_on(self) -> None:
        """Go on with the calls that have nothing to wait for any more."""
        ledger = self._shared.ledger
        if self.timer.is_due():
            with self._shared.lock:
                self._told.extend(ledger.awaiting)
            self.timer.stop()
        while self._told:
            call = self._told.popleft()
            if call.is_ready():
                self._go_on_with(call)
        if ledger.awaiting and not self.timer.is_set:
            self.timer.set(LOOK_INTERVAL)

    def _go_on_with(self, call: DependentCall) -> None:
        complete = error = None
        try:
            if call.is_aborted:
                raise TaskAborted(call.name)
            if call.future.cancelled():
                raise CancelledError  # Without a look at what it has waited for.
            complete = call.complete()
        except BaseException as reason:
            # Even SystemExit: a task has raised it, and it is the result of this one.
            error = reason.with_traceback(None) if call.is_aborted else reason
        with self._shared.lock:
            if not self._shared.ledger.await_no_more(call):
                return
            if complete is not None and not call.future.cancelled():
                self._enqueue(call, complete)
        if call.future.cancelled() or isinstance(error, CancelledError):
            call.future.cancel()
            resolve(call.future.set_running_or_notify_cancel)
        elif error is not None and call.future.begin():
            resolve(call.future.set_exception, error)
        call.forget()

    def _enqueue(self, call: DependentCall, complete: Call) -> None:
        ledger = self._shared.ledger
        timing = ledger.timing_of(complete[0])
        task = Task(call.future, timing, call.options, None, self._main.snapshot)
        task.defer(complete)
        call.future.attach(task)
        if not ledger.waiting:
            task.measure_wait()
        ledger.enqueue(task)
        if (recorder := self._shared.recorder) is not None:
            recorder.submitted(task)

    def disown(self) -> None:
        """Let go of these calls in a child that the caller forked: the parent goes on with them."""
        self._told.clear()

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """The pool cannot go on: every call that waits fails with such an error."""
        with self._shared.lock:
            calls = self._shared.ledger.take_awaiting()
        for call in calls:
            if call.future.begin():
                resolve(call.future.set_exception, error())
            call.forget()
