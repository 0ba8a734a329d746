import os
import sys

from prefork_executor import PreforkExecutor


def make():
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=4096)
    block.buf[0] = 42
    block.close()
    return block.name


if __name__ == "__main__":
    with PreforkExecutor(1, "fork", max_tasks_per_child=1) as executor:
        executor.submit(abs, -1).result(60)
        own, theirs = make(), executor.submit(make).result(60)
        executor.submit(abs, -1).result(60)
    from multiprocessing import shared_memory

    for name in (own, theirs):
        block = shared_memory.SharedMemory(name)
        print(block.buf[0])
        block.close()
        block.unlink()
