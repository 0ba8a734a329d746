"""Futures that make their condition only when a thread needs it.

Most programs ask a future for its result when that has arrived, and no thread waits before. For
such a future, making the condition and taking its lock at each step would be most of the cost. A
future takes two *steps*: from PENDING to RUNNING, and from RUNNING to FINISHED. The I/O thread
takes them without the condition, unless another thread has asked for it.

A thread asks for the condition to cancel the future, or to wait for several futures. That thread
and the I/O thread must agree on which was first. They use ``dict.setdefault``, which is atomic:
each thread puts something into a cell of the future, and both then see what was put there first.

* If the condition was first, the I/O thread takes the step with the condition, as in any Future.
* If the step was first, the thread that asks for the condition gets it only when the step is done,
  and finds the future in its new state. In the I/O thread, a step is two assignments. If a caller
  takes the second step, a signal handler may interrupt it between the two. So it puts the result
  into the cell, and any thread can complete the step.

Each step has a cell of its own, because a thread may need a condition after the first step.

Callbacks are in a list. The thread that calls a callback takes it out of the list, so each is
called once. So adding a callback needs no condition either.

A thread that waits for the result of one future needs no condition. It waits with a plain lock, its
*bell*. It puts the bell into the future, and looks at the state again. The thread that ends the
future changes the state, and then looks for bells. So one of the two notices the other. The bell of
the first waiting thread has a place of its own, because it may be a `direct.DirectBell`; the other
bells are in a list. As ``result()`` does not take the condition's lock, a signal handler that
raises there cannot leave it locked. (Otherwise the I/O thread would wait for it for ever.) Where
the condition is needed, its lock is released after a handler has raised.

In a fork
---------
A process that was forked from the caller's process has copies of its futures. The copy of a future
that had ended is as good as the original. The copy of any other future never ends. If code asks for
its result, or waits for it in any way, it gets an error that says so. Nothing is done about that at
the fork, because there may be very many futures. Instead each use of a copy notices that it is one:
the methods here check for it, and ``concurrent.futures.wait`` and ``as_completed`` first ask for
the condition. When a copy's condition is asked for, the copy of a future that had not ended loses
its state, and reading the state raises the error. (Asking for the condition must not raise:
``wait`` acquires the conditions of many futures, and would leave those locked.) The copy also gets
a condition of its own, because the I/O thread may have held the original's lock at the fork.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)

from .._support.locks import depth, release_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Client(Protocol):
        """What a future needs of its client: `direct.DirectReader`."""

        def bell_for(self, future: TaskFuture) -> Bell: ...

        def others_may_read(self) -> contextlib.AbstractContextManager[None]: ...

        @property
        def is_copy(self) -> bool: ...

        def error_of_copy(self, future: TaskFuture) -> BaseException: ...

        def check_wait(self, future: TaskFuture, timeout: float | None) -> None: ...

    class Bell(Protocol):
        """What a future needs of a bell: the methods of a lock."""

        def acquire(self, *, timeout: float) -> object: ...

        def release(self) -> None: ...

    _Future = Future[Any]
else:
    _Future = Future

_FIRST, _SECOND = "_cell_1", "_cell_2"
_BEGINNING, _FINISHING = "beginning", "finishing"
_BELL, _MORE_BELLS = "_bell", "_more_bells"
_CONDITION, _CONDITION_OF_COPY = "_condition", "_condition_of_copy"
_IS_KNOWN = hasattr(Future, "_invoke_callbacks") and vars(Future()).keys() == {
    *("_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks")
}
"""Whether Future has exactly the attributes that this file relies on. If not, a TaskFuture makes
its condition at once, as Future does."""


def _seconds(timeout: float | None) -> float:
    """The timeout in the form that a lock's acquire takes."""
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)


class TaskFuture(_Future):
    """A future of a pool's task.

    Args:
        client: the DirectReader of its client. It identifies the client, and makes the bells.
    """

    client: Client | None = None
    task: Any = None
    """The client's Task. The future drops it when it ends, because the task refers to the
    future."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client
        if not _IS_KNOWN:
            super().__init__()
            self.__dict__[_FIRST] = self._condition
            return
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        # Python calls this for attributes that do not exist.
        if name == "_state" and self.client is not None:
            raise self.client.error_of_copy(self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def _condition(self) -> threading.Condition:
        if self.client is not None and self.client.is_copy:
            return self._of_copy()
        cells = self.__dict__
        made: threading.Condition | None = cells.get(_CONDITION)
        if made is None:
            made = cells.setdefault(_CONDITION, self._made_condition())
        return made

    @_condition.setter
    def _condition(self, condition: threading.Condition) -> None:
        self.__dict__[_CONDITION] = condition

    def _of_copy(self) -> threading.Condition:
        cells = self.__dict__
        for step in (cells.get(_FIRST), cells.get(_SECOND)):
            if type(step) is tuple:
                self._complete(step)
        if self._is_left_behind:
            cells.pop("_state", None)
        elif self._state == CANCELLED:
            # The I/O thread would do this, but a forked process has none.
            self._state = CANCELLED_AND_NOTIFIED
        own: threading.Condition = cells.setdefault(_CONDITION_OF_COPY, threading.Condition())
        return own

    @property
    def _is_left_behind(self) -> bool:
        """Whether this is the copy, in a fork, of a future that had not ended."""
        if self.client is None or not self.client.is_copy:
            return False
        return self.__dict__.get("_state") in (None, PENDING, RUNNING)

    def __repr__(self) -> str:
        if self._is_left_behind:
            return f"<{type(self).__name__} at {id(self):#x} state=known to another process>"
        task = self.task
        name = "" if task is None else f" task={task.name}"
        return f"{super().__repr__()[:-1]}{name}>"

    def _made_condition(self) -> threading.Condition:
        cells = self.__dict__
        for cell in (_FIRST, _SECOND):
            made: Any = cells.get(cell) or cells.setdefault(cell, threading.Condition())
            if made is _BEGINNING:
                self._wait_while(PENDING)
            elif made is _FINISHING:
                self._wait_while(PENDING, RUNNING)
                break
            elif type(made) is tuple:
                self._complete(made)
                break
            else:
                return made  # type: ignore[no-any-return]
        return threading.Condition()

    def _wait_while(self, *states: str) -> None:
        while self._state in states:
            time.sleep(0)

    def _complete(self, step: tuple[Any]) -> None:
        (self._result,) = step
        self._state = FINISHED

    def attach(self, task: Any) -> None:
        """Note the client's task whose future this is."""
        self.task = task

    def is_task_of(self, client: Client) -> bool:
        """Whether this is the future of a task of this client."""
        return self.client is client

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Without a condition in it, pickle would accept the future, and the copy would never end.
        raise TypeError(
            "a future cannot be pickled: give it to submit() as an argument of its own, and the "
            "task gets its result"
        )

    def result(self, timeout: float | None = None) -> Any:
        """See Future.result."""
        # Most often the result has arrived. This check is quicker than the properties below.
        if self._state in (PENDING, RUNNING):
            self._wait(timeout)
        if self._state == FINISHED and self._exception is None:
            return self._result
        error = self._end_without_result()
        try:
            raise error
        finally:
            del self, error  # Its traceback refers to this frame.

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See Future.exception."""
        if not self.has_ended:
            self._wait(timeout)
        if self.has_result:
            return None
        error = self._end_without_result()
        if error is self._exception:
            return error
        raise error

    def _end_without_result(self) -> BaseException:
        if not self.has_ended:
            return TimeoutError()
        if self._state != FINISHED or self._exception is None:
            return CancelledError()
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        """Wait until the future has ended, ``timeout`` seconds at most."""
        if self.client is not None:
            self.client.check_wait(self, timeout)
        if not _IS_KNOWN:
            with contextlib.suppress(TimeoutError, CancelledError):
                super().exception(timeout)
            return
        if not self._waits_for_bell(timeout):
            self._waits_with_others(timeout)

    # These methods take no lock: each reads the state once.

    def done(self) -> bool:
        """See Future.done. Always True in a fork, where there is nothing to wait for."""
        if self.client is not None and self.client.is_copy:
            return self._is_left_behind or self.has_ended
        return self._state not in (PENDING, RUNNING)

    def running(self) -> bool:
        """See Future.running."""
        return not self._is_left_behind and bool(self._state == RUNNING)

    def cancelled(self) -> bool:
        """See Future.cancelled."""
        return not self._is_left_behind and self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See Future.add_done_callback."""
        if not _IS_KNOWN or (self.client is not None and self.client.is_copy):
            self._unlocked_after(super().add_done_callback, fn)
            return
        # The thread that takes the callback out of the list calls it. That is the thread that
        # ends the future, or this one if the other has not seen it.
        callbacks = self._done_callbacks
        callbacks.append(fn)
        if self._state not in (PENDING, RUNNING):
            with contextlib.suppress(ValueError):
                callbacks.remove(fn)
                self._call(fn)

    def _unlocked_after(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call this. If a signal handler raises in it, release the condition's lock."""
        lock: Any = self._condition
        before = depth(lock._lock)
        try:
            return call(*args)
        except BaseException:
            release_to(lock._lock, before)
            raise

    def _others_may_go_on(self) -> contextlib.AbstractContextManager[None]:
        if self.client is None or self.has_ended:
            return contextlib.nullcontext()
        return self.client.others_may_read()

    def _waits_for_bell(self, timeout: float | None) -> bool:
        """Wait as the first thread, until its bell rings, ``timeout`` seconds at most. Returns
        False if another thread is the first."""
        bell, cells = self._new_bell(), self.__dict__
        if cells.setdefault(_BELL, bell) is not bell:
            return False
        try:
            if not self.has_ended:
                bell.acquire(timeout=_seconds(timeout))
        finally:
            del cells[_BELL]
        return True

    def _waits_with_others(self, timeout: float | None) -> None:
        """Wait with a bell in the list, ``timeout`` seconds at most."""
        bell, cells = self._plain_bell(), self.__dict__
        bells = cells.setdefault(_MORE_BELLS, [])
        bells.append(bell)
        if not self.has_ended:
            with self._others_may_go_on():
                bell.acquire(timeout=_seconds(timeout))

    def _new_bell(self) -> Bell:
        if self.client is not None:
            return self.client.bell_for(self)
        return self._plain_bell()

    def _plain_bell(self) -> Bell:
        lock = _thread.allocate_lock()
        lock.acquire()
        return lock

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to wait for. Takes no lock."""
        return self._state not in (PENDING, RUNNING)

    @property
    def has_result(self) -> bool:
        """Whether it has ended with a result. Takes no lock."""
        return self._state == FINISHED and self._exception is None

    @property
    def error(self) -> BaseException | None:
        """The error that it has ended with, or None. Takes no lock."""
        return self._exception

    @property
    def is_watched(self) -> bool:
        """Whether the thread that ends it must do more than wake one waiting thread."""
        cells = self.__dict__
        return bool(self._done_callbacks) or "_condition" in cells or _MORE_BELLS in cells

    def wake(self) -> None:
        """Wake the threads that wait for its result: it has ended."""
        cells = self.__dict__
        if _BELL in cells and (bell := cells.get(_BELL)) is not None:
            with contextlib.suppress(RuntimeError):  # The bell has rung already.
                bell.release()
        if _MORE_BELLS in cells:
            self._ring_others()

    def _ring_others(self) -> None:
        for bell in list(self.__dict__.get(_MORE_BELLS, ())):
            with contextlib.suppress(RuntimeError):
                bell.release()

    def cancel(self) -> bool:
        """See Future.cancel."""
        if self._is_left_behind or self._state in (RUNNING, FINISHED):
            return False  # These states never change back.
        return bool(self._unlocked_after(super().cancel))

    def _invoke_callbacks(self) -> None:
        # The methods of Future that end a future all call this.
        self.task = None
        self.wake()
        self._call_back()

    def _call_back(self) -> None:
        callbacks = self._done_callbacks
        while callbacks:
            try:
                fn = callbacks.pop(0)
            except IndexError:
                return  # The thread that has added the callback calls it.
            self._call(fn)

    def _call(self, fn: Callable[[Future[Any]], object]) -> None:
        try:
            fn(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    # --- the two steps ------------------------------------------------------------------

    def begin_unshared(self) -> None:
        """Mark the future as running, before another thread has it. Takes no lock: if a signal
        handler raised while the lock is being taken, the lock could stay locked for ever."""
        self._state = RUNNING

    def begin(self) -> bool:
        """Mark the future as running. Returns False if it was cancelled, or if other code has
        resolved it. Called in the I/O thread, which no signal handler interrupts."""
        if self.__dict__.setdefault(_FIRST, _BEGINNING) is _BEGINNING:
            self._state = RUNNING
            return True
        try:
            return self.set_running_or_notify_cancel()
        except RuntimeError:
            return False

    def finish(self, result: Any) -> None:
        """Set the result, and wake the threads that wait for it. Raises what :meth:`set_result`
        raises. Called in the I/O thread."""
        ended: list[TaskFuture] = []
        self.finish_among(ended, result)
        wake_all(ended)

    def finish_among(self, ended: list[TaskFuture], result: Any) -> None:
        """As :meth:`finish`, but the future is appended to ``ended``, and :func:`wake_all` later
        wakes the threads that wait for any of these futures. If the future has a callback, they
        are all woken at once, before the callback runs."""
        cells = self.__dict__
        cell = _SECOND if cells.get(_FIRST) is _BEGINNING else _FIRST
        step = cells.setdefault(cell, _FINISHING)
        if step is not _FINISHING:
            if type(step) is not tuple:
                wake_all(ended)
                self.set_result(result)
                return
            (result,) = step
        self._result = result
        self._state = FINISHED
        self.task = None
        ended.append(self)
        if self._done_callbacks:
            wake_all(ended)
            self._call_back()

    def finish_unwatched(self, result: Any) -> bool:
        """Set the result, unless a thread has asked for the condition: then this returns False.
        Called in a caller's thread, which is the first waiter itself and is not woken. May be
        called again if a signal handler has raised."""
        cells = self.__dict__
        cell = _SECOND if cells.get(_FIRST) is _BEGINNING else _FIRST
        step = cells.setdefault(cell, (result,))
        if type(step) is tuple:
            self._complete(step)
            cells[cell] = _FINISHING
            self.task = None
            self._ring_others()
            self._call_back()  # A callback may just have been added.
        return type(step) is tuple or step is _FINISHING


def wake_all(ended: list[TaskFuture]) -> None:
    """Wake the threads that wait for these futures. Empties the list."""
    for future in ended:
        future.wake()
    ended.clear()


class ReloadFuture(TaskFuture):
    """A future without a task: it ends when the workers have been replaced."""

    def is_task_of(self, client: Client) -> bool:
        return False
