"""How callers wait while too many tasks wait: ``max_backlog``.

The backlog is the number of tasks that no worker has begun, as far as the books tell: all that are
outstanding, without one for each worker that takes tasks.

If there is no room for a thread's task, the thread leaves a *bell* here and waits for it. When
tasks have left the books, the I/O thread rings one bell for each free place. The thread that it
wakes tries again, and another thread may have been quicker. A signal handler may raise in a thread
that waits. If that thread's bell has been rung, it rings the next one. A task of an event loop
leaves a bell that tells the loop.

Some threads must not wait, because the I/O thread would wait for them in turn. These are the I/O
thread itself, which runs done-callbacks and ``on_yell``, and threads whose signal handler or
finalizer submits while they hold the lock. Their tasks are accepted, however many wait.
"""

from __future__ import annotations

import _thread
import collections
from collections.abc import Callable

from ..errors import BacklogFull
from .phases import Phase
from .shared_state import SharedState


class Backpressure:
    """The limit of one executor's backlog.

    Args:
        limit: how many tasks may wait.
        shared: the client's.
    """

    def __init__(self, limit: int, shared: SharedState) -> None:
        self._limit = limit
        self._shared = shared
        self._bells: collections.deque[RoomBell | RoomCall] = collections.deque()

    def has_room(self, workers: int) -> bool:
        """With the lock held: whether one more task may wait, if so many workers take tasks."""
        return self._room(workers) > 0

    def _room(self, workers: int) -> int:
        ledger = self._shared.ledger
        return self._limit - ledger.outstanding + min(len(ledger.in_flight), workers)

    def full(self) -> BacklogFull:
        """The error of a caller that does not want to wait."""
        return BacklogFull(self._limit)

    def new_bell(self) -> RoomBell:
        """With the lock held: a bell that is rung once when there may be room."""
        bell = RoomBell(self)
        self._bells.append(bell)
        return bell

    def call_when_room(self, tell: Callable[[], bool], workers: int) -> RoomCall:
        """With the lock held: a bell that calls this once when there may be room, which may be at
        once. See `RoomCall`."""
        bell = RoomCall(self, tell)
        self._bells.append(bell)
        self.ring_for_room(workers)
        return bell

    def give_up(self, bell: RoomBell | RoomCall) -> None:
        """Nobody waits for this bell any more."""
        with self._shared.lock:
            if bell in self._bells:
                self._bells.remove(bell)
            else:
                self._ring(1)  # It has been rung, which another can use.

    def ring_all(self) -> None:
        """Wake all threads that wait. A signal handler may have raised in a thread before it
        waited for its bell. That bell would use up a ring that another thread needs."""
        with self._shared.lock:
            self._ring(len(self._bells))

    def _ring(self, times: int) -> None:
        while self._bells and times > 0:
            times -= self._bells.popleft().ring()

    def ring_for_room(self, workers: int) -> None:
        """With the lock held: tasks may have left the books, or the executor takes no more."""
        if self._bells:
            lifecycle = self._shared.lifecycle
            is_over = lifecycle.phase is not Phase.OPEN or lifecycle.broken is not None
            self._ring(len(self._bells) if is_over else self._room(workers))


class RoomBell:
    """What one caller waits for that has found no room."""

    __slots__ = ("_backpressure", "_lock")

    def __init__(self, backpressure: Backpressure) -> None:
        self._backpressure = backpressure
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self) -> None:
        """Wait until it is rung."""
        try:
            self._lock.acquire()
        except BaseException:
            self._backpressure.give_up(self)
            raise

    def ring(self) -> bool:
        """Wake the thread that waits."""
        self._lock.release()
        return True


class RoomCall:
    """A bell for a task of an event loop.

    Args:
        tell: tells the loop, from any thread and with the client's lock held, so it must neither
            wait nor use the executor. Returns False if the loop has ended: another may use the
            room.
    """

    __slots__ = ("_backpressure", "ring")

    def __init__(self, backpressure: Backpressure, tell: Callable[[], bool]) -> None:
        self._backpressure = backpressure
        self.ring = tell

    def give_up(self) -> None:
        """The task waits no more, for example because it was cancelled."""
        self._backpressure.give_up(self)
