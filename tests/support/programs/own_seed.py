import sys

import numpy.random

from prefork_executor import PreforkExecutor


def draw(_):
    return numpy.random.randint(10**9)


if __name__ == "__main__":
    options = {"max_tasks_per_child": 1, "initializer": numpy.random.seed, "initargs": (3,)}
    with PreforkExecutor(1, sys.argv[1], **options) as executor:
        numpy.random.seed(3)
        print(set(executor.map(draw, range(2))) == {draw(0)})
