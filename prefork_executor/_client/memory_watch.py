"""The bound for the memory of all workers together: who measures, and who is ended.

`memory_rules.judge` decides; this is what it is told, and what comes of its decisions. Only
pools with a bound have one.

Who measures
------------
The caller's I/O thread, about ten times a second while tasks are under way, and fifty times
while tasks wait for memory, or little of it is free. It alone knows which functions run, what
they have taken before, what waits, and who may be ended. If the caller is stopped, nobody looks,
but nothing begins either: what is in the task pipe has been let through, and counts. What each
task has added to its worker at most its worker tells by itself, however short it was
(`_system.memory.Gauge`).

What is measured is measured without the client's lock, all else is done with it held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard, Slot
from .._messages.wire import LIGHT
from .._support.timers import Timer
from .._system.memory import Room, Scales, System
from ..errors import TaskMemoryExceeded
from ..stats import MemoryStats
from .deadlines import Deadlines
from .ledger import Ledger, Task
from .memory_gate import MemoryGate
from .memory_news import MemoryNews, mib
from .memory_rules import PROBE_SHARE, Idle, Judgement, Memory, Runner, Sight, judge
from .outcomes import EndedForMemory
from .task_states import IN_FLIGHT

LOOK_EVERY, LOOK_CLOSELY = 0.1, 0.02
"""Seconds between two looks; and while tasks wait for memory, or little is free: in that time
a process adds some tens of megabytes."""
AT_ONCE = 0.005
"""Seconds after a look when the next may come at the earliest, if tasks have ended and others
wait for their memory."""
LOOKS_SHARE = 0.02
"""The part of a processor's time that goes into looks at most."""
IDLE_AFTER = 1.0
"""Seconds without a task after which nobody looks any more."""
SETTLED_AFTER = 2.0
"""Seconds that a task of unknown peak has not grown, after which its function is taken to have
come to its peak. Or a function of long tasks would not be known for hours."""
CLOSE = 0.75
"""Little is free when more than this part of the bound is taken."""
MAX_PEAKS = 32
"""Functions whose peaks are shown, the largest."""


class Measured(NamedTuple):
    """What workers take, by their pids, and what there is for them."""

    weights: dict[int, int]
    room: Room


class Actions(NamedTuple):
    """What the I/O thread is to do after a look: have these idle workers leave; take back what
    no worker has taken yet; wake the supervisor, because of the number of workers that fit."""

    leave: tuple[int, ...] = ()
    drain: bool = False
    ring: bool = False


class MemoryWatch:
    """Looks at what the workers take, and has those end that must.

    Args:
        ledger, deadlines: the client's.
        board: the scoreboard.
        bound: bytes that all workers may take together.
        decided: told of each decision, which is packed.
    """

    def __init__(
        self,
        ledger: Ledger,
        deadlines: Deadlines,
        board: Scoreboard,
        bound: int,
        decided: Callable[[bytes], object],
    ) -> None:
        self.timer = Timer()
        """For the next look."""
        self._ledger = ledger
        self._ledger.learn_peaks()
        self._deadlines = deadlines
        self._board = board
        self._bound = bound
        self._news = MemoryNews(board, decided)
        self._scales, self._system = Scales(), System()
        room = self._system.look()
        self._sight = Sight(bound, 0, (), (), (), 0, room.has, room.left)
        self.gate = MemoryGate(ledger, self._news, self.timer, self._sight)
        """Who may begin."""
        self._measured: Measured | None = None
        self._measured_at = self._cost = self._busy_at = 0.0
        # What a worker has taken at least that was past its start; 0: there has been none.
        self._base = 0
        self._memory = Memory()
        self._judgement = Judgement()
        # What each task has added that runs, at most, and since when it has not grown.
        self._growth: dict[int, tuple[int, float]] = {}
        self._ended = self._failed = 0
        board.words[sb.MEMORY_BOUND] = bound
        board.words[sb.FITTING] = self._sight.fitting

    # --- in the I/O thread, without the lock --------------------------------------------------

    def measure(self, *, has_news: bool) -> None:
        """Measure, if that is due. ``has_news``: tasks have ended."""
        if has_news and self.gate.is_holding:
            self.timer.set_at_most(self._measured_at + AT_ONCE - time.monotonic())
        if not self.timer.is_due():
            return
        begin = time.thread_time()
        pids = [slot.pid for slot in self._board.read_all()]
        weights = self._scales.weigh(pids, exactly=self._memory.above == 1)
        self._measured = Measured(weights, self._system.look())
        self._measured_at = time.monotonic()
        # Counting pages has limits of its own, so it is left out here. In a program with a large
        # data set it takes long for each new worker, and there would be no other look for minutes.
        self._cost = time.thread_time() - begin - self._scales.spent

    def log(self) -> None:
        """Log what is to be logged."""
        self._news.log()

    # --- looks --------------------------------------------------------------------------------

    def look(self) -> Actions:
        """Judge what was measured, if anything was. Tasks that are to end have a verdict."""
        if self._measured is None:
            return Actions()
        measured, self._measured = self._measured, None
        now = time.monotonic()
        sight = self._sight = self._look_at(measured)
        self._board.words[sb.MEMORY_TAKEN] = sight.taken
        self._note_growth(sight, now)
        before = self._judgement
        self._judgement, self._memory = judge(sight, self._memory, self.gate.wanted)
        self._obey(self._judgement, sight)
        self.gate.renew(sight, self._come_to(sight), holds=self._judgement.holds)
        self._plan(sight, now)
        drain = self._judgement.holds and not before.holds
        fitting = min(sight.fitting, self._board.slots)
        is_other = fitting != self._board.words[sb.FITTING]
        self._board.words[sb.FITTING] = fitting
        # A worker that becomes idle does not always wake the supervisor.
        return Actions(self._judgement.leave, drain, ring=is_other or sight.is_crowded)

    def _look_at(self, measured: Measured) -> Sight:
        weights, room = measured
        in_flight, slots = self._ledger.in_flight, self._board.read_all()
        named = {slot.task for slot in slots if slot.state == sb.BUSY and slot.task in in_flight}
        sent = [self.gate.request(in_flight[number]).peak for number in in_flight.keys() - named]
        # Others were born since, or have just gone.
        weighed = [slot for slot in slots if slot.pid in weights]
        running = [slot for slot in weighed if slot.state == sb.BUSY and slot.task in named]
        idle = [slot for slot in weighed if slot.state in (sb.IDLE, sb.TAKING)]
        idle.sort(key=lambda slot: slot.since)
        self._learn_base([weights[slot.pid] for slot in (*running, *idle)])
        known = {slot.pid for slot in (*running, *idle)}
        return Sight(
            bound=self._bound,
            base=self._base,
            runners=[self._runner(slot, weights[slot.pid]) for slot in running],
            sent=[peak for peak in sent if peak is None or peak > LIGHT],
            idle=[Idle(slot.pid, weights[slot.pid]) for slot in idle],
            others=sum(weights[slot.pid] for slot in weighed if slot.pid not in known),
            has=room.has,
            left=room.left,
            stalled=room.stalled,
            other_workers=len(slots) - len(known),
        )

    def _runner(self, slot: Slot, takes: int) -> Runner:
        task = self._ledger.in_flight[slot.task]
        may_end = task.options.retries > 0 and task.state is IN_FLIGHT
        peak = self.gate.request(task).peak
        return Runner(slot.task, slot.since, takes, peak, may_end, task.timing)

    def _learn_base(self, sizes: list[int]) -> None:
        self._base = min([self._base, *sizes] if self._base else sizes, default=0)

    def note_new(self, size: int) -> None:
        """A new worker takes so much, before its first task."""
        if not self._base:
            self.timer.set_at_most(0)  # Others may start now.
        self._learn_base([size])

    def _note_growth(self, sight: Sight, now: float) -> None:
        """What those have come to that run; and learn of those that have not grown for long."""
        before, self._growth = self._growth, {}
        for runner in sight.runners:
            growth = sight.growth(runner)
            most, since = before.get(runner.number, (0, now))
            if growth > most + LIGHT:
                since = now
            most = max(growth, most)
            self._growth[runner.number] = most, since
            timing = self._ledger.in_flight[runner.number].timing
            if timing.peak is None and now - since > SETTLED_AFTER:
                timing.observe_peak(most)

    def _come_to(self, sight: Sight) -> dict[object, int]:
        """What tasks that run have come to, of each function."""
        seen: dict[object, int] = {}
        for runner in sight.runners:
            most, _ = self._growth[runner.number]
            seen[runner.function] = max(most, seen.get(runner.function, 0))
        return seen

    def _plan(self, sight: Sight, now: float) -> None:
        if self._ledger.in_flight:
            self._busy_at = now
        elif now - self._busy_at > IDLE_AFTER:
            self.timer.stop()
            return
        is_close = self.gate.is_holding or sight.taken > CLOSE * self._bound
        is_close = is_close or any(runner.peak is None for runner in sight.runners)
        pause = LOOK_CLOSELY if is_close and self._ledger.in_flight else LOOK_EVERY
        self.timer.set(max(pause, self._cost / LOOKS_SHARE))

    # --- what comes of a judgement ------------------------------------------------------------

    def _obey(self, judgement: Judgement, sight: Sight) -> None:
        ends = {judgement.end, judgement.fail}
        runner = next((one for one in sight.runners if one.number in ends), None)
        if runner is not None:
            task, growth = self._ledger.in_flight[runner.number], sight.growth(runner)
            task.timing.observe_peak(growth)
            if judgement.fail is None:
                self._end(task, growth)
            else:
                self._fail(task, runner.takes)
            self._deadlines.look_now()
            self._say(f"{judgement.reason}: {task.name} ({mib(growth)})", sight, retired=1)
        elif judgement.reason and self._news.is_due(judgement.reason):
            self._say(judgement.reason, sight, retired=len(judgement.leave))

    def _end(self, task: Task, growth: int) -> None:
        """It runs again, and its future sees nothing of it."""
        self._ended += 1
        self._board.words[sb.MEMORY_ENDED] = self._ended
        self.gate.note_end(task, growth)
        self._ledger.condemn(task, EndedForMemory())

    def _fail(self, task: Task, takes: int) -> None:
        self._failed += 1
        pid = next((slot.pid for slot in self._board.read_all() if slot.task == task.number), 0)
        self._ledger.condemn(task, TaskMemoryExceeded(task.name, takes, self._bound, pid))

    def killed(self, task: Task, pid: int) -> None:
        """The system has killed its worker for lack of memory: expect more of its like."""
        most, _ = self._growth.get(task.number, (0, 0.0))
        expected = max(most, task.timing.peak or 0, self._bound // PROBE_SHARE)
        task.timing.observe_peak(min(self._bound, expected * 3 // 2))
        self._news.decided(f"the system has killed worker {pid} with {task.name}")

    def _say(self, what: str, sight: Sight, *, retired: int) -> None:
        why = f"{mib(sight.taken)} of {mib(sight.bound)}"
        if sight.is_above and sight.taken <= sight.bound:
            why = f"the system has {mib(sight.left)} left"
        self._news.decided(f"{why}: {what}", retired=retired, warns=sight.is_above)

    def stats(self) -> MemoryStats:
        """As it was seen last."""
        known = [(timing.name, timing.peak) for timing in self._ledger.timings]
        peaks = [(name, peak) for name, peak in known if peak is not None and peak > LIGHT]
        peaks.sort(key=lambda one: one[1], reverse=True)
        return MemoryStats(
            bound=self._bound,
            taken=self._sight.taken,
            left=self._sight.left,
            stalled=self._sight.stalled,
            held=self.gate.held(),
            ended=self._ended,
            exceeded=self._failed,
            peaks=tuple(peaks[:MAX_PEAKS]),
        )
