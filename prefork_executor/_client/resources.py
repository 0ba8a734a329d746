"""Which task holds which units of what the executor has: two GPUs, say, or one licence.

The executor says what there is (``resources={"gpu": 2}``), and a task what it needs
(``with_options(resources={"gpu": 1})``). A task begins only when its share is free, and is told
which units are its own.

The rules
---------
1. A task holds its units from the moment at which it is sent to the workers until its outcome is
   in the books. If its worker dies, the outcome is the death notice, which the supervisor sends
   when the worker has gone. If it comes back from the pipe, it has not begun, and holds none.
2. When the caller has all workers ended, the futures of their tasks fail at once. Their units stay
   taken until those workers have gone.
3. If the first task that waits lacks a unit, tasks behind it may pass it, but none of these may
   need what that one lacks. So a task that needs many units is not held up by a stream of tasks
   that need few.
4. Of the tasks that wait, the first LOOKAHEAD are looked at.

What is held is not counted, but found each time among the tasks in flight. A count could become
wrong when a signal handler raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from .._board.scoreboard import Slot
from .._support.named_tuples import NamedTuple
from .ledger import Ledger, Task
from .task_states import WAITING

LOOKAHEAD = 4096
"""Waiting tasks among which one is looked for whose share is free. To look at all of these takes
less than a millisecond."""

Units = Mapping[str, tuple[int, ...]]
"""For each resource, by number, the units that a task holds."""


class _Outlived(NamedTuple):
    """Units of a task that is in the books no more, and the workers there were then, each by its
    pid and the time of its birth."""

    units: Units
    workers: frozenset[tuple[int, int]]


class Resources:
    """What there is, and who holds it. Call all methods with the client's lock held.

    Args:
        totals: how many units there are of each.
        ledger: the client's.
    """

    def __init__(self, totals: Mapping[str, int], ledger: Ledger) -> None:
        self._is_holding = False
        self._lacking = 0
        self._totals = dict(totals)
        self._ledger = ledger
        self._held: dict[int, Units] = {}
        self._outlived: list[_Outlived] = []

    def lets_first(self, workers: Sequence[Slot], *, or_another: bool) -> bool:
        """Whether what the first task that waits needs is free.

        Args:
            workers: those that there are, if units may be held by workers that are being ended.
            or_another: if another task's share is free instead, that task is the first from now on.
        """
        waiting = self._ledger.waiting
        self._forget_gone(workers)
        free: dict[str, list[int]] | None = None
        lacking: set[str] = set()
        for place, task in enumerate(itertools.islice(waiting, LOOKAHEAD if or_another else 1)):
            needs = task.options.resources
            if needs and task.state is WAITING:
                if free is None:
                    free = self._free()
                lacks = {name for name, count in needs.items() if len(free[name]) < count}
                if lacks or not lacking.isdisjoint(needs):
                    lacking |= lacks
                    continue
            if place:
                self._ledger.bring_forward(place)
            self._is_holding, self._lacking = False, place
            return True
        self._is_holding = True
        return False

    def held(self) -> int:
        """How many tasks that wait lack something, as far as the latest look tells."""
        backlog = self._ledger.backlog
        return backlog if self._is_holding else min(backlog, self._lacking)

    @property
    def are_outlived(self) -> bool:
        """Whether workers that are being ended hold units of tasks that are in the books no
        more."""
        return bool(self._outlived)

    def take(self, task: Task) -> Units:
        """The task is sent now: the units that it holds. It needs some, and they are free."""
        free = self._free()
        needs = task.options.resources or {}
        units = {name: tuple(free[name][:count]) for name, count in needs.items()}
        self._held[task.number] = units
        return units

    def outlive(self, tasks: Iterable[Task], workers: Iterable[Slot]) -> None:
        """These tasks are in the books no more, though these workers may still run them."""
        alive = frozenset((slot.pid, slot.born) for slot in workers)
        for task in tasks:
            units = self._held.pop(task.number, None)
            if units is not None:
                self._outlived.append(_Outlived(units, alive))

    def _forget_gone(self, workers: Sequence[Slot]) -> None:
        if self._outlived:
            alive = {(slot.pid, slot.born) for slot in workers}
            self._outlived = [left for left in self._outlived if left.workers & alive]

    def _free(self) -> dict[str, list[int]]:
        in_flight = self._ledger.in_flight
        self._held = {number: held for number, held in self._held.items() if number in in_flight}
        taken: dict[str, set[int]] = {name: set() for name in self._totals}
        for held in (*self._held.values(), *(left.units for left in self._outlived)):
            for name, units in held.items():
                taken[name].update(units)
        return {
            name: [unit for unit in range(total) if unit not in taken[name]]
            for name, total in self._totals.items()
        }
