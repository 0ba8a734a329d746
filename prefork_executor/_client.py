"""The caller's end of one pool: its channels, its supervisor, its one I/O thread.

Threads and the lock
--------------------
Any thread may submit; the I/O thread reads what comes upstream, resolves
futures, sends what waits, and looks after the supervisor. One lock guards the
books. It is never held while a future is resolved, because that runs the
caller's callbacks, which may submit.

submit sends at once when the window and the pipe allow it, so a task goes to an
idle worker without a change of threads. It never waits: what cannot be sent
stays in the books. There is no need to watch for the pipe to become writable:
what fills it are tasks in flight, so an outcome is bound to come, and then the
I/O thread sends what waits.

The I/O thread refers to the client and not to the executor, so an executor that
nobody refers to any more can be collected; its finalizer closes the client.

The client holds both ends of the task pipe and of the yell channel. So they
outlive a supervisor; tasks in the pipe can be taken back; and a marker sent to
oneself tells when all that others sent before it has been read.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import logging
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any

from . import _channel, _failures, _pickling, _posix, _wire
from . import _scoreboard as sb
from ._channel import DONTWAIT, Packet, PoolChannels
from ._ledger import Audit, Call, Ledger, Task
from ._outcomes import Outcome, begin, fail_all, is_about_the_task, resolve, say_running
from ._pickling import HeldMain, NeedsMain, Part
from ._posix import Waiter
from ._scoreboard import State
from ._supervisor_handle import SupervisorHandle
from ._wire import Kind
from ._worker import Settings, unpickling_error
from .errors import ProtocolError, WorkerDied, describe_end
from .stats import ExecutorStats, ScalingDecision, WorkerStats

logger = logging.getLogger("prefork_executor")

BATCH = 64
"""Messages read before their futures are resolved and new tasks are sent."""
AUDIT_INTERVAL = 0.005
"""Seconds between two looks of an audit that waits for a worker to move."""
MOST_START_DEATHS = 3
"""Workers in a row that may die in their initializer before the pool is broken."""
MOST_START_DEATHS_WITHOUT_INITIALIZER = 10
"""The same without an initializer, when only the system can be to blame."""
MOST_SUPERVISOR_DEATHS = 3
"""Supervisors in a row that may die before one was ready."""
GONE_WITHIN = 10.0
"""Seconds to wait for the workers of a dead supervisor to be gone, at most."""
DECISIONS_KEPT = 256


class Phase(enum.Enum):
    """OPEN takes tasks. CLOSING finishes those it has. ENDING has told the
    supervisor to end and waits for it. ENDED owns nothing any more."""

    OPEN = 1
    CLOSING = 2
    ENDING = 3
    ENDED = 4


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """Owns one supervisor and the channels to its pool. Started by the first task."""

    # From _start on; _thread is None before.
    _channels: PoolChannels
    _waiter: Waiter

    def __init__(
        self,
        context: BaseContext,
        settings: Settings,
        on_yell: Callable[[int, Any], object] | None,
    ) -> None:
        self._context = context
        self._settings = settings
        self._on_yell = on_yell
        self._lock = threading.RLock()
        self._was_interrupted = False
        self._ledger = Ledger()
        self._phase = Phase.OPEN
        self._is_abandoned = False
        self._broken: tuple[str, BaseException | None] | None = None
        self._thread: threading.Thread | None = None
        self._supervisor: SupervisorHandle | None = None
        self._held: HeldMain | None = None
        self._has_late = False
        self._ready: set[int] = set()
        self._audits: list[Audit] = []
        self._tries_again = False
        self._last_marker = 0
        self._initializer_failures: dict[int, BaseException] = {}
        self._start_deaths = 0
        self._supervisor_deaths = 0
        self._finished = 0
        self._deaths = 0
        self._peak = 0
        self._decisions: collections.deque[ScalingDecision] = collections.deque(
            maxlen=DECISIONS_KEPT
        )

    # --- the caller's calls -----------------------------------------------------------

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        """See PreforkExecutor.submit."""
        if self._thread is None:
            self._start()
        future: Future[Any] = Future()
        try:
            parts, call = _pickling.dump_call(fn, args, kwargs, self._held), None
        except NeedsMain as wait:
            parts, call = None, wait.call
        except pickle.PicklingError as error:
            self._check_open()
            # Its traceback would lead to this frame, and from here to the future.
            future.set_exception(error.with_traceback(None))
            return future
        try:
            self._accept(future, fn, parts, call)
        except BaseException:
            # A signal handler may have raised half-way: the I/O thread does the rest.
            self._wake()
            raise
        return future

    def _accept(
        self, future: Future[Any], fn: Any, parts: list[Part] | None, call: Call | None
    ) -> None:
        failed: list[tuple[Task, BaseException]] = []
        with self._lock:
            self._check_open()
            ledger = self._ledger
            task = Task(future, ledger.timing_of(fn), parts, call)
            # While others wait, outcomes are to come, and the I/O thread sends then.
            is_next = not ledger.waiting and ledger.has_room(len(self._ready))
            ledger.waiting.append(task)
            if parts is None:
                self._has_late = True
                # If it has become known since, the I/O thread may be asleep.
                self._wake()
            elif is_next:
                ledger.number(task)
                say_running(future)
                self._send(task, parts, failed)
            self._report()
        if failed:
            fail_all(failed)

    def _wake(self) -> None:
        """Make the I/O thread look around. If its channel is full, it is awake."""
        with contextlib.suppress(OSError):
            self._channels.send_marker(0)

    def shutdown(self, *, wait: bool, cancel: bool) -> None:
        """See PreforkExecutor.shutdown."""
        cancelled = []
        with self._lock:
            if self._phase is Phase.OPEN:
                self._phase = Phase.CLOSING
            if self._thread is None:
                self._phase = Phase.ENDED
                return
            if cancel:
                cancelled = self._ledger.withdraw()
            if self._phase is not Phase.ENDED:
                self._report()
                self._wake()
        for task in cancelled:
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
        if wait and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """Nobody refers to the executor any more: close it once its work is done.

        Takes no lock and waits for nothing, because the garbage collector calls it,
        in whatever thread it runs, which may hold the lock."""
        self._is_abandoned = True
        if self._thread is not None:
            self._wake()

    def join(self, timeout: float | None) -> bool:
        """See PreforkExecutor.join."""
        with self._lock:
            if self._phase is Phase.OPEN:
                raise RuntimeError("join() needs shutdown() first: the executor is open")
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def end_workers(self, number: int, reason: str) -> None:
        """See PreforkExecutor.terminate_workers and kill_workers: the same, by
        one signal or the other."""
        self.shutdown(wait=False, cancel=True)
        if self._phase is not Phase.ENDED:
            self._break(reason, number=number)

    def stats(self) -> ExecutorStats:
        """See PreforkExecutor.stats."""
        with self._lock:
            is_open = self._thread is not None and self._channels.is_open
            board = self._channels.board.read_all() if is_open else []
            return ExecutorStats(
                max_workers=self._settings.limits.max_workers,
                workers=tuple(self._worker_stats(slot) for slot in board),
                peak_workers=max(self._peak, len(board)),
                waiting=len(self._ledger.waiting),
                in_flight=len(self._ledger.in_flight),
                finished=self._finished,
                deaths=self._deaths,
                decisions=tuple(self._decisions),
            )

    def _worker_stats(self, slot: sb.Slot) -> WorkerStats:
        now = time.monotonic_ns()
        task = self._ledger.in_flight.get(slot.task) if slot.state == sb.BUSY else None
        return WorkerStats(
            pid=slot.pid,
            state=State(slot.state).name.lower(),
            task=task.name if task is not None else None,
            in_state=max(0, now - slot.since) / 1e9,
            age=max(0, now - slot.born) / 1e9,
            tasks_done=slot.done,
        )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._broken_error()
        if self._phase is not Phase.OPEN:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _interpreter_is_ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _broken_error(self) -> BrokenProcessPool:
        assert self._broken is not None
        reason, cause = self._broken
        error = BrokenProcessPool(reason)
        error.__cause__ = cause
        return error

    # --- starting ---------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            self._check_open()
            if self._thread is not None:
                return
            self._channels = PoolChannels(self._settings.limits.max_workers)
            self._waiter = Waiter()
            self._waiter.register(self._channels.yells.fileno())
            _clients.add(self)
            try:
                self._start_supervisor()
                thread = threading.Thread(target=self._run, name="prefork-executor-io")
                thread.start()
            except BaseException:
                self._close()
                raise
            self._thread = thread

    def _start_supervisor(self) -> None:
        if not self._settings.tell_main:
            self._held = HeldMain.forked()
        self._supervisor = supervisor = SupervisorHandle()
        try:
            supervisor.start(self._context, self._settings, self._channels.give_to)
        except BaseException:
            self._supervisor = None
            supervisor.close()
            raise
        self._waiter.register(supervisor.control.fileno())

    def _close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
        self._waiter.close()
        self._channels.close()

    # --- sending, with the lock held -----------------------------------------------------

    def _send_waiting(self, failed: list[tuple[Task, BaseException]]) -> None:
        """Send what may be sent. Tasks that cannot travel are added to ``failed``."""
        ledger = self._ledger
        while ledger.waiting and ledger.has_room(len(self._ready)):
            task = ledger.waiting[0]
            if task.parts is None:
                return  # Until _pickle_late has been over it.
            if not begin(task):
                ledger.waiting.popleft()
                continue
            ledger.number(task)
            if not self._send(task, task.parts, failed):
                return

    def _send(
        self, task: Task, parts: list[Part], failed: list[tuple[Task, BaseException]]
    ) -> bool:
        """Send the task that is the next to wait, and numbered. False: the pipe is full."""
        ledger = self._ledger
        try:
            # In the books before it is sent: its outcome may be there at once.
            ledger.sent(task)
            ledger.waiting.popleft()
            _channel.send(self._channels.tasks, Kind.CALL, task.number, 0, parts, DONTWAIT)
        except BlockingIOError:
            ledger.take_back([task.number])
            self._on_full_pipe()
            return False
        except BaseException as error:
            if not is_about_the_task(error):
                self._on_interrupted_send(task)
                raise
            ledger.settle(task.number)
            error.add_note(f"Task {task.name} could not be sent to a worker.")
            failed.append((task, error))
        self._tries_again = False
        return True

    def _on_interrupted_send(self, task: Task) -> None:
        """With the lock held: a signal handler raised while a task was being sent.
        Whether it has left is not known, as after a death in TAKING."""
        ledger = self._ledger
        if ledger.waiting and ledger.waiting[0] is task and task.number in ledger.in_flight:
            ledger.waiting.popleft()
        # Left to the I/O thread, where no handler can raise again.
        self._was_interrupted = True

    def _on_full_pipe(self) -> None:
        """With the lock held. What fills the pipe are tasks in flight, and their
        outcomes make us try again. With none in flight it is the limit on the
        descriptors under way, which all pools of one user share: then the I/O
        thread tries again by itself."""
        if not self._ledger.in_flight and not self._tries_again:
            self._tries_again = True
            self._wake()

    def _report(self) -> None:
        """Tell the supervisor how much there is, and ring if it is more than it
        sees workers for. It goes on looking by itself while they lack."""
        outstanding = self._ledger.outstanding
        words = self._channels.board.words
        words[sb.OUTSTANDING] = outstanding
        if outstanding > words[sb.ENOUGH]:
            self._channels.doorbell.ring()

    # --- the I/O thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._phase is not Phase.ENDED:
                self._turn()
        except BaseException as error:
            # A bug of ours must not leave futures that nobody will ever resolve.
            logger.critical("the executor's I/O thread failed", exc_info=True)
            self._break("the executor's I/O thread failed; this is a bug in the pool", error)
            self._end()

    def _turn(self) -> None:
        """Read a batch, resolve its futures, send what waits; wait if nothing came."""
        outcomes: list[Outcome] = []
        more = self._read_batch(outcomes)
        if self._has_late and self._held is not None:
            self._pickle_late(self._held)
        self._resolve(outcomes)
        if self._supervisor is None:
            self._end()
        elif not more:
            self._wait()

    def _wait(self) -> None:
        looks_again = self._audits or (self._tries_again and self._ledger.waiting)
        ready = self._waiter.wait(AUDIT_INTERVAL if looks_again else None)
        supervisor = self._supervisor
        if supervisor is not None and supervisor.control.fileno() in ready:
            self._on_supervisor_end(supervisor)

    def _read_batch(self, outcomes: list[Outcome]) -> bool:
        """True if there may be more to read."""
        for _ in range(BATCH):
            try:
                packet = self._channels.upstream.receive(DONTWAIT)
            except BlockingIOError:
                return False
            except ProtocolError as error:
                logger.error(  # noqa: TRY400 - where we stood when it came says nothing
                    "a malformed message from a worker was dropped: %s", error
                )
                continue
            if packet.kind == Kind.RESULT or packet.kind == Kind.FAILURE:
                outcomes.append(self._open_outcome(packet))
            elif packet.kind == Kind.YELL:
                self._on_yell_packet(packet)
            else:
                self._on_notice(packet, outcomes)
        return True

    def _open_outcome(self, packet: Packet) -> Outcome:
        number, duration = packet.number, packet.extra
        try:
            parts = _channel.open_parts(packet)
            if packet.kind == Kind.FAILURE:
                return Outcome(number, duration, None, _failures.load_failure(parts))
            return Outcome(number, duration, _pickling.loads(parts), None)
        except BaseException as error:
            task = self._ledger.in_flight.get(number)
            name = task.name if task is not None else "?"
            return Outcome(number, duration, None, unpickling_error(name, error))

    def _resolve(self, outcomes: list[Outcome]) -> None:
        failed: list[tuple[Task, BaseException]] = []
        with self._lock:
            tasks = [self._ledger.settle(done.number, done.duration) for done in outcomes]
            self._finished += len(outcomes)
            if self._was_interrupted:
                self._was_interrupted = False
                self._open_audit()
            if self._audits:
                self._look_after_audits()
            if self._ledger.waiting and self._broken is None:
                self._send_waiting(failed)
            self._report()
            self._end_when_done()
        for task in tasks:
            done = outcomes.pop(0)
            if task is None:
                continue
            if done.error is None:
                resolve(task.future.set_result, done.result)
            else:
                resolve(task.future.set_exception, done.error)
            # The caller's result is not kept alive by this thread's variables.
            del done
        fail_all(failed)

    def _pickle_late(self, held: HeldMain) -> None:
        """Pickle the calls that waited until it was known what the workers hold.
        Not under the lock: this runs the user's code."""
        failed: dict[int, tuple[Task, BaseException]] = {}
        with self._lock:
            late = [task for task in self._ledger.waiting if task.call is not None]
            self._has_late = False
        for task in late:
            try:
                assert task.call is not None
                task.parts = _pickling.dump_call(*task.call, held)
                task.call = None
            except BaseException as error:
                # Even SystemExit: it is the user's object that raised it in our thread.
                failed[id(task)] = (task, error.with_traceback(None))
        if failed:
            with self._lock:
                waiting = list(self._ledger.waiting)
                self._ledger.waiting.clear()
                self._ledger.waiting.extend(task for task in waiting if id(task) not in failed)
            fail_all([failed[id(task)] for task in waiting if id(task) in failed])

    def _on_yell_packet(self, packet: Packet) -> None:
        if self._on_yell is None:
            _channel.discard(packet)
            return
        try:
            self._on_yell(packet.number, _pickling.loads(_channel.open_parts(packet)))
        except BaseException:
            # Even SystemExit: it would end this thread, and with it every future.
            logger.exception("on_yell failed for a message from worker %d", packet.number)

    def _on_notice(self, packet: Packet, outcomes: list[Outcome]) -> None:
        kind = packet.kind
        if kind == Kind.READY:
            self._ready.add(packet.number)
            self._start_deaths = 0
        elif kind == Kind.DEATH:
            self._on_death(_wire.unpack_death(packet.number, packet.body), outcomes)
        elif kind == Kind.DECISION:
            self._on_decision(packet)
        elif kind == Kind.SUPERVISOR_READY:
            self._supervisor_deaths = 0
            with self._lock:
                if self._held is None:
                    self._held = HeldMain.imported(_pickling.loads([packet.body]))
        elif kind == Kind.INITIALIZER_FAILED:
            # What comes of it waits for the worker's death, which lets it log in peace.
            failure = _failures.load_failure(_channel.open_parts(packet))
            self._initializer_failures[packet.number] = failure
        elif kind == Kind.MARKER:
            self._on_marker(packet.number, outcomes)
        else:
            _channel.discard(packet)
            logger.error("a message of unknown kind %d was dropped", kind)

    def _on_decision(self, packet: Packet) -> None:
        decision = ScalingDecision(*_pickling.loads([packet.body]))
        with self._lock:
            self._decisions.append(decision)
            self._peak = max(self._peak, decision.workers + decision.started)

    # --- deaths ---------------------------------------------------------------------------

    def _on_death(self, death: _wire.Death, outcomes: list[Outcome]) -> None:
        self._ready.discard(death.pid)
        exitcode, signal = _posix.split_status(death.status)
        if death.pid in self._initializer_failures:
            self._on_initializer_failure(death.pid)
        elif death.state == sb.BUSY:
            self._lose(death.task, WorkerDied(death.pid, exitcode, signal), outcomes)
        elif death.state == sb.TAKING:
            self._open_audit()
        elif death.state == sb.IDLE:
            # A message may have woken it, and nobody else, just before it died.
            with self._lock:
                self._recall()
        elif death.state == sb.STARTING:
            self._on_death_at_start(death.pid, describe_end(exitcode, signal))

    def _lose(self, number: int, error: WorkerDied, outcomes: list[Outcome]) -> None:
        # Outcomes of this batch come first: its result may be among them.
        task = self._ledger.in_flight.get(number)
        if task is None or any(done.number == number for done in outcomes):
            return
        error = WorkerDied(error.pid, error.exitcode, error.signal, task.name)
        self._deaths += 1
        outcomes.append(Outcome(number, 0, None, error))

    def _on_initializer_failure(self, pid: int) -> None:
        error = self._initializer_failures.pop(pid)
        self._break(
            f"the initializer failed in worker {pid}: {type(error).__name__}: {error}", error
        )

    def _on_death_at_start(self, pid: int, how: str) -> None:
        self._start_deaths += 1
        if self._settings.initializer is not None:
            if self._start_deaths >= MOST_START_DEATHS:
                self._break(
                    f"{self._start_deaths} workers in a row died in the initializer; "
                    f"the last, {pid}, {how}"
                )
        elif self._start_deaths >= MOST_START_DEATHS_WITHOUT_INITIALIZER:
            self._break(
                f"{self._start_deaths} workers in a row died as they started; "
                f"the last, {pid}, {how}"
            )

    def _open_audit(self) -> None:
        with self._lock:
            self._recall()
            audit = Audit(self._ledger.in_flight, self._channels.board.read_all())
            if audit.suspects:
                self._audits.append(audit)

    def _recall(self) -> None:
        """Take back what no worker has taken from the pipe, with the lock held. It
        is sent again, which wakes as many idle workers as there are messages."""
        numbers = []
        while True:
            try:
                packet = self._channels.recall.receive(DONTWAIT)
            except BlockingIOError:
                break
            _channel.discard(packet)
            if packet.kind == Kind.CALL:
                numbers.append(packet.number)
        self._ledger.take_back(numbers)

    def _look_after_audits(self) -> None:
        for audit in self._audits:
            if audit.marker is None and audit.look(self._channels.board.read_all):
                self._send_marker(audit)

    def _send_marker(self, audit: Audit) -> None:
        # If the channel is full, the next turn reads some and the next look tries again.
        if self._channels.send_marker(self._last_marker + 1):
            self._last_marker += 1
            audit.marker = self._last_marker

    def _on_marker(self, marker: int, outcomes: list[Outcome]) -> None:
        with self._lock:
            # What this batch has brought is not in the books yet.
            unresolved = self._ledger.in_flight.keys() - {done.number for done in outcomes}
            for audit in [audit for audit in self._audits if audit.marker == marker and marker]:
                self._audits.remove(audit)
                self._ledger.take_back(audit.suspects & unresolved)

    # --- the supervisor's end, and the pool's -----------------------------------------------

    def _end_when_done(self) -> None:
        """With the lock held: when closing and nothing is left, end the supervisor."""
        if self._is_abandoned and self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        if self._phase is Phase.CLOSING and not self._ledger.outstanding:
            self._phase = Phase.ENDING
            if self._supervisor is not None:
                self._supervisor.ask_to_end()

    def _on_supervisor_end(self, supervisor: SupervisorHandle) -> None:
        self._waiter.unregister(supervisor.control.fileno())
        pids = [slot.pid for slot in self._channels.board.read_all()]
        how = supervisor.wait()
        _posix.wait_until_gone(pids, GONE_WITHIN)
        with self._lock:
            supervisor.close()
            self._supervisor = None
        if self._is_to_end():
            return
        self._settle_after_supervisor()
        self._supervisor_deaths += 1
        if self._supervisor_deaths >= MOST_SUPERVISOR_DEATHS:
            self._break(
                f"{self._supervisor_deaths} supervisors in a row ended before they were ready; "
                f"the last {how}"
            )
            return
        self._replace_supervisor(how)

    def _replace_supervisor(self, how: str) -> None:
        try:
            with self._lock:
                # Closing, what was lost may have been the last; or the caller gave up.
                if self._is_to_end():
                    return
                logger.error("the supervisor %s; starting another", how)
                self._held = None
                self._start_supervisor()
                self._report()
        except Exception as error:
            self._break(f"the supervisor {how}, and another could not be started: {error}", error)

    def _is_to_end(self) -> bool:
        """Whether nobody needs a supervisor any more."""
        return self._phase is Phase.ENDING or self._broken is not None

    def _settle_after_supervisor(self) -> None:
        """No worker lives. What the slots name had begun; nothing else had."""
        outcomes: list[Outcome] = []
        while self._read_batch(outcomes):
            pass
        for slot in self._channels.board.read_all():
            if slot.state == sb.BUSY:
                self._lose(slot.task, WorkerDied(slot.pid, None, 9), outcomes)
            self._channels.board.clear(slot.place)
        self._resolve(outcomes)
        self._ready.clear()
        self._initializer_failures.clear()
        self._audits.clear()
        with self._lock:
            self._recall()
            self._ledger.take_back(list(self._ledger.in_flight))

    def _break(
        self, reason: str, cause: BaseException | None = None, number: int | None = None
    ) -> None:
        """The pool cannot go on: fail every task, end every process; the workers by
        this signal, if the caller asked for it."""
        with self._lock:
            if self._broken is None:
                self._broken = (reason, cause)
            tasks = self._ledger.clear()
            self._audits.clear()
            if self._supervisor is not None and number is not None:
                self._supervisor.ask_to_end_now(number)
            elif self._supervisor is not None:
                self._supervisor.make_it_kill()
        fail_all([(task, self._broken_error()) for task in tasks])

    def _end(self) -> None:
        """All processes have ended: close everything, end the I/O thread."""
        with self._lock:
            self._close()
            self._phase = Phase.ENDED

    # --- a fork of the caller's process --------------------------------------------------------

    def disown(self) -> None:
        """In a child that the caller forked: this copy is not the executor."""
        self._channels.close()
        self._waiter.close()
        if self._supervisor is not None:
            self._supervisor.disown()
        self._lock = threading.RLock()
        self._phase = Phase.ENDED
        self._broken = (
            "this executor belongs to the process that created it; "
            f"process {os.getpid()} was forked from that one and needs its own",
            None,
        )


# --- the end of the interpreter, and forks of it ------------------------------------------------

_interpreter_is_ending = False


def _finish_all() -> None:
    """Let every executor finish its work before the interpreter goes, as
    ProcessPoolExecutor does."""
    global _interpreter_is_ending
    _interpreter_is_ending = True
    for client in list(_clients):
        client.shutdown(wait=True, cancel=False)


def _disown_all() -> None:
    for client in list(_clients):
        client.disown()
    _clients.clear()


# Private, but what concurrent.futures itself uses: atexit's own hooks run only
# after the non-daemon threads were waited for, and ours would wait for us.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_disown_all)
