"""The rules of memory: which task may begin, and which worker must end.

These are pure functions. They get sizes, and neither read nor do anything. So a test can simulate
hours of work in a moment, and every rule is tested.

What is known
-------------
The *bound* is the number of bytes that all workers may take together. The pool measures what each
worker takes. *Base* is the least that any worker has taken. What an idle worker takes beyond base
was left behind by earlier tasks. A task's *peak* is the most that it adds to base. The caller gives
it, or the pool learns it from earlier tasks of the function (`Timing.observe_peak`). A running task
is expected to take base and peak, or what it takes now if that is more. A running task of unknown
peak is expected to add as much again as it has added so far. A task that was sent, and that no
worker has named, is expected to begin in the idle worker that takes least.

*Free* is what the bound leaves beyond all that is expected, or what the system leaves beyond its
reserve, if that is less.

Which task begins (`choose`)
----------------------------
1. If no task is under way, the first waiting task begins, whatever it takes. So a pool never stands
   still.
2. While the pool is *above* its bound, or the system is short of memory, no other task begins.
3. A task begins if it fits into what is free. A task of unknown peak begins if the larger of two
   amounts fits: the most that a running task of its function has added, and one part in PROBE_SHARE
   of the bound. Only one such task begins after each look. So of an unknown function a few tasks
   run at first, and more when these are seen to be small.
4. Later tasks that fit may pass a task that does not fit, MAX_PASSED at most. Then no task begins
   before that one. The running tasks end some day, and at the latest then it is the first waiting
   task while no task is under way. So no task waits for ever behind smaller ones. *Light* tasks,
   which add at most LIGHT bytes, may always pass, because they do not make it wait longer.
5. A task that must run *alone* begins when no task is under way, and no task begins beside it.
   While it is the first waiting task, no task passes it.

Which worker ends (`judge`)
---------------------------
6. If one look finds the pool above its bound, no task begins. That may be enough, if a task is
   about to end.
7. If a second look finds that, too, a task fails if its worker alone takes more than the bound. The
   same would happen in every run of it.
8. If there is no such task, idle workers leave that hold more than base and one part in PROBE_SHARE
   of the bound. The workers that have been idle longest leave first, and only as many as needed.
9. If there is no such worker, one task is ended: of the running tasks that may run again, the one
   that began last. The only running task is not ended. No other task is ended until that one is
   gone. When the task runs again, it is expected to add twice as much. After it was ended MAX_ENDED
   times, it runs alone. So it is not ended for ever.
10. If none of the running tasks may run again, no task is ended.

How many workers there are (`Sight.fitting`)
--------------------------------------------
11. A worker starts only if base, and a light task, fit into what is free. The first one starts
    alone, because base is not known before. If base is more than one part in PROBE_SHARE of the
    bound, idle workers that do not fit any more leave. There is always one worker.

So a pool is above its bound only by an error in what was expected: a task begins only if what is
expected of it fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._messages.wire import LIGHT

PROBE_SHARE = 16
"""One part in this many of the bound must be free for a task of unknown peak. An idle worker leaves
only if it holds more than that beyond base."""
MAX_PASSED = 16
"""How many later tasks may begin before a task that does not fit."""
RESERVE_SHARE, LEAST_RESERVE = 50, 16 << 20
"""One part in this many of the system's memory is its reserve, and at least so many bytes. The
machine needs that much to work, and workers grow between two looks. Each worker also costs the
kernel some megabytes that belong to none: a control group of 150 MiB with a reserve of 3 MiB lost
workers to the kernel in one of ten runs."""
STALLED = 10.0
"""If all processes stall for lack of memory during this percentage of the time, no task begins,
even if there seems to be room."""
MAX_ENDED = 2
"""After a task was ended this many times, it runs alone."""


ABOVE = "no task begins"
STALLS = "the system stalls for lack of memory: no task begins"
MAKES_ROOM = "idle workers that hold memory leave"
TOO_LARGE = "a task alone is too large, and fails"
ENDS_LAST = "the task that began last is ended, to run again"
ALONE = "one task runs alone"
NONE_MAY_END = "no task begins, and none is ended, because none may run again"


class Runner(NamedTuple):
    """A running task: its number, when it began (in any unit), the bytes that its worker takes, the
    bytes that it is expected to add (None: unknown), whether it may be ended and run again, and its
    function."""

    number: int
    since: int
    takes: int
    peak: int | None
    may_run_again: bool
    function: object


class Idle(NamedTuple):
    """A worker that holds no task, and the bytes that it takes."""

    pid: int
    takes: int


class Sight(NamedTuple):
    """What one look sees. Sizes are in bytes.

    ``sent`` has the peaks of the tasks that were sent and that no worker has named. ``idle`` begins
    with the worker that has been idle longest. ``others`` is what all other workers take, which
    start or leave, and ``other_workers`` is their number. The system has ``has`` bytes of memory in
    all, of which ``left`` are left. ``stalled`` is the percentage of the time in which all
    processes stalled for lack of memory."""

    bound: int
    base: int
    runners: Sequence[Runner]
    sent: Sequence[int | None]
    idle: Sequence[Idle]
    others: int
    has: int
    left: int
    stalled: float = 0.0
    other_workers: int = 0

    @property
    def taken(self) -> int:
        """The bytes that all workers take."""
        working = sum(one.takes for one in self.runners)
        return working + sum(one.takes for one in self.idle) + self.others

    @property
    def live(self) -> int:
        """How many workers there are."""
        return len(self.runners) + len(self.idle) + self.other_workers

    @property
    def probe(self) -> int:
        """The bytes that a task of unknown peak is expected to add before a look has seen it."""
        return self.bound // PROBE_SHARE

    @property
    def reserve(self) -> int:
        """The bytes that the system must keep."""
        return max(self.has // RESERVE_SHARE, LEAST_RESERVE)

    @property
    def is_above(self) -> bool:
        """Whether the workers take more than the bound, or the system has less left than its
        reserve."""
        return self.taken > self.bound or self.left < self.reserve

    @property
    def excess(self) -> int:
        """By how many bytes."""
        return max(self.taken - self.bound, self.reserve - self.left)

    def growth(self, runner: Runner) -> int:
        """The bytes that this task seems to have added to its worker so far."""
        return max(0, runner.takes - self.base)

    def offer(self) -> Offer:
        """The memory for tasks that begin now."""
        expected = sum(self._expected_of(runner) for runner in self.runners)
        expected += sum(one.takes for one in self.idle)
        expected += max(self.others, self.other_workers * self.base)
        ceiling = min(self.bound, self.taken + self.left - self.reserve)
        places = tuple(sorted(one.takes for one in self.idle))
        offer = Offer(ceiling - expected, self.base, places, self.probe)
        for peak in self.sent:
            offer = offer.less(peak)
        return offer

    @property
    def fitting(self) -> int:
        """How many workers there may be; 0: any number. See rule 11."""
        if not self.base:
            return 0 if self.runners or self.idle else 1
        # The workers that will take the tasks that were sent are counted as live ones or as more.
        # So of these tasks only the peaks count.
        free = self._replace(sent=()).offer().free
        free -= sum(self.probe if peak is None else peak for peak in self.sent)
        more = free // (self.base + LIGHT)  # Any task may add LIGHT.
        return max(1, self.live + (more if self.base > self.probe else max(0, more)))

    @property
    def is_crowded(self) -> bool:
        """Whether idle workers should leave, because fewer workers fit than there are."""
        return bool(self.idle) and 0 < self.fitting < self.live

    def _expected_of(self, runner: Runner) -> int:
        if runner.peak is None:
            return runner.takes + self.growth(runner)
        return max(runner.takes, self.base + runner.peak)


class Offer(NamedTuple):
    """The memory for tasks that begin: ``free`` bytes beyond all that is expected. ``places`` are
    the bytes that each idle worker takes, smallest first."""

    free: int
    base: int
    places: tuple[int, ...]
    probe: int

    def cost(self, peak: int | None) -> int:
        """The bytes that a task of this peak would add to all that is expected."""
        comes_to = self.base + (self.probe if peak is None else peak)
        return max(0, comes_to - self.places[0]) if self.places else comes_to

    def less(self, peak: int | None) -> Offer:
        """What is left of the offer when a task of this peak has begun."""
        return self._replace(free=self.free - self.cost(peak), places=self.places[1:])

    def fits(self, peak: int | None) -> bool:
        """Whether a task of this peak fits beside the others."""
        return is_light(peak) or self.cost(peak) <= self.free


def is_light(peak: int | None) -> bool:
    """Whether a task of this peak is known to add at most LIGHT bytes."""
    return peak is not None and peak <= LIGHT


MIN_LOOKS_BETWEEN = 50
"""After idle workers were told to leave, no others are told before this many looks, because their
replacements may hold as much."""


class Memory(NamedTuple):
    """What the rules keep from one look to the next."""

    above: int = 0
    """How many looks in a row have found the pool above its bound, since no ended task is left."""
    ending: int | None = None
    """The number of the task that was ended, while its worker still runs it."""
    since_leave: int = MIN_LOOKS_BETWEEN
    """How many looks there have been since idle workers were told to leave."""


class Judgement(NamedTuple):
    """What to do after a look: whether no task may begin (``holds``), the number of the task to end
    and run again (``end``) or to fail (``fail``), the idle workers that must leave, and the reason
    to report."""

    holds: bool = False
    end: int | None = None
    fail: int | None = None
    leave: tuple[int, ...] = ()
    reason: str = ""


def judge(sight: Sight, memory: Memory, wanted: int | None = None) -> tuple[Judgement, Memory]:
    """Decide what to do after a look. ``wanted`` is the peak of the first waiting task if that does
    not fit, and else None."""
    memory = memory._replace(since_leave=memory.since_leave + 1)
    if sight.is_above:
        return _above(sight, memory._replace(above=memory.above + 1))
    memory = Memory(since_leave=memory.since_leave)
    if sight.stalled >= STALLED:
        return Judgement(holds=True, reason=STALLS), memory
    if wanted is not None:
        offer = sight.offer()
        if leave := _leave(sight, memory, offer.cost(wanted) - offer.free):
            return Judgement(leave=leave, reason=MAKES_ROOM), Memory(since_leave=0)
    return Judgement(), memory


def _above(sight: Sight, memory: Memory) -> tuple[Judgement, Memory]:
    if memory.ending is not None and memory.ending in [one.number for one in sight.runners]:
        return Judgement(holds=True, reason=ABOVE), memory._replace(above=0)
    memory = memory._replace(ending=None)
    if memory.above == 1:
        return Judgement(holds=True, reason=ABOVE), memory
    largest = max(sight.runners, key=lambda one: one.takes, default=None)
    if largest is not None and largest.takes > sight.bound:
        memory = memory._replace(above=0, ending=largest.number)
        return Judgement(True, fail=largest.number, reason=TOO_LARGE), memory
    if leave := _leave(sight, memory, sight.excess):
        return Judgement(True, leave=leave, reason=MAKES_ROOM), memory._replace(since_leave=0)
    if len(sight.runners) < 2:
        return Judgement(holds=True, reason=ALONE), memory
    may_end = [one for one in sight.runners if one.may_run_again and sight.growth(one) > LIGHT]
    if not may_end:
        return Judgement(holds=True, reason=NONE_MAY_END), memory
    last = max(may_end, key=lambda one: one.since)
    memory = memory._replace(above=0, ending=last.number)
    return Judgement(True, end=last.number, reason=ENDS_LAST), memory


def _leave(sight: Sight, memory: Memory, lack: int) -> tuple[int, ...]:
    """The idle workers that hold much, as many as free ``lack`` bytes, or all of them if that is
    not enough."""
    leave: list[int] = []
    if memory.since_leave < MIN_LOOKS_BETWEEN:
        return ()
    for one in sight.idle:
        if lack <= 0:
            break
        if one.takes > sight.base + sight.probe:
            leave.append(one.pid)
            lack -= one.takes - sight.base
    return tuple(leave)


class Past(NamedTuple):
    """A task's past: how often it was ended, and the least number of bytes that it is therefore
    expected to add."""

    ended: int = 0
    least: int = 0

    def after_end(self, growth: int) -> Past:
        """Its past when it is ended once more, after it had added this many bytes."""
        return Past(self.ended + 1, max(self.least, 2 * growth))


class Request(NamedTuple):
    """A waiting task: the bytes that it is expected to add (None: unknown), its function, and
    whether it must run alone."""

    peak: int | None
    function: object = None
    alone: bool = False

    @classmethod
    def of(cls, peak: int | None, function: object, past: Past | None) -> Request:
        """The request of a task of this peak and this past."""
        if past is None:
            return cls(peak, function)
        return cls(max(peak or 0, past.least), function, past.ended >= MAX_ENDED)


def choose(
    waiting: Sequence[Request],
    offer: Offer,
    seen: Mapping[object, int],
    *,
    may_probe: bool,
    passed: int,
    under_way: int,
    holds: bool,
) -> int | None:
    """The place of the waiting task that begins next. None: none begins now.

    Args:
        waiting: the first waiting tasks, in their order.
        offer: the memory for them.
        seen: for each function, the most bytes that one of its running tasks has added.
        may_probe: whether a task of unknown peak may begin.
        passed: how many tasks, light ones excluded, have passed the first one.
        under_way: how many tasks run or were sent; -1: one that runs alone.
        holds: whether no task may begin beside those that are under way.
    """
    if not waiting:
        return None
    if not under_way:
        return 0
    if holds or under_way < 0 or waiting[0].alone:
        return None
    for place, request in enumerate(waiting):
        if place and passed >= MAX_PASSED and not is_light(request.peak):
            continue
        if _may_begin(request, offer, seen, may_probe=may_probe):
            return place
    return None


def _may_begin(
    request: Request, offer: Offer, seen: Mapping[object, int], *, may_probe: bool
) -> bool:
    if request.alone:
        return False
    if request.peak is not None:
        return offer.fits(request.peak)
    return may_probe and offer.fits(max(offer.probe, seen.get(request.function, 0)))
