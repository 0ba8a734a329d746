"""How a task of an event loop submits to an executor whose backlog is bounded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from prefork_executor import BacklogFull, ExecutorView, PreforkExecutor

T = TypeVar("T")


class Signal(Protocol):
    """What a task of an event loop waits for."""

    def set(self) -> bool:
        """Wake the task. Any thread may call this, and it does not wait. Returns False if the
        loop has ended."""

    async def wait(self) -> object:
        """Wait until it is set."""


async def submitted(
    new_signal: Callable[[], Signal],
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    /,
    *args: Any,
    **kwargs: Any,
) -> Future[T]:
    """The call's future. While the backlog is full, this waits, but not in the loop's thread.

    Args:
        new_signal: makes a signal for the current task of the loop.
        executor, fn, args, kwargs: the call.
    """
    while True:
        try:
            return executor.submit_nowait(fn, *args, **kwargs)
        except BacklogFull:
            signal = new_signal()
        room = executor._call_when_room(signal.set)
        if room is None:
            continue
        try:
            await signal.wait()
        except BaseException:
            room.give_up()
            raise
