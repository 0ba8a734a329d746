import sys

from prefork_executor import PreforkExecutor


class Point:
    def __init__(self, x):
        self.x = x


def inner(point):
    return Point(point.x + 1)


def outer(point):
    with PreforkExecutor(1, sys.argv[1]) as executor:
        point = executor.submit(inner, point).result()
        return executor.submit(lambda: Point(inner(point).x)).result()


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        point = executor.submit(outer, Point(1)).result()
        print(type(point) is Point, point.x)
