"""`WorkerPool`: forks workers, reaps, counts, regulates, retires.

It knows nothing of futures and of pickled calls. The process that owns a pool
is its *main process*: the user's own in raw mode, the supervisor in executor
mode. It must be single-threaded, because it forks.

One turn of the owner's loop::

    pool.wait()                      # the doorbell, an ended child, a deadline
    for death in pool.reap():        # say what became of it, then pool.bury(death)
        ...
    decision = pool.regulate(backlog)
    for _ in range(decision.start):
        seat = pool.fork_worker()    # None in the main process
        if seat is not None:         # in the worker, which never returns here
            ...

How a worker is retired: its slot's RETIRE word is set, and its *leash* is let
go: a pipe of which the main process holds the writing end. A worker that waits
sees the end of the leash; one that works sees the word before it takes the next
task. Nothing is lost, because it is the worker that leaves. A leash also ends
when the main process dies, which is how a waiting worker notices without Linux.

What must never happen here: waiting for a child that is not one of ours;
clearing the slot of a worker whose death has not been told (the slot is what
tells which task died with it); more live workers than the maximum.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import _posix
from . import _scoreboard as sb
from ._posix import Doorbell, Handler, Waiter
from ._regulator import Counts, Decision, Limits, Memory, regulate
from ._scoreboard import Scoreboard
from ._wire import Death

logger = logging.getLogger("prefork_executor")

SETTLED_AFTER = 1.0
"""Seconds after which a worker that has done nothing yet counts as sound."""
LEAVE_WITHIN = 10.0
"""Seconds a worker that holds no task may take to end after it was told to, or
said that it would: enough to flush its queues and join its threads. Then SIGKILL."""
LOOK_INTERVAL = 1.0
"""Seconds between two looks at the workers of a pool that closes."""
LOOK_LATE = 0.01
"""Seconds by which a deadline is looked at late, so that it has passed then."""
FULL_PIPE = 4096
"""Bytes heard at once from which on the doorbell's pipe may have been full: the
smallest that a pipe may be."""
_NANO = 1_000_000_000


class Seat(NamedTuple):
    """What a new worker is given: its slot, and its end of the leash."""

    slot: int
    leash: int


@dataclasses.dataclass(slots=True)
class _Worker:
    pid: int
    slot: int
    leash: int
    is_old: bool = False
    retired_at: int | None = None
    ended_at: int | None = None
    is_killed: bool = False


class WorkerPool:
    """A self-regulating pool of forked workers.

    Args:
        limits: how many workers there may and should be.
        board: a scoreboard with at least ``limits.max_workers`` slots.
        doorbell: wakes :meth:`wait`; the pool rings it for its children's ends.
        child_handlers: signal dispositions that every worker starts with.
        disown: called in every new worker before any signal can reach it, to
            close what belongs to the main process alone.
        retire_signal: sent to a worker that is retired, for workers that run code
            of the user's which does not watch the leash.
        leave_within: seconds that such a worker may take to end; None: LEAVE_WITHIN.
    """

    def __init__(
        self,
        limits: Limits,
        board: Scoreboard,
        doorbell: Doorbell,
        *,
        child_handlers: Mapping[int, Handler],
        disown: Callable[[], None],
        retire_signal: int | None = None,
        leave_within: float | None = None,
    ) -> None:
        self.limits = limits
        self.board = board
        self.waiter = Waiter()
        self._doorbell = doorbell
        self._child_handlers = child_handlers
        self._disown = disown
        self._retire_signal = retire_signal
        self._leave_within = LEAVE_WITHIN if leave_within is None else leave_within
        self.failed_forks = 0
        """Forks that have failed so far."""
        self.generation = 0
        """How often all workers were replaced; in a worker, before it was forked."""
        self._workers: dict[int, _Worker] = {}
        self._unburied = 0
        self._memory = Memory()
        self._crashes = 0
        self._forks = 0
        self._failed_forks = 0
        self._last_crash = 0
        self._may_settle = False
        self._check_at: float | None = 0.0
        self._child_ended = True
        self._last_reason = ""
        self.waiter.register(doorbell.read_end)
        self._old_handler = signal.signal(signal.SIGCHLD, _ignore)
        self._old_wakeup = signal.set_wakeup_fd(doorbell.write_end, warn_on_full_buffer=False)

    def close(self) -> None:
        """Give back the signal handling of a main process that lives on. All workers
        have been reaped."""
        signal.set_wakeup_fd(self._old_wakeup)
        # None: it was not Python that had installed it.
        signal.signal(signal.SIGCHLD, self._old_handler or signal.SIG_DFL)
        self.waiter.close()

    @property
    def pids(self) -> list[int]:
        """The workers not yet reaped."""
        return list(self._workers)

    # --- waiting and reaping -------------------------------------------------------

    def wait(self, at_most: float | None = None) -> list[int]:
        """Wait until there is something to do. Returns the descriptors, among
        those the owner registered with ``waiter``, that are ready."""
        timeout = None
        if self._check_at is not None:
            timeout = max(0.0, self._check_at - time.monotonic())
        if at_most is not None:
            timeout = at_most if timeout is None else min(timeout, at_most)
        ready = self.waiter.wait(timeout)
        if self._doorbell.read_end in ready:
            self._hear(self._doorbell.hush())
            ready.remove(self._doorbell.read_end)
        return ready

    def _hear(self, rung: bytes) -> None:
        # A pipe that was full may have lost the byte that said so.
        if signal.SIGCHLD in rung or len(rung) >= FULL_PIPE:
            self._child_ended = True

    def reap(self) -> list[Death]:
        """The workers that have ended since the last call, as they were then."""
        if not self._child_ended:
            return []
        self._child_ended = False
        deaths = []
        for worker in list(self._workers.values()):
            status = _posix.try_reap(worker.pid)
            if status is not None:
                deaths.append(self._reaped(worker, status))
        return deaths

    def _reaped(self, worker: _Worker, status: int) -> Death:
        del self._workers[worker.pid]
        self._let_go(worker)
        slot = self.board.read(worker.slot)
        self._unburied += 1
        if worker.retired_at is None and _is_crash(slot):
            self._crashes += 1
            self._last_crash = time.monotonic_ns()
        return Death(worker.pid, status, worker.slot, slot.state, slot.task, slot.done)

    def bury(self, death: Death) -> None:
        """Free the slot of a worker whose death has been told."""
        self.board.clear(death.slot)
        self._unburied -= 1

    # --- regulating -------------------------------------------------------------------

    def regulate(
        self, backlog: Callable[[Counts], int], outstanding: int | None = None
    ) -> Decision:
        """Look, decide, and retire whom the decision retires. Starting is left to
        the caller, who has to tell the main process from the new worker.

        Args:
            backlog: the number of tasks that wait, given the counts without it.
            outstanding: the tasks not resolved, as far as their owner knows. None:
                nobody counts them.
        """
        self._kill_the_stuck()
        counts = self._count()
        counts = dataclasses.replace(counts, backlog=backlog(counts), outstanding=outstanding)
        self._crashes = self._forks = self._failed_forks = 0
        decision, self._memory = regulate(counts, self.limits, self._memory)
        self._plan_next_look(decision, counts)
        self._say_when_held(decision)
        if decision.retire:
            self._retire_idle(decision.retire)
        if self._old_are_left():
            self._retire_old(counts)
        return decision

    def is_quiet(self) -> bool:
        """Whether :meth:`regulate`, where nobody counts a backlog, would find nothing
        to do. At a fraction of its cost, for children that go to and fro all the time."""
        if self._check_at is not None or self._crashes or self._forks or self._failed_forks:
            return False
        states = self.board.states()
        spares = states.count(sb.STARTING) + states.count(sb.IDLE) + states.count(sb.TAKING)
        is_full = len(self._workers) >= self.limits.max_workers
        return spares <= self.limits.max_spare and (is_full or spares >= self.limits.min_spare)

    def _count(self) -> Counts:
        now = time.monotonic_ns()
        tally: collections.Counter[int] = collections.Counter()
        idle_since = []
        settled = self._may_settle = False
        for worker in self._workers.values():
            slot = self.board.read(worker.slot)
            if worker.retired_at is not None or (worker.is_old and slot.state != sb.BUSY):
                tally[sb.LEAVING] += 1
                continue
            tally[slot.state] += 1
            if slot.state == sb.IDLE:
                idle_since.append(slot.since)
            self._may_settle = self._may_settle or slot.born > self._last_crash
            settled = settled or self._has_settled(slot, now)
        idle_long, idle_next = self._tiredness(idle_since, now)
        return Counts(
            now=now / _NANO,
            starting=tally[sb.STARTING],
            idle=tally[sb.IDLE] + tally[sb.TAKING],
            busy=tally[sb.BUSY],
            leaving=tally[sb.LEAVING] + self._unburied,
            idle_long=idle_long,
            idle_next=idle_next,
            crashes=self._crashes,
            forks=self._forks,
            failed_forks=self._failed_forks,
            settled=settled,
        )

    def _tiredness(self, idle_since: list[int], now: int) -> tuple[int, float | None]:
        if self.limits.idle_timeout is None:
            return 0, None
        dwell = int(self.limits.idle_timeout * _NANO)
        fresh = [since for since in idle_since if now - since < dwell]
        idle_next = (min(fresh) + dwell) / _NANO if fresh else None
        return len(idle_since) - len(fresh), idle_next

    def _has_settled(self, slot: sb.Slot, now: int) -> bool:
        if slot.born <= self._last_crash or slot.state == sb.STARTING:
            return False
        return slot.done > 0 or now - slot.born > SETTLED_AFTER * _NANO

    def _plan_next_look(self, decision: Decision, counts: Counts) -> None:
        self._check_at = None
        waits = [] if decision.check_in is None else [decision.check_in]
        if counts.leaving or decision.retire:
            waits.append(self._next_kill())
        if self._old_are_left():
            waits.append(SETTLED_AFTER)
        if self._memory.crashes.length and (self._may_settle or decision.start):
            waits.append(SETTLED_AFTER)
        if waits:
            self._check_at = time.monotonic() + min(waits)

    def look_again(self) -> None:
        """Let the next :meth:`wait` return at once."""
        self._check_at = 0.0

    def _say_when_held(self, decision: Decision) -> None:
        held = decision.reason if decision.reason and not decision.start else ""
        if held and not decision.retire and held != self._last_reason:
            logger.warning("%s; trying again in %.1f s", held, decision.check_in or 0.0)
        self._last_reason = held

    # --- starting and retiring ----------------------------------------------------------

    def fork_worker(self) -> Seat | None:
        """Fork one worker: its seat in the worker, None in the main process. A
        failed fork is counted, logged, and left to the regulator to retry."""
        slot = self.board.free_slot()
        if slot is None:
            return None
        main = os.getpid()
        try:
            leash_read, leash_write = os.pipe()
        except OSError as error:
            self._fork_failed(error)
            return None
        self._take_slot(slot)
        try:
            pid, mask = _posix.fork_masked()
        except OSError as error:
            _posix.close_quietly((leash_read, leash_write))
            self.board.clear(slot)
            self._fork_failed(error)
            return None
        if pid == 0:
            os.close(leash_write)
            self._become_worker(main, slot)
            _posix.restore_mask(mask)
            return Seat(slot, leash_read)
        self._forks += 1
        self._workers[pid] = _Worker(pid, slot, leash_write)
        self.board.words[self.board.base(slot) + sb.PID] = pid
        _posix.restore_mask(mask)
        os.close(leash_read)
        return None

    def _take_slot(self, slot: int) -> None:
        base = self.board.base(slot)
        now = time.monotonic_ns()
        self.board.words[base + sb.BORN] = now
        self.board.words[base + sb.SINCE] = now
        self.board.words[base + sb.STATE] = sb.STARTING

    def _fork_failed(self, error: OSError) -> None:
        self._failed_forks += 1
        self.failed_forks += 1
        self._check_at = 0.0
        logger.warning("a worker could not be forked: %s", error)

    def _become_worker(self, main: int, slot: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _posix.install_handlers(self._child_handlers)
        _posix.die_with_parent(main)
        # The main process may not have written it yet.
        self.board.words[self.board.base(slot) + sb.PID] = os.getpid()
        self.disown_all()
        self._disown()

    def disown_all(self) -> None:
        """In a process that the main process has forked off: close what belongs to
        the main process alone. Held leashes would never end, for one."""
        self._doorbell.disown_read_end()
        self.waiter.close()
        _posix.close_quietly(worker.leash for worker in self._workers.values())
        self._workers.clear()

    def _retire_idle(self, most: int) -> None:
        """Retire the workers that have been idle longest."""
        idle = []
        for worker in self._workers.values():
            slot = self.board.read(worker.slot)
            if worker.retired_at is None and not worker.is_old and slot.state == sb.IDLE:
                idle.append((slot.since, worker))
        idle.sort(key=lambda pair: pair[0])
        for _, worker in idle[:most]:
            self._retire(worker)

    def replace_all(self) -> None:
        """Let new workers take the places of all there are: each of these retires
        once it is idle and a new one serves in its stead."""
        for worker in self._workers.values():
            worker.is_old = True
        self.generation += 1
        self.board.words[sb.GENERATION] = self.generation
        self.look_again()

    def _old_are_left(self) -> bool:
        return any(w.is_old and w.retired_at is None for w in self._workers.values())

    def _retire_old(self, counts: Counts) -> None:
        """Retire idle workers that are to be replaced: all of them when enough new
        ones have shown that they serve, else as many as the lacking ones need room.
        So new ones that die at once do not cost us the old."""
        live = [worker for worker in self._workers.values() if worker.retired_at is None]
        old = [w for w in live if w.is_old and self.board.read(w.slot).state == sb.IDLE]
        lacking = self.limits.min_spare - counts.spares
        room = self.limits.max_workers - counts.live
        going = len(self._workers) - len(live)
        most = max(0, lacking - room - going)
        for worker in old if old and self._enough_serve(live) else old[:most]:
            self._retire(worker)

    def _enough_serve(self, live: list[_Worker]) -> bool:
        new = [self.board.read(worker.slot) for worker in live if not worker.is_old]
        now = time.monotonic_ns()
        return sum(_serves(slot, now) for slot in new) >= self.limits.min_spare

    def retire_all(self) -> None:
        """Tell every worker to leave as soon as it holds nothing."""
        for worker in self._workers.values():
            self._retire(worker)
        self._check_at = time.monotonic() + self._leave_within

    def _retire(self, worker: _Worker) -> None:
        if worker.retired_at is None:
            worker.retired_at = time.monotonic_ns()
            self.board.words[self.board.base(worker.slot) + sb.RETIRE] = 1
            if self._retire_signal is not None:
                _posix.send_signal(worker.pid, self._retire_signal)
        self._let_go(worker)

    def _let_go(self, worker: _Worker) -> None:
        if worker.leash >= 0:
            os.close(worker.leash)
            worker.leash = -1

    def end_all(self, number: int) -> None:
        """Send every worker this signal, whatever it does. One that survives it
        takes no other task, and is killed when its time is up."""
        for worker in self._workers.values():
            worker.ended_at = worker.ended_at or time.monotonic_ns()
            is_told = worker.retired_at is None and number == self._retire_signal
            self._retire(worker)
            if not is_told:
                _posix.send_signal(worker.pid, number)
        self._check_at = time.monotonic() + min(LOOK_INTERVAL, self._leave_within)

    def see_off(self) -> None:
        """Instead of :meth:`regulate` when the pool closes: start nobody, kill
        those who do not leave, plan the next look."""
        self._kill_the_stuck()
        self._check_at = time.monotonic() + min(LOOK_INTERVAL, self._leave_within)

    def _kill_the_stuck(self) -> None:
        """SIGKILL workers that should have ended long ago: they may be stopped, or
        hang in a handler."""
        now = time.monotonic_ns()
        for worker in self._workers.values():
            since = self._leaves_since(worker)
            if since is not None and now - since > self._leave_within * _NANO:
                logger.warning(
                    "worker %d did not leave in %g s; killing it", worker.pid, self._leave_within
                )
                _posix.send_signal(worker.pid, signal.SIGKILL)
                worker.is_killed = True

    def _next_kill(self) -> float:
        """Seconds until the next worker's time to leave is up, as far as we know."""
        known = [self._leaves_since(worker) for worker in self._workers.values()]
        first = min((since for since in known if since is not None), default=None)
        if first is None:
            return self._leave_within
        return max(LOOK_LATE, first / _NANO + self._leave_within - time.monotonic())

    def _leaves_since(self, worker: _Worker) -> int | None:
        """When a worker was told to end, or began to leave holding no task (ns)."""
        if worker.is_killed:
            return None
        if worker.ended_at is not None:
            return worker.ended_at
        slot = self.board.read(worker.slot)
        if slot.state == sb.LEAVING:
            return slot.since
        return worker.retired_at if slot.state in (sb.IDLE, sb.STARTING) else None

    def kill_all(self) -> None:
        """SIGKILL every worker, whatever it does."""
        for pid in self._workers:
            _posix.send_signal(pid, signal.SIGKILL)


def _ignore(_signum: int, _frame: object) -> None:
    """Stands where a handler must for the signal to reach the wake-up descriptor.

    That descriptor is written by the interpreter's C code. A handler in Python
    could not be relied upon: CPython 3.13.0 never runs one in a process that was
    forked by another thread than the main one, as a supervisor may be."""


def _serves(slot: sb.Slot, now: int) -> bool:
    """Whether a worker has shown that it works: it has waited for work, or has not
    died for a while."""
    if slot.state not in (sb.IDLE, sb.TAKING, sb.BUSY):
        return False
    return slot.takes > 0 or now - slot.born > SETTLED_AFTER * _NANO


def _is_crash(slot: sb.Slot) -> bool:
    """Whether a worker that was not told to leave ended before it did anything."""
    if slot.state == sb.STARTING:
        return True
    if slot.state in (sb.BUSY, sb.LEAVING) or slot.done:
        return False
    return time.monotonic_ns() - slot.born < SETTLED_AFTER * _NANO
