"""A worker's life: start, pull, run, yell, leave.

    STARTING ─ initializer ─▶ TAKING ─ nothing there ─▶ IDLE ─ woken ─▶ TAKING
                                │ ▲
                        a task  ▼ │ its outcome is on its way
                               BUSY
    and from between two tasks, when told to or after its last one: LEAVING ─ finalizer ─▶
    what worker_exit.py has

The order of the marks is what the promises rest on.

* A worker says TAKING before it asks the task pipe, and says BUSY and which task it got,
  in one word, before it runs a line of the user's. So a death in any other state than TAKING
  is exact: the task in a BUSY slot had begun or was about to, and no other task had.
  What a death in TAKING means is worked out by the client (see _client/recovery.py).
* It says TAKING before it looks whether it is told to leave. So whoever has told it,
  and then finds it BUSY, knows that it takes no other task, and may end this one by a
  signal that can hit no other (see `WorkerPool.end_task`).

`_board/worker_states.py` has the table of these steps. Where a worker passes once a task, it
writes its state without asking the table, and only tests look whether that is right.

A worker imports as little as it can, catches whatever a task raises, SystemExit
and KeyboardInterrupt included, and never sends half a message.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing.process
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence

from .._board import fences, worker_states
from .._board import scoreboard as sb
from .._board.worker_states import Event
from .._fork_safety import random_streams
from .._messages import channels, wire
from .._messages.channels import DONTWAIT, Packet, Receiver, WorkerChannels
from .._messages.payload_files import UNUSED, PayloadFiles
from .._messages.wire import Kind
from .._pickling import calls, exceptions
from .._pool.worker_pool import Seat
from .._support import faults
from .._support.named_tuples import NamedTuple
from .._system import machine, signals
from .._system.descriptors import Poller
from ..errors import ProtocolError
from . import contexts, end_signals
from .settings import Settings
from .users_code import INITIALIZER, MAIN, UserCode, failure_phrase
from .worker_exit import WorkerExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

logger = logging.getLogger("prefork_executor")

KEEP_FOR = 500_000
"""Nanoseconds that an outcome is kept at most for the next task's to travel with it,
unless that task turns out to be long. Then the client takes it from the area."""

TAKEN_WITHIN = 1.0
"""Seconds that a worker that leaves waits at most for the caller to take what it has sent."""

_current: Worker | None = None
_is_copy = False


def _note_copy() -> None:
    global _is_copy
    _is_copy = True


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


def worker_index() -> int | None:
    """Which of the pool's workers the calling code runs in, from 0 to ``max_workers - 1``.

    No two workers that live at the same time have the same number, and a worker that takes
    the place of another has that one's. So it can choose what each worker has of its own: a
    GPU, a port, a file.

    Returns:
        The number; None outside a worker, also in a process that a task has started.
    """
    worker = _current
    return worker.index if worker is not None and worker.pid == os.getpid() else None


class Caller(NamedTuple):
    """The process that has the executor, which is what multiprocessing is told to be a
    worker's parent. ``pidfd`` is readable when it has ended; None: nothing is."""

    pid: int
    name: str
    pidfd: int | None


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
        self._fence = fences.join(channels.board)
        self._name = 0
        self._kept = 0
        self._files = PayloadFiles()
        self._poller = Poller()
        self._poller.register(channels.tasks.fileno(), shared=True)
        self._poller.register(seat.leash)
        self._bell = end_signals.begin(self._words, self._base)
        self._poller.register(self._bell.read_end)

    def run(self) -> None:
        """Initialize, serve until told to leave, and do what is to be done at the end."""
        signals.install_handlers({signal.SIGINT: self._on_interrupt})
        try:
            if self._initialize():
                self._send(Kind.READY, self.pid, self._seat.slot, [b""])
                self._serve_all()
                self._leave()
                self._finalize()
        except ConnectionError:
            # The caller has gone, or somebody has shut down our channel. In that case the slot
            # must go on saying which task has begun here.
            if self._words[self._base + sb.HOLDS] & sb.STATE_MASK != sb.BUSY:
                self._leave()
        finally:
            self._exit.run()

    def _wait_until_taken(self) -> None:
        """Wait, not for long, until the caller has fetched what its results have promised:
        descriptors of sockets, or of shared memory, come from this process when a result is
        unpickled."""
        sharer = getattr(
            sys.modules.get("multiprocessing.resource_sharer"), "_resource_sharer", None
        )
        until = time.monotonic() + TAKEN_WITHIN
        while getattr(sharer, "_cache", None) and time.monotonic() < until:
            time.sleep(0.005)

    def _leave(self) -> None:
        faults.at("worker.leaves")
        self._mark(Event.WORKER_LEAVES)
        self._wait_until_taken()
        # For the supervisor, if there still is one, to kill us if it takes too long.
        with contextlib.suppress(ConnectionError):
            self._channels.doorbell.ring()

    def yell(self, data: Any) -> None:
        self._send(Kind.YELL, self.pid, 0, calls.dumps(data))

    def _on_interrupt(self, _signum: int, _frame: object) -> None:
        # Ctrl-C reaches every process of the terminal's group. It ends the task
        # that runs, as it would in the caller; the worker's own code it spares.
        if self._runs_user_code:
            raise KeyboardInterrupt

    def _initialize(self) -> bool:
        faults.at("worker.starts")
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
        was_woken = False
        while True:
            if worker_states.report_to:
                self._check(Event.WORKER_ASKS)
            words[holds] = (
                self._last << sb.NUMBER_SHIFT | sb.TAKING
            )  # pack_holds(), without the call.
            if fence is not None:
                fence()
            signals.run_handlers()  # One may set RETIRE.
            # The message that has woken us has woken nobody else: first take it.
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
            if packet.kind == Kind.CALL and is_task:
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
        logger.error("worker %d dropped a message that was no task: %s", self.pid, what)

    def _is_too_big(self, max_memory: int) -> bool:
        size = machine.own_memory()
        if size <= max_memory:
            return False
        logger.info(
            "worker %d leaves: its memory, %d bytes, is above max_memory_per_child", self.pid, size
        )
        return True

    def _wait_for_work(self) -> bool:
        """Wait until there may be a task. False: told to leave instead."""
        self._mark(Event.WORKER_FINDS_NOTHING)
        if self._words[sb.BELL]:
            self._channels.doorbell.ring()
        while self._words[self._base + sb.RETIRE] == 0:
            ready = self._poller.wait(UNUSED if self._files.drop_at is not None else None)
            if self._channels.tasks.fileno() in ready:
                if faults.points:
                    faults.at("worker.woke", self._channels.board, self.index)
                # Even if told to leave: the message has woken nobody else.
                if self._settings.max_memory_per_child:
                    self._channels.doorbell.ring()  # Its owner looks while anybody works.
                return True
            if self._seat.leash in ready:
                # Let go: either RETIRE is set, or the main process is no more.
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

    def _serve(self, packet: Packet) -> None:
        words, base = self._words, self._base
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
        if words[sb.RECORDING]:
            self._keep_outcome(kind, number, duration, parts)
            self._send_kept()
        elif not (packet.flags & wire.BIG and self._send_with_spare(kind, number, duration, parts)):
            self._send_outcome(kind, number, duration, parts)

    def _send_with_spare(
        self, kind: int, number: int, duration: int, parts: Sequence[calls.Part]
    ) -> bool:
        """Send a small outcome with a spare file, most likely the one that the task's big
        arguments came in: the caller has use for it. False: neither was sent."""
        body, end = parts[0], self._channels.yells
        if not isinstance(body, bytes) or len(body) > wire.INLINE_LIMIT or len(parts) > 1:
            return False
        return channels.send_with_spare(end, kind, number, duration, body, self._files)

    # --- several tasks of one message -----------------------------------------------------

    def _serve_batch(self, packet: Packet) -> None:
        words, base = self._words, self._base
        holds, since_word, done = base + sb.HOLDS, base + sb.SINCE, base + sb.DONE
        fence = self._fence
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
                # Its signal may come now: it is to find what has ended, not what never began.
                if worker_states.report_to:
                    self._check(Event.WORKER_NAMES_LAST)
                words[holds] = sb.pack_holds(
                    sb.BUSY, number - 1, number - 1 - first, last - number + 1
                )
                self._give_back(number, last - number + 1)
                return
            kind, parts = self._outcome(body)
            words[done] += 1
            now = time.monotonic_ns()
            self._keep_outcome(kind, number, now - since, parts)
            if now - sent > KEEP_FOR:
                self._send_kept()
                sent = now
            since = now
        self._send_kept()

    def _note_call_meta(self, meta: int, since: int) -> None:
        """Note the name of what begins now; and, if that is asked for, how long this task, or
        one of this message, has waited. Called only if there is anything to note."""
        self._name, submitted = wire.unpack_call_meta(meta)
        self._words[self._base + sb.NAME] = self._name
        if submitted:
            waits, at = self._waits, self._next_wait
            waits[at] = max(0, since - submitted)
            waits[at + 1] = since
            self._next_wait = (at + 2) % (2 * sb.WAITS)

    def _is_to_stop(self, last: int) -> bool:
        """Whether the task that has just been named is not to begin, of those up to
        ``last``. Whoever wants that says so and then reads what is named, we name it
        and then look whether somebody has said so: one of us notices."""
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
        faults.at("worker.gives_back", number, count)
        self._send_kept()
        self._send(Kind.UNBEGUN, number, count, [b""])

    def _keep_outcome(
        self, kind: int, number: int, duration: int, parts: Sequence[calls.Part]
    ) -> None:
        """Put an outcome into the slot's area, to be sent with others; or send it, if
        it is too big for that."""
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
        """What a recording is told of the task that has just ended, before its outcome."""
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

    def _outcome(self, call: Packet | memoryview) -> tuple[int, list[calls.Part]]:
        """What comes of a call, by itself in its packet or as one of several."""
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
            # The task forked and let its copy of this process return: not a worker.
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
            # No room for a big result: that is this task's failure and no more.
            error.add_note("The task had finished; its result could not be sent.")
            self._send(Kind.FAILURE, number, duration, exceptions.dump_failure(error))

    def _send(self, kind: int, number: int, extra: int, parts: Sequence[calls.Part]) -> None:
        try:
            channels.send(self._channels.yells, kind, number, extra, parts, files=self._files)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            # A datagram socket says only once that the caller has gone; this is what it
            # says after that, when a task has come by the first, as it yelled.
            raise ConnectionResetError(*error.args) from error
        if faults.points:
            faults.at("worker.sent", kind, self._channels.board, self.index)


class _WorkerProcess(multiprocessing.process.BaseProcess):
    """What multiprocessing calls the current process inside a worker. Its
    bootstrap does for a forked child all that the standard library and its users
    expect: queues and locks are told of the fork and flushed at the end,
    ``current_process()`` has a name, coverage can hook in.

    Programs number workers by the name's end, or by ``_identity``, of which the names of
    processes that a task starts are made as well. Of its parent they ask who it is and
    whether it still lives, and mean the caller: the supervisor is nobody they know."""

    _start_method = None

    def __init__(self, run: Callable[[], None], slot: int, caller: Caller) -> None:
        super().__init__(target=run, name=f"PreforkWorker-{slot + 1}")
        self._identity = (slot + 1,)
        self._parent_pid, self._parent_name = caller.pid, caller.name


def live_as_worker(
    seat: Seat, channels: WorkerChannels, settings: Settings, caller: Caller, user_code: UserCode
) -> NoReturn:
    """Be a worker in this freshly forked process, and end it."""
    global _current, _is_copy
    code = 1
    try:
        _is_copy = False  # This one is meant to be: the fork was ours.
        contexts.tell_copies_of_fork()
        # Before anything of the user's runs here: what sets a seed has the last word.
        random_streams.renew()
        worker = _current = Worker(seat, channels, settings, user_code)
        os.register_at_fork(after_in_child=_note_copy)
        process: Any = _WorkerProcess(worker.run, seat.slot, caller)
        sentinel = seat.leash if caller.pidfd is None else caller.pidfd
        code = process._bootstrap(parent_sentinel=sentinel)
    finally:
        os._exit(code)
