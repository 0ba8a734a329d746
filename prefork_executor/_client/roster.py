"""The pool's workers as processes that the caller may look at and end: ``_processes``.

Programs written for ProcessPoolExecutor know this mapping from process ids to processes, and use
it as an emergency brake: after an error they terminate every process in it. There, that breaks
the pool. Here, a worker's end costs one task, and another worker takes its place. So:

* A program that ends one worker by its entry here ends the task it holds, and no other.
* A program that ends all live workers means the pool: every future fails, no waiting task
  runs, and the pool is broken. Ends within STOP_WINDOW seconds count together. Workers that
  have started since the program looked at the mapping need not be ended.

A signal that a program sends by ``os.kill`` is not seen here. It ends just one worker.
"""

from __future__ import annotations

import collections
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView

from .._support.locks import leaves_unlocked
from .._support.named_tuples import NamedTuple
from .._system import processes

STOP_WINDOW = 5.0
"""Seconds within which a program that means all workers ends them one after the other."""
MAX_DEATHS = 256
"""Deaths to remember, for processes that were just shown to the program."""
STOPPED = "the pool was stopped: this program has ended every process in the executor's _processes"
_NANO = 1_000_000_000


class WorkerId(NamedTuple):
    """A worker on the board. No two workers ever have the same ``pid`` and ``born``, which is
    in nanoseconds on the monotonic clock."""

    pid: int
    born: int
    place: int


class _End:
    """What is known of a worker's end. All objects that show this worker share it."""

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode
        self.has_come = threading.Event()
        if exitcode is not None:
            self.has_come.set()


class WorkerProcess:
    """A worker, with the interface of ``multiprocessing.Process``."""

    daemon = False

    def __init__(self, worker_id: WorkerId, looked_at: int, end: _End, roster: Roster) -> None:
        self.pid = self.ident = worker_id.pid
        self.name = f"PreforkWorker-{worker_id.place + 1}"
        self._worker_id = worker_id
        self._looked_at = looked_at
        self._end = end
        self._roster = roster
        self._sentinel = -1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerProcess) and self._worker_id == other._worker_id

    def __hash__(self) -> int:
        return hash(self._worker_id)

    def __repr__(self) -> str:
        state = "started" if self.is_alive() else f"stopped exitcode={self.exitcode}"
        return f"<WorkerProcess name={self.name!r} pid={self.pid} {state}>"

    @property
    def exitcode(self) -> int | None:
        """None while it lives; the negative number of a signal that has ended it."""
        return self._end.exitcode

    def is_alive(self) -> bool:
        """Whether it lives, as far as the caller's process knows."""
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, ``timeout`` seconds at most; None: without a limit."""
        self._end.has_come.wait(timeout)

    def terminate(self) -> None:
        """End it by SIGTERM, and with it the task it holds. If all other live workers have been
        ended as well, this ends the pool."""
        self._roster.end(self._worker_id, self._looked_at, signal.SIGTERM)

    def kill(self) -> None:
        """The same, by SIGKILL."""
        self._roster.end(self._worker_id, self._looked_at, signal.SIGKILL)

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable when the worker has ended, for
        ``multiprocessing.connection.wait``. It is closed with this object."""
        if self._sentinel < 0:
            self._sentinel = processes.sentinel_of(self.pid, self._roster.is_there(self._worker_id))
        return self._sentinel

    def __del__(self) -> None:
        if getattr(self, "_sentinel", -1) >= 0:
            os.close(self._sentinel)


class Processes(Mapping[int, WorkerProcess]):
    """The present workers by process id. Each access looks again."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def __getitem__(self, pid: int) -> WorkerProcess:
        return self._roster.look()[pid]

    def __iter__(self) -> Iterator[int]:
        return iter(self._roster.look())

    def __len__(self) -> int:
        return len(self._roster.look())

    def __repr__(self) -> str:
        return repr(self._roster.look())

    def copy(self) -> dict[int, WorkerProcess]:
        """The present workers."""
        return self._roster.look()

    # One look for all entries, instead of one for each.

    def values(self) -> ValuesView[WorkerProcess]:
        return self._roster.look().values()

    def items(self) -> ItemsView[int, WorkerProcess]:
        return self._roster.look().items()


class Roster:
    """Which workers can be shown, which have ended, and whether ending them means the pool.

    Args:
        live: the live workers.
        end_one: ends one of them by this signal.
        stop: breaks the pool, for this reason.
    """

    def __init__(
        self,
        live: Callable[[], list[WorkerId]],
        end_one: Callable[[int, int], None],
        stop: Callable[[str], None],
    ) -> None:
        self._live = live
        self._end_one = end_one
        self._stop = stop
        self._lock = threading.RLock()
        self._ends: weakref.WeakValueDictionary[tuple[int, int], _End]
        self._ends = weakref.WeakValueDictionary()
        self._deaths: collections.OrderedDict[tuple[int, int], int] = collections.OrderedDict()
        self._told: dict[tuple[int, int], tuple[int, int]] = {}

    @leaves_unlocked
    def look(self) -> dict[int, WorkerProcess]:
        """The present workers by process id."""
        now = time.monotonic_ns()
        live = self._live()
        with self._lock:
            return {s.pid: WorkerProcess(s, now, self._end_of(s), self) for s in live}

    def _end_of(self, worker_id: WorkerId) -> _End:
        key = worker_id.pid, worker_id.born
        end = self._ends.get(key)
        if end is None:
            end = self._ends[key] = _End(self._deaths.get(key))
        return end

    def is_there(self, worker_id: WorkerId) -> Callable[[], bool]:
        """A function that tells whether the process id is still this worker's."""
        return lambda: worker_id in self._live()

    # --- told by the client ---------------------------------------------------------------------

    @leaves_unlocked
    def ended(self, pid: int, born: int, exitcode: int) -> None:
        """A worker has ended."""
        with self._lock:
            self._deaths[pid, born] = exitcode
            if len(self._deaths) > MAX_DEATHS:
                self._deaths.popitem(last=False)
            end = self._ends.get((pid, born))
        if end is not None and end.exitcode is None:
            end.exitcode = exitcode
            end.has_come.set()

    @leaves_unlocked
    def all_ended(self) -> None:
        """The pool has ended, and with it all workers whose end was not reported."""
        with self._lock:
            left = [key for key, end in self._ends.items() if end.exitcode is None]
        for pid, born in left:
            self.ended(pid, born, -signal.SIGKILL)

    # --- asked by the caller ----------------------------------------------------------------------

    @leaves_unlocked
    def end(self, worker_id: WorkerId, looked_at: int, number: int) -> None:
        """End this worker, which was shown to the program. If it was the last, end the pool."""
        live = self._live()
        with self._lock:
            now = time.monotonic_ns()
            soon = now - int(STOP_WINDOW * _NANO)
            self._told = {key: told for key, told in self._told.items() if told[0] > soon}
            if worker_id in live:
                self._told[worker_id.pid, worker_id.born] = now, looked_at
            is_all = bool(self._told) and not self._left(live, soon)
        if is_all:
            self._stop(STOPPED)
        elif worker_id in live:
            self._end_one(worker_id.pid, number)

    def _left(self, live: list[WorkerId], soon: int) -> list[WorkerId]:
        """The workers that were shown to the program, and that it has not ended."""
        since = max(soon, min(looked_at for _, looked_at in self._told.values()))
        return [s for s in live if (s.pid, s.born) not in self._told and s.born <= since]
