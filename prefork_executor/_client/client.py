"""The caller's end of one pool: what executors call, the start, and the end.

Any thread may submit. The I/O thread (`io_loop.py`) reads what comes upstream (except what
`direct.py` reads), resolves futures, sends waiting tasks, and looks after the supervisor.
`shared_state.py` has what both write, and the order of the locks.

The client holds both ends of the task pipe and of the yell channel. So they
outlive a supervisor, and tasks in the pipe can be taken back. When a marker that the client
has sent to itself arrives, it has read all that was sent before.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from .._board import fences
from .._board import scoreboard as sb
from .._messages.channels import PoolChannels
from .._messages.wire import Kind
from .._server.settings import Settings, TaskOptions
from .._support import exit_hooks, faults
from .._support.locks import depth, leaves_unlocked, release_to
from .._system import green, processes
from .._system.descriptors import Poller
from .._system.green import GreenPoller
from ..errors import BacklogFull
from .backpressure import Backpressure, RoomCall
from .dependents import Dependents
from .direct import DirectReader
from .dispatch import Dispatcher, Failed
from .futures import ReloadFuture, TaskFuture
from .io_loop import ClientParts, IoLoop
from .ledger import Task
from .outcomes import fail_all
from .phases import Event, Phase
from .reloads import Reloads
from .requests import Requests
from .resource_tracking import Tracker
from .roster import Processes, Roster, WorkerId
from .shared_state import SharedState
from .submits import Submits
from .supervisors import Supervisors
from .upstream import YellHooks
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..stats import ExecutorStats
    from .recorder import Recorder

MAX_ACCEPTED_TOGETHER = 64
"""When many calls are submitted, at most this many are pickled before the first of them is
accepted."""


class Client:
    """Owns one supervisor and the channels to its pool. The first task starts it."""

    # From _start on. _thread is None before that.
    _channels: PoolChannels
    _poller: Poller | GreenPoller
    _dispatcher: Dispatcher
    _requests: Requests
    _supervisors: Supervisors
    _loop: IoLoop

    def __init__(
        self,
        context: Any,
        settings: Settings,
        on_yell: Callable[[int, Any], object] | None,
    ) -> None:
        self.context = context
        """The context that starts the supervisor."""
        self.settings = settings
        """What the caller has asked for."""
        self._roster = Roster(self._live_workers, self._end_worker, self._stop)
        self.processes = Processes(self._roster)
        """The workers, in the form in which a ProcessPoolExecutor has them."""
        self._yell_hooks = YellHooks(on_yell)
        self._shared = SharedState()
        self._lock = self._shared.lock
        self._ledger = self._shared.ledger
        self._lifecycle = self._shared.lifecycle
        self._main = WorkersMain(self._shared, is_forked=settings.is_forked)
        self._reloads = Reloads(self._shared)
        self._direct = DirectReader(self._ledger, self._lock)
        limit = settings.max_backlog
        self._backpressure = None if limit is None else Backpressure(limit, self._shared)
        self._submits = Submits(self._shared, self._main, self._direct, self._backpressure)
        self._dependents = Dependents(self._shared, self._main, self._direct)
        self._thread: threading.Thread | None = None
        self._is_starting = False
        self._parts = ClientParts(
            context=context,
            settings=settings,
            shared=self._shared,
            direct=self._direct,
            main=self._main,
            reloads=self._reloads,
            backpressure=self._backpressure,
            dependents=self._dependents,
            roster=self._roster,
            yell_hooks=self._yell_hooks,
            stop=self._stop,
            break_off=self._break,
            end=self._end,
        )

    # --- the caller's calls -----------------------------------------------------------

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        waits: bool = True,
    ) -> Future[Any]:
        """See PreforkExecutor.submit, and with ``waits=False`` submit_nowait."""
        before = depth(self._lock)
        try:
            if self._thread is None:
                self._start()
            return self._submits.submit(fn, args, kwargs, options, waits=waits)
        except BacklogFull:
            raise
        except BaseException:
            self._leave_interrupted(before)
            raise

    def call_when_room(self, tell: Callable[[], bool]) -> RoomCall | None:
        """After a BacklogFull: see `RoomCall`. None: try again at once, because another client was
        full. The shared executor's pool may have been replaced since."""
        if self._backpressure is None or self._thread is None:
            return None
        with self._lock:
            return self._backpressure.call_when_room(tell, len(self._dispatcher.ready))

    def submit_after(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> Future[Any]:
        """See PreforkExecutor.submit, for a call with futures among its arguments."""
        before = depth(self._lock)
        try:
            if self._thread is None:
                self._start()
            return self._dependents.submit((fn, args, kwargs), options)
        except BaseException:
            self._leave_interrupted(before)
            raise

    def submit_all(
        self, calls: Iterable[tuple[Any, ...]], options: TaskOptions, futures: list[Future[Any]]
    ) -> None:
        """Submit these calls, each a function and its arguments, and append their futures to
        the list. Calls that will have to wait are accepted several at a time."""
        calls = iter(calls)
        for call in calls:
            is_alone = self._thread is None or self._backpressure is not None
            if is_alone or self._dispatcher.is_to_send_now():
                futures.append(self.submit(call[0], call[1:], {}, options))
                continue
            following = itertools.islice(calls, MAX_ACCEPTED_TOGETHER - 1)
            before = depth(self._lock)
            try:
                self._submits.submit_batch(itertools.chain((call,), following), options, futures)
            except BaseException:
                self._leave_interrupted(before)
                raise

    def _leave_interrupted(self, before: int) -> None:
        """A signal handler may have raised in the middle of a submit. The I/O thread does the
        rest. ``before`` is how often this thread had the lock before the submit."""
        release_to(self._lock, before)
        self._direct.note_interruption()
        if self._backpressure is not None:
            self._backpressure.ring_all()
        if self._thread is not None:
            self._wake()

    def _wake(self) -> None:
        """Make the I/O thread look for work."""
        self._channels.wake()

    @leaves_unlocked
    def shutdown(self, *, wait: bool, cancel: bool) -> None:
        """See PreforkExecutor.shutdown."""
        with self._lock:
            self._lifecycle.after(Event.SHUTDOWN)
            if self._thread is None:
                self._lifecycle.after(Event.NEVER_STARTED)
                return
            if self._lifecycle.phase is not Phase.ENDED:
                if cancel:
                    self._requests.cancel_waiting()
                self._wake()
        if wait and self._may_wait_for(self._thread):
            self._thread.join()

    def abandon(self) -> None:
        """Nothing refers to the executor any more: close it when its work is done.

        The garbage collector calls this, in any thread, which may hold the lock. So it takes no
        lock and waits for nothing."""
        self._lifecycle.abandon()
        if self._thread is not None:
            self._wake()

    @leaves_unlocked
    def join(self, timeout: float | None) -> bool:
        """See PreforkExecutor.join."""
        with self._lock:
            if self._lifecycle.phase is Phase.OPEN:
                raise RuntimeError("call shutdown() before join(): the executor is open")
            thread = self._thread
        if thread is not None and self._may_wait_for(thread):
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _may_wait_for(self, thread: threading.Thread) -> bool:
        """Whether the thread can end while this one waits. The I/O thread cannot wait for
        itself. Nor can it go on while a signal handler waits that has interrupted the lock's
        holder."""
        return thread is not threading.current_thread() and not self._direct.is_needed()

    @leaves_unlocked
    def end_workers(self, number: int, reason: str) -> None:
        """See PreforkExecutor.terminate_workers and kill_workers, which differ only in the
        signal."""
        with self._lock:
            self._lifecycle.check_own()
            if self._thread is not None and self._lifecycle.phase is not Phase.ENDED:
                self._requests.end_workers(number, reason)

    @leaves_unlocked
    def end(self, reason: str) -> None:
        """Shut down, and end running tasks by SIGTERM. Does not wait."""
        if self._lifecycle.is_copy:
            return
        self.shutdown(wait=False, cancel=True)
        self.end_workers(signal.SIGTERM, reason)

    @leaves_unlocked
    def _stop(self, reason: str) -> None:
        """Break the pool, because the program has ended all its processes. Does not wait."""
        if self._lifecycle.is_copy:
            return
        with self._lock:
            if self._thread is not None and self._lifecycle.phase is not Phase.ENDED:
                self._requests.stop(reason)

    @leaves_unlocked
    def _live_workers(self) -> list[WorkerId]:
        with self._lock:
            if self._thread is None or not self._channels.is_open:
                return []
            slots = self._channels.board.read_all()
        return [WorkerId(slot.pid, slot.born, slot.place) for slot in slots]

    @leaves_unlocked
    def _end_worker(self, pid: int, number: int) -> None:
        with self._lock:
            if self._thread is not None:
                self._requests.end_worker(pid, number)

    @property
    def broken(self) -> str:
        """Why the pool cannot go on. Empty if it can."""
        return "" if self._lifecycle.broken is None else self._lifecycle.broken[0]

    @property
    def is_shut_down(self) -> bool:
        return self._lifecycle.phase is not Phase.OPEN

    @property
    def thread(self) -> threading.Thread | None:
        """The I/O thread. None before the first task."""
        return self._thread

    def describe(self) -> str:
        """State and size, for the executor's repr."""
        from .description import describe  # A pool's start does not need it.

        board = None if self._thread is None else self._channels.board
        workers = self.settings.limits.max_workers
        return describe(self._lifecycle, self._ledger, board, workers)

    @leaves_unlocked
    def unfinished(self) -> tuple[list[Task], list[Task]]:
        """The tasks that were sent to workers, and those that wait to be sent."""
        with self._lock:
            return list(self._ledger.in_flight.values()), list(self._ledger.waiting)

    @leaves_unlocked
    def start(self) -> None:
        """Start the pool, unless it has been started."""
        if self._thread is None:
            self._start()

    @leaves_unlocked
    def abort(self, future: Future[Any]) -> bool:
        """See PreforkExecutor.abort."""
        if not isinstance(future, Future):
            raise TypeError(f"future must be a Future, not {type(future).__name__}")
        if not isinstance(future, TaskFuture) or not future.is_task_of(self._direct):
            raise ValueError("future must be one that this executor's submit() has returned")
        with self._lock:
            self._lifecycle.check_own()
            task = future.task
            if task is None or future.has_ended:
                return False
            if isinstance(task, Task):
                self._requests.abort(task)
                return True
            self._dependents.abort(task)  # It waits for other futures.
        return True

    @leaves_unlocked
    def reload(self) -> Future[None]:
        """See PreforkExecutor.reload."""
        reloaded = ReloadFuture(self._direct)
        with self._lock:
            if self._thread is not None:
                self._lifecycle.check_open()
            if self._thread is not None and self._supervisors.current is not None:
                self._supervisors.tell(Kind.RELOAD, self._reloads.begin(reloaded))
                return reloaded
        reloaded.set_result(None)  # All workers that will start are new.
        return reloaded

    def add_yell_hook(self, kind: type, hook: Callable[[int, Any], object]) -> None:
        """See PreforkExecutor.add_yell_hook."""
        self._yell_hooks.add(kind, hook)

    @leaves_unlocked
    def add_initializer(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """See PreforkExecutor.add_initializer."""
        with self._lock:
            self._lifecycle.check_open()
            if self._thread is not None:
                raise RuntimeError("add_initializer() comes before the first task: this pool runs")
            self.settings.add_initializer(fn, args)

    @leaves_unlocked
    def stats(self) -> ExecutorStats:
        """See PreforkExecutor.stats."""
        with self._lock:
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board if is_open else None
            if board is not None:
                self._shared.history.note_backlog(self._ledger, board)
            reading = self._shared.read(board)
        return self._shared.history.snapshot(self.settings.limits.max_workers, reading)

    @leaves_unlocked
    def record(self, recorder: Recorder) -> None:
        """See PreforkExecutor.record."""
        with self._lock:
            self._lifecycle.check_open()
            if self._shared.recorder is not None:
                raise RuntimeError(
                    "the executor already has a recording: close that recording first"
                )
            self._shared.record(recorder)
            for task in (*self._ledger.in_flight.values(), *self._ledger.waiting):
                recorder.submitted(task)
            if self._thread is not None:
                self._channels.board.words[sb.RECORDING] = 1

    @leaves_unlocked
    def end_record(self, recorder: Recorder) -> None:
        """Tell the recorder what runs now, and nothing after that. Safe to call again."""
        with self._lock:
            if self._shared.recorder is not recorder:
                return
            self._shared.record(None)
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board.read_all() if is_open else []
            recorder.end(board, self._ledger.in_flight)
            if is_open:
                self._channels.board.words[sb.RECORDING] = 0

    # --- starting ---------------------------------------------------------------------

    def _start(self) -> None:
        failed: Failed = []
        try:
            with self._lock:
                self._lifecycle.check_open()
                if self._thread is not None or self._is_starting:
                    return
                self._main.look()  # For a handler that submits while the pool starts.
                self._start_or_fail(failed)
        finally:
            fail_all(failed)

    def _start_or_fail(self, failed: Failed) -> None:
        self._is_starting = True
        try:
            self._start_all()
        except BaseException as error:
            # Tasks that signal handlers and finalizers have submitted meanwhile.
            left = self._ledger.clear() if self._thread is None else []
            why = f"the pool could not be started: {type(error).__name__}: {error}"
            failed.extend((task, BrokenProcessPool(why)) for task in left)
            raise
        finally:
            self._is_starting = False

    def _start_all(self) -> None:
        """With the lock held."""
        faults.at("client.starts_pool")
        processes.import_for_children()
        channels = PoolChannels(self.settings.limits.max_workers)
        try:
            is_green = green.threads_are_green()
            self._poller = GreenPoller() if is_green else Poller()
        except BaseException:
            channels.close()
            raise
        faults.at("client.made_channels")
        spares = self.settings.limits.spares
        channels.board.introduce(sb.EXECUTOR, os.getpid(), **spares)
        self._take(channels, fences.begin(channels.board))
        exit_hooks.look_after(self)
        try:
            if not is_green:
                self._direct.open(channels, self._enter_direct, self._wake)
            self._poller.register(self._channels.yells.fileno(), shared=True)
            self._lifecycle.check_open()  # The interpreter may be ending, without this pool.
            # Otherwise multiprocessing passes the tracker on.
            tracker = Tracker.new() if self.settings.is_forked else None
            if tracker is not None:
                self._loop.share_tracker(tracker)
            self._supervisors.start()
            thread = threading.Thread(target=self._run, name="prefork-executor-io")
            thread.start()
            self._thread = thread
            self._submits.open(self._channels, self._dispatcher, self._requests)
            self._dependents.open(self._channels)
        except BaseException:
            if self._thread is None:
                self._close()
                self._direct.close()
            raise

    def _take(self, channels: PoolChannels, fence: Callable[[], object] | None) -> None:
        self._channels = channels
        if self._shared.recorder is not None:
            channels.board.words[sb.RECORDING] = 1
        self._loop = loop = IoLoop(self._parts, channels, self._poller, fence)
        self._dispatcher, self._requests = loop.dispatcher, loop.requests
        self._supervisors = loop.supervisors

    def _close(self) -> None:
        self._supervisors.close()
        self._loop.close_tracker()
        self._poller.close()
        self._channels.close()

    def _enter_direct(self, number: int, duration: int) -> None:
        """In a caller's thread: this task has ended, and its future has its result."""
        with self._lock:
            lifecycle = self._lifecycle
            if lifecycle.phase is Phase.ENDED:
                return  # A signal handler has meanwhile closed the pool.
            self._shared.history.note_backlog(self._ledger, self._channels.board)
            if self._ledger.settle(number, duration) is not None:
                self._shared.history.count_finished(1)
            self._dispatcher.report()
            if self._backpressure is not None:
                self._backpressure.ring_for_room(len(self._dispatcher.ready))
            is_more_to_do = (
                self._ledger.waiting or lifecycle.phase is not Phase.OPEN or lifecycle.is_abandoned
            )
        if is_more_to_do:
            self._wake()

    # --- in the I/O thread ---------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:  # Wait until the thread has been started, or its start failed.
            if self._thread is not threading.current_thread():
                return
            self._lifecycle.after(Event.STARTED)
        self._loop.run()

    def _break(self, reason: str, cause: BaseException | None = None) -> None:
        """The pool cannot go on: fail every task, and end every process."""
        with self._lock:
            self._lifecycle.break_off(reason, cause)
            tasks = self._ledger.clear()
            if self._shared.recorder is not None:
                self._shared.recorder.gave_up(tasks, self._channels.board.read_all())
            self._loop.forget_recoveries()
            self._supervisors.make_it_kill()
        error = self._lifecycle.broken_error()
        fail_all([(task, self._lifecycle.broken_error()) for task in tasks])
        self._dependents.fail_all(self._lifecycle.broken_error)
        self._reloads.end_all(error)

    def _end(self) -> None:
        """All processes have ended: close everything, and end the I/O thread."""
        with self._lock:
            # A signal handler may have closed the pool in the middle of a submit.
            left = self._ledger.clear()
            self._shared.history.close(self._channels.board)
            self._close()
            self._lifecycle.after(Event.ALL_CLOSED)
            if self._backpressure is not None:
                self._backpressure.ring_for_room(0)
        fail_all([(task, BrokenProcessPool("the executor was shut down")) for task in left])
        self._direct.close()
        self._roster.all_ended()
        self._reloads.end_all()
        if (recorder := self._shared.recorder) is not None:
            recorder.pool_has_ended()

    # --- a fork of the caller's process --------------------------------------------------------

    def disown(self) -> None:
        """In a child that the caller forked, where this copy is not the executor."""
        self._loop.disown()
        self._channels.close()
        self._poller.close()
        self._supervisors.disown()
        self._shared.disown()
        self._lock = self._shared.lock
        self._direct.disown(self._lock)
