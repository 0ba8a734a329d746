"""A result that the waiting caller itself reads from the channel.

If a caller waits for the result of the only task in flight, the worker's message would wake the
I/O thread, and that would wake the caller. Waking is most of what a round trip costs. So here the
caller reads the message, and the I/O thread sleeps on.

Which thread wakes
------------------
The caller and the I/O thread wait for the same channel, each exclusively with an epoll of its
own, and the caller's is registered first. So the kernel wakes the caller if it is waiting, and
otherwise the I/O thread. Nothing is switched over, and nothing must be switched back when the
caller is interrupted. If a caller was woken and does not do its part, it stops waiting there before
it wakes the I/O thread.

Which thread reads
------------------
One at a time, until what it has read is in the books. Otherwise one thread could read a marker
(`recovery.py`) before the other has entered the outcome that came before it. The lock for that is
``reading``. The I/O thread always has it, except while it waits.

What the caller leaves to the I/O thread
----------------------------------------
All except a small result of the task that it waits for. What the caller reads is noted in the
same step that reads it, and stays noted until all is done. So nothing is lost when a signal
handler raises, at whatever line: the I/O thread then does it, or does it again.

A signal handler may itself wait for a future's result or exception: it lets the I/O thread
finish what it has interrupted. If it waits by other means (``concurrent.futures.wait``, an
event that a callback sets) within the microseconds in which a result is read, it waits for
ever, as it does within a submit.
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

    _Lock = Any  # An RLock, of which we need the methods that a condition uses.

_SEAT = "seat"


def _is_owned(lock: _Lock) -> bool:
    """Whether this thread holds the lock."""
    return bool(lock._is_owned())


def _nothing(*_: object) -> None:
    """Replaces the client's methods after :meth:`DirectReader.close`."""


def _named(future: TaskFuture) -> str:
    task = future.task
    return "this future" if task is None else f"the future of task {task.name}"


class DirectReader:
    """Reads for callers that wait for a result of this pool. Closed at first.

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
        """Whether a caller has left something half done. The I/O thread finishes it."""
        self.is_copy = False
        """Whether this is the copy in a forked process."""
        self._process = 0
        self._io_thread: int | None = None
        self._ledger = ledger
        self._lock = lock
        self._enter: Callable[[int, int], None] = _nothing
        self._wake: Callable[[], None] = _nothing
        self._taken: list[Taken] = []
        # Under _SEAT: the bell of the caller that waits here, the first that has put it there.
        self._seats: dict[str, object] = {}
        self._is_open = False

    def open(
        self,
        channels: PoolChannels,
        enter: Callable[[int, int], None],
        wake: Callable[[], None],
    ) -> None:
        """Wait for these channels from now on. No other thread waits for them yet.

        Args:
            channels: the client's.
            enter: enters into the books that this task has ended, and the nanoseconds it took.
                May be called again if it was interrupted.
            wake: makes the I/O thread look for work.
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
        """The channel has a new socket, under the same descriptor."""
        if self._is_open:
            with contextlib.suppress(OSError):
                self._poller.unregister(self._receiver.end.fileno())
            self._poller.register(self._receiver.end.fileno(), shared=True)

    def close(self) -> None:
        """Call this when every future has its end. If a caller is still leaving, it closes the
        reader. Safe to call again."""
        self._io_thread = None
        if self._is_open:
            self._is_open = False
            self._close_if_free()

    def _close_if_free(self) -> None:
        closer = object()
        if self._seats.setdefault(_SEAT, closer) is closer:
            self._poller.close()
            self._bell.close()
            # Futures that the program keeps refer to this object. They must not keep the client.
            self._enter = self._wake = _nothing

    def disown(self, lock: _Lock) -> None:
        """In a forked process: close its copy, even if a thread waits or reads in the original."""
        self.is_copy = True
        self._lock, self.reading = lock, threading.RLock()
        self._seats.clear()
        self.close()

    def forget_interruption(self) -> None:
        """The I/O thread has finished what was interrupted."""
        self.was_interrupted = False

    def is_reading(self) -> bool:
        """Whether this thread is reading. Then this is a handler that has interrupted it."""
        return _is_owned(self.reading)

    def is_needed(self) -> bool:
        """Whether the I/O thread cannot go on while this thread waits. That is so in a handler
        that has interrupted it as it was reading, or was working on the books."""
        return self.is_reading() or _is_owned(self._lock)

    # --- for futures --------------------------------------------------------------------

    def bell_for(self, future: TaskFuture) -> DirectBell:
        """The bell with which a caller waits for this future."""
        task = self._own_task(future) if self._is_open else None
        is_left = task is None or task.timing.is_left_to_io or future.is_watched
        return DirectBell(self, future, is_direct=not is_left)

    def _own_task(self, future: TaskFuture) -> Task | None:
        """The task of this future, if it is the only task."""
        ledger = self._ledger
        if len(ledger.in_flight) != 1 or ledger.waiting:
            return None
        tasks = list(ledger.in_flight.values())  # In one step: by now there may be more.
        return tasks[0] if len(tasks) == 1 and tasks[0].future is future else None

    @contextlib.contextmanager
    def others_may_read(self) -> Iterator[None]:
        """For a signal handler that waits. If it has interrupted this thread while that was
        reading, or had just been woken to read, let the I/O thread do the work."""
        released: list[tuple[_Lock, Any]] = []
        try:
            if self.is_reading():
                # The books' lock as well: what was read may be about to be entered.
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
                self._leave_all()  # What is now done twice may be counted twice.

    def _sits_here(self) -> bool:
        bell = self._seats.get(_SEAT)
        return isinstance(bell, DirectBell) and bell.thread == _thread.get_ident()

    def _leave_all(self) -> None:
        """Leave all work to the I/O thread."""
        self.was_interrupted = True
        self._wake()

    def check_wait(self, future: TaskFuture, timeout: float | None) -> None:
        """Check whether this thread may wait for the future, or ask whether it has ended
        (0 seconds).

        Raises:
            BrokenProcessPool: the future belongs to another process.
            RuntimeError: this is the thread that would bring the result.
        """
        if self.is_copy:
            raise self.error_of_copy(future)
        if _thread.get_ident() == self._io_thread and (timeout is None or timeout > 0):
            raise RuntimeError(
                f"{_named(future)} is not done, and cannot become done while this thread waits: "
                "on_yell and done-callbacks run in the executor's own thread, which brings the "
                "results. Give that future a done-callback, or wait for it in another thread"
            )

    def error_of_copy(self, future: TaskFuture) -> BrokenProcessPool:
        """The error for code that waits for the future in a forked process."""
        return BrokenProcessPool(
            f"{_named(future)} belongs to process {self._process}, and only that process learns "
            f"how it ends; process {os.getpid()} was forked from it before the task was done. Wait "
            "for it there, or submit to an executor that was made here"
        )

    # --- in the I/O thread ----------------------------------------------------------------

    def serve(self) -> None:
        """This is the I/O thread."""
        self._process, self._io_thread = os.getpid(), _thread.get_ident()

    def receive(self, upstream: Receiver) -> Packet:
        """The next message. A message that a caller has read and left comes first.

        Raises:
            BlockingIOError, ProtocolError: as :meth:`Receiver.receive`.
        """
        if self._taken:
            return self._receiver.packet(*self._taken.pop()[:2])
        return upstream.receive(DONTWAIT)

    # --- in the caller's thread -------------------------------------------------------------

    def wait(self, bell: DirectBell, timeout: float) -> bool:
        """Wait for the end of the bell's future; for ever if ``timeout`` is negative. Returns
        False if another thread waits here, or must go on meanwhile."""
        if self.is_needed():
            return False
        seats: list[object] = []
        try:
            # In one step that also notes the result: a handler may raise right after it.
            seats.extend(map(self._seats.setdefault, (_SEAT,), (bell,)))
            if seats[0] is bell:
                self._wait(bell, None if timeout < 0 else time.monotonic() + timeout)
        except BaseException:
            release_to(self._lock, 0)  # This thread did not hold it when it began to wait.
            self._leave_all()
            raise
        finally:
            if seats and seats[0] is bell:
                self._seats.clear()
                if not self._is_open:
                    self._close_if_free()
        return seats[0] is bell

    def ring(self, bell: DirectBell) -> None:
        """Wake the thread that waits with this bell."""
        if self._seats.get(_SEAT) is bell:
            with contextlib.suppress(OSError):
                self._bell.ring()

    def _wait(self, bell: DirectBell, deadline: float | None) -> None:
        own_bell, left = self._bell.read_end, None
        reads = not self._taken
        if not reads:
            self._wake()  # The caller that left this told no thread: it was interrupted twice.
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
            # Whatever has come: only this thread was woken for it.
            if ready and not self._read(bell):
                reads = False
                self._wake()

    def _read(self, bell: DirectBell) -> bool:
        """Read a message. Returns False if it is left to the I/O thread."""
        acquired: list[bool] = []
        try:
            # Only if the I/O thread is waiting: otherwise it may be at work for long.
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
            return True  # The I/O thread has read it.
        except (IndexError, OSError):
            return False  # While a handler waited, the I/O thread read it, or the pool closed.
        future, task = bell.future, self._own_task(bell.future)
        size, ancillary = taken[:2]
        if task is None or size < HEADER.size or future.is_watched:
            return False
        if ancillary:
            task.timing.is_left_to_io = True  # It is big, and the next result probably is, too.
            return False
        packet = self._receiver.packet(size, ancillary)
        if packet.number != task.number or packet.kind != Kind.RESULT:
            task.timing.is_left_to_io = packet.kind == Kind.YELL  # It will yell next time, too.
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
    """An acquired lock, with which a caller waits for a future's end. ``is_direct``: the caller
    may read itself.

    ``doubt`` is what was raised while the result was unpickled, by the result or by a signal
    handler. The I/O thread, which no handler interrupts, finds out which."""

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
        """Wait until it is released, ``timeout`` seconds at most; for ever if negative."""
        if not (self._is_direct and self._reader.wait(self, timeout)):
            with self._reader.others_may_read():
                self._lock.acquire(timeout=timeout)
        doubt, self.doubt = self.doubt, None
        if doubt is not None and (is_by_handler(doubt) or not self._is_of_the_result(doubt)):
            raise doubt

    def _is_of_the_result(self, doubt: BaseException) -> bool:
        """Whether the I/O thread got the same error. Also True if only this thread would get it,
        for lack of room, or if the time is up and the I/O thread has not read it yet."""
        if isinstance(doubt, MemoryError | RecursionError) or not self.future.has_ended:
            return isinstance(doubt, Exception)
        error = self.future.error
        return isinstance(error, UnpicklingError) and type(error.__cause__) is type(doubt)

    def release(self) -> None:
        """Wake the thread that waits.

        Raises:
            RuntimeError: it was released earlier.
        """
        self._lock.release()
        self._reader.ring(self)
