"""The caller's end of one pool: what executors call, the start, and the end.

Any thread may submit. The I/O thread (`io_loop.py`) reads what comes upstream (except what
`direct.py` reads), resolves futures, sends waiting tasks, and looks after the supervisor.
`books.py` has what both write, and the order of the locks.

The client holds both ends of the task pipe and of the yell channel. So they
outlive a supervisor, and tasks in the pipe can be taken back. When a marker that the client
has sent to itself arrives, it has read all that was sent before.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from .._board import fences
from .._board import scoreboard as sb
from .._messages import wire
from .._messages.channels import PoolChannels
from .._messages.wire import Kind
from .._pickling import calls
from .._server.settings import Settings, TaskOptions
from .._support import exit_hooks, faults
from .._support.handlers import let_through
from .._support.locks import depth, leaves_unlocked, release_to
from .._system import green, processes
from .._system.descriptors import Poller
from .._system.green import GreenPoller
from .books import Books
from .direct import DirectReader
from .dispatch import Dispatcher, Failed
from .futures import ReloadFuture, TaskFuture
from .io_loop import ClientParts, IoLoop
from .ledger import Task
from .outcomes import fail_all, is_about_the_task
from .phases import Event, Phase
from .reloads import Reloads
from .requests import Requests
from .resource_tracking import Tracker
from .roster import Processes, Roster, WorkerId
from .supervisors import Supervisors
from .upstream import YellHooks
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..stats import ExecutorStats
    from .recorder import Recorder

MEASURE_EVERY, MEASURE_SHORT_EVERY = 16, 64
"""How many tasks share one measurement of a wait, if other tasks wait already: the second number
for functions known to be short, the first for others. A task that finds none waiting is always
measured: then there is time for it."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""When so many bytes of pickled calls wait, further calls are kept as they are, and pickled when
their turn comes."""
MAX_ACCEPTED_TOGETHER, ACCEPT_WITHIN = 64, 0.001
"""When many calls are submitted, at most this many are pickled before the first of them is
accepted. After this many seconds no more are added: workers may be waiting."""


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
        self._books = Books()
        self._lock = self._books.lock
        self._ledger = self._books.ledger
        self._lifecycle = self._books.lifecycle
        self._main = WorkersMain(self._books, is_forked=settings.is_forked)
        self._reloads = Reloads(self._books)
        self._direct = DirectReader(self._ledger, self._lock)
        self._thread: threading.Thread | None = None
        self._is_starting = False
        self._parts = ClientParts(
            context=context,
            settings=settings,
            books=self._books,
            direct=self._direct,
            main=self._main,
            reloads=self._reloads,
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
    ) -> Future[Any]:
        """See PreforkExecutor.submit."""
        before = depth(self._lock)
        try:
            if self._thread is None:
                self._start()
            future, task = self._prepare(fn, args, kwargs, options)
            if task is not None:
                if task.bulk and self._dispatcher.is_to_send_now():
                    self._wrap(task)
                self._accept(task)
            return future
        except BaseException:
            # A signal handler may have raised half-way. The I/O thread does the rest.
            release_to(self._lock, before)
            if self._thread is not None:
                self._wake()
            raise

    def _prepare(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> tuple[TaskFuture, Task | None]:
        """A call's future and task. There is no task if the call cannot be pickled."""
        future = TaskFuture()
        future.client = self._direct
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
        future.task = task
        if payload is None:
            task.defer((fn, args, kwargs))
        if (recorder := self._books.recorder) is not None:
            recorder.submitted(task)
        return future, task

    def submit_all(
        self, calls: Iterable[tuple[Any, ...]], options: TaskOptions, futures: list[Future[Any]]
    ) -> None:
        """Submit these calls, each a function and its arguments, and append their futures to
        the list. Calls that will have to wait are accepted several at a time."""
        calls = iter(calls)
        for call in calls:
            if self._thread is None or self._dispatcher.is_to_send_now():
                futures.append(self.submit(call[0], call[1:], {}, options))
                continue
            following = itertools.islice(calls, MAX_ACCEPTED_TOGETHER - 1)
            before = depth(self._lock)
            try:
                self._submit_batch(itertools.chain((call,), following), options, futures)
            except BaseException:
                release_to(self._lock, before)  # As in submit().
                self._wake()
                raise

    def _submit_batch(
        self, batch: Iterable[tuple[Any, ...]], options: TaskOptions, futures: list[Future[Any]]
    ) -> None:
        end = time.monotonic() + ACCEPT_WITHIN
        prepared = []
        for call in batch:
            prepared.append(self._prepare(call[0], call[1:], {}, options))
            if time.monotonic() > end:
                break
        tasks = [task for _, task in prepared if task is not None]
        with self._lock:
            self._lifecycle.check_open()
            is_next = self._dispatcher.is_to_send_now()
            for task in tasks:
                self._enqueue(task)
            futures.extend(future for future, _ in prepared)
            if is_next:
                self._wake()  # All that was in flight has ended meanwhile.
            self._dispatcher.report()

    def _enqueue(self, task: Task) -> None:
        """With the lock held: accept the task, which then waits."""
        if task.names is not None and task.snapshot is not self._main.snapshot:
            task.unbind()  # Another supervisor has started since it was pickled.
        waiting = len(self._ledger.waiting)
        if not waiting % MEASURE_EVERY and (not waiting % MEASURE_SHORT_EVERY or not task.is_short):
            task.submitted = time.monotonic_ns() >> wire.TICK
        self._ledger.enqueue(task)

    def _wrap(self, task: Task) -> None:
        """In the caller's thread, before the task is in the books."""
        try:
            task.wrap(self._channels.files)
        except BaseException as error:
            if not is_about_the_task(error):
                raise
            # The I/O thread will get the same error, and set it on the future.

    def _accept(self, task: Task) -> None:
        failed: Failed = []
        with self._lock:
            ledger = self._ledger
            self._lifecycle.check_open()
            if self._is_starting:
                # This is a signal handler or a finalizer: the I/O thread will send the task.
                self._enqueue(task)
                return
            is_next = self._dispatcher.is_to_send_now()
            self._enqueue(task)
            # Meanwhile a signal handler or a finalizer may have submitted or shut down.
            if is_next and ledger.waiting and ledger.waiting[0] is task:
                if (not task.bulk and task.deferred is None) or task.parcel is not None:
                    ledger.number(task)
                    task.future.begin_unshared()
                    self._dispatcher.send(task, failed)
                else:
                    self._wake()  # The I/O thread prepares it.
            elif task.deferred is not None and not ledger.in_flight:
                self._wake()  # What it waited for may be known by now.
            parcel = None
            if task.parcel is not None and task.number not in ledger.in_flight:
                parcel = task.unwrap()
            self._dispatcher.report()
        if parcel is not None:
            # Another thread was quicker. A waiting task must not be in memory twice.
            parcel.give_to(self._channels.files)
        if task.bulk:
            self._dispatcher.close_sent()
        if failed:
            fail_all(failed)

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
                raise RuntimeError("join() needs shutdown() first: the executor is open")
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
            self._requests.abort(task)
        return True

    @leaves_unlocked
    def reload(self) -> Future[None]:
        """See PreforkExecutor.reload."""
        reloaded = ReloadFuture()
        reloaded.client = self._direct
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
                raise RuntimeError("add_initializer() comes before the first task: the pool runs")
            self.settings.added += ((fn, args),)

    @leaves_unlocked
    def stats(self) -> ExecutorStats:
        """See PreforkExecutor.stats."""
        with self._lock:
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board if is_open else None
            if board is not None:
                self._books.history.note_backlog(self._ledger, board)
            reading = self._books.history.read(board, self._ledger)
        return self._books.history.snapshot(self.settings.limits.max_workers, reading)

    @leaves_unlocked
    def record(self, recorder: Recorder) -> None:
        """See PreforkExecutor.record."""
        with self._lock:
            self._lifecycle.check_open()
            if self._books.recorder is not None:
                raise RuntimeError("the executor is being recorded: close that recording first")
            self._books.record(recorder)
            for task in (*self._ledger.in_flight.values(), *self._ledger.waiting):
                recorder.submitted(task)
            if self._thread is not None:
                self._channels.board.words[sb.RECORDING] = 1

    @leaves_unlocked
    def end_record(self, recorder: Recorder) -> None:
        """Tell the recorder what runs now, and nothing after that. Safe to call again."""
        with self._lock:
            if self._books.recorder is not recorder:
                return
            self._books.record(None)
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
            # Else multiprocessing passes it on.
            tracker = Tracker.new() if self.settings.is_forked else None
            if tracker is not None:
                self._loop.share_tracker(tracker)
            self._supervisors.start()
            thread = threading.Thread(target=self._run, name="prefork-executor-io")
            thread.start()
            self._thread = thread
        except BaseException:
            if self._thread is None:
                self._close()
                self._direct.close()
            raise

    def _take(self, channels: PoolChannels, fence: Callable[[], object] | None) -> None:
        self._channels = channels
        if self._books.recorder is not None:
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
            self._books.history.note_backlog(self._ledger, self._channels.board)
            if self._ledger.settle(number, duration) is not None:
                self._books.history.finished += 1
            self._dispatcher.report()
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
            if self._books.recorder is not None:
                self._books.recorder.gave_up(tasks, self._channels.board.read_all())
            self._loop.forget_recoveries()
            self._supervisors.make_it_kill()
        error = self._lifecycle.broken_error()
        fail_all([(task, self._lifecycle.broken_error()) for task in tasks])
        self._reloads.end_all(error)

    def _end(self) -> None:
        """All processes have ended: close everything, and end the I/O thread."""
        with self._lock:
            # A signal handler may have closed the pool in the middle of a submit.
            left = self._ledger.clear()
            self._books.history.close(self._channels.board)
            self._close()
            self._lifecycle.after(Event.ALL_CLOSED)
        fail_all([(task, BrokenProcessPool("the executor was shut down")) for task in left])
        self._direct.close()
        self._roster.all_ended()
        self._reloads.end_all()
        if (recorder := self._books.recorder) is not None:
            recorder.on_shutdown()

    # --- a fork of the caller's process --------------------------------------------------------

    def disown(self) -> None:
        """In a child that the caller forked, where this copy is not the executor."""
        self._loop.disown()
        self._channels.close()
        self._poller.close()
        self._supervisors.disown()
        self._books.disown()
        self._lock = self._books.lock
        self._direct.disown(self._lock)
