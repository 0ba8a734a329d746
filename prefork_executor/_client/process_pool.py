"""What programs read from a ProcessPoolExecutor, and find here as well.

Libraries ask ``isinstance(executor, ProcessPoolExecutor)`` to learn that functions must be
picklable and how many may run at once. They also read attributes that are private by name
and public in practice. So `PreforkExecutor` is a ProcessPoolExecutor, but only by inheritance:
none of the base class's machinery is ever set up or run. Private attributes that say something
about a pool answer truthfully, and are read-only. Private methods either do nothing, or do what
programs call them for.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any

    from .client import Client
    from .ledger import Task
    from .roster import Processes


class _Waiting:
    """Stands for the queue of waiting tasks: it knows how many there are."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def qsize(self) -> int:
        return len(self._client.unfinished()[1])

    def empty(self) -> bool:
        return not self.qsize()


class _Attributes:
    _client: Client

    @property
    def _processes(self) -> Processes:
        return self._client.processes

    @property
    def _broken(self) -> str | bool:
        return self._client.broken or False

    @property
    def _shutdown_thread(self) -> bool:
        return self._client.is_shut_down

    @property
    def _mp_context(self) -> Any:
        return self._client.context

    @property
    def _initializer(self) -> Callable[..., object] | None:
        return self._client.settings.initializer

    @property
    def _initargs(self) -> tuple[Any, ...]:
        return self._client.settings.initargs

    @property
    def _max_tasks_per_child(self) -> int | None:
        return self._client.settings.max_tasks_per_child

    @property
    def _pending_work_items(self) -> dict[int, Task]:
        begun, waiting = self._client.unfinished()
        return dict(enumerate(begun + waiting))

    @property
    def _work_ids(self) -> _Waiting:
        return _Waiting(self._client)

    @property
    def _executor_manager_thread(self) -> threading.Thread | None:
        return self._client.thread

    # --- methods that programs call to start or end processes early ---

    def _start_executor_manager_thread(self) -> None:
        self._client.start()

    def _adjust_process_count(self) -> None:
        """The pool regulates itself."""

    def _launch_processes(self) -> None:
        """As above."""

    def _spawn_process(self) -> None:
        """As above."""

    def _force_shutdown(self, operation: str) -> None:
        number = signal.SIGKILL if operation == "kill" else signal.SIGTERM
        self._client.end_workers(number, f"the workers were ended: {operation}")


class ProcessPool(_Attributes, ProcessPoolExecutor):  # type: ignore[misc, override]
    """A ProcessPoolExecutor by its type, and by its attributes."""
