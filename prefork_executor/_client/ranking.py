"""The order in which waiting tasks begin if tasks have priorities.

The rules
---------
1. The task with the highest priority begins first. Of the tasks with one priority, the one that
   was submitted first begins first.
2. A task that comes back before it has begun is the first of its priority again.
3. Of AGEING tasks that begin, one is the task that has waited longest, whatever its priority. So
   nothing starves: if n tasks wait that were submitted earlier, at most AGEING * (n + 1) others
   begin before a task does.

All waiting tasks are in one deque, in this order. Appending a task and taking the first one need
constant time. A task that must begin before tasks of lower priority is inserted, which moves
pointers: this takes about a millisecond if a million tasks wait. A heap was considered and
rejected. It cannot be read in order, and it cannot take back tasks at its front. Both happen often.

If no task has a priority of its own, a submit only makes one more comparison.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, MutableSequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeVar

    class Ranked(Protocol):
        """A task, as far as its rank goes."""

        @property
        def rank(self) -> float:
            """Its priority, or that to which it was raised."""

        @property
        def order(self) -> int:
            """How many tasks were submitted before it while there were ranks."""

        def raise_to(self, rank: float) -> None:
            """It has waited so long that it stands with those of this rank."""

    R = TypeVar("R", bound=Ranked)


AGEING = 10
"""Of so many tasks that begin, one is the one that has waited longest."""
ABOVE_ALL = math.inf
"""The rank of a task that is the next in any case. Every priority is an int."""


class Ranks:
    """How many of the waiting tasks have which rank.

    Attributes:
        is_used: false until :meth:`count` is called for the first time: until then no task has had
            a priority of its own. Every task is asked this several times."""

    def __init__(self) -> None:
        self.is_used = False
        self._counts: dict[float, int] = {}
        self._begun = 0
        self._last_order = 0

    def count(self, waiting: Iterable[Ranked]) -> None:
        """These wait."""
        self._counts = dict(collections.Counter(task.rank for task in waiting))
        self.is_used = True

    def next_order(self) -> int:
        """That of a task that is submitted now."""
        self._last_order += 1
        return self._last_order

    def place_at_end(self, rank: float) -> int:
        """Where a new task of this rank stands: after the others of its rank."""
        return sum(count for other, count in self._counts.items() if other >= rank)

    def place_at_front(self, rank: float) -> int:
        """Where a task of this rank stands that comes back."""
        return sum(count for other, count in self._counts.items() if other > rank)

    def joined(self, rank: float) -> None:
        """One more of this rank waits."""
        self._counts[rank] = self._counts.get(rank, 0) + 1

    def came_back(self, tasks: int) -> None:
        """So many tasks have come back before they had begun."""
        self._begun = max(0, self._begun - tasks)

    def left(self, rank: float) -> None:
        """One of this rank waits no more."""
        count = self._counts.get(rank, 0)
        if count > 1:
            self._counts[rank] = count - 1
        else:
            self._counts.pop(rank, None)

    def bring_forward(self, waiting: MutableSequence[R], place: int) -> None:
        """Have the task in this place be the next, whatever is submitted before it begins."""
        task = waiting[place]
        del waiting[place]
        waiting.insert(0, task)
        if self.is_used:
            self.left(task.rank)
            task.raise_to(ABOVE_ALL)
            self.joined(ABOVE_ALL)

    def begun(self, waiting: MutableSequence[R]) -> None:
        """A task has begun. If it is time, the task that has waited longest is the next."""
        self._begun += 1
        if self._begun % AGEING or not waiting:
            return
        # The counts may be wrong for a moment, after a signal handler has raised.
        last = len(waiting) - 1
        places = [min(last, self.place_at_front(rank)) for rank in self._counts]
        self.bring_forward(waiting, min(places, key=lambda place: waiting[place].order, default=0))
