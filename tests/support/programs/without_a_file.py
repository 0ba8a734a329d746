import sys

from prefork_executor import PreforkExecutor


class Point:
    def __init__(self, x):
        self.x = x


def double(x):
    return 2 * x


def move(point):
    return Point(double(point.x))


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        moved = executor.submit(move, Point(3)).result()
        print(type(moved) is Point, moved.x, executor.submit(lambda: double(1)).result())
