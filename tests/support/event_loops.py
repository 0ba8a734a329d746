"""Runs the tests of AsyncPool under every event loop that it works with."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from injection import lines
from light_tasks import note
from waiting import BOUND

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
Main = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module", autouse=True)
def every_loop_has_run() -> None:
    """uvloop opens a pipe for the whole process when its first loop runs, and keeps it."""
    for options in LOOPS.values():
        anyio.run(anyio.sleep, 0, **options)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Runs a main function in an event loop."""

    async def bounded(main: Main) -> Any:
        with anyio.fail_after(BOUND):
            return await main()

    return lambda main: anyio.run(bounded, main, **LOOPS[request.param])


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await anyio.sleep(0.005)


async def take(results: AsyncIterator[int], came: list[int]) -> None:
    async for number in results:
        came.append(number)
        await anyio.sleep(0)


async def closed(results: AsyncIterator[Any]) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await anext(results)


def hang(path: str, number: int = 0) -> None:
    note(path, str(os.getpid()))
    time.sleep(3600)


def are_gone(path: Path) -> bool:
    return not any(psutil.pid_exists(int(pid)) for pid in lines(path))
