"""The caller's end of one pool: its channels, its supervisor, its one I/O thread.

Threads and the lock
--------------------
Any thread may submit; the I/O thread reads what comes upstream (but for `_direct.py`),
resolves futures, sends what waits, and looks after the supervisor. One lock guards the
books. It is never held while a future is resolved, because that runs the
caller's callbacks, which may submit.

The I/O thread refers to the client and not to the executor, so an executor that
nobody refers to any more can be collected; its finalizer closes the client.

The client holds both ends of the task pipe and of the yell channel. So they
outlive a supervisor; tasks in the pipe can be taken back; and a marker sent to
oneself tells when all that others sent before it has been read.
"""

from __future__ import annotations

import collections
import enum
import functools
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from . import (
    _channel,
    _descriptors,
    _failures,
    _fences,
    _green,
    _lifetime,
    _pickling,
    _processes,
    _wire,
)
from . import _scoreboard as sb
from ._audit import MISSING_INTERVAL, Auditor
from ._batches import Batches
from ._channel import Packet, PoolChannels
from ._chronicle import count_the_left
from ._culprit import describe
from ._descriptors import Waiter
from ._direct import DirectReader
from ._dispatch import Dispatcher, Failed
from ._endings import Endings
from ._future import ReloadFuture, TaskFuture
from ._green import GreenWaiter
from ._handlers import let_through
from ._history import History
from ._ledger import Ledger, Task
from ._locks import depth, leaves_unlocked, release_to
from ._notices import read_notice
from ._outcomes import (
    Outcome,
    fail_all,
    is_about_the_task,
    open_outcome,
    open_pickled,
    resolve,
    settle,
    tell_all,
)
from ._ownership import Ownership
from ._pickling import HeldMain, HeldModules
from ._resource_tracking import Tracker
from ._roster import Processes, Roster, Seen
from ._scoreboard import Slot
from ._settings import Settings, Terms
from ._starts import Restarts, Starts
from ._supervision import REACT_WITHIN, Supervision
from ._supervisor_handle import SupervisorHandle
from ._users_code import failure_phrase
from ._wire import Kind
from .errors import ProtocolError, ReloadFailed, TaskAborted, WorkerDied, describe_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._outcomes import End
    from ._recorder import Recorder
    from .stats import ExecutorStats

logger = logging.getLogger("prefork_executor")

MOST_OUTCOMES = 256
"""Outcomes read before their futures are resolved, if they come many in a message."""
NEVER_ENOUGH = -1
"""Outcomes to be read: all there are."""
MEASURED, SHORT_MEASURED = 16, 64
"""Of the tasks that find others waiting, the wait of one in so many is measured; of those
known to be short, of which there are many, one in the second number. Of those that find
none, of each: then there is time for it."""
MOST_WAITING = 64 * 1024 * 1024
"""Bytes of pickled calls that wait, from which on what is submitted is kept as it is, and
pickled when its turn has come."""
READY_AT_ONCE = 1024 * 1024
"""Bytes of calls that are pickled, or copied, by the I/O thread before it looks around."""
BATCH = 64
"""Messages read before their futures are resolved and new tasks are sent."""
AUDIT_INTERVAL = 0.005
"""Seconds between two looks of an audit that waits for a worker to move."""
GONE_WITHIN = 10.0
"""Seconds to wait for the workers of a dead supervisor to be gone, at most."""
_NOT_SHARED = "each worker imports the main module for itself; what workers could not share: %s"
_SHARED = "share_main is True, so workers share what the main module holds: %s"


class Phase(enum.Enum):
    """OPEN takes tasks. CLOSING finishes those it has. ENDING has told the
    supervisor to end and waits for it. ENDED owns nothing any more."""

    OPEN = 1
    CLOSING = 2
    ENDING = 3
    ENDED = 4


class Client:
    """Owns one supervisor and the channels to its pool. Started by the first task."""

    # From _start on; _thread is None before.
    _channels: PoolChannels
    _waiter: Waiter | GreenWaiter
    _dispatcher: Dispatcher
    _auditor: Auditor
    _batches: Batches
    _supervision: Supervision
    _modules: HeldModules
    _held: HeldMain

    def __init__(
        self,
        context: Any,
        settings: Settings,
        on_yell: Callable[[int, Any], object] | None,
    ) -> None:
        self._context = context
        self._settings = settings
        self._roster = Roster(self._live_workers, self._end_worker, self._stop)
        self.processes = Processes(self._roster)
        """The workers, for whoever looks for them as a ProcessPoolExecutor's."""
        self._on_yell = on_yell
        self._yell_hooks: dict[type, Callable[[int, Any], object]] = {}
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._direct = DirectReader(self._ledger, self._lock)
        self._endings = Endings()
        self._phase = Phase.OPEN
        self._is_abandoned = False
        self._is_copy = False
        self._broken: tuple[str, BaseException | None] | None = None
        self._thread: threading.Thread | None = None
        self._supervisor: SupervisorHandle | None = None
        self._tracker: Tracker | None = None
        self._in_the_way: tuple[str, ...] = ()
        self._requests: collections.deque[Callable[[], None]] = collections.deque()
        self._last_end = 0
        self._last_end_done = 0
        self._fence: Callable[[], object] | None = None
        self._reloads: dict[int, Future[None]] = {}
        self._last_reload = 0
        self._failures_at_start: dict[int, tuple[str, BaseException]] = {}
        self._starts = Starts(settings.initializer is not None)
        self._is_supervisor_ready = False
        self._restarts = Restarts()
        self._is_starting = False
        self._is_cut = False
        self._untold: list[End | None] = []
        self._history = History()
        self._ownership = Ownership()
        self._recorder: Recorder | None = None

    # --- the caller's calls -----------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], terms: Terms
    ) -> Future[Any]:
        """See PreforkExecutor.submit."""
        before = depth(self._lock)
        try:
            return self._submit(fn, args, kwargs, terms)
        except BaseException:
            # A signal handler may have raised half-way: the I/O thread does the rest.
            release_to(self._lock, before)
            if self._thread is not None:
                self._wake()
            raise

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], terms: Terms
    ) -> Future[Any]:
        if self._thread is None:
            self._start()
        future = TaskFuture()
        future.client = self._direct
        held = self._held
        payload = None
        try:
            if self._ledger.waiting_bytes < MOST_WAITING:
                payload = _pickling.dump_call(fn, args, kwargs, held, self._modules)
        except pickle.PicklingError as error:
            let_through(error)
            self._check_open()
            # Its traceback would lead to this frame, and from here to the future.
            future.set_exception(error.with_traceback(None))
            return future
        # Not under the lock: this may run code of the user's, a proxy's, say.
        task = Task(future, self._ledger.timing_of(fn), terms, payload, held)
        future.task = task
        if payload is None:
            task.keep((fn, args, kwargs))
        if (recorder := self._recorder) is not None:
            recorder.submitted(task)
        if task.bulk and self._dispatcher.is_to_send_now():
            self._wrap(task)
        self._accept(task)
        return future

    def _wrap(self, task: Task) -> None:
        """In the caller's thread, before it is in the books."""
        try:
            task.wrap(self._channels.files)
        except BaseException as error:
            if not is_about_the_task(error):
                raise
            # The I/O thread finds the same, and tells the future.

    def _accept(self, task: Task) -> None:
        failed: Failed = []
        with self._lock:
            ledger = self._ledger
            self._check_open()
            if task.names is not None and task.held is not self._held:
                task.unbind()  # The supervisor is another than a moment ago.
            if self._is_starting:
                # A signal handler, or a finalizer: the I/O thread will send it.
                ledger.enqueue(task)
                return
            is_next = self._dispatcher.is_to_send_now()
            waiting = len(ledger.waiting)
            if not waiting % MEASURED and (not waiting % SHORT_MEASURED or not task.is_short):
                task.submitted = time.monotonic_ns() >> _wire.TICK
            ledger.enqueue(task)
            # A signal handler, or a finalizer, may have submitted or shut down meanwhile.
            if is_next and ledger.waiting and ledger.waiting[0] is task:
                if (not task.bulk and task.late is None) or task.parcel is not None:
                    ledger.number(task)
                    task.future.begin_unshared()
                    self._dispatcher.send(task, failed)
                else:
                    self._wake()  # To get it ready.
            elif task.late is not None and not ledger.in_flight:
                self._wake()  # What it waited for may have become known since.
            parcel = None
            if task.parcel is not None and task.number not in ledger.in_flight:
                parcel = task.unwrap()
            self._report()
        if parcel is not None:
            # Somebody was quicker: what waits is not to be in memory twice.
            parcel.give_to(self._channels.files)
        if task.bulk:
            self._dispatcher.close_sent()
        if failed:
            fail_all(failed)

    def _wake(self) -> None:
        """Make the I/O thread look around."""
        self._channels.wake()

    @leaves_unlocked
    def shutdown(self, *, wait: bool, cancel: bool) -> None:
        """See PreforkExecutor.shutdown."""
        with self._lock:
            if self._phase is Phase.OPEN:
                self._phase = Phase.CLOSING
            if self._thread is None:
                self._phase = Phase.ENDED
                return
            if self._phase is not Phase.ENDED:
                if cancel:
                    self._requests.append(self._cancel_waiting)
                self._wake()
        if wait and self._may_wait_for(self._thread):
            self._thread.join()

    def abandon(self) -> None:
        """Nobody refers to the executor any more: close it once its work is done.

        Takes no lock and waits for nothing, because the garbage collector calls it,
        in whatever thread it runs, which may hold the lock."""
        self._is_abandoned = True
        if self._thread is not None:
            self._wake()

    @leaves_unlocked
    def join(self, timeout: float | None) -> bool:
        """See PreforkExecutor.join."""
        with self._lock:
            if self._phase is Phase.OPEN:
                raise RuntimeError("join() needs shutdown() first: the executor is open")
            thread = self._thread
        if thread is not None and self._may_wait_for(thread):
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _may_wait_for(self, thread: threading.Thread) -> bool:
        """Whether it could end meanwhile: it cannot wait for itself, nor go on while a
        signal handler waits that has interrupted what holds the lock."""
        return thread is not threading.current_thread() and not self._direct.is_needed()

    @leaves_unlocked
    def end_workers(self, number: int, reason: str) -> None:
        """See PreforkExecutor.terminate_workers and kill_workers: the same, by
        one signal or the other."""
        with self._lock:
            self._check_own()
            if self._thread is None or self._phase is Phase.ENDED:
                return
            doomed = [*self._ledger.in_flight.values(), *self._ledger.waiting]
            # Or one of those that end now would take what is submitted next.
            self._dispatcher.is_held = True
            self._last_end += 1
            request = functools.partial(
                self._end_workers_now, doomed, number, reason, self._last_end
            )
            self._requests.append(request)
            self._wake()

    @leaves_unlocked
    def end(self, reason: str) -> None:
        """Shut down without waiting, and end what runs, by SIGTERM. Does not wait."""
        if self._is_copy:
            return
        self.shutdown(wait=False, cancel=True)
        self.end_workers(signal.SIGTERM, reason)

    @leaves_unlocked
    def _stop(self, reason: str) -> None:
        """Break the pool: the program has ended all of its processes. Does not wait."""
        if self._is_copy:
            return
        with self._lock:
            if self._thread is not None and self._phase is not Phase.ENDED:
                self._dispatcher.is_held = True
                self._requests.append(functools.partial(self._break, reason))
                self._wake()

    @leaves_unlocked
    def _live_workers(self) -> list[Seen]:
        with self._lock:
            if self._thread is None or not self._channels.is_open:
                return []
            slots = self._channels.board.read_all()
        return [Seen(slot.pid, slot.born, slot.place) for slot in slots]

    @leaves_unlocked
    def _end_worker(self, pid: int, number: int) -> None:
        with self._lock:
            if self._supervisor is not None:
                self._supervisor.tell(Kind.END_WORKER, pid, number)
                self._requests.append(self._supervision.expect_sign)
                self._wake()

    @property
    def settings(self) -> Settings:
        """What the caller has asked for."""
        return self._settings

    @property
    def context(self) -> Any:
        """How the supervisor starts."""
        return self._context

    @property
    def broken(self) -> str:
        """Why the pool cannot go on; empty if it can."""
        return "" if self._broken is None else self._broken[0]

    @property
    def is_shut_down(self) -> bool:
        return self._phase is not Phase.OPEN

    @property
    def thread(self) -> threading.Thread | None:
        """The I/O thread, from the first task on."""
        return self._thread

    @leaves_unlocked
    def unfinished(self) -> tuple[list[Task], list[Task]]:
        """The tasks that were sent to workers, and those that wait for that."""
        with self._lock:
            return list(self._ledger.in_flight.values()), list(self._ledger.waiting)

    @leaves_unlocked
    def start(self) -> None:
        """Start the pool, if it has not been started."""
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
            self._check_own()
            task = future.task
            if task is None or future.has_ended:
                return False
            self._requests.append(functools.partial(self._abort_now, task))
            self._wake()
        return True

    @leaves_unlocked
    def reload(self) -> Future[None]:
        """See PreforkExecutor.reload."""
        reloaded = ReloadFuture()
        reloaded.client = self._direct
        with self._lock:
            if self._thread is not None:
                self._check_open()
            if self._thread is not None and self._supervisor is not None:
                self._last_reload += 1
                self._reloads[self._last_reload] = reloaded
                self._supervisor.tell(Kind.RELOAD, self._last_reload)
                return reloaded
        reloaded.set_result(None)  # The workers to come are new.
        return reloaded

    def add_yell_hook(self, kind: type, hook: Callable[[int, Any], object]) -> None:
        """See PreforkExecutor.add_yell_hook."""
        self._yell_hooks[kind] = hook

    @leaves_unlocked
    def add_initializer(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """See PreforkExecutor.add_initializer."""
        with self._lock:
            self._check_open()
            if self._thread is not None:
                raise RuntimeError("add_initializer() comes before the first task: the pool runs")
            self._settings.added += ((fn, args),)

    @leaves_unlocked
    def stats(self) -> ExecutorStats:
        """See PreforkExecutor.stats."""
        with self._lock:
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board if is_open else None
            if board is not None:
                self._history.note_backlog(self._ledger, board)
            look = self._history.look(board, self._ledger)
        return self._history.snapshot(self._settings.limits.max_workers, look)

    @leaves_unlocked
    def record(self, recorder: Recorder) -> None:
        """See PreforkExecutor.record."""
        with self._lock:
            self._check_open()
            if self._recorder is not None:
                raise RuntimeError("the executor is being recorded: close that recording first")
            self._recorder = recorder
            for task in (*self._ledger.in_flight.values(), *self._ledger.waiting):
                recorder.submitted(task)
            if self._thread is not None:
                self._channels.board.words[sb.RECORDING] = 1

    @leaves_unlocked
    def end_record(self, recorder: Recorder) -> None:
        """Tell it what runs now, and nothing any more. Safe to call again."""
        with self._lock:
            if self._recorder is not recorder:
                return
            self._recorder = None
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board.read_all() if is_open else []
            recorder.end(board, self._ledger.in_flight)
            if is_open:
                self._channels.board.words[sb.RECORDING] = 0

    def _check_own(self) -> None:
        """Raises if this is a fork's copy, which must touch nothing of the original's."""
        if self._is_copy:
            raise self._broken_error()

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._broken_error()
        if self._phase is not Phase.OPEN:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _lifetime.interpreter_is_ending():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _broken_error(self) -> BrokenProcessPool:
        assert self._broken is not None
        reason, cause = self._broken
        error = BrokenProcessPool(reason)
        error.__cause__ = cause
        return error

    # --- starting ---------------------------------------------------------------------

    def _start(self) -> None:
        failed: Failed = []
        try:
            with self._lock:
                self._check_open()
                if self._thread is not None or self._is_starting:
                    return
                self._look_at_what_is_held()  # For a handler that submits while the pool starts.
                self._start_or_fail(failed)
        finally:
            fail_all(failed)

    def _start_or_fail(self, failed: Failed) -> None:
        self._is_starting = True
        try:
            self._start_all()
        except BaseException as error:
            # Of signal handlers and finalizers, which came in between.
            left = self._ledger.clear() if self._thread is None else []
            why = f"the pool could not be started: {type(error).__name__}: {error}"
            failed.extend((task, BrokenProcessPool(why)) for task in left)
            raise
        finally:
            self._is_starting = False

    def _start_all(self) -> None:
        """With the lock held."""
        _processes.import_for_children()
        channels = PoolChannels(self._settings.limits.max_workers)
        try:
            is_green = _green.threads_are_green()
            self._waiter = GreenWaiter() if is_green else Waiter()
        except BaseException:
            channels.close()
            raise
        spares = self._settings.limits.spares
        channels.board.introduce(sb.EXECUTOR, os.getpid(), **spares)
        self._fence = _fences.begin(channels.board)
        self._take(channels)
        _lifetime.look_after(self)
        try:
            if not is_green:
                self._direct.open(channels, self._enter_direct, self._wake)
            self._waiter.register(self._channels.yells.fileno(), shared=True)
            self._check_open()  # Or the interpreter's end has not seen this pool.
            self._share_tracker()
            self._start_supervisor()
            thread = threading.Thread(target=self._run, name="prefork-executor-io")
            thread.start()
            self._thread = thread
        except BaseException:
            if self._thread is None:
                self._close()
                self._direct.close()
            raise

    def _take(self, channels: PoolChannels) -> None:
        self._channels = channels
        if self._recorder is not None:
            channels.board.words[sb.RECORDING] = 1
        self._auditor = Auditor(self._ledger, channels)
        self._batches = Batches(self._ledger, self._auditor, channels.board)
        self._dispatcher = Dispatcher(
            self._ledger, channels, self._endings, self._batches, self._wake
        )

    def _share_tracker(self) -> None:
        if self._settings.is_forked:  # Else multiprocessing passes it on.
            self._tracker = Tracker.new()
        if self._tracker is not None:
            self._waiter.register(self._tracker.descriptor)

    def _look_at_what_is_held(self) -> None:
        """What the workers of a supervisor that starts now will have."""
        self._modules = HeldModules(is_forked=self._settings.is_forked)
        if self._settings.is_forked:
            self._held = HeldMain.forked()
        else:
            self._held = HeldMain.expected()

    def _start_supervisor(self) -> None:
        """Takes its time, and needs no lock."""
        self._look_at_what_is_held()
        self._is_supervisor_ready = False
        self._supervisor = supervisor = SupervisorHandle(self._stop)
        self._supervision = Supervision(supervisor, self._channels.board)
        try:
            supervisor.start(self._context, self._settings, self._give_channels)
            self._waiter.register(supervisor.control.fileno())
        except BaseException:
            with self._lock:
                self._supervisor, self._held = None, HeldMain.expected()
            supervisor.close()
            raise
        with self._lock:
            # Workers whose end has been asked for meanwhile may be its own.
            self._dispatcher.is_held = self._last_end != self._last_end_done

    def _give_channels(self, control: _descriptors.Socket) -> None:
        # From now on the word is written by those over there.
        self._channels.board.words[sb.MAIN] = (self._supervisor and self._supervisor.pid) or 0
        self._channels.give_to(control)

    def _close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        if self._tracker is not None:
            self._tracker.close()
        self._waiter.close()
        self._channels.close()

    def _report(self) -> None:
        """Tell the supervisor how much there is, and ring if it is more than it
        sees workers for. It goes on looking by itself while they lack."""
        outstanding = self._ledger.outstanding
        words = self._channels.board.words
        words[sb.OUTSTANDING] = outstanding
        if self._fence is not None:
            self._fence()
        if outstanding > words[sb.ENOUGH]:
            self._channels.doorbell.ring()

    def _enter_direct(self, number: int, duration: int) -> None:
        """In a caller's thread: this task has ended, and its future has its result."""
        with self._lock:
            if self._phase is Phase.ENDED:
                return  # A signal handler has closed it meanwhile, and has not waited in vain.
            self._history.note_backlog(self._ledger, self._channels.board)
            if self._ledger.settle(number, duration) is not None:
                self._history.finished += 1
            self._report()
            is_more_to_do = (
                self._ledger.waiting or self._phase is not Phase.OPEN or self._is_abandoned
            )
        if is_more_to_do:
            self._wake()

    # --- the I/O thread -----------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:  # Until it has been started, or that was interrupted.
            if self._thread is not threading.current_thread():
                return
            if self._phase is Phase.ENDED:
                # A signal handler has shut down what it found not yet started.
                self._phase = Phase.CLOSING
        self._direct.serve()
        with self._direct.reading:
            try:
                while self._phase is not Phase.ENDED:
                    self._turn()
            except BaseException as error:
                if self._is_copy:
                    return  # A done-callback has forked, and this thread is the fork's only one.
                # A bug of ours must not leave futures that nobody will ever resolve.
                logger.critical("the executor's I/O thread failed", exc_info=True)
                self._break("the executor's I/O thread failed; this is a bug in the pool", error)
                self._end()

    def _turn(self) -> None:
        """Read a batch, resolve its futures, send what waits; wait if nothing came."""
        outcomes: list[Outcome] = []
        # More than those in flight is not to be expected; what else has come wakes us at once.
        more = self._read_batch(outcomes, len(self._ledger.in_flight))
        while self._supervisor is None and self._read_batch(outcomes, NEVER_ENOUGH):
            pass  # Nobody is left who could say more.
        # After reading: the marker that has woken us for one may have been read just now.
        if self._requests:
            with self._lock:
                self._history.note_backlog(self._ledger, self._channels.board)
        while self._requests:
            self._requests.popleft()()
        self._resolve(outcomes)
        while self._get_ready():
            self._resolve(outcomes)
        self._dispatcher.close_sent()
        self._auditor.close_unread()
        while self._auditor.dropped:
            logger.error("what was no task was dropped: %s", self._auditor.dropped.pop(0))
        if self._supervisor is None and self._is_to_end():
            self._end()
        elif not more:
            self._wait()

    def _wait(self) -> None:
        patience = self._patience()
        self._direct.reading.release()
        try:
            ready = self._waiter.wait(patience)
        finally:
            self._direct.reading.acquire()
        self._ownership.woke(is_early=bool(ready))
        if not ready:
            self._channels.files.drop_unused()
        if (tracker := self._tracker) is not None and tracker.descriptor in ready:
            self._waiter.unregister(tracker.descriptor)
            tracker.start()
        supervisor = self._supervisor
        if supervisor is None:
            self._replace_supervisor()
        elif supervisor.control.fileno() in ready:
            self._on_supervisor_end(supervisor)
        else:
            self._look_after(supervisor, ready)

    def _look_after(self, supervisor: SupervisorHandle, ready: list[int]) -> None:
        """Kill it, if it does not do what it should."""
        ended = self._supervision.on_readable(ready)
        if ended is not None:
            self._waiter.unregister(ended)
            _descriptors.close_quietly([ended])
        if self._supervision.is_overdue():
            logger.error("the supervisor did not react in %g s; killing it", REACT_WITHIN)
            supervisor.kill()

    def _patience(self) -> float | None:
        """Seconds after which there is something to do though nobody has said so."""
        watched = None if self._supervisor is None else self._supervision.look_at
        due = (self._endings.look_at, self._batches.look_at, self._restarts.at, watched)
        idle = (self._channels.files.drop_at, self._ownership.look_at)
        looks = [at for at in (*due, *idle) if at is not None]
        waits = [max(0.0, min(looks) - time.monotonic())] if looks else []
        has_unsent = self._supervisor is not None and self._supervisor.has_unsent
        if self._auditor.is_at_work or self._dispatcher.is_to_try_again or has_unsent:
            waits.append(AUDIT_INTERVAL)
        elif self._ledger.in_flight:
            waits.append(MISSING_INTERVAL)
        return min(waits, default=None)

    def _read_batch(self, outcomes: list[Outcome], enough: int) -> bool:
        """True if there may be more to read. After so many outcomes there is not."""
        was_sent = self._ledger.was_sent
        for _ in range(BATCH):
            try:
                packet = self._direct.receive(self._channels.upstream)
            except BlockingIOError:
                return False
            except EOFError:
                self._on_cut()
                return False
            except ProtocolError as error:
                logger.error(  # noqa: TRY400 - where we stood when it came says nothing
                    "a malformed message from a worker was dropped: %s", error
                )
                continue
            kind = packet.kind
            if (kind == Kind.RESULT or kind == Kind.FAILURE) and was_sent(packet.number):
                outcomes.append(open_outcome(packet, self._ledger, self._channels.files))
                if len(outcomes) == enough:
                    return False
            elif kind == Kind.OUTCOMES:
                _channel.discard(packet)
                self._open_all(packet.body, outcomes)
                if len(outcomes) > MOST_OUTCOMES:
                    return True
            elif kind == Kind.YELL:
                self._on_yell_packet(packet)
            else:
                self._on_notice(packet, outcomes)
        return True

    def _open_all(self, body: memoryview, outcomes: list[Outcome]) -> None:
        was_sent = self._ledger.was_sent
        try:
            for kind, number, duration, pickled in _wire.unpack_outcomes(body):
                if not was_sent(number):
                    raise ProtocolError(f"an outcome of task {number}")
                if kind == Kind.SPAN:
                    self._record_run(number, duration, pickled)
                    continue
                outcomes.append(open_pickled(kind, number, duration, [pickled], self._ledger))
        except ProtocolError as error:
            logger.error("malformed outcomes were dropped: %s", error)  # noqa: TRY400

    def _record_run(self, number: int, duration: int, body: memoryview) -> None:
        begin, pid, slot = _wire.unpack_span(body)
        if (recorder := self._recorder) is not None:
            from ._timeline import Run  # With the recorder; hardly anybody records.

            run = Run(number, begin, begin + duration, pid, slot)
            recorder.ran(self._ledger.in_flight.get(number), run)

    def _resolve(self, outcomes: list[Outcome]) -> None:
        failed: Failed = []
        ends: list[End | None] = []
        self._untold = ends
        try:
            with self._lock:
                self._settle(outcomes, ends)
                self._go_on(failed)
        finally:
            # Even if that fails, for these are in the books no more.
            tell_all(ends)
            fail_all(failed)

    def _settle(self, outcomes: list[Outcome], ends: list[End | None]) -> None:
        """With the lock held: enter these outcomes into the books."""
        # The backlog is at its largest just before it shrinks.
        self._history.note_backlog(self._ledger, self._channels.board)
        for done in outcomes:
            end = settle(self._ledger, done)
            ends.append(end)
            self._history.finished += end is not None and not done.is_death
        outcomes.clear()

    def _go_on(self, failed: Failed) -> None:
        """With the lock held: whatever can be done now."""
        if self._direct.was_interrupted:
            self._direct.was_interrupted = False
            self._ledger.weigh_again()
        if self._dispatcher.was_interrupted:
            self._dispatcher.was_interrupted = False
            self._ledger.weigh_again()
            self._auditor.open()
        if self._supervisor is not None:
            self._supervisor.flush()
        if self._dispatcher.is_cut and not self._is_cut:
            self._on_cut()
        if self._auditor.is_at_work:
            self._auditor.look()
        elif self._ledger.in_flight:
            self._auditor.look_for_missing()
        if self._batches.look_at is not None:
            self._batches.look()
        if self._endings.look_at is not None:
            self._end_tasks()
        if self._ledger.waiting and self._broken is None:
            self._dispatcher.send_waiting(failed)
        self._report()
        self._end_when_done()

    def _read_board_in_order(self) -> list[Slot]:
        """What was written before what has been read so far is in this reading."""
        _fences.everywhere(self._channels.board)
        return self._channels.board.read_all()

    def _end_tasks(self) -> None:
        """With the lock held: have those workers ended whose tasks are to end."""
        ends = self._endings.due(
            self._ledger.in_flight, self._read_board_in_order, self._auditor.mark
        )
        for slot in ends:
            if self._supervisor is not None:
                self._supervisor.tell_if_free(Kind.END_TASK, slot.task, slot.place)
                self._supervision.expect_sign()

    # --- what the caller has asked for: here, because no signal handler can come in between ----

    def _cancel_waiting(self) -> None:
        with self._lock:
            cancelled = self._ledger.withdraw()
            self._report()
        _cancel_all(cancelled)

    def _abort_now(self, task: Task) -> None:
        with self._lock:
            verdict = TaskAborted(task.name)
            if self._ledger.in_flight.get(task.number) is task:
                self._auditor.recall()
            is_dropped = False
            if self._ledger.in_flight.get(task.number) is task:
                task.verdict = verdict
                self._endings.look_now()
            elif is_dropped := self._ledger.drop(task, verdict):
                self._report()
        if is_dropped:
            fail_all([(task, verdict)])

    def _end_workers_now(self, doomed: list[Task], number: int, reason: str, end: int) -> None:
        with self._lock:
            self._auditor.recall()
            gone = self._ledger.give_up(doomed)
            if self._recorder is not None:
                self._recorder.gave_up(gone, self._channels.board.read_all())
            self._auditor.forget()
            self._end_when_done()  # If it closes, nobody is forked for those that end.
            if self._supervisor is not None and self._is_supervisor_ready:
                self._supervisor.tell(Kind.END_WORKERS, number, end)
                self._supervision.expect_sign()
            elif self._supervisor is not None:
                # It preloads, perhaps for ever; there are no workers yet.
                self._supervisor.make_it_kill()
                self._supervision.expect_end()
                self._restarts.forgive()
            self._last_end_done = end
            self._report()
        _cancel_all([task for task in gone if not task.number])
        fail_all([(task, BrokenProcessPool(reason)) for task in gone if task.number])

    def _get_ready(self) -> bool:
        """Pickle, or copy, what is to be sent next and is not ready. Not under the lock: it
        takes its time, and pickling runs the user's code. False: there was nothing to do."""
        failed: dict[int, tuple[Task, BaseException]] = {}
        held = self._held
        if not held.is_known or self._broken is not None:
            return False
        with self._lock:
            tasks = self._dispatcher.next_to_prepare()
        done = 0
        for task in tasks:
            try:
                done += self._get_one_ready(task, held, is_first=task is tasks[0])
            except BaseException as error:
                # Even SystemExit: it is the user's object that raised it in our thread.
                failed[id(task)] = (task, error.with_traceback(None))
            if done >= READY_AT_ONCE:
                break
        if failed:
            with self._lock:
                gone = self._ledger.give_up(task for task, _ in failed.values())
            fail_all([failed[id(task)] for task in gone])
        return bool(tasks)

    def _get_one_ready(self, task: Task, held: HeldMain, *, is_first: bool) -> int:
        """Returns how many bytes that took."""
        late, size = task.late, 0
        if task.is_dropped or task.future.cancelled():
            return 0
        if late is not None:
            payload = late.payload(task.name, held, self._modules)
            size = task.bind(payload, held)
        # The others only if that is no matter: there may be no room for them yet.
        is_to_wrap = task.bulk and (is_first or task.bulk < READY_AT_ONCE)
        if is_to_wrap and task.parcel is None:
            try:
                task.wrap(self._channels.files)
            except BaseException as error:
                _failures.add_note(error, f"Task {task.name} could not be sent to a worker.")
                raise
        return size + task.bulk

    def _on_yell_packet(self, packet: Packet) -> None:
        if self._on_yell is None and not self._yell_hooks:
            _channel.discard(packet)
            return
        try:
            data = _pickling.loads(_channel.open_parts(packet))
            hook = self._yell_hooks.get(type(data), self._on_yell)
            if hook is not None:
                hook(packet.number, data)
        except BaseException:
            # Even SystemExit: it would end this thread, and with it every future.
            logger.exception("on_yell failed for a message from worker %d", packet.number)

    def _on_notice(self, packet: Packet, outcomes: list[Outcome]) -> None:
        kind = packet.kind
        try:
            told = read_notice(packet)
        except BaseException as error:
            # Even SystemExit, which the user's exceptions may raise as they are unpickled.
            logger.error(  # noqa: TRY400 - where it was read says nothing
                "a malformed message of kind %d was dropped: %s", kind, describe(error)
            )
            return
        if kind == Kind.READY:
            self._dispatcher.ready.add(packet.number)
            self._starts.went_well()
        elif kind == Kind.DEATH:
            self._on_death(told, outcomes)
        elif kind == Kind.DECISION:
            with self._lock:
                self._history.enter(told)
            if (recorder := self._recorder) is not None:
                recorder.decided(*told)
        elif kind == Kind.SUPERVISOR_READY:
            self._restarts.went_well()
            with self._lock:
                self._is_supervisor_ready = True
                main = self._supervision.watch(packet.number)
            if main is not None:
                self._waiter.register(main)
        elif kind == Kind.MAIN_HELD:
            self._on_main_held(*told)
        elif kind == Kind.INITIALIZER_FAILED:
            # What comes of it waits for the worker's death, which lets it log in peace.
            self._failures_at_start[packet.number] = (failure_phrase(packet.extra), told)
        elif kind == Kind.START_FAILED:
            phrase = failure_phrase(packet.number)
            self._break(f"{phrase}: {type(told).__name__}: {told}", told)
        elif kind == Kind.MARKER:
            with self._lock:
                self._auditor.on_marker(packet.number, {done.number for done in outcomes})
                self._endings.on_marker(packet.number)
                found = self._batches.on_marker(packet.number)
            self._open_all(memoryview(found), outcomes)
        elif kind == Kind.WORKERS_TOLD:
            with self._lock:
                if packet.number == self._last_end:
                    self._dispatcher.is_held = False
        elif kind == Kind.RELOADED:
            self._end_reloads(packet.number)
        elif kind == Kind.STOPPED:
            # As after a death in IDLE: it may have been woken, and nobody else.
            with self._lock:
                self._auditor.recall()
        elif kind == Kind.UNBEGUN:
            self._take_back(packet.number, packet.extra)

    def _on_main_held(
        self, held: dict[str, bytes], reasons: tuple[str, ...], is_shared: bool
    ) -> None:
        # Not under the lock: what main holds is compared by its hash.
        known = self._held
        if not known.is_known:
            known = HeldMain.imported(held, is_common=is_shared)
        with self._lock:
            self._held = known
            said, self._in_the_way = self._in_the_way, reasons
            self._history.main_not_shared = () if is_shared else reasons
        if reasons and reasons != said:
            logger.info(_SHARED if is_shared else _NOT_SHARED, "; ".join(reasons))

    def _end_reloads(self, last: int, error: BaseException | None = None) -> None:
        """Every reload up to this one is complete, or has failed."""
        with self._lock:
            ended = [self._reloads.pop(number) for number in list(self._reloads) if number <= last]
        for reloaded in ended:
            if error is None:
                resolve(reloaded.set_result, None)
            else:
                resolve(reloaded.set_exception, error)

    # --- deaths ---------------------------------------------------------------------------

    def _on_death(self, death: _wire.Death, outcomes: list[Outcome]) -> None:
        self._dispatcher.ready.discard(death.pid)
        exitcode, signal = _processes.split_status(death.status)
        self._roster.ended(death.pid, death.born, -(signal or 0) if exitcode is None else exitcode)
        failure = self._failures_at_start.pop(death.pid, None)
        if (recorder := self._recorder) is not None:
            recorder.died(death, self._ledger.in_flight)
        is_at_start = failure is not None or death.state == sb.STARTING
        if is_at_start and not death.flags & _wire.TOLD:
            how = describe_end(exitcode, signal)
            self._on_failed_start(death.pid, how, failure, bool(death.flags & _wire.NEW))
        elif death.state == sb.BUSY:
            reason = "out of memory" if death.flags & _wire.OUT_OF_MEMORY else ""
            self._lose(death.task, outcomes, death.pid, exitcode, signal, reason)
            self._take_back(death.task + 1, death.tail)
        elif death.state == sb.TAKING:
            with self._lock:
                self._auditor.open()
        elif death.state == sb.IDLE:
            # A message may have woken it, and nobody else, just before it died.
            with self._lock:
                self._auditor.recall()

    def _take_back(self, number: int, count: int) -> None:
        """These have been taken by a worker and will not begin there."""
        numbers = range(number, number + min(count, _wire.MOST_CALLS))
        with self._lock:
            # Most often they have been recalled before. Then the pipe is left alone: what a
            # worker took meanwhile would begin before what had been sent before that.
            if unbegun := [n for n in numbers if n in self._ledger.in_flight]:
                self._auditor.recall(unbegun)

    def _lose(
        self,
        number: int,
        outcomes: list[Outcome],
        pid: int,
        exitcode: int | None,
        signal: int | None,
        reason: str = "",
    ) -> None:
        """This task has ended with its worker, if its outcome has not come before."""
        # Outcomes of this batch come first: its result may be among them.
        task = self._ledger.in_flight.get(number)
        if task is None or any(done.number == number for done in outcomes):
            return
        error = WorkerDied(pid, exitcode, signal, task.name, reason)
        outcomes.append(Outcome(number, 0, None, error, is_death=True))

    def _on_failed_start(
        self, pid: int, how: str, failure: tuple[str, BaseException] | None, is_new: bool
    ) -> None:
        what, is_hopeless = self._starts.failed(pid, how, failure)
        error = None if failure is None else failure[1]
        if is_new and self._reloads:
            self._give_up_reload(what, error)
        elif self._dispatcher.ready:
            logger.error("%s; the workers that have started go on", what)
        elif is_hopeless:
            self._break(what, error)

    def _give_up_reload(self, what: str, error: BaseException | None) -> None:
        with self._lock:
            last = self._last_reload
            if self._supervisor is not None:
                self._supervisor.tell(Kind.KEEP_OLD)
        logger.error("the reload was given up, the old workers stay: %s", what)
        failed = ReloadFailed(f"the reload was given up, the old workers stay: {what}")
        failed.__cause__ = error
        self._end_reloads(last, failed)

    # --- the supervisor's end, and the pool's -----------------------------------------------

    def _end_when_done(self) -> None:
        """With the lock held: when closing and nothing is left, end the supervisor."""
        if self._is_abandoned and self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        if self._phase is Phase.CLOSING and not self._ledger.outstanding:
            self._phase = Phase.ENDING
            if self._supervisor is not None:
                self._supervisor.tell(Kind.SHUTDOWN)
                self._supervision.expect_sign()

    def _on_cut(self) -> None:
        """A task has shut down a channel, which it has inherited, for all who use it. Nobody
        can say any more what has become of what runs: it ends, and another supervisor goes
        on with new channels."""
        if self._is_cut:
            return
        self._is_cut = True
        logger.error("a task has shut down the pool's channels; what runs is ended")
        self._waiter.unregister(self._channels.yells.fileno())
        self._restarts.forgive()
        with self._lock:
            self._dispatcher.is_cut = True
            if self._supervisor is not None:
                self._supervisor.make_it_kill()

    def _renew_channels(self) -> None:
        with self._lock:
            self._channels.renew()
            self._waiter.register(self._channels.yells.fileno(), shared=True)
            self._direct.watch_again()
            self._is_cut = self._dispatcher.is_cut = False

    def _on_supervisor_end(self, supervisor: SupervisorHandle) -> None:
        self._waiter.unregister(supervisor.control.fileno())
        if (main := self._supervision.watched) is not None:
            self._waiter.unregister(main)
        self._supervision.close()
        pid, how = supervisor.pid, supervisor.wait()
        board = self._channels.board
        # First who forks workers, if that was another process, or there might be more of them.
        main = board.words[sb.MAIN]
        _processes.wait_until_gone({main} - {0, pid}, board.descriptor, GONE_WITHIN)
        pids = [slot.pid for slot in board.read_all()]
        _processes.wait_until_gone(pids, board.descriptor, GONE_WITHIN)
        board.words[sb.MAIN] = board.words[sb.SIGN] = 0
        count_the_left(board)
        with self._lock:
            supervisor.close()
            self._supervisor = None
        if self._is_to_end():
            return
        if self._channels.are_cut():
            self._on_cut()
        self._settle_after_supervisor()
        self._end_reloads(self._last_reload)
        # Closing, what was lost may have been the last; or the caller gave up.
        if self._is_to_end():
            return
        what, is_hopeless = self._restarts.ended(
            how, self._history.finished, from_outside=supervisor.ended_from_outside
        )
        if is_hopeless:
            self._break(what)
        else:
            logger.error("%s", what)

    def _replace_supervisor(self) -> None:
        """If it is time, in the place of one that has ended."""
        if not self._restarts.is_due():
            return
        try:
            if self._is_cut:
                self._renew_channels()
            self._start_supervisor()
        except Exception as error:
            what = self._restarts.not_started(error)
            if what is None:
                self._break(f"no other supervisor could be started: {error}", error)
            else:
                logger.error("%s", what)  # noqa: TRY400 - where it failed says nothing
                self._end_reloads(self._last_reload)  # Asked of one that has never been.
        with self._lock:
            self._report()

    def _is_to_end(self) -> bool:
        """Whether nobody needs a supervisor any more."""
        return self._phase is Phase.ENDING or self._broken is not None

    def _settle_after_supervisor(self) -> None:
        """No worker lives. What the slots name had begun; nothing else had."""
        outcomes: list[Outcome] = []
        while self._read_batch(outcomes, NEVER_ENOUGH):
            pass
        self._batches.forget()
        for slot in self._channels.board.read_all():
            self._open_all(memoryview(self._channels.board.unsent(slot.place)), outcomes)
            if (recorder := self._recorder) is not None:
                recorder.died(_as_killed(slot), self._ledger.in_flight)
            if slot.state == sb.BUSY:
                why = "a task has shut down the pool's channels" if self._is_cut else ""
                self._lose(slot.task, outcomes, slot.pid, None, int(signal.SIGKILL), why)
            self._roster.ended(slot.pid, slot.born, -int(signal.SIGKILL))
            self._channels.board.clear(slot.place)
        self._dispatcher.is_held = True
        self._resolve(outcomes)
        self._dispatcher.ready.clear()
        self._failures_at_start.clear()
        with self._lock:
            self._auditor.forget()
            self._auditor.recall()
            self._ledger.take_back(list(self._ledger.in_flight))
            # What the next workers have in their __main__ is still to be seen.
            self._held = HeldMain.expected()
            for task in self._ledger.waiting:
                task.unbind()

    def _break(self, reason: str, cause: BaseException | None = None) -> None:
        """The pool cannot go on: fail every task, end every process."""
        with self._lock:
            if self._broken is None:
                self._broken = (reason, cause)
            tasks = self._ledger.clear()
            if self._recorder is not None:
                self._recorder.gave_up(tasks, self._channels.board.read_all())
            self._auditor.forget()
            if self._supervisor is not None:
                self._supervisor.make_it_kill()
                self._supervision.expect_end()
        error = self._broken_error()
        fail_all([(task, self._broken_error()) for task in tasks])
        self._end_reloads(self._last_reload, error)

    def _end(self) -> None:
        """All processes have ended: close everything, end the I/O thread."""
        with self._lock:
            # A signal handler may have closed the pool in the midst of a submit.
            left = self._ledger.clear()
            self._history.close(self._channels.board)
            self._close()
            self._phase = Phase.ENDED
        fail_all([(task, BrokenProcessPool("the executor was shut down")) for task in left])
        self._direct.close()
        self._roster.all_ended()
        self._end_reloads(self._last_reload)
        if (recorder := self._recorder) is not None:
            recorder.on_shutdown()

    # --- a fork of the caller's process --------------------------------------------------------

    def disown(self) -> None:
        """In a child that the caller forked: this copy is not the executor."""
        self._untold.clear()  # A done-callback may have forked. The others are not for here.
        self._channels.close()
        self._waiter.close()
        if self._supervisor is not None:
            self._supervisor.disown()
        if self._tracker is not None:
            self._tracker.disown()
        self._lock = threading.RLock()
        self._direct.disown(self._lock)
        self._is_copy = True
        self._recorder = None
        self._phase = Phase.ENDED
        self._broken = (
            "this executor belongs to the process that created it; "
            f"process {os.getpid()} was forked from that one and needs its own",
            None,
        )


def _as_killed(slot: Slot) -> _wire.Death:
    """The death that nobody tells of a worker whose supervisor has died."""
    status = int(signal.SIGKILL)
    held = (slot.place, slot.state, slot.task, slot.done, 0, slot.tail)
    return _wire.Death(slot.pid, status, *held, slot.born, slot.since, time.monotonic_ns())


def _cancel_all(tasks: list[Task]) -> None:
    for task in tasks:
        if task.future.cancel():
            task.future.set_running_or_notify_cancel()
