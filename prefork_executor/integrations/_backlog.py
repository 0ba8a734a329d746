"""How a task of an event loop submits to an executor whose backlog is bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from prefork_executor import BacklogFull, ExecutorView, PreforkExecutor

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
"""Seconds between two attempts. Nothing tells an event loop that there is room: whoever
waits for it in ``submit`` is a thread, and each would be one for every task that waits."""


async def submitted(
    sleep: Callable[[float], Awaitable[object]],
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    /,
    *args: Any,
    **kwargs: Any,
) -> Future[T]:
    """The call's future. While the backlog is full, this waits, but not in the loop's thread.

    Args:
        sleep: the loop's.
        executor, fn, args, kwargs: the call.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return executor.submit_nowait(fn, *args, **kwargs)
        except BacklogFull:
            await sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
