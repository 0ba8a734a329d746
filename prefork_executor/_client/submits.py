"""From a call to a task that is in the books, in the caller's thread.

A call is pickled without the lock, and accepted with it. If it is the next task and there is
room, it is sent at once; otherwise it waits, and the I/O thread sends it.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from .._messages.channels import PoolChannels
from .._pickling import calls
from .._server.settings import TaskOptions
from .._support.handlers import let_through
from .backpressure import Backpressure, RoomBell
from .direct import DirectReader
from .dispatch import Dispatcher, Failed
from .futures import TaskFuture
from .ledger import Task
from .outcomes import fail_all, is_about_the_task
from .requests import Requests
from .shared_state import SharedState
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEASURE_EVERY, MEASURE_SHORT_EVERY = 16, 64
"""How many tasks share one measurement of a wait, if other tasks wait already: the second number
for functions known to be short, the first for others. A task that finds none waiting is always
measured: then there is time for it."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""When so many bytes of pickled calls wait, further calls are kept as they are, and pickled when
their turn comes."""
ACCEPT_WITHIN = 0.001
"""Seconds after which no more calls of a batch are pickled before the first is accepted: workers
may be waiting."""


class Submits:
    """Accepts calls. Until it is opened, what it accepts only waits.

    Args:
        shared, main, direct: the client's.
        backpressure: limits how many tasks wait; None: nothing does.
    """

    # From open on.
    _channels: PoolChannels
    _requests: Requests

    def __init__(
        self,
        shared: SharedState,
        main: WorkersMain,
        direct: DirectReader,
        backpressure: Backpressure | None,
    ) -> None:
        self._shared = shared
        self._ledger = shared.ledger
        self._lifecycle = shared.lifecycle
        self._main = main
        self._direct = direct
        self._backpressure = backpressure
        self._dispatcher: Dispatcher | None = None

    def open(self, channels: PoolChannels, dispatcher: Dispatcher, requests: Requests) -> None:
        """The pool has been started."""
        self._channels, self._requests, self._dispatcher = channels, requests, dispatcher

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        waits: bool,
    ) -> TaskFuture:
        """See PreforkExecutor.submit, and with ``waits=False`` submit_nowait."""
        future, task = self._prepare(fn, args, kwargs, options)
        if task is not None:
            dispatcher = self._dispatcher
            if task.bulk and dispatcher is not None and dispatcher.is_to_send_now():
                self._wrap(task)
            while (bell := self._accept(task, waits=waits)) is not None:
                bell.wait()
        return future

    def _prepare(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> tuple[TaskFuture, Task | None]:
        """A call's future and task. There is no task if the call cannot be pickled."""
        future = TaskFuture(self._direct)
        snapshot = self._main.snapshot
        payload = None
        try:
            if self._ledger.waiting_bytes < MAX_WAITING_BYTES:
                payload = calls.dump_call(fn, args, kwargs, snapshot, self._main.modules)
        except pickle.PicklingError as error:
            let_through(error)
            self._lifecycle.check_open()
            # Its traceback would refer to this frame, and so to the future.
            future.set_exception(error.with_traceback(None))
            return future, None
        # Without the lock: this may run user code, that of a proxy for example.
        task = Task(future, self._ledger.timing_of(fn), options, payload, snapshot)
        future.attach(task)
        if payload is None:
            task.defer((fn, args, kwargs))
        if (recorder := self._shared.recorder) is not None:
            recorder.submitted(task)
        return future, task

    def submit_batch(
        self, batch: Iterable[tuple[Any, ...]], options: TaskOptions, futures: list[Future[Any]]
    ) -> None:
        """Accept these calls together, each a function and its arguments, or the first of them if
        pickling takes long. Appends their futures to the list."""
        end = time.monotonic() + ACCEPT_WITHIN
        prepared = []
        for call in batch:
            prepared.append(self._prepare(call[0], call[1:], {}, options))
            if time.monotonic() > end:
                break
        tasks = [task for _, task in prepared if task is not None]
        with self._shared.lock:
            self._lifecycle.check_open()
            dispatcher = self._dispatcher
            is_next = dispatcher is not None and dispatcher.is_to_send_now()
            for task in tasks:
                self._enqueue(task)
            futures.extend(future for future, _ in prepared)
            if tasks and self._ledger.passes_others(tasks[0]):
                self._requests.reorder()
            elif is_next or (dispatcher is not None and dispatcher.gate is not None):
                self._channels.wake()  # All that was in flight has ended meanwhile, or see _accept.
            if dispatcher is not None:
                dispatcher.report()

    def _enqueue(self, task: Task) -> None:
        """With the lock held: accept the task, which then waits."""
        if task.names is not None and task.snapshot is not self._main.snapshot:
            task.unbind()  # Another supervisor has started since it was pickled.
        waiting = len(self._ledger.waiting)
        if not waiting % MEASURE_EVERY and (not waiting % MEASURE_SHORT_EVERY or not task.is_short):
            task.measure_wait()
        self._ledger.enqueue(task)

    def _wrap(self, task: Task) -> None:
        """In the caller's thread, before the task is in the books."""
        try:
            task.wrap(self._channels.files)
        except BaseException as error:
            if not is_about_the_task(error):
                raise
            # The I/O thread will get the same error, and set it on the future.

    def _accept(self, task: Task, *, waits: bool) -> RoomBell | None:
        """Enter the task into the books, and send it if it is the next. If there is no room for
        it, it is not entered. Then this returns what to wait for before the next attempt.

        Raises:
            BacklogFull: there is no room, and the caller does not want to wait.
        """
        failed: Failed = []
        backpressure = self._backpressure
        may_wait = backpressure is not None and self._direct.may_wait()
        with self._shared.lock:
            ledger = self._ledger
            self._lifecycle.check_open()
            dispatcher = self._dispatcher
            if dispatcher is None:
                # This is a signal handler or a finalizer: the I/O thread will send the task.
                self._enqueue(task)
                return None
            if backpressure is not None and not backpressure.has_room(len(dispatcher.ready)):
                if not waits:
                    raise backpressure.full()
                if may_wait:
                    return backpressure.new_bell()
            is_next = dispatcher.is_to_send_now()
            self._enqueue(task)
            # Meanwhile a signal handler or a finalizer may have submitted or shut down.
            if ledger.passes_others(task):
                self._requests.reorder()
            elif is_next and ledger.waiting and ledger.waiting[0] is task:
                is_ready = (not task.bulk and task.deferred is None) or task.parcel is not None
                # A handler may submit in the midst of sending, and would find the unit free.
                is_ready = is_ready and not task.options.resources
                gate = dispatcher.gate
                if is_ready and (gate is None or gate.lets_first(or_another=False)):
                    ledger.number(task)
                    task.future.begin_unshared()
                    dispatcher.send(task, failed)
                else:
                    self._channels.wake()  # The I/O thread prepares it, or waits for memory.
            elif dispatcher.gate is not None:
                self._channels.wake()  # It may pass those that wait for what it does not need.
            elif task.deferred is not None and not ledger.in_flight:
                self._channels.wake()  # What it waited for may be known by now.
            parcel = None
            if task.parcel is not None and task.number not in ledger.in_flight:
                parcel = task.unwrap()
            dispatcher.report()
        if parcel is not None:
            # Another thread was quicker. A waiting task must not be in memory twice.
            parcel.give_to(self._channels.files)
        if task.bulk:
            dispatcher.close_sent()
        if failed:
            fail_all(failed)
        return None
