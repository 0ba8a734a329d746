"""A worker's life: it starts, takes tasks, runs them, yells and leaves.

    STARTING ─ initializer ─▶ TAKING ─ no message ─▶ IDLE ─ woken ─▶ TAKING
                                │ ▲
                        a task  ▼ │ its outcome was sent
                               BUSY
    and between two tasks, when it was told to leave or has done its last task:
    LEAVING ─ finalizer ─▶ what worker_exit.py does

The pool keeps its promises because a worker writes its marks in this order:

* A worker writes TAKING before it asks the task pipe. It writes BUSY and the number of its task, in
  one word, before it runs a line of the user's code. So if a worker dies in any state other than
  TAKING, it is known which task it held: the task in a BUSY slot had begun or was about to begin,
  and no other task had. The client finds out what a death in TAKING means (`_client/recovery.py`).
* A worker writes TAKING before it checks whether it was told to leave. So if another process has
  told it, and then reads BUSY on its slot, that process knows that the worker takes no other
  message. It can then end this task by a signal that hits no other (see `WorkerPool.end_task`).

`_board/worker_states.py` has the table of these steps. In the steps that a worker takes for each
task, it writes its state without asking the table. Only tests check these.

A worker imports as little as possible. It catches everything that a task raises, SystemExit and
KeyboardInterrupt included. It never sends half a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import threading
import time
from collections.abc import Sequence

from .._board import fences, worker_states
from .._board import scoreboard as sb
from .._board.worker_states import Event
from .._fork_safety import random_streams
from .._messages import channels, wire
from .._messages.channels import DONTWAIT, Packet, Receiver, WorkerChannels
from .._messages.payload_files import UNUSED, PayloadFiles
from .._messages.wire import Kind
from .._pickling import calls, exceptions, promises
from .._pool.worker_pool import Seat
from .._support import faults
from .._support.logs import logger
from .._system import machine, signals
from .._system.descriptors import Poller
from ..errors import ProtocolError
from . import contexts, end_signals, inside_task
from .settings import Settings
from .users_code import INITIALIZER, MAIN, UserCode, failure_phrase
from .worker_exit import WorkerExit
from .worker_process import Caller, WorkerProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .._system.memory import Gauge


KEEP_FOR = 500_000
"""Nanoseconds that a worker keeps an outcome at most, to send it together with the next ones. If
the next task takes longer, the client takes the outcome from the area."""

TAKEN_WITHIN = 5.0
"""Seconds that a leaving worker waits at most until the caller has fetched what its results refer
to. A caller on a busy machine may need more than one."""

_is_copy = False


def _note_copy() -> None:
    global _is_copy
    _is_copy = True
    calls.end_chunks()


class Worker:
    """The loop of one worker process."""

    def __init__(
        self, seat: Seat, channels: WorkerChannels, settings: Settings, user_code: UserCode
    ) -> None:
        self.pid = os.getpid()
        self._exit = WorkerExit(is_fork_of_caller=settings.is_forked)
        self.index = seat.slot
        self._seat = seat
        self._channels = channels
        self._settings = settings
        self._user_code = user_code
        self._words = channels.board.words
        self._base = channels.board.base(seat.slot)
        self._receiver = Receiver(channels.tasks)
        self._runs_user_code = False
        self._area = channels.board.area(seat.slot)
        self._waits = channels.board.waits(seat.slot)
        self._next_wait = 0
        self._last = 0
        self.units: dict[str, tuple[int, ...]] = {}
        """The units of the executor's resources that the running task holds."""
        self._fence = fences.join(channels.board)
        self._name = 0
        self._kept = 0
        self._files = PayloadFiles()
        self._gauge = settings.new_gauge()
        self._poller = Poller()
        self._poller.register(channels.tasks.fileno(), shared=True)
        self._poller.register(seat.leash)
        self._bell = end_signals.begin(self._words, self._base)
        self._poller.register(self._bell.read_end)

    def run(self) -> None:
        """Initialize, serve until the worker must leave, and run the finalizer."""
        signals.install_handlers({signal.SIGINT: self._on_interrupt})
        try:
            if self._initialize():
                self._send(Kind.READY, self.pid, self._seat.slot, [_size_of_new(self._gauge)])
                self._serve_all()
                self._leave()
                self._finalize()
        except ConnectionError:
            # The caller has ended, or a task has shut down the channel. In the second case the
            # slot must still name the task that has begun here.
            if self._words[self._base + sb.HOLDS] & sb.STATE_MASK != sb.BUSY:
                self._leave()
        finally:
            self._exit.run()

    def _wait_until_taken(self) -> None:
        """Wait until the caller has fetched the descriptors that results refer to, TAKEN_WITHIN
        seconds at most. Results with sockets or shared memory fetch these from this process when
        they are unpickled."""
        sharer = promises.sharer()
        if sharer is None:
            return  # No result has promised anything.
        until = time.monotonic() + TAKEN_WITHIN
        while promises.are_open() and time.monotonic() < until:
            time.sleep(0.005)
        # What is no longer in there may still be under way: its thread sends it, and then waits
        # for the receiver's answer. To stop that thread is to wait until it is done. It cannot be
        # waited for with a limit, so another thread does that.
        stop = threading.Thread(target=_stop_quietly, args=(sharer,), daemon=True)
        with contextlib.suppress(RuntimeError):  # There may be no room for another thread.
            stop.start()
            stop.join(max(0.0, until - time.monotonic()))

    def _leave(self) -> None:
        faults.at("worker.leaves")
        self._mark(Event.WORKER_LEAVES)
        self._wait_until_taken()
        # The supervisor, if there still is one, then kills this process if it takes too long.
        with contextlib.suppress(ConnectionError):
            self._channels.doorbell.ring()

    def yell(self, data: Any) -> None:
        self._send(Kind.YELL, self.pid, 0, calls.dumps(data))

    def _on_interrupt(self, _signum: int, _frame: object) -> None:
        # Ctrl-C reaches every process of the terminal's group. It interrupts the running task, as
        # it would in the caller, but not the worker's own code.
        if self._runs_user_code:
            raise KeyboardInterrupt

    def _initialize(self) -> bool:
        faults.at("worker.starts")
        self._take_place()
        step = INITIALIZER
        try:
            self._runs_user_code = True
            for left in list(self._user_code.left):
                step = left.number
                self._user_code.run(left)
                if step == MAIN:
                    self._introduce_main()
            step = INITIALIZER
            for initializer, args in self._settings.initializers:
                initializer(*args)
            self._runs_user_code = False
            self._leave_if_copy()
        except BaseException as error:
            self._runs_user_code = False
            self._leave_if_copy()
            logger.critical("%s in worker %d", failure_phrase(step), self.pid, exc_info=True)
            self._leave()
            failure = exceptions.dump_failure(error, skip_frames=1)
            self._send(Kind.INITIALIZER_FAILED, self.pid, step, failure)
            return False
        return True

    def _take_place(self) -> None:
        """Set this process's niceness, and let it run only on this worker's CPUs."""
        settings = self._settings
        try:
            if settings.nice:
                os.nice(settings.nice)
            if sets := settings.cpu_sets:
                os.sched_setaffinity(0, sets[self.index % len(sets)])
        except OSError as error:
            # The program may have lost some of its CPUs since the executor was made.
            logger.warning("worker %d runs on all CPUs: %s", self.pid, error)

    def _introduce_main(self) -> None:
        fingerprints = calls.introduce_main()
        if not self._user_code.is_told:
            told = (fingerprints, (self._user_code.why_not,), False)
            self._send(Kind.MAIN_SNAPSHOT, self.pid, 0, [pickle.dumps(told)])

    def _finalize(self) -> None:
        """Call the user's finalizer. Ctrl-C does not interrupt it."""
        finalizer = self._settings.finalizer
        if finalizer is None:
            return
        try:
            finalizer(*self._settings.finalargs)
        except BaseException:
            self._leave_if_copy()
            logger.exception("the finalizer failed in worker %d", self.pid)
        self._leave_if_copy()

    def _serve_all(self) -> None:
        words, base = self._words, self._base
        retire, holds = base + sb.RETIRE, base + sb.HOLDS
        max_tasks = self._settings.max_tasks_per_child
        max_memory = self._settings.max_memory_per_child
        fence = self._fence
        words[base + sb.READY] = time.monotonic_ns()
        self._channels.doorbell.ring()  # The supervisor then measures the start.
        was_woken = False
        while True:
            if worker_states.report_to:
                self._check(Event.WORKER_ASKS)
            words[holds] = (
                self._last << sb.NUMBER_SHIFT | sb.TAKING
            )  # pack_holds(), without the call.
            if fence is not None:
                fence()
            signals.run_handlers()  # A handler may set RETIRE.
            # The message that has woken this worker has woken no other. So take it first.
            if words[retire] and not was_woken:
                return
            if faults.points:
                faults.at("worker.asks", self._channels.board, self.index)
            try:
                packet = self._receiver.receive(DONTWAIT)
            except BlockingIOError:
                was_woken = self._wait_for_work()
                if not was_woken:
                    return
                continue
            except EOFError:
                return
            except ProtocolError as error:
                self._dropped_foreign_message(str(error))
                continue
            was_woken = False
            is_task = packet.number < sb.MAX_NUMBER
            if is_task:
                self._last = packet.number
            if packet.kind == Kind.CALL and is_task and packet.flags & wire.HELD:
                self._serve_with_units(packet)
            elif packet.kind == Kind.CALL and is_task:
                self._serve(packet)
            elif packet.kind == Kind.CALLS and is_task:
                self._serve_batch(packet)
            else:
                channels.discard(packet)
                what = f"kind {packet.kind}, number {packet.number}"
                self._dropped_foreign_message(what)
            self._files.drop_unused()
            if words[base + sb.DONE] == max_tasks or (max_memory and self._is_too_big(max_memory)):
                return

    def _dropped_foreign_message(self, what: str) -> None:
        self._mark(Event.WORKER_DROPS)
        logger.error("worker %d dropped a message that is not a task: %s", self.pid, what)

    def _is_too_big(self, max_memory: int) -> bool:
        size = machine.own_memory()
        if size <= max_memory:
            return False
        logger.info(
            "worker %d leaves: its memory, %d bytes, is above max_memory_per_child", self.pid, size
        )
        return True

    def _wait_for_work(self) -> bool:
        """Wait until there may be a task. Returns False if the worker must leave instead."""
        self._mark(Event.WORKER_FINDS_NOTHING)
        since = self._words[self._base + sb.SINCE]
        if self._words[sb.BELL]:
            self._channels.doorbell.ring()
        while self._words[self._base + sb.RETIRE] == 0:
            ready = self._poller.wait(UNUSED if self._files.due_at is not None else None)
            if self._channels.tasks.fileno() in ready:
                if faults.points:
                    faults.at("worker.woke", self._channels.board, self.index)
                # Take the message even if told to leave: it has woken no other worker.
                if self._settings.max_memory_per_child:
                    # The supervisor checks workers' memory while any worker is busy.
                    self._channels.doorbell.ring()
                self._words[self._base + sb.IDLE_FOR] += time.monotonic_ns() - since
                return True
            if self._seat.leash in ready:
                # The leash is closed: the worker is told to leave, or the supervisor has ended.
                self._words[self._base + sb.RETIRE] = 1
            if self._bell.read_end in ready:
                self._bell.hush()
                signals.run_handlers()
            self._files.drop_unused()
        return False

    def _mark(self, event: str) -> None:
        if worker_states.report_to:
            self._check(event)
        state = worker_states.TABLE[event][1]
        self._words[self._base + sb.SINCE] = time.monotonic_ns()
        self._words[self._base + sb.HOLDS] = sb.pack_holds(state, self._last)

    def _check(self, event: str) -> None:
        self._channels.board.check(self.index, event)

    def _serve_with_units(self, packet: Packet) -> None:
        """Serve a task that holds units of the executor's resources."""
        try:
            pickled, body = wire.split_held(packet.body)
            units = dict(pickle.loads(pickled))
        except Exception as error:
            channels.discard(packet)
            self._dropped_foreign_message(str(error))
            return
        self.units = units
        try:
            self._serve(packet._replace(body=body, flags=packet.flags & ~wire.HELD))
        finally:
            self.units = {}

    def _serve(self, packet: Packet) -> None:
        words, base = self._words, self._base
        if self._gauge is not None:
            self._gauge.begin()
        since = time.monotonic_ns()
        number = packet.number
        words[base + sb.SINCE] = since
        if packet.extra != self._name:
            self._note_call_meta(packet.extra, since)
        if self._fence is not None:
            self._fence()
        if worker_states.report_to:
            self._check(Event.WORKER_NAMES)
        words[base + sb.HOLDS] = (
            number << sb.NUMBER_SHIFT | sb.BUSY
        )  # pack_holds(), without the call.
        kind, parts = self._outcome(packet)
        words[base + sb.DONE] += 1
        duration = time.monotonic_ns() - since
        if self._gauge is not None:
            self._tell_peak(number, self._gauge)
        if words[sb.RECORDING]:
            self._keep_outcome(kind, number, duration, parts)
            self._send_kept()
        elif not (packet.flags & wire.BIG and self._send_with_spare(kind, number, duration, parts)):
            self._send_outcome(kind, number, duration, parts)

    def _send_with_spare(
        self, kind: int, number: int, duration: int, parts: Sequence[calls.Part]
    ) -> bool:
        """Send a small outcome together with an unused shared file, most likely that of the task's
        big arguments. The caller uses the file again. Returns False if neither was sent."""
        body, end = parts[0], self._channels.yells
        if not isinstance(body, bytes) or len(body) > wire.INLINE_LIMIT or len(parts) > 1:
            return False
        return channels.send_with_spare(end, kind, number, duration, body, self._files)

    # --- several tasks of one message -----------------------------------------------------

    def _serve_batch(self, packet: Packet) -> None:
        words, base = self._words, self._base
        holds, since_word, done = base + sb.HOLDS, base + sb.SINCE, base + sb.DONE
        fence, gauge = self._fence, self._gauge
        channels.discard(packet)
        try:
            bodies = wire.unpack_calls(packet.parts, packet.body, packet.flags)
        except ProtocolError as error:
            self._dropped_foreign_message(str(error))
            return
        first, last = packet.number, packet.number + packet.parts - 1
        has_names = packet.flags & wire.NAMES
        names = wire.unpack_names(packet.parts, packet.body) if has_names else ()
        sent = since = time.monotonic_ns()
        if packet.extra != self._name:
            self._note_call_meta(packet.extra, since)
        for number, body in enumerate(bodies, first):
            words[since_word] = since
            if names:
                words[base + sb.NAME] = self._name = names[number - first]
            if fence is not None:
                fence()
            if worker_states.report_to:
                self._check(Event.WORKER_NAMES_NEXT if number > first else Event.WORKER_NAMES)
            words[holds] = sb.pack_holds(sb.BUSY, number, number - first, last - number)
            if number > first and self._is_to_stop(last):
                # The signal that ends this worker may come now. Then the slot must name the task
                # that has ended, not the one that never began.
                if worker_states.report_to:
                    self._check(Event.WORKER_NAMES_LAST)
                words[holds] = sb.pack_holds(
                    sb.BUSY, number - 1, number - 1 - first, last - number + 1
                )
                self._give_back(number, last - number + 1)
                return
            if gauge is not None:
                gauge.begin()
            kind, parts = self._outcome(body)
            words[done] += 1
            if gauge is not None:
                self._tell_peak(number, gauge)
            now = time.monotonic_ns()
            self._keep_outcome(kind, number, now - since, parts)
            if now - sent > KEEP_FOR:
                self._send_kept()
                sent = now
            since = now
        self._send_kept()

    def _note_call_meta(self, meta: int, since: int) -> None:
        """Note the name of the task that begins now. If the wait of this task, or of one of its
        message, is measured, note that as well. Called only if there is anything to note."""
        self._name, submitted = wire.unpack_call_meta(meta)
        self._words[self._base + sb.NAME] = self._name
        if submitted:
            waits, at = self._waits, self._next_wait
            waits[at] = max(0, since - submitted)
            waits[at + 1] = since
            self._next_wait = (at + 2) % (2 * sb.WAITS)

    def _is_to_stop(self, last: int) -> bool:
        """Whether the task that was just named must not begin. ``last`` is the last task of its
        message. Another process that wants this writes so, and then reads which task is named.
        The worker names the task, and then checks what was written. So one of them notices."""
        if self._fence is not None:
            self._fence()
        signals.run_handlers()
        words, base = self._words, self._base
        max_tasks = self._settings.max_tasks_per_child
        is_to_stop = bool(
            words[base + sb.RETIRE]
            or words[base + sb.RECALL] == last
            or words[base + sb.DONE] == max_tasks
        )
        if faults.points:
            faults.at("worker.named_next")
        return is_to_stop

    def _give_back(self, number: int, count: int) -> None:
        """Give back this task and those after it, ``count`` in all, which have not begun."""
        faults.at("worker.gives_back", number, count)
        self._send_kept()
        self._send(Kind.UNBEGUN, number, count, [b""])

    def _keep_outcome(
        self, kind: int, number: int, duration: int, parts: Sequence[calls.Part]
    ) -> None:
        """Put an outcome into the slot's area, to send it with others. If it is too big for that,
        send it now."""
        body, start = parts[0], self._kept
        span = self._span(number, duration) if self._words[sb.RECORDING] else b""
        before = len(span)
        if not isinstance(body, bytes) or len(parts) > 1 or not self._has_space(before + len(body)):
            self._send_kept()
            if span:
                self._send(Kind.OUTCOMES, self.pid, 0, [span])
            self._send_outcome(kind, number, duration, parts)
            return
        if span:
            self._area[start : start + before] = span
            start += before
        end = start + wire.HEADER.size + len(body)
        wire.HEADER.pack_into(self._area, start, kind, 0, len(body), number, duration)
        self._area[start + wire.HEADER.size : end] = body
        if self._fence is not None:
            self._fence()
        self._words[self._base + sb.UNSENT] = self._kept = end

    def _span(self, number: int, duration: int) -> bytes:
        """The SPAN of the task that has just ended, for a recording. It precedes the outcome."""
        begin = self._words[self._base + sb.SINCE]
        body = wire.SPAN_BODY.pack(begin, self.pid, self._seat.slot)
        return wire.HEADER.pack(Kind.SPAN, 0, len(body), number, duration) + body

    def _has_space(self, size: int) -> bool:
        return self._kept + wire.HEADER.size + size <= sb.AREA

    def _send_kept(self) -> None:
        if self._kept:
            kept = bytes(self._area[: self._kept])
            self._send(Kind.OUTCOMES, self.pid, 0, [kept])
            self._words[self._base + sb.UNSENT] = self._kept = 0

    # --- one task ---------------------------------------------------------------------------

    def _tell_peak(self, number: int, gauge: Gauge) -> None:
        """Send how much memory the task has taken, before its outcome. Most tasks take at most
        LIGHT bytes; for these no message is sent."""
        added, left = gauge.end()
        if added > wire.LIGHT or left > wire.LIGHT:
            self._send(Kind.PEAK, number, 0, [wire.PEAK_BODY.pack(added, left)])

    def _outcome(self, call: Packet | memoryview) -> tuple[int, list[calls.Part]]:
        """Run a call, which has its packet for itself or is one of several. Returns the kind and
        the pickle of its outcome."""
        fn = None
        try:
            self._runs_user_code = True
            parts = [call] if isinstance(call, memoryview) else self._open(call)
            fn, args, kwargs = calls.load_call(parts)
            result = fn(*args, **kwargs)
            dumped = calls.dump_result(result, fn)
            self._runs_user_code = False
        except BaseException as error:
            self._runs_user_code = False
            self._leave_if_copy()
            if fn is None:
                exceptions.add_note(error, "This was raised while the worker unpickled the task.")
            return Kind.FAILURE, exceptions.dump_failure(error, skip_frames=1)
        self._leave_if_copy()
        return Kind.RESULT, dumped

    def _open(self, call: Packet) -> list[memoryview | bytes]:
        return channels.open_parts(call, self._files)

    def _leave_if_copy(self) -> None:
        if _is_copy:
            # The task has forked, and the child has returned from the task. It is no worker.
            os._exit(0)

    def _send_outcome(
        self, kind: int, number: int, duration: int, parts: Sequence[calls.Part]
    ) -> None:
        try:
            self._send(kind, number, duration, parts)
        except ConnectionError:
            raise
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno == errno.EBADF:
                raise
            # There is no room for a big result. Only this task fails.
            error.add_note("The task had finished; its result could not be sent.")
            self._send(Kind.FAILURE, number, duration, exceptions.dump_failure(error))

    def _send(self, kind: int, number: int, extra: int, parts: Sequence[calls.Part]) -> None:
        try:
            channels.send(self._channels.yells, kind, number, extra, parts, files=self._files)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            # The socket reports only once that the caller has ended. If a task has got that error
            # from its yell, this is the error that comes from then on.
            raise ConnectionResetError(*error.args) from error
        if faults.points:
            faults.at("worker.sent", kind, self._channels.board, self.index)


def _stop_quietly(sharer: Any) -> None:
    """If the worker does not wait any longer, it removes what ``sharer`` needs to stop."""
    with contextlib.suppress(Exception):
        sharer.stop()


def _size_of_new(gauge: Gauge | None) -> bytes:
    """The bytes that a worker takes before its first task, packed; empty without a bound for
    memory."""
    return b"" if gauge is None else gauge.size_of_new().to_bytes(8, "little")


def live_as_worker(
    seat: Seat, channels: WorkerChannels, settings: Settings, caller: Caller, user_code: UserCode
) -> NoReturn:
    """Live as a worker in this process, which was just forked, and end the process."""
    global _is_copy
    code = 1
    try:
        _is_copy = False  # The pool has made this fork, so this is no copy.
        contexts.tell_copies_of_fork()
        # Do this before the user's code runs here, so that a seed that it sets stays set.
        random_streams.renew()
        worker = Worker(seat, channels, settings, user_code)
        inside_task.enter(worker)
        os.register_at_fork(after_in_child=_note_copy)
        process: Any = WorkerProcess(worker.run, seat.slot, caller)
        sentinel = seat.leash if caller.pidfd is None else caller.pidfd
        code = process._bootstrap(parent_sentinel=sentinel)
    finally:
        os._exit(code)
