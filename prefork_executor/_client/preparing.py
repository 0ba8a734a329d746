"""Calls that are pickled, or copied into their files, only when their turn has come.

Most calls are made ready where they are submitted. What is left to the I/O thread is what
waits when so much waits already that no more is to be kept twice, what refers to a main module
that is not known yet, and what is big and had to wait.
"""

from __future__ import annotations

from .._messages.channels import PoolChannels
from .._pickling import exceptions
from .._pickling.calls import MainSnapshot
from .books import Books
from .dispatch import Dispatcher
from .ledger import Task
from .outcomes import fail_all
from .task_states import WAITING
from .workers_main import WorkersMain

READY_AT_ONCE = 1024 * 1024
"""Bytes of calls that are pickled, or copied, by the I/O thread before it looks around."""


class Preparer:
    """Makes ready what is to be sent next. In the I/O thread, and not under the lock: it takes
    its time, and pickling runs the user's code."""

    def __init__(
        self, books: Books, channels: PoolChannels, dispatcher: Dispatcher, main: WorkersMain
    ) -> None:
        self._books = books
        self._channels = channels
        self._dispatcher = dispatcher
        self._main = main

    def get_ready(self) -> bool:
        """False: there was nothing to do."""
        failed: dict[int, tuple[Task, BaseException]] = {}
        snapshot = self._main.snapshot
        if not snapshot.is_known or self._books.lifecycle.broken is not None:
            return False
        with self._books.lock:
            tasks = self._dispatcher.next_to_prepare()
        done = 0
        for task in tasks:
            try:
                done += self._get_one_ready(task, snapshot, is_first=task is tasks[0])
            except BaseException as error:
                # Even SystemExit: it is the user's object that raised it in our thread.
                failed[id(task)] = (task, error.with_traceback(None))
            if done >= READY_AT_ONCE:
                break
        if failed:
            with self._books.lock:
                gone = self._books.ledger.discard(task for task, _ in failed.values())
            fail_all([failed[id(task)] for task in gone])
        return bool(tasks)

    def _get_one_ready(self, task: Task, snapshot: MainSnapshot, *, is_first: bool) -> int:
        """Returns how many bytes that took."""
        deferred, size = task.deferred, 0
        if task.state is not WAITING or task.future.cancelled():
            return 0
        if deferred is not None:
            payload = deferred.payload(task.name, snapshot, self._main.modules)
            size = task.bind(payload, snapshot)
        # The others only if that is no matter: there may be no room for them yet.
        is_to_wrap = task.bulk and (is_first or task.bulk < READY_AT_ONCE)
        if is_to_wrap and task.parcel is None:
            try:
                task.wrap(self._channels.files)
            except BaseException as error:
                exceptions.add_note(error, f"Task {task.name} could not be sent to a worker.")
                raise
        return size + task.bulk
