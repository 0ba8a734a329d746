"""`WorkerPool`: forks workers, reaps, counts, regulates, retires.

It knows nothing of futures and of pickled calls. The process that owns a pool
is its *main process*: the user's own in raw mode, the supervisor in executor
mode. It must be single-threaded, because it forks.

One turn of the owner's loop::

    pool.wait()                      # the doorbell, an ended child, a deadline
    for death in pool.reap():        # say what became of it, then pool.release(death)
        ...
    decision = pool.regulate(backlog)
    for _ in range(decision.start):
        seat = pool.fork_worker()    # None in the main process
        if seat is not None:         # in the worker, which never returns here
            ...

How a worker is retired: its slot's RETIRE word is set, and its *leash* is let
go: a pipe of which the main process holds the writing end. A worker that waits
sees the end of the leash; one that works sees the word before it takes the next
task. Nothing is lost, because it is the worker that leaves. `leaving.py` has what
follows if it does not. A leash also ends when the main process dies, which is how
a waiting worker notices without Linux. With Linux the kernel kills it then,
whatever it does: see `_system.descriptors.Lifeline`.

What must never happen here: waiting for a child that is not one of ours;
clearing the slot of a worker whose death has not been told (the slot is what
tells which task died with it); more live workers than the maximum.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import collections
import math
import os
import posix
import signal
import time
from collections.abc import Callable, Mapping

from .._board import scoreboard as sb
from .._board import worker_states
from .._board.counters import Counters
from .._board.decisions import pack_decision
from .._board.scoreboard import Scoreboard
from .._board.worker_states import Event
from .._messages.wire import NEW, TOLD, Death
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from .._system import descriptors, machine, processes, signals
from .._system.descriptors import Doorbell, Lifeline, Poller
from .._system.signals import Handler
from . import ends, leaving, start_costs
from .leaving import PoolWorker, Rules
from .regulator import Counts, Decision, Limits, Memory, regulate
from .rollover import SETTLED_AFTER, Rollover
from .start_costs import StartCosts

MEMORY_INTERVAL = 0.5
"""Seconds between two looks at the memory of workers that work."""
ROLLOVER_INTERVAL = 0.1
"""Seconds between two looks whether new workers serve, so that old ones may go."""
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


class WorkerPool:
    """A self-regulating pool of forked workers.

    Args:
        limits: how many workers there may and should be.
        board: a scoreboard with at least ``limits.max_workers`` slots.
        doorbell: wakes :meth:`wait`; the pool rings it for its children's ends.
        child_handlers: signal dispositions that every worker starts with.
        disown: called in every new worker before any signal can reach it, to have its
            other handlers, and to close what belongs to the main process alone.
        retire_signal: sent to a worker that is retired, for workers that run code
            of the user's which does not watch the leash.
        leave_within: seconds that such a worker may take to end; None: LEAVE_WITHIN.
        max_memory: bytes of resident memory above which a worker retires; None: any.
        heed: called with each decision, packed (see `_board/decisions.py`).
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
        max_memory: int | None = None,
        heed: Callable[[bytes], object] | None = None,
    ) -> None:
        self.limits = limits
        self.board = board
        self.poller = Poller()
        processes.import_for_children()
        self._doorbell = doorbell
        self._lifeline = Lifeline.new()
        self._child_handlers = child_handlers
        self._disown = disown
        self._retire_signal = retire_signal
        self._leave_within = leaving.LEAVE_WITHIN if leave_within is None else leave_within
        self._rules = Rules(board, self._leave_within, retire_signal)
        self._max_memory = max_memory
        self._heed = heed
        self._memory_at = 0.0
        self._counters = Counters(board, limits.max_workers)
        self._start_costs = StartCosts(board)
        self.stopped: list[int] = []
        """Workers found stopped by a signal; whoever tells of them clears it."""
        self.failed_forks = 0
        """Forks that have failed so far."""
        self.generation = 0
        """How often all workers were replaced; in a worker, before it was forked."""
        self._workers: dict[int, PoolWorker] = {}
        self._reasons: dict[int, str] = {}
        self._rollover = Rollover(self._workers, is_raw=retire_signal is not None)
        self._unreleased = 0
        self._memory = Memory()
        self._crashes = 0
        self._forks = 0
        self._failed_forks = 0
        self._live_at_failure: int | None = None
        self._last_crash = 0
        self._may_settle = False
        self._check_at: float | None = 0.0
        self._child_ended = True
        self._last_reason = ""
        self.poller.register(doorbell.read_end)
        self._old_handler = signals.set_handler(signal.SIGCHLD, signals.only_wake_up)
        self._old_wakeup = _signal.set_wakeup_fd(doorbell.write_end, warn_on_full_buffer=False)

    def close(self) -> None:
        """Give back the signal handling of a main process that lives on. All workers
        have been reaped."""
        _signal.set_wakeup_fd(self._old_wakeup)
        # None: it was not Python that had installed it.
        signals.set_handler(signal.SIGCHLD, self._old_handler or signal.SIG_DFL)
        self.poller.close()
        self._lifeline.close()

    @property
    def pids(self) -> list[int]:
        """The workers not yet reaped."""
        return list(self._workers)

    # --- waiting and reaping -------------------------------------------------------

    def wait(self, at_most: float | None = None) -> list[int]:
        """Wait until there is something to do. Returns the descriptors, among
        those the owner registered with ``poller``, that are ready."""
        timeout = None
        if self._check_at is not None:
            timeout = max(0.0, self._check_at - time.monotonic())
        if at_most is not None:
            timeout = at_most if timeout is None else min(timeout, at_most)
        ready = self.poller.wait(timeout)
        if self._doorbell.read_end in ready:
            self._hush()
            ready.remove(self._doorbell.read_end)
        return ready

    def _hush(self) -> None:
        # Until we know what rang, it may have been a child's end. A signal handler that
        # runs in here may raise, or end the pool, and nothing would tell of it again.
        knew, self._child_ended = self._child_ended, True
        rung = self._doorbell.hush()
        # A pipe that was full may have lost the byte that said so.
        self._child_ended = knew or signal.SIGCHLD in rung or len(rung) >= FULL_PIPE

    def reap(self) -> list[Death]:
        """The workers that have ended since the last call, as they were then."""
        if not self._child_ended:
            return []
        self._child_ended = False
        deaths = []
        for worker in list(self._workers.values()):
            status = processes.try_reap(worker.pid)
            if status is not None:
                deaths.append(self._reaped(worker, status))
            elif processes.has_stopped(worker.pid):
                self.stopped.append(worker.pid)
        return deaths

    def _reaped(self, worker: PoolWorker, status: int) -> Death:
        flags = TOLD if worker.is_told else 0
        if self.is_replacing and worker.pid not in self._rollover:
            flags |= NEW
        self._rollover.forget(worker.pid)
        del self._workers[worker.pid]
        worker.let_go()
        self._start_costs.ended(worker.slot)
        slot = worker.last_look()
        self._unreleased += 1
        is_crash = not worker.is_told and ends.is_crash(slot)
        self._reasons.setdefault(worker.pid, ends.own_reason(slot, status, is_crash=is_crash))
        is_raw = self._retire_signal is not None
        counted = ends.as_counted(slot, was_told=worker.is_told, is_raw=is_raw)
        self._counters.ended(counted, was_told=worker.is_told, is_crash=is_crash)
        if is_crash:
            self._crashes += 1
            self._last_crash = time.monotonic_ns()
        return Death(
            *(worker.pid, status, worker.slot, slot.state, slot.task, slot.done, flags, slot.tail),
            *(slot.born, slot.since, time.monotonic_ns()),
        )

    def release(self, death: Death) -> None:
        """Free the slot of a worker whose death has been told."""
        self.board.clear(death.slot)
        self._reasons.pop(death.pid, None)
        self._unreleased -= 1

    def reason_of(self, death: Death) -> str:
        """Why the worker has ended, in a word, until its death is released: why the pool has
        told it to, or "exit", "crash" (before it had done anything) or "died"."""
        return self._reasons[death.pid]

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
        self._enforce()
        if self._max_memory is not None:
            self._retire_big(self._max_memory)
        counts = self._count()
        counts = counts._replace(backlog=backlog(counts), outstanding=outstanding)
        self._crashes = self._forks = self._failed_forks = 0
        limits = self.limits.fitting(self.board.words[sb.FITTING], counts)
        decision, self._memory = regulate(counts, self._rollover.limits(limits), self._memory)
        self._plan_next_look(decision, counts)
        self._say_when_held(decision)
        if decision.start or decision.retire:
            self._note(decision.reason, decision.start, decision.retire)
        if decision.retire:
            self._retire_idle(decision.retire)
        if self._rollover.are_left():
            for worker in self._rollover.due(counts, limits, self._unreleased):
                self._reasons.setdefault(worker.pid, "reload")
                worker.retire()
        return decision

    def is_quiet(self) -> bool:
        """Whether :meth:`regulate`, where nobody counts a backlog, would find nothing
        to do. At a fraction of its cost, for children that go to and fro all the time."""
        if self._is_due() or self._crashes or self._forks or self._failed_forks:
            return False
        states = self.board.states()
        spares = states.count(sb.STARTING) + states.count(sb.IDLE) + states.count(sb.TAKING)
        is_full = len(self._workers) >= self.limits.max_workers
        surplus_waits = self._check_at is not None
        is_few = spares <= self.limits.max_spare or surplus_waits
        return is_few and (is_full or spares >= self.limits.min_spare)

    def _is_due(self) -> bool:
        """Whether a look is planned that something else than idle workers may want earlier."""
        if self._check_at is None:
            return False
        is_only_surplus = self.limits.surplus_only and not self._rollover and not self._is_held()
        return not is_only_surplus or time.monotonic() >= self._check_at

    def _is_held(self) -> bool:
        return bool(self._memory.crashes.length or self._memory.failed_forks.length)

    def _count(self) -> Counts:
        now = time.monotonic_ns()
        tally: collections.Counter[int] = collections.Counter()
        idle = []
        self._start_costs.look()
        settled = self._may_settle = False
        for worker in self._workers.values():
            slot = worker.look()
            if worker.is_told or (worker.pid in self._rollover and slot.state != sb.BUSY):
                tally[sb.LEAVING] += 1
                continue
            tally[slot.state] += 1
            if slot.state == sb.IDLE:
                idle.append(slot)
            self._may_settle = self._may_settle or slot.born > self._last_crash
            settled = settled or self._has_settled(slot, now)
        idle_long, idle_next = self._idle_times(idle, now)
        return Counts(
            now=now / _NANO,
            starting=tally[sb.STARTING],
            idle=tally[sb.IDLE] + tally[sb.TAKING],
            busy=tally[sb.BUSY],
            leaving=tally[sb.LEAVING] + self._unreleased,
            idle_long=idle_long,
            idle_next=idle_next,
            crashes=self._crashes,
            forks=self._forks,
            failed_forks=self._failed_forks,
            live_at_failure=self._live_at_failure,
            settled=settled,
            start_cost=self._start_costs.estimate,
        )

    def _idle_times(self, idle: list[sb.Slot], now: int) -> tuple[int, float | None]:
        ends = [self._idle_until(slot) for slot in idle]
        fresh = [end for end in ends if end > now]
        idle_next = min(fresh, default=math.inf) / _NANO
        return len(idle) - len(fresh), None if idle_next == math.inf else idle_next

    def _idle_until(self, slot: sb.Slot) -> float:
        """When an idle worker has been idle for long enough (ns, monotonic clock)."""
        life = start_costs.life_of(self.board, slot)
        dwell = self.limits.dwell(self._start_costs.estimate, life)
        return math.inf if dwell is None else slot.since + int(dwell * _NANO)

    def _has_settled(self, slot: sb.Slot, now: int) -> bool:
        if slot.born <= self._last_crash or slot.state == sb.STARTING:
            return False
        return slot.done > 0 or now - slot.born > SETTLED_AFTER * _NANO

    def _plan_next_look(self, decision: Decision, counts: Counts) -> None:
        self._check_at = None
        waits = [] if decision.check_in is None else [decision.check_in]
        if counts.leaving or decision.retire:
            waits.append(self._next_enforcement())
        if self._rollover.are_left():
            waits.append(ROLLOVER_INTERVAL)
        if self._max_memory is not None and self._anybody_works():
            waits.append(MEMORY_INTERVAL)
        if self._memory.crashes.length and (self._may_settle or decision.start):
            waits.append(SETTLED_AFTER)
        if waits:
            self._check_at = time.monotonic() + min(waits)

    def _anybody_works(self) -> bool:
        # One that starts or takes may work in the next moment, and would not say so.
        states = self.board.states()
        return any(state in states for state in (sb.STARTING, sb.TAKING, sb.BUSY))

    def look_again(self) -> None:
        """Let the next :meth:`wait` return at once."""
        self._check_at = 0.0

    def _say_when_held(self, decision: Decision) -> None:
        reason = decision.reason if decision.reason and not decision.start else ""
        if reason and not decision.retire and reason != self._last_reason:
            logger.warning("%s; trying again in %.1f s", reason, decision.check_in or 0.0)
            self._note(reason)
        self._last_reason = reason

    def _note(self, reason: str, start: int = 0, retire: int = 0) -> None:
        packed = pack_decision(len(self._workers), start, retire, reason)
        self.board.write_decision(packed)
        if self._heed is not None:
            self._heed(packed)

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
            pid, mask = processes.fork_masked()
        except OSError as error:
            descriptors.close_quietly((leash_read, leash_write))
            self.board.clear(slot)
            self._fork_failed(error)
            return None
        if pid == 0:
            posix.close(leash_write)
            self._become_worker(main, slot)
            signals.restore_mask(mask)
            return Seat(slot, leash_read)
        self._forks += 1
        self._workers[pid] = PoolWorker(pid, slot, leash_write, self._rules)
        self._start_costs.began(slot)
        self._counters.forked(len(self._workers))
        self.board.words[self.board.base(slot) + sb.PID] = pid
        signals.restore_mask(mask)
        posix.close(leash_read)
        return None

    def _take_slot(self, slot: int) -> None:
        if worker_states.report_to:
            self.board.check(slot, Event.POOL_FORKS)
        self._counters.takes_slot(slot)
        base = self.board.base(slot)
        now = time.monotonic_ns()
        self.board.words[base + sb.BORN] = now
        self.board.words[base + sb.SINCE] = now
        self.board.words[base + sb.HOLDS] = sb.pack_holds(sb.STARTING)

    def _fork_failed(self, error: OSError) -> None:
        self._failed_forks += 1
        self._live_at_failure = len(self._workers) + self._unreleased
        self.failed_forks += 1
        self._check_at = 0.0
        logger.warning("a worker could not be forked: %s", error)

    def _become_worker(self, main: int, slot: int) -> None:
        _signal.set_wakeup_fd(-1)
        signals.set_handler(signal.SIGCHLD, signal.SIG_DFL)
        signals.install_handlers(self._child_handlers)
        processes.die_with_parent(main)
        # The main process may not have written it yet.
        self.board.words[self.board.base(slot) + sb.PID] = os.getpid()
        self.disown_all()
        self._disown()

    def disown_all(self) -> None:
        """In a process that the main process has forked off: close what belongs to
        the main process alone. Held leashes would never end, for one."""
        self._lifeline.hang_on()
        self._doorbell.disown_read_end()
        self.poller.close()
        descriptors.close_quietly(worker.leash for worker in self._workers.values())
        self._workers.clear()
        self._rollover.clear()

    def _retire_idle(self, limit: int) -> None:
        """Retire the workers that have been idle for longest beyond what each is worth."""
        idle = []
        for worker in self._workers.values():
            slot = worker.look()
            if not worker.is_told and worker.pid not in self._rollover and slot.state == sb.IDLE:
                idle.append((self._idle_until(slot), slot.since, worker))
        idle.sort(key=lambda found: found[:2])
        for _, _, worker in idle[:limit]:
            self._reasons[worker.pid] = "surplus"
            worker.retire()

    def replace_all(self) -> None:
        """Let new workers take the places of all there are: each of these retires,
        after what it holds, once a new one serves in its stead."""
        self._rollover.add_all()
        self._note("reload: new workers replace all present ones")
        self.generation += 1
        self.board.words[sb.GENERATION] = self.generation
        self.look_again()

    def replace_worn(self, pid: int, limit: str) -> None:
        """Let a new worker take the place of this one, which has reached the limit of this name."""
        self._rollover.add_worn(pid)
        self._reasons.setdefault(pid, limit)
        self._note(f"worker {pid} has reached {limit}")
        self.look_again()

    def kill_worker(self, pid: int, reason: str) -> None:
        """SIGKILL this worker, whatever it does."""
        self._reasons.setdefault(pid, reason)
        self._note(f"worker {pid} is killed: {reason}")
        processes.send_signal(pid, signal.SIGKILL)

    def looks(self) -> list[sb.Slot]:
        """What the workers say that are to stay."""
        return [
            worker.look()
            for worker in self._workers.values()
            if not worker.is_told and worker.pid not in self._rollover
        ]

    def serves(self) -> bool:
        """Whether ``min_spare`` workers have shown that they serve."""
        return self._rollover.enough_serve(self.limits)

    def keep_old(self) -> None:
        """Give up what :meth:`replace_all` began: those that have not been told to
        leave stay."""
        self._rollover.clear()
        self.look_again()

    @property
    def is_replacing(self) -> bool:
        """Whether a worker from before the last :meth:`replace_all` still lives."""
        return bool(self._rollover)

    def _retire_big(self, max_memory: int) -> None:
        """Retire workers whose memory is above the limit, after the task they hold.
        Others have looked for themselves: a new one that is too big from the start
        would be replaced by its like, and so on."""
        now = time.monotonic()
        if now < self._memory_at:
            return
        self._memory_at = now + MEMORY_INTERVAL
        for worker in self._workers.values():
            if not worker.is_told and worker.look().state == sb.BUSY:
                size = machine.resident_memory(worker.pid) or 0
                if size > max_memory:
                    logger.info(
                        "worker %d leaves after its task: its memory, %d bytes, is above "
                        "max_memory_per_child",
                        *(worker.pid, size),
                    )
                    self._note(f"worker {worker.pid} is above max_memory_per_child", retire=1)
                    worker.retire()

    def retire_all(self, *, is_all_done: bool = False) -> None:
        """Tell every worker to leave as soon as it holds nothing. ``is_all_done``: nobody
        waits for what one may seem to hold, as when it was stopped just after its outcome."""
        for worker in self._workers.values():
            worker.retire(is_done=is_all_done)
        self._check_at = time.monotonic() + self._leave_within

    def end_all(self, number: int) -> None:
        """Send every worker this signal, whatever it does. One that survives it
        takes no other task, and is killed when its time is up."""
        for worker in self._workers.values():
            self._reasons.setdefault(worker.pid, "stop")
            worker.end(number)
        self._child_ended = True  # Whatever has been missed so far.
        self._check_at = time.monotonic() + min(LOOK_INTERVAL, self._next_enforcement())

    def end_worker(self, pid: int, number: int) -> None:
        """The same for one of them; nothing if there is none of this process id."""
        worker = self._workers.get(pid)
        if worker is not None:
            worker.end(number)
            self.look_again()

    def retire_worker(self, pid: int) -> None:
        """Have one of them leave as soon as it holds nothing; nothing if there is none of this
        process id."""
        worker = self._workers.get(pid)
        if worker is not None:
            worker.retire()
            self.look_again()

    def end_task(self, place: int, task: int) -> None:
        """End the worker in this slot if it holds this very task, and nothing else: see
        :meth:`PoolWorker.end_task`."""
        worker = next((w for w in self._workers.values() if w.slot == place), None)
        if worker is not None and worker.end_task(task):
            self.look_again()

    def see_off(self) -> None:
        """Instead of :meth:`regulate` when the pool closes: start nobody, kill
        those who do not leave, plan the next look, which is one at every worker."""
        self._enforce()
        self._child_ended = True
        self._check_at = time.monotonic() + min(LOOK_INTERVAL, self._next_enforcement())

    def _enforce(self) -> None:
        """Remind those that are to leave; SIGKILL those that should have ended long ago: they
        may be stopped, or hang in a handler."""
        for worker in self._workers.values():
            worker.enforce()

    def _next_enforcement(self) -> float:
        """Seconds until one that is to leave may need it, as far as we know."""
        due = [at for worker in self._workers.values() if (at := worker.due_at()) is not None]
        if not due:
            return self._leave_within
        return max(LOOK_LATE, min(due) - time.monotonic())

    def kill_all(self) -> None:
        """SIGKILL every worker, whatever it does."""
        for pid in self._workers:
            processes.send_signal(pid, signal.SIGKILL)
