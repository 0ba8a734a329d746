"""A result that the caller who waits for it reads from the channel by itself.

Who has one task in flight, and waits for its result, would be woken by the I/O thread, which
the worker's message had to wake before. Waking is most of what a round trip costs. So here
the caller reads the message, and the I/O thread sleeps on.

Who is woken
------------
Both wait for the same channel, each with an epoll of its own, exclusively, and the caller's
is registered first. So the kernel wakes the caller if it waits at that moment, else the I/O
thread: nothing is switched over, and nothing must be switched back when the caller is
interrupted. A caller that was woken, and does not do what it was woken for, stops to wait
there before it wakes the I/O thread.

Who reads
---------
One at a time, until what was read is in the books; or one could read a marker (`recovery.py`)
before the other has entered the outcome that came before it. ``reading`` is the lock for
that. The I/O thread has it always but while it waits.

What is left to the I/O thread
------------------------------
All but a small result of the task that the caller waits for. What the caller has read is
noted in the very step that reads it, and stays noted until all is done. So nothing is lost
when a signal handler raises, at whatever line: the I/O thread does it then, or does it again.

A signal handler may itself wait for a future's result or exception: it lets the I/O thread
go on with what it has interrupted. If it waits by other means (``concurrent.futures.wait``,
an event that a callback sets) within the microseconds in which a result is read, it waits
for ever, as it does within a submit.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pickle import UnpicklingError

from .._messages.channels import DONTWAIT, Packet, PoolChannels, Receiver
from .._messages.wire import HEADER, Kind
from .._pickling import calls
from .._support import faults
from .._support.handlers import is_by_handler
from .._support.locks import release_to
from .._system import descriptors, platform
from .._system.descriptors import Doorbell, Poller
from .futures import TaskFuture
from .ledger import Ledger, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._messages.channels import Taken

    _Lock = Any  # An RLock, of which we need what a condition needs of it.

_SEAT = "seat"


def _is_owned(lock: _Lock) -> bool:
    """Whether this thread has it."""
    return bool(lock._is_owned())


def _nothing(*_: object) -> None:
    """What is left to do when all is closed."""


def _named(future: TaskFuture) -> str:
    task = future.task
    return "this future" if task is None else f"the future of task {task.name}"


class DirectReader:
    """Reads for those who wait for a result of this pool. Closed at first.

    Args:
        ledger: the client's.
        lock: that of the client's books.
    """

    # From open on.
    _receiver: Receiver
    _poller: Poller
    _bell: Doorbell

    def __init__(self, ledger: Ledger, lock: _Lock) -> None:
        self.reading: _Lock = threading.RLock()
        self.was_interrupted = False
        """Whether a caller has left in the midst of something. The I/O thread looks after that."""
        self.is_copy = False
        """Whether this is a fork's, and not the original."""
        self._process = 0
        self._io_thread: int | None = None
        self._ledger = ledger
        self._lock = lock
        self._enter: Callable[[int, int], None] = _nothing
        self._wake: Callable[[], None] = _nothing
        self._taken: list[Taken] = []
        # Who waits, under _SEAT: the one who was first to put himself there.
        self._seats: dict[str, object] = {}
        self._is_open = False

    def open(
        self,
        channels: PoolChannels,
        enter: Callable[[int, int], None],
        wake: Callable[[], None],
    ) -> None:
        """Wait for these channels from now on, which nobody else waits for yet.

        Args:
            channels: the client's.
            enter: enters into the books that the task of this number has ended, after so many
                nanoseconds. May be called again if it was interrupted.
            wake: makes the I/O thread look around.
        """
        if not platform.WAKES_ONE:
            return
        self._enter, self._wake = enter, wake
        self._receiver = Receiver(channels.yells)
        with contextlib.ExitStack() as undo:
            self._poller = Poller()
            undo.callback(self._poller.close)
            self._bell = Doorbell.new()
            undo.callback(self._bell.close)
            self._poller.register(channels.yells.fileno(), shared=True)
            self._poller.register(self._bell.read_end)
            self._seats.clear()
            self._is_open = True
            undo.pop_all()

    def watch_again(self) -> None:
        """The channel has another socket than before, under the same descriptor."""
        if self._is_open:
            with contextlib.suppress(OSError):
                self._poller.unregister(self._receiver.end.fileno())
            self._poller.register(self._receiver.end.fileno(), shared=True)

    def close(self) -> None:
        """When every future has its end. If somebody is still about to leave, it is he who
        closes it. Safe to call again."""
        self._io_thread = None
        if self._is_open:
            self._is_open = False
            self._close_if_free()

    def _close_if_free(self) -> None:
        closer = object()
        if self._seats.setdefault(_SEAT, closer) is closer:
            self._poller.close()
            self._bell.close()
            # Futures that are kept refer to us, and need not keep the client.
            self._enter = self._wake = _nothing

    def disown(self, lock: _Lock) -> None:
        """Close what a fork has of it, whoever waits or reads in the original."""
        self.is_copy = True
        self._lock, self.reading = lock, threading.RLock()
        self._seats.clear()
        self.close()

    def forget_interruption(self) -> None:
        """What was interrupted has been looked after."""
        self.was_interrupted = False

    def is_reading(self) -> bool:
        """Whether this thread is: then this is a handler that has come in between."""
        return _is_owned(self.reading)

    def is_needed(self) -> bool:
        """Whether the I/O thread cannot go on while this thread, in a handler, waits: it
        is reading, or at work on the books."""
        return self.is_reading() or _is_owned(self._lock)

    # --- for futures --------------------------------------------------------------------

    def bell_for(self, future: TaskFuture) -> DirectBell:
        """What whoever waits for this future waits with."""
        task = self._own_task(future) if self._is_open else None
        is_left = task is None or task.timing.is_left_to_io or future.is_watched
        return DirectBell(self, future, is_direct=not is_left)

    def _own_task(self, future: TaskFuture) -> Task | None:
        """The task of this future if it is the only one."""
        ledger = self._ledger
        if len(ledger.in_flight) != 1 or ledger.waiting:
            return None
        tasks = list(ledger.in_flight.values())  # In one step: there may be more by now.
        return tasks[0] if len(tasks) == 1 and tasks[0].future is future else None

    @contextlib.contextmanager
    def others_may_read(self) -> Iterator[None]:
        """If this thread is reading, or was just told to, this is a signal handler that has
        come in between: let the I/O thread do what is to be done."""
        released: list[tuple[_Lock, Any]] = []
        try:
            if self.is_reading():
                # The books' as well, if what was read was just to be entered.
                locks = filter(_is_owned, (self._lock, self.reading))
                released.extend((lock, lock._release_save()) for lock in locks)
            if released or self._sits_here():
                self._leave_all()
            yield
        finally:
            was_released = bool(released)
            while released:
                lock, count = released.pop()
                lock._acquire_restore(count)
            if was_released:
                self._leave_all()  # What is done twice now may be counted twice.

    def _sits_here(self) -> bool:
        bell = self._seats.get(_SEAT)
        return isinstance(bell, DirectBell) and bell.thread == _thread.get_ident()

    def _leave_all(self) -> None:
        """To the I/O thread."""
        self.was_interrupted = True
        self._wake()

    def check_wait(self, future: TaskFuture, timeout: float | None) -> None:
        """Whether this thread may wait for the future, or ask whether it has ended
        (0 seconds).

        Raises:
            BrokenProcessPool: it is another process's.
            RuntimeError: it is this thread that would bring the result.
        """
        if self.is_copy:
            raise self.error_of_copy(future)
        if _thread.get_ident() == self._io_thread and (timeout is None or timeout > 0):
            raise RuntimeError(
                f"{_named(future)} is not done, and cannot get done while it is waited for here: "
                "on_yell and done-callbacks run in the executor's own thread, which brings the "
                "results. Give that future a done-callback, or wait for it in another thread"
            )

    def error_of_copy(self, future: TaskFuture) -> BrokenProcessPool:
        """What is told to those who wait for it in a fork."""
        return BrokenProcessPool(
            f"{_named(future)} belongs to process {self._process}, which alone learns how it "
            f"ends; process {os.getpid()} was forked from that one before it was done. Wait for "
            "it there, or submit to an executor that was made here"
        )

    # --- in the I/O thread ----------------------------------------------------------------

    def serve(self) -> None:
        """This is the I/O thread."""
        self._process, self._io_thread = os.getpid(), _thread.get_ident()

    def receive(self, upstream: Receiver) -> Packet:
        """The next message; first one that a caller has read and left.

        Raises:
            BlockingIOError, ProtocolError: as :meth:`Receiver.receive`.
        """
        if self._taken:
            return self._receiver.packet(*self._taken.pop()[:2])
        return upstream.receive(DONTWAIT)

    # --- in the caller's thread -------------------------------------------------------------

    def wait(self, bell: DirectBell, timeout: float) -> bool:
        """Wait for the end of the bell's future; for ever if ``timeout`` is negative.
        False: somebody else waits here, or must go on meanwhile."""
        if self.is_needed():
            return False
        seats: list[object] = []
        try:
            # In one step, and what came of it is noted: a handler may raise after it.
            seats.extend(map(self._seats.setdefault, (_SEAT,), (bell,)))
            if seats[0] is bell:
                self._wait(bell, None if timeout < 0 else time.monotonic() + timeout)
        except BaseException:
            release_to(self._lock, 0)  # It was not this thread's, or we would not be here.
            self._leave_all()
            raise
        finally:
            if seats and seats[0] is bell:
                self._seats.clear()
                if not self._is_open:
                    self._close_if_free()
        return seats[0] is bell

    def ring(self, bell: DirectBell) -> None:
        """Wake whoever waits with this one."""
        if self._seats.get(_SEAT) is bell:
            with contextlib.suppress(OSError):
                self._bell.ring()

    def _wait(self, bell: DirectBell, deadline: float | None) -> None:
        own_bell, left = self._bell.read_end, None
        reads = not self._taken
        if not reads:
            self._wake()  # Whoever has left that has told nobody: he was interrupted twice.
        while not bell.future.has_ended:
            if deadline is not None and (left := deadline - time.monotonic()) <= 0:
                return
            if not reads:
                descriptors.readable(own_bell, left)
                self._bell.hush()
                continue
            ready = self._poller.wait(left)
            if own_bell in ready:
                self._bell.hush()
                ready.remove(own_bell)
            # Whatever else has come: nobody but us was woken for this message.
            if ready and not self._read(bell):
                reads = False
                self._wake()

    def _read(self, bell: DirectBell) -> bool:
        """Read a message. False: it is left to the I/O thread."""
        acquired: list[bool] = []
        try:
            # Only if the I/O thread waits: it may be at work for long.
            acquired.extend(map(self.reading.acquire, (False,)))
            is_done = acquired[0] and self._take(bell)
            if faults.points and acquired[0]:
                faults.at("client.read_directly", is_done)
        finally:
            if acquired and acquired[0]:
                self.reading.release()
        return is_done

    def _take(self, bell: DirectBell) -> bool:
        if self._taken:
            return False
        try:
            self._receiver.receive_to(self._taken)
            taken = self._taken[0]
        except BlockingIOError:
            return True  # The I/O thread has it.
        except (IndexError, OSError):
            return False  # So it has, or the pool was closed, while a handler waited for it.
        future, task = bell.future, self._own_task(bell.future)
        size, ancillary = taken[:2]
        if task is None or size < HEADER.size or future.is_watched:
            return False
        if ancillary:
            task.timing.is_left_to_io = True  # Big, as its next result will be.
            return False
        packet = self._receiver.packet(size, ancillary)
        if packet.number != task.number or packet.kind != Kind.RESULT:
            task.timing.is_left_to_io = packet.kind == Kind.YELL  # So it will the next time.
            return False
        try:
            result = calls.loads([packet.body])
        except BaseException as error:
            bell.doubt = error
            return False
        if not future.finish_unwatched(result):
            return False
        self._enter(packet.number, packet.extra)
        self._taken.clear()
        return True


class DirectBell:
    """A lock, acquired, to wait with for a future's end. ``is_direct``: who waits may read.

    ``doubt`` is what was raised as the result was unpickled: by the result, or by a signal
    handler. The I/O thread, which no handler interrupts, finds that out."""

    __slots__ = ("_is_direct", "_lock", "_reader", "doubt", "future", "thread")

    def __init__(self, reader: DirectReader, future: TaskFuture, *, is_direct: bool) -> None:
        self.future = future
        self.thread = _thread.get_ident()
        self.doubt: BaseException | None = None
        self._is_direct = is_direct
        self._reader = reader
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def acquire(self, *, timeout: float) -> None:
        """Wait for so many seconds, for ever if that is negative, or until it is released."""
        if not (self._is_direct and self._reader.wait(self, timeout)):
            with self._reader.others_may_read():
                self._lock.acquire(timeout=timeout)
        doubt, self.doubt = self.doubt, None
        if doubt is not None and (is_by_handler(doubt) or not self._is_of_the_result(doubt)):
            raise doubt

    def _is_of_the_result(self, doubt: BaseException) -> bool:
        """Whether the I/O thread has found the same; or would not, for lack of room in this
        thread alone; or has not yet, and the time is up."""
        if isinstance(doubt, MemoryError | RecursionError) or not self.future.has_ended:
            return isinstance(doubt, Exception)
        error = self.future.error
        return isinstance(error, UnpicklingError) and type(error.__cause__) is type(doubt)

    def release(self) -> None:
        """Wake whoever waits.

        Raises:
            RuntimeError: it was released before.
        """
        self._lock.release()
        self._reader.ring(self)
