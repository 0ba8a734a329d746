"""Tasks in the pool, awaited in an event loop.

    async def main():
        with PreforkExecutor() as executor:
            print(await run(executor, pow, 2, 100, abort_on_cancel=True))

``loop.run_in_executor(executor, fn, *args)`` works as well. But it cannot end what has begun:
cancelling the awaiting task leaves the work running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from prefork_executor import ExecutorView, PreforkExecutor

__all__ = ["run"]

T = TypeVar("T")


async def run(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    /,
    *args: object,
    abort_on_cancel: bool = False,
) -> T:
    """What ``fn(*args)`` returns in a worker. Pass keyword arguments by ``functools.partial``.

    Args:
        executor: an executor, or a view of one.
        fn, args: the call.
        abort_on_cancel: when the awaiting task is cancelled, end the call in its worker,
            as by ``executor.abort``. This does not wait for its end. If False, the call is
            only cancelled if no worker has it yet.

    Raises:
        asyncio.CancelledError: the awaiting task was cancelled, or the executor was shut
            down with ``cancel_futures``.
        BaseException: what the call raised, or what says how its worker ended.
    """
    future = executor.submit(fn, *args)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if abort_on_cancel:
            executor.abort(future)
        raise
