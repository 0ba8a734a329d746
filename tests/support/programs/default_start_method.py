import multiprocessing
import os
import sys

from prefork_executor import PreforkExecutor

MARK = []


def is_forked():
    return bool(MARK)


if __name__ == "__main__":
    MARK.append(1)
    expected = multiprocessing.get_context().get_start_method()
    with PreforkExecutor(1) as executor:
        print(expected, executor.submit(is_forked).result())
