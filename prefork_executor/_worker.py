"""A worker's life: start, pull, run, yell, leave.

    STARTING ─ initializer ─▶ TAKING ─ nothing there ─▶ IDLE ─ woken ─▶ TAKING
                                │ ▲
                        a task  ▼ │ its outcome is on its way
                               BUSY
    and from between two tasks, when told to or after its last one: LEAVING

The order of the marks is what the promises rest on. A worker says TAKING before
it asks the task pipe, and says which task it got, then BUSY, before it runs a
line of the user's. So a death in any other state than TAKING is exact: the task
in a BUSY slot had begun or was about to, and no other task had. What a death in
TAKING means is worked out by the client (see _ledger.py).

A worker imports as little as it can, catches whatever a task raises, SystemExit
and KeyboardInterrupt included, and never sends half a message.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import logging
import multiprocessing.process
import multiprocessing.util
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from . import _channel, _failures, _pickling
from . import _scoreboard as sb
from ._channel import DONTWAIT, Packet, Receiver, WorkerChannels
from ._pool import Seat
from ._posix import Waiter
from ._regulator import Limits
from ._wire import Kind

logger = logging.getLogger("prefork_executor")

_current: Worker | None = None


@dataclasses.dataclass
class Settings:
    """What the supervisor and its workers need to know, from the constructor.

    ``tell_main``: whether the supervisor is to say what its ``__main__`` holds,
    which the caller knows if it forked it.
    """

    tell_main: bool
    limits: Limits
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks_per_child: int | None

    def __getstate__(self) -> dict[str, Any]:
        initargs = tuple(map(_pickling.portable, self.initargs))
        initializer = _pickling.portable(self.initializer)
        return {**self.__dict__, "initializer": initializer, "initargs": initargs}


def yell(data: Any) -> None:
    """Send data from inside a task to the caller's process, now.

    It reaches the executor's ``on_yell(pid, data)`` in the order in which this
    worker yelled, before the task's own result.

    Args:
        data: anything that can be pickled, of any size.

    Raises:
        RuntimeError: the calling code does not run in a worker.
        pickle.PicklingError: ``data`` cannot be pickled.
    """
    worker = _current
    if worker is None or worker.pid != os.getpid():
        raise RuntimeError(
            "yell() works only inside a task that runs in a PreforkExecutor's worker"
        )
    worker.yell(data)


class Worker:
    """The loop of one worker process."""

    def __init__(self, seat: Seat, channels: WorkerChannels, settings: Settings) -> None:
        self.pid = os.getpid()
        self._seat = seat
        self._channels = channels
        self._settings = settings
        self._words = channels.board.words
        self._base = channels.board.base(seat.slot)
        self._receiver = Receiver(channels.tasks)
        self._runs_user_code = False
        self._waiter = Waiter()
        self._waiter.register(channels.tasks.fileno(), shared=True)
        self._waiter.register(seat.leash)

    def run(self) -> None:
        """Initialize, then serve until told to leave."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            if self._initialize():
                self._send(Kind.READY, self.pid, self._seat.slot, [b""])
                self._serve_all()
        except (BrokenPipeError, ConnectionResetError):
            # The caller has gone; nobody is left who could want an outcome.
            pass
        self._leave()

    def _leave(self) -> None:
        self._mark(sb.LEAVING)
        # For the supervisor, if there still is one, to kill us if it takes too long.
        with contextlib.suppress(BrokenPipeError):
            self._channels.doorbell.ring()

    def yell(self, data: Any) -> None:
        self._send(Kind.YELL, self.pid, 0, _pickling.dumps(data))

    def _on_interrupt(self, _signum: int, _frame: object) -> None:
        # Ctrl-C reaches every process of the terminal's group. It ends the task
        # that runs, as it would in the caller; the worker's own code it spares.
        if self._runs_user_code:
            raise KeyboardInterrupt

    def _initialize(self) -> bool:
        initializer = self._settings.initializer
        if initializer is None:
            return True
        try:
            self._runs_user_code = True
            initializer(*self._settings.initargs)
            self._runs_user_code = False
        except BaseException as error:
            self._runs_user_code = False
            logger.critical("the initializer failed in worker %d", self.pid, exc_info=True)
            self._leave()
            self._send(
                Kind.INITIALIZER_FAILED, self.pid, 0, _failures.dump_failure(error, skip_frames=1)
            )
            return False
        return True

    def _serve_all(self) -> None:
        words, base = self._words, self._base
        retire, state, takes = base + sb.RETIRE, base + sb.STATE, base + sb.TAKES
        most = self._settings.max_tasks_per_child
        while True:
            words[state] = sb.TAKING
            try:
                packet = self._receiver.receive(DONTWAIT)
            except BlockingIOError:
                if not self._wait_for_work():
                    return
                continue
            except EOFError:
                return
            if packet.kind == Kind.CALL:
                self._serve(packet)
            else:
                words[state] = sb.IDLE
                words[takes] += 1
            if words[retire] or words[base + sb.DONE] == most:
                return

    def _wait_for_work(self) -> bool:
        """Wait until there may be a task. False: told to leave instead."""
        self._mark(sb.IDLE)
        if self._words[sb.BELL]:
            self._channels.doorbell.ring()
        while self._words[self._base + sb.RETIRE] == 0:
            ready = self._waiter.wait()
            if self._channels.tasks.fileno() in ready:
                # Even if told to leave: the message has woken nobody else.
                return True
            if ready:
                # Let go: either RETIRE is set, or the main process is no more.
                self._words[self._base + sb.RETIRE] = 1
        return False

    def _mark(self, state: int) -> None:
        self._words[self._base + sb.SINCE] = time.monotonic_ns()
        self._words[self._base + sb.STATE] = state

    def _serve(self, packet: Packet) -> None:
        words, base = self._words, self._base
        since = time.monotonic_ns()
        number = packet.number
        words[base + sb.TASK] = number
        words[base + sb.SINCE] = since
        words[base + sb.STATE] = sb.BUSY
        words[base + sb.TAKES] += 1
        kind, parts = self._outcome(packet)
        if self.pid != os.getpid():
            # The task forked and let its copy of this process return: not a worker.
            os._exit(0)
        words[base + sb.DONE] += 1
        self._send_outcome(kind, number, time.monotonic_ns() - since, parts)

    def _outcome(self, packet: Packet) -> tuple[Kind, list[_pickling.Part]]:
        fn = None
        try:
            self._runs_user_code = True
            fn, args, kwargs = _pickling.load_call(_channel.open_parts(packet))
            result = fn(*args, **kwargs)
            parts = _pickling.dump_result(result, _pickling.task_name(fn))
            self._runs_user_code = False
        except BaseException as error:
            self._runs_user_code = False
            if fn is None:
                _failures.add_note(error, "This was raised while the worker unpickled the task.")
            return Kind.FAILURE, _failures.dump_failure(error, skip_frames=1)
        return Kind.RESULT, parts

    def _send_outcome(
        self, kind: Kind, number: int, duration: int, parts: Sequence[_pickling.Part]
    ) -> None:
        try:
            self._send(kind, number, duration, parts)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno == errno.EBADF:
                raise
            # No room for a big result: that is this task's failure and no more.
            error.add_note("The task had finished; its result could not be sent.")
            self._send(Kind.FAILURE, number, duration, _failures.dump_failure(error))

    def _send(self, kind: Kind, number: int, extra: int, parts: Sequence[_pickling.Part]) -> None:
        _channel.send(self._channels.yells, kind, number, extra, parts)


class _WorkerProcess(multiprocessing.process.BaseProcess):
    """What multiprocessing calls the current process inside a worker. Its
    bootstrap does for a forked child all that the standard library and its users
    expect: queues and locks are told of the fork and flushed at the end,
    ``current_process()`` has a name, coverage can hook in."""

    _start_method = None


def live_as_worker(seat: Seat, channels: WorkerChannels, settings: Settings) -> NoReturn:
    """Be a worker in this freshly forked process, and end it."""
    global _current
    code = 1
    try:
        atexit._clear()
        atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
        worker = _current = Worker(seat, channels, settings)
        process: Any = _WorkerProcess(target=worker.run, name=f"PreforkWorker-{seat.slot}")
        code = process._bootstrap(parent_sentinel=seat.leash)
    finally:
        try:
            atexit._run_exitfuncs()
        finally:
            os._exit(code)


def unpickling_error(task: str, error: BaseException) -> pickle.UnpicklingError:
    """What a future gets whose result arrived and could not be unpickled."""
    wrapped = pickle.UnpicklingError(
        f"the result of task {task} could not be unpickled in the caller's process: "
        f"{type(error).__name__}: {error}"
    )
    wrapped.__cause__ = error
    return wrapped
