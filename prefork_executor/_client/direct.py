"""Lets a caller that waits for a result read it from the channel itself.

Without this, the worker's message would wake the I/O thread, and the I/O thread would wake the
caller. Waking threads is most of what a round trip costs. So if the caller waits for the only task
in flight, the caller reads the message, and the I/O thread sleeps on.

Which thread wakes
------------------
The caller and the I/O thread wait for the same channel, each with an epoll of its own, and both
with EPOLLEXCLUSIVE. The caller's epoll is registered first. So the kernel wakes the caller if that
waits, and otherwise the I/O thread. This holds at all times, so nothing must be changed when a
caller begins to wait or is interrupted. If a caller was woken and leaves the message unread, it
first stops waiting for the channel, and then wakes the I/O thread.

Which thread reads
------------------
Only one thread reads at a time, and it goes on until what it has read is in the books. Otherwise
one thread could read a marker (`barriers.py`) before the other has entered the outcome that came
before it. The lock ``reading`` ensures that. The I/O thread always holds it, except while it waits.

What the caller leaves to the I/O thread
----------------------------------------
The caller handles only a small result of the task that it waits for, and leaves every other message
to the I/O thread. What the caller reads is noted in the same step that reads it, and stays noted
until it is handled. So nothing is lost if a signal handler raises, at whatever line: the I/O thread
then handles the message, or handles it again.

A signal handler may itself wait for a future's result or exception. It then lets the I/O thread
finish what the handler has interrupted. If the handler waits in another way (with
``concurrent.futures.wait``, or for an event that a callback sets), and it has interrupted the few
microseconds in which a result is read, it waits for ever. The same is true within a submit.
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
        """Open the reader for these channels. No other thread waits for them yet.

        Args:
            channels: the client's.
            enter: enters into the books that the task with this number has ended, and how many
                nanoseconds it took. It may be called again if it was interrupted.
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
        """Wait for the channel's new socket, which has the same descriptor."""
        if self._is_open:
            with contextlib.suppress(OSError):
                self._poller.unregister(self._receiver.end.fileno())
            self._poller.register(self._receiver.end.fileno(), shared=True)

    def close(self) -> None:
        """Close the reader, when every future has ended. If a caller is just leaving the reader,
        that caller closes it. Safe to call again."""
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

    def note_interruption(self) -> None:
        """A caller may have left something half done: the I/O thread is to count again."""
        self.was_interrupted = True

    def forget_interruption(self) -> None:
        """Note that the I/O thread has finished what was interrupted."""
        self.was_interrupted = False

    def is_reading(self) -> bool:
        """Whether this thread is reading. If so, the code that asks is a signal handler, which has
        interrupted the reading."""
        return _is_owned(self.reading)

    def is_needed(self) -> bool:
        """Whether the I/O thread cannot go on while this thread waits. That is so in a signal
        handler that has interrupted this thread while it read or had the lock of the books."""
        return self.is_reading() or _is_owned(self._lock)

    def may_wait(self) -> bool:
        """Whether this thread may wait for what the I/O thread does."""
        return _thread.get_ident() != self._io_thread and not self.is_needed()

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
        """Let the I/O thread do the reading within the block, in which a signal handler waits.
        That is needed if the handler has interrupted this thread while it read, or just after it
        was woken to read."""
        released: list[tuple[_Lock, Any]] = []
        try:
            if self.is_reading():
                # Also release the lock of the books: what was read may just be being entered.
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
                # Both threads may have handled the message, and counted it: count anew.
                self._leave_all()

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
        """Note that the calling thread is the I/O thread."""
        self._process, self._io_thread = os.getpid(), _thread.get_ident()

    def receive(self, upstream: Receiver) -> Packet:
        """The next message. A message that a caller has read and not handled comes first.

        Raises:
            BlockingIOError, ProtocolError: as :meth:`Receiver.receive`.
        """
        if self._taken:
            return self._receiver.packet(*self._taken.pop()[:2])
        return upstream.receive(DONTWAIT)

    # --- in the caller's thread -------------------------------------------------------------

    def wait(self, bell: DirectBell, timeout: float) -> bool:
        """Wait until the bell's future has ended, ``timeout`` seconds at most, or for ever if that
        is negative. Returns False if this thread cannot wait here: another thread does, or the
        I/O thread could not go on meanwhile."""
        if self.is_needed():
            return False
        seats: list[object] = []
        try:
            # This is one step, which also notes the result: a handler may raise right after it.
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
            self._wake()  # The caller that left a message did not: it was interrupted twice.
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
            # Only this thread was woken, so it must handle the message or wake the I/O thread.
            if ready and not self._read(bell):
                reads = False
                self._wake()

    def _read(self, bell: DirectBell) -> bool:
        """Read a message. Returns False if this thread leaves it to the I/O thread."""
        acquired: list[bool] = []
        try:
            # Do not wait for the lock: if the I/O thread has it, it may be busy for long.
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
            # The result is big, and the next of this function probably is, too.
            task.timing.leave_to_io(True)
            return False
        packet = self._receiver.packet(size, ancillary)
        if packet.number != task.number or packet.kind != Kind.RESULT:
            # A task that yells probably yells the next time, too.
            task.timing.leave_to_io(packet.kind == Kind.YELL)
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
    """An acquired lock, with which a caller waits until a future has ended. ``is_direct``: the
    caller may read the result itself.

    ``doubt`` is an exception that was raised while the caller unpickled the result. Either the
    result or a signal handler has raised it. The I/O thread unpickles the result again. No handler
    interrupts that thread, so its error shows which it was."""

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
        """Wait until the bell rings, ``timeout`` seconds at most, or for ever if that is
        negative."""
        if not (self._is_direct and self._reader.wait(self, timeout)):
            with self._reader.others_may_read():
                self._lock.acquire(timeout=timeout)
        doubt, self.doubt = self.doubt, None
        if doubt is not None and (is_by_handler(doubt) or not self._is_of_the_result(doubt)):
            raise doubt

    def _is_of_the_result(self, doubt: BaseException) -> bool:
        """Whether the result has raised this error: whether the I/O thread has got the same error.
        Also True for any Exception if the error may concern only this thread (MemoryError,
        RecursionError), or if the timeout was reached before the I/O thread had the result."""
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
