"""Decides which tasks may begin, in a pool with a bound for its workers' memory.

`memory_rules.choose` has the rules. The gate tells it what it needs to know, and acts on its
answer. The latest look (`memory_watch.py`) says how much memory there is for tasks that begin. Each
task that begins leaves less of it for the next. Call all methods with the client's lock held.
"""

from __future__ import annotations

import itertools

from .._support.timers import Timer
from .ledger import Ledger, Task
from .memory_news import MemoryNews, mib
from .memory_rules import Past, Request, Sight, choose, is_light

LOOK_SOON = 0.02
"""Seconds until the next look, if a task begins while no look is planned."""
LOOKAHEAD = 64
"""How many of the waiting tasks the gate searches for one that fits."""
_WAITS = "a task waits"


class MemoryGate:
    """Lets tasks begin as far as they fit into memory.

    Args:
        ledger: the client's.
        news: for the decision that a task waits, and why.
        timer: for the next look.
        sight: what the first look has seen, before there is a worker.
    """

    def __init__(self, ledger: Ledger, news: MemoryNews, timer: Timer, sight: Sight) -> None:
        self.is_holding = False
        """Whether the gate holds back the waiting tasks."""
        self.wanted: int | None = None
        """The bytes that the first waiting task is expected to add, if that is more than is
        free."""
        self._ledger = ledger
        self._news = news
        self._timer = timer
        self._past: dict[Task, Past] = {}
        self._alone: int | None = None
        # Whether waiting tasks lack memory, and do not only wait for the next look.
        self._lacks = False
        # The first waiting task, how many tasks have passed it, and the task that may begin now.
        self._head: Task | None = None
        self._passed = 0
        self._let: Task | None = None
        self.renew(sight, {}, holds=False)

    def renew(self, sight: Sight, seen: dict[object, int], *, holds: bool) -> None:
        """Take over what a look has seen.

        Args:
            sight: what the look has seen.
            seen: for each function, the most bytes that one of its running tasks has added.
            holds: whether no task may begin beside the running ones.
        """
        self._offer, self._may_probe = sight.offer(), True
        self._seen = seen
        self._holds = holds
        if self._past:
            self._past = {t: past for t, past in self._past.items() if not t.future.has_ended}

    def request(self, task: Task) -> Request:
        """The task in the form that the rules take."""
        timing, given = task.timing, task.options.memory
        peak = timing.peak if given is None else given
        return Request.of(peak, timing, self._past.get(task) if self._past else None)

    def note_end(self, task: Task, growth: int) -> None:
        """Note that this task is ended, after it had added so many bytes, and will run again."""
        self._past[task] = (self._past.get(task) or Past()).after_end(growth)

    def is_light(self, task: Task) -> bool:
        """Whether the task is known to add at most LIGHT bytes, so that it may travel with
        others."""
        request = self.request(task)
        return is_light(request.peak) and not request.alone

    def lets_first(self, *, or_another: bool) -> bool:
        """Whether the first waiting task may begin now. ``or_another``: if it may not, and another
        one may, move that one to the front. Set this only in the I/O thread, which no signal
        handler interrupts."""
        waiting = self._ledger.waiting
        head = waiting[0]
        if head is self._let and not self._holds:
            return True
        if head is not self._head:
            self._head, self._passed = head, 0
        first = self.request(head)
        place = self._choose([first])
        if place is None and or_another and len(waiting) > 1:
            ahead = itertools.islice(waiting, LOOKAHEAD)
            place = self._choose([self.request(task) for task in ahead])
        self.is_holding = place is None
        if place is None:
            self._note_held(head, first)
            return False
        self._lacks, self.wanted = False, None
        if place:
            self._passed += not is_light(self.request(waiting[place]).peak)
            self._ledger.bring_forward(place)
        self._let = waiting[0]
        return True

    def _choose(self, requests: list[Request]) -> int | None:
        in_flight = self._ledger.in_flight
        return choose(
            requests,
            self._offer,
            self._seen,
            may_probe=self._may_probe,
            passed=self._passed,
            under_way=-1 if self._alone in in_flight else len(in_flight),
            holds=self._holds,
        )

    def _note_held(self, head: Task, request: Request) -> None:
        peak = request.peak
        if peak is None:
            peak = max(self._offer.probe, self._seen.get(request.function, 0))
        fits = self._offer.fits(peak)
        self._lacks = self._holds or request.alone or not fits
        self.wanted = None if self._holds or request.alone or fits else peak
        if request.alone:
            why = "must run alone"
        else:
            why = f"may add {mib(peak)}, and {mib(max(0, self._offer.free))} are free"
        if self._lacks and not self._holds and self._news.is_due(_WAITS):
            self._news.decided(f"{head.name} waits: it {why}")

    def sent(self, task: Task) -> bool:
        """Note that this task is sent. Returns whether that has set the timer. Then the I/O thread
        must be woken."""
        request = self.request(task)
        self._let = None
        if task is self._head:
            self._head = None  # Do not keep the task, and with it its result, alive.
        if request.alone:
            self._alone = task.number
        if not is_light(request.peak):
            self._offer = self._offer.less(request.peak)
            self._may_probe = self._may_probe and request.peak is not None
        return not self._timer.is_set and self._timer.set_at_most(LOOK_SOON)

    def held(self) -> int:
        """How many tasks are held back for lack of memory."""
        return self._ledger.backlog if self.is_holding and self._lacks else 0
