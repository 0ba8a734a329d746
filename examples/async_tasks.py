"""Await calls in the pool: when the first one answers, the program ends the others.

python examples/async_tasks.py
"""

from __future__ import annotations

import asyncio
import time

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.asyncio import run


def answer(name: str, seconds: float) -> str:
    """Compute for this many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass
    return name


async def first_of(executor: PreforkExecutor, times: dict[str, float]) -> str:
    """The first answer. The other calls are cancelled, which ends their tasks."""
    calls = [
        asyncio.create_task(run(executor, answer, name, seconds, abort_on_cancel=True))
        for name, seconds in times.items()
    ]
    done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in pending:
        call.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return done.pop().result()


async def main() -> None:
    """Ask three tasks at once."""
    with PreforkExecutor(3) as executor:
        print("first:", await first_of(executor, {"tortoise": 3600, "hare": 0.1, "snail": 7200}))


if __name__ == "__main__":
    asyncio.run(main())
