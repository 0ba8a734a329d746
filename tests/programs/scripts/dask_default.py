"""The same with the pool that dask makes itself, for each computation one, with an initializer."""

from operator import add

import dask
import dask.bag


def inverse(number: int) -> float:
    return 1 / number


if __name__ == "__main__":
    dask.config.set({"multiprocessing.context": None, "num_workers": 2})
    numbers = dask.bag.from_sequence(range(1, 101), npartitions=10)
    print(numbers.map(inverse).sum().compute())
    print(numbers.foldby(lambda x: x % 3, add, 0, add, 0).compute())
    try:
        numbers.map(lambda x: inverse(x - 50)).compute()
    except ZeroDivisionError as error:
        print("ZeroDivisionError:", error)
