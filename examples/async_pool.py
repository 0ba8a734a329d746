"""Work from an endless stream in a pool, which reads only a little ahead of its results.

python examples/async_pool.py [asyncio|uvloop|trio]
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

import anyio

from prefork_executor.integrations.anyio import AsyncPool

LOOPS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
LIMIT = 8


class Stream:
    """An endless stream of numbers. It counts how many were read."""

    def __init__(self) -> None:
        self.read = 0

    async def numbers(self) -> AsyncIterator[int]:
        """The numbers, as they arrive."""
        while True:
            await anyio.sleep(0.001)
            self.read += 1
            yield self.read


def divisors(number: int) -> tuple[int, int]:
    """The number, and how many divisors it has."""
    return number, sum(number % i == 0 for i in range(1, number + 1))


def think(seconds: float) -> None:
    """Be busy for this many seconds."""
    time.sleep(seconds)


async def main() -> None:
    """Find the first number with 16 divisors. Then cancel a call that takes too long."""
    stream = Stream()
    async with AsyncPool(2) as pool:
        async for number, count in pool.map(divisors, stream.numbers(), limit=LIMIT):
            if count == 16:
                print("found:", number)
                break
        print("read ahead within the limit:", stream.read - number <= LIMIT)
        with anyio.move_on_after(0.1) as scope:
            await pool.run(think, 3600)
        print("long call cancelled:", scope.cancelled_caught)


if __name__ == "__main__":
    anyio.run(main, **LOOPS[sys.argv[1] if len(sys.argv) > 1 else "asyncio"])
