"""A bag is computed by the scheduler of processes, with a pool that is handed over; one
computation fails."""

from concurrent.futures import ProcessPoolExecutor
from operator import add

import dask
import dask.bag


def inverse(number: int) -> float:
    return 1 / number


if __name__ == "__main__":
    numbers = dask.bag.from_sequence(range(1, 101), npartitions=10)
    with ProcessPoolExecutor(2) as executor, dask.config.set(pool=executor):
        print(numbers.map(inverse).sum().compute(scheduler="processes"))
        print(numbers.foldby(lambda x: x % 3, add, 0, add, 0).compute(scheduler="processes"))
        try:
            numbers.map(lambda x: inverse(x - 50)).compute(scheduler="processes")
        except ZeroDivisionError as error:
            print("ZeroDivisionError:", error)
