import functools
import itertools
import os
import sys
import time

import anyio

from prefork_executor.integrations.anyio import AsyncPool

LOOPS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


def hang(number):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(3600)


async def main():
    async with AsyncPool(4, mp_context="fork") as pool, anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(pool.run, hang, number)
        async for _ in pool.map(hang, itertools.count()):
            pass


if __name__ == "__main__":
    anyio.run(main, **LOOPS[sys.argv[1]])
