"""Prepares tasks that could not be prepared when they were submitted.

A task is ready to be sent when its call is pickled and, if that is big, copied into a shared file.
Most tasks are made ready by the thread that submits them. Three kinds are left to the I/O thread,
which prepares them when their turn comes:

* tasks that were submitted while so many bytes of pickled calls waited that no more calls were
  pickled ahead (MAX_WAITING_BYTES in `submits.py`),
* tasks that refer to a main module that is not known yet, or that belongs to an earlier supervisor,
* big tasks that had to wait: only when there is room for them are they copied into a file.
"""

from __future__ import annotations

from .._messages.channels import PoolChannels
from .._pickling import exceptions
from .._pickling.calls import MainSnapshot
from .dispatch import Dispatcher
from .ledger import Task
from .outcomes import fail_all
from .shared_state import SharedState
from .task_states import WAITING
from .workers_main import WorkersMain

READY_AT_ONCE = 1024 * 1024
"""Bytes that the I/O thread pickles or copies before it does its other work again."""


class Preparer:
    """Makes the next tasks ready, in the I/O thread.

    It does so without the client's lock, because that takes long, and pickling runs the user's
    code."""

    def __init__(
        self, shared: SharedState, channels: PoolChannels, dispatcher: Dispatcher, main: WorkersMain
    ) -> None:
        self._shared = shared
        self._channels = channels
        self._dispatcher = dispatcher
        self._main = main

    def get_ready(self) -> bool:
        """Make the tasks ready whose turn has come. Returns False if there was nothing to do."""
        failed: dict[int, tuple[Task, BaseException]] = {}
        snapshot = self._main.snapshot
        if not snapshot.is_known or self._shared.lifecycle.broken is not None:
            return False
        with self._shared.lock:
            tasks = self._dispatcher.next_to_prepare()
        done = 0
        for task in tasks:
            try:
                done += self._get_one_ready(task, snapshot, is_first=task is tasks[0])
            except BaseException as error:
                # Also SystemExit: the user's object raised it, and it must not end this thread.
                failed[id(task)] = (task, error.with_traceback(None))
            if done >= READY_AT_ONCE:
                break
        if failed:
            with self._shared.lock:
                gone = self._shared.ledger.discard(task for task, _ in failed.values())
            fail_all([failed[id(task)] for task in gone])
        return bool(tasks)

    def _get_one_ready(self, task: Task, snapshot: MainSnapshot, *, is_first: bool) -> int:
        """Make one task ready. Returns how many bytes were pickled or copied for it."""
        deferred, size = task.deferred, 0
        if task.state is not WAITING or task.future.cancelled():
            return 0
        if deferred is not None:
            payload = deferred.payload(task.name, snapshot, self._main.modules)
            size = task.bind(payload, snapshot)
        # There may be no room yet for the tasks after the first. So they are copied only if they
        # are small enough not to matter.
        is_to_wrap = task.bulk and (is_first or task.bulk < READY_AT_ONCE)
        if is_to_wrap and task.parcel is None:
            try:
                task.wrap(self._channels.files)
            except BaseException as error:
                exceptions.add_note(error, f"Task {task.name} could not be sent to a worker.")
                raise
        return size + task.bulk
