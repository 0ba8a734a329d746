import sys

from prefork_executor import PreforkExecutor


class Box:
    number = None


def number_in(box):
    return box.number


if __name__ == "__main__":
    box, futures = Box(), []
    with PreforkExecutor(1, sys.argv[1]) as executor:
        # The first of them wait for the pool to start.
        for box.number in range(20):
            futures.append(executor.submit(number_in, box))
        print([future.result() for future in futures] == list(range(20)))
