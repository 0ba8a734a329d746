import sys

from prefork_executor import PreforkExecutor

if __name__ == "__main__":

    class Point:
        def __init__(self, x):
            self.x = x

    def double(x):
        return 2 * x

    def move(point):
        return Point(double(point.x))

    with PreforkExecutor(1, sys.argv[1]) as executor:
        print(executor.submit(double, 21).result())
        moved = executor.submit(move, Point(3)).result()
        print(type(moved) is Point, moved.x)
