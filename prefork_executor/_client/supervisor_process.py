"""The supervisor's Process object, which ``multiprocessing.active_children()`` gives.

If a program terminates all its children after an error, it means the pool. The supervisor ignores
a SIGTERM from outside (see `_server/end_signals.py`), so this object makes the difference: its
``terminate()`` and ``kill()`` stop the pool.

Until the process has been started, the object has the context's own class, because it may have to
travel there. Then it gets a class that derives from that one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STOPPED = (
    "the pool was stopped: this program has ended its supervisor, by {}() of the process "
    "that multiprocessing.active_children() names PreforkSupervisor"
)


class _StopsThePool:
    """Goes before a context's class of processes."""

    _stop: Callable[[str], None] | None = None
    _last: tuple[int, int | None] | None = None

    def stop_pool_by(self, stop: Callable[[str], None]) -> None:
        """Set the function that stops the pool. It is given the reason."""
        self._stop = stop

    def terminate(self) -> None:
        """Stop the pool: every future fails, every process ends."""
        if self._stop is not None and self._is_at_hand():
            self._stop(STOPPED.format("terminate"))

    def kill(self) -> None:
        """The same, whatever the supervisor is doing."""
        if self._stop is not None and self._is_at_hand():
            self._stop(STOPPED.format("kill"))
            super().kill()  # type: ignore[misc]

    # Its owner closes it when it has ended. Other code that has it may still ask.

    def close(self) -> None:
        self._last = self.pid, self.exitcode
        super().close()  # type: ignore[misc]

    def join(self, timeout: float | None = None) -> None:
        if self._is_at_hand():
            super().join(timeout)  # type: ignore[misc]

    def _is_at_hand(self) -> bool:
        """Whether it has not been closed, and is this process's child. In a fork of the program
        it is not, but multiprocessing joins all that it knows at the end of the fork."""
        is_ours: bool = self._parent_pid == os.getpid()  # type: ignore[attr-defined]
        return self._last is None and is_ours

    def is_alive(self) -> bool:
        return self._last is None and bool(super().is_alive())  # type: ignore[misc]

    @property
    def exitcode(self) -> int | None:
        code: int | None = self._last[1] if self._last else super().exitcode  # type: ignore[misc]
        return code

    @property
    def pid(self) -> int:
        pid: int = self._last[0] if self._last else super().ident  # type: ignore[misc]
        return pid

    ident = pid


def stop_pool_when_ended(process: Any, stop: Callable[[str], None]) -> None:
    """From now on this process, which has been started, stops the pool when it is ended."""
    kind: Any = type(process)
    process.__class__ = _stopping_class(kind)
    process.stop_pool_by(stop)


@functools.cache
def _stopping_class(kind: Any) -> type:
    return type("SupervisorProcess", (_StopsThePool, kind), {})
