"""What type checkers say of calls: an error on each line that ends in WRONG, and no other."""

from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import assert_type

from prefork_executor import Pool, PreforkExecutor, shared_executor
from prefork_executor.integrations import asyncio as bridge
from prefork_executor.integrations.anyio import AsyncPool


def length(word: str, times: int = 1) -> int:
    return len(word) * times


def both(word: str, path: Path, times: float) -> bytes:
    return word.encode()


class Adder:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, number: int) -> int:
        return self.start + number


standard = ProcessPoolExecutor()
standard.submit(length, 5)  # WRONG
standard.submit(length)  # WRONG
standard.submit(length, "a", tines=2)  # WRONG

executor = PreforkExecutor(2)
shared = shared_executor(max_workers=2)
assert_type(executor.submit(length, "a"), Future[int])
assert_type(executor.submit(length, "a", times=2), Future[int])
assert_type(executor.submit(lambda: 1.5), Future[float])
assert_type(executor.submit(Adder, 3), Future[Adder])
assert_type(executor.submit(Adder(1).add, 3), Future[int])
assert_type(shared.submit(length, "a", 2), Future[int])
assert_type(executor.with_options(retries=1).submit(length, word="a"), Future[int])
executor.submit(int, "ff", base=16)
word = executor.submit(str.upper, "a")
assert_type(executor.submit(length, word), Future[int])
assert_type(executor.submit(both, word, executor.submit(Path, "x"), 1.0), Future[bytes])
assert_type(shared.submit(length, word, 2), Future[int])
assert_type(executor.submit_nowait(length, "a"), Future[int])
executor.submit(length, executor.submit(length, "a"))  # WRONG
executor.submit(both, "a", word, 1.0)  # WRONG
executor.submit_nowait(length, 5)  # WRONG
executor.submit(length, 5)  # WRONG
executor.submit(length)  # WRONG
executor.submit(length, "a", tines=2)  # WRONG
executor.submit(length, "a", 2, 3)  # WRONG
executor.submit(Adder, "3")  # WRONG
executor.submit(3)  # WRONG
executor.with_options(retries=1).submit(length, 5)  # WRONG
shared.submit(length, 5)  # WRONG
shared.with_options(retries=1).submit(length)  # WRONG

words, paths, numbers = ["a"], [Path()], [1.0]
for count in executor.map(length, words, timeout=3, chunksize=2, ordered=False):
    assert_type(count, int)
for text in executor.map(both, words, paths, numbers):
    assert_type(text, bytes)
executor.map(int, words)
executor.map(max, words, words, words, words, words)
executor.map(length, numbers)  # WRONG
executor.map(length)  # WRONG
executor.map(both, words, paths)  # WRONG
executor.map(both, words, numbers, paths)  # WRONG
executor.map(length, words, chunk=2)  # WRONG
shared.map(length, numbers)  # WRONG

pool = Pool(2)
pool.apply_async(length, ("a",))
pool.apply_async(length, ("a", 2), callback=print)
pool.apply_async(length, ("a",), {"times": 2})
pool.apply_async(length, kwds={"word": "a"})
pool.apply_async(length, ["a"])
pool.apply_async(both, ("a", Path(), 1.0))
pool.apply_async(executor.stats)
pool.apply_async(max, (1, 2, 3, 4, 5))
pool.apply_async(length, (5,))  # WRONG
pool.apply_async(length)  # WRONG
pool.apply_async(length, ("a", 2, 3))  # WRONG
pool.apply_async(both, ("a", 1.0, Path()))  # WRONG
pool.apply_async(length, "a")  # WRONG


async def numbered() -> AsyncIterator[int]:
    yield 1


async def use() -> None:
    assert_type(await bridge.run(executor, length, "a"), int)
    assert_type(await bridge.run(shared, length, "a", times=2, abort_on_cancel=True), int)
    await bridge.run(executor, length, 5)  # WRONG
    await bridge.run(executor, length, "a", tines=2)  # WRONG
    await bridge.run(executor, length, "a", abort_on_cancel=3)  # WRONG
    async with AsyncPool(2) as own:
        assert_type(await own.run(length, "a"), int)
        assert_type(await own.run(length, "a", times=2), int)
        assert_type([item async for item in own.map(length, words)], list[int])
        assert_type([item async for item in own.map(Adder(1).add, numbered(), limit=3)], list[int])
        await own.run(length, 5)  # WRONG
        await own.run(length)  # WRONG
        own.map(length, numbers)  # WRONG
        own.map(length, numbered())  # WRONG
        own.map(length, words, limit="3")  # WRONG
