"""What bridges to event loops share: how a thread tells a loop, and how a task of a loop waits."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from prefork_executor import BacklogFull, ExecutorView, PreforkExecutor

T = TypeVar("T")


InLoop = Callable[..., object]
"""Calls a function with arguments in the loop's thread, soon. Any thread may call it."""


def tell_loop(in_loop: InLoop, fn: Callable[..., object], *args: object) -> bool:
    """Returns False if the loop has ended, and with it the task that would be told."""
    with contextlib.suppress(RuntimeError):
        in_loop(fn, *args)
        return True
    return False


class Event(Protocol):
    """A loop's event, which only its own thread may set."""

    def set(self) -> object: ...
    def wait(self) -> Awaitable[object]: ...


class Signal:
    """An event that any thread may set.

    Args:
        in_loop: of the loop whose task waits.
        event: the loop's.
    """

    def __init__(self, in_loop: InLoop, event: Event) -> None:
        self._in_loop = in_loop
        self._event = event

    def set(self, _: object = None) -> bool:
        """Wake the task that waits. This does not wait. Returns False if the loop has ended."""
        return tell_loop(self._in_loop, self._event.set)

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()


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
