"""What a task needs besides a worker: memory, and units of the executor's resources.

The dispatcher asks the gate before it sends a task. Most executors have bounds for neither, and no
gate.
"""

from __future__ import annotations

import pickle

from .._board.scoreboard import Scoreboard
from .ledger import Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .memory_gate import MemoryGate
    from .resources import Resources


class Gate:
    """Lets tasks begin that have all they need. Call all methods with the client's lock held.

    Args:
        board: the client's.
        memory: lets tasks begin for which there is memory; None: there is no bound for that.
        resources: the executor's; None: it has none.
    """

    def __init__(
        self,
        board: Scoreboard,
        memory: MemoryGate | None,
        resources: Resources | None,
    ) -> None:
        self._board = board
        self._memory = memory
        self._resources = resources

    def lets_first(self, *, or_another: bool) -> bool:
        """Whether the first task that waits may begin now. ``or_another``: if another may in its
        stead, that is the first from now on. Only in the I/O thread, where no signal handler
        can come in between."""
        resources, memory = self._resources, self._memory
        if resources is not None:
            workers = self._board.read_all() if resources.are_outlived else ()
            if not resources.lets_first(workers, or_another=or_another):
                return False
            or_another = False  # Another for which there is memory might lack a unit.
        return memory is None or memory.lets_first(or_another=or_another)

    def may_travel_with_others(self, task: Task) -> bool:
        """Whether it is known to need nothing, so that one message may carry it and others."""
        return not task.options.resources and (self._memory is None or self._memory.is_light(task))

    def units_of(self, task: Task) -> bytes:
        """The task is sent now: the units that it holds from now on, for its worker."""
        if self._resources is None or not task.options.resources:
            return b""
        return pickle.dumps(self._resources.take(task), 5)

    def sent(self, task: Task) -> bool:
        """It has been sent. Returns whether the I/O thread must be woken for that."""
        return self._memory is not None and self._memory.sent(task)

    def outlive(self, tasks: list[Task]) -> None:
        """These are in the books no more, though the workers there are may still run them."""
        if self._resources is not None:
            self._resources.outlive(tasks, self._board.read_all())

    def held(self) -> int:
        """How many tasks do not begin for lack of anything but a worker."""
        lacking = 0 if self._resources is None else self._resources.held()
        return max(lacking, 0 if self._memory is None else self._memory.held())
