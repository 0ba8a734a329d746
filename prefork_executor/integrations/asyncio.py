"""Tasks in the pool, awaited in an event loop.

    async def main():
        with PreforkExecutor() as executor:
            print(await run(executor, pow, 2, 100, abort_on_cancel=True))

``loop.run_in_executor(executor, fn, *args)`` works as well. But it cannot end what has begun:
cancelling the awaiting task leaves the work running. For other event loops, and for maps, there is
`prefork_executor.integrations.anyio`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar, overload

from prefork_executor import ExecutorView, PreforkExecutor

from ._loops import Signal, submitted

__all__ = ["run"]

P = ParamSpec("P")
T = TypeVar("T")


@overload
async def run(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    /,
    *args: Any,
    abort_on_cancel: bool,
    **kwargs: Any,
) -> T: ...
@overload
async def run(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[P, T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T: ...
async def run(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    /,
    *args: Any,
    abort_on_cancel: Any = False,
    **kwargs: Any,
) -> T:
    """What ``fn(*args, **kwargs)`` returns in a worker.

    Args:
        executor: an executor, or a view of one.
        fn, args, kwargs: the call. If ``fn`` has an ``abort_on_cancel`` of its own, pass that by
            ``functools.partial``. While ``max_backlog`` tasks wait, this waits for room, and the
            event loop goes on.
        abort_on_cancel: when the awaiting task is cancelled, end the call in its worker,
            as by ``executor.abort``. This does not wait for its end. If False, the call is
            only cancelled if no worker has it yet.

    Raises:
        asyncio.CancelledError: the awaiting task was cancelled, or the executor was shut
            down with ``cancel_futures``.
        BaseException: what the call raised, or what says how its worker ended. A coroutine cannot
            raise StopIteration. If the call has raised that, it is the cause of a RuntimeError.
    """
    future = await submitted(_signal, executor, fn, *args, **kwargs)
    try:
        await _end_of(future)
    except asyncio.CancelledError:
        future.cancel()
        if abort_on_cancel:
            executor.abort(future)
        raise
    if future.cancelled():
        raise asyncio.CancelledError
    try:
        return future.result()
    finally:
        del future  # A traceback through this frame would keep it alive.


async def _end_of(future: Future[Any]) -> None:
    """Wait until it is done. (Before Python 3.12, ``asyncio.wrap_future`` never ends if the call
    raises a StopIteration.)"""
    signal = _signal()
    future.add_done_callback(signal.set)
    await signal.wait()


def _signal() -> Signal:
    return Signal(asyncio.get_running_loop().call_soon_threadsafe, asyncio.Event())
