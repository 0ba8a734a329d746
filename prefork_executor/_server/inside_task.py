"""What a task may ask of the worker that runs it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Host(Protocol):
        """The worker of this process: `worker.Worker`."""

        pid: int
        index: int
        units: dict[str, tuple[int, ...]]

        def yell(self, data: Any) -> None: ...


_current: Host | None = None


def enter(worker: Host) -> None:
    """From now on this process is this worker. Its forks have this module as well, but not its
    pid."""
    global _current
    _current = worker


def yell(data: Any) -> None:
    """Send data from inside a task to the caller's process, now.

    The executor's ``on_yell(pid, data)`` gets the data of each worker in the order of its yells,
    and before the task's own result.

    Args:
        data: anything that can be pickled, of any size.

    Raises:
        RuntimeError: the calling code does not run in a worker.
        pickle.PicklingError: ``data`` cannot be pickled.
    """
    worker = _current
    if worker is None or worker.pid != os.getpid():
        raise RuntimeError(
            "yell() works only inside a task that runs in a PreforkExecutor's worker"
        )
    worker.yell(data)


def worker_index() -> int | None:
    """The index of the worker in which the calling code runs, from 0 to ``max_workers - 1``.

    No two live workers have the same index, and a worker that replaces another gets its index. So
    the index can choose what each worker has of its own: a GPU, a port, a file.

    Returns:
        The index. None outside a worker, and in a process that a task has started.
    """
    worker = _current
    return worker.index if worker is not None and worker.pid == os.getpid() else None


def held_resources() -> dict[str, tuple[int, ...]]:
    """The units of the executor's resources that the running task holds.

    With ``PreforkExecutor(resources={"gpu": 2})``, a task that was submitted by
    ``with_options(resources={"gpu": 1})`` gets ``{"gpu": (0,)}`` or ``{"gpu": (1,)}``. No two tasks
    that run at the same time hold the same unit.

    Returns:
        For each resource, the numbers of the units, which begin at 0. Empty if the task holds none,
        outside a task, and in a process that a task has started.
    """
    worker = _current
    return dict(worker.units) if worker is not None and worker.pid == os.getpid() else {}
