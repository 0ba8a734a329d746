import functools
import sys

from prefork_executor import PreforkExecutor


class Table:
    def __init__(self):
        self.rows = bytearray(200_000_000)

    def __reduce__(self):
        raise AssertionError("the table travels")


TABLE = Table()


def size():
    return len(TABLE.rows)


def size_by_way_of_another():
    return size()


def call(function):
    return function()


@functools.lru_cache
def cached_size():
    return len(TABLE.rows)


class Reader:
    def size(self):
        return len(TABLE.rows)


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        calls = [
            (size,),
            (size_by_way_of_another,),
            (call, size),
            (call, functools.partial(size)),
            (functools.partial(call, size),),
            (cached_size,),
            (call, cached_size),
            (Reader().size,),
            (lambda: size(),),
        ]
        futures = [executor.submit(*call) for call in calls]
        print({future.result() for future in futures})
        print(set(executor.map(call, [size] * 10, chunksize=5)))
        # The proof that it would be noticed:
        print(executor.submit(lambda: len(TABLE.rows)).exception())
