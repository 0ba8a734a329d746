import multiprocessing
import sys
import time

import psutil

from prefork_executor import PreforkExecutor


def inner(method, number):
    with PreforkExecutor(1, method) as executor:
        return executor.submit(pow, number, 2).result()


def processes():
    return {(p.pid, p.create_time()) for p in psutil.Process().children(recursive=True)}


if __name__ == "__main__":
    method = sys.argv[1]
    with PreforkExecutor(1, method) as executor:
        # What multiprocessing starts once, and keeps while this program runs.
        executor.submit(int).result()
    kept = processes()
    with PreforkExecutor(2, method) as executor:
        print(list(executor.map(inner, [method] * 4, range(4))))
    deadline = time.monotonic() + 180
    while (left := processes() - kept) and time.monotonic() < deadline:
        time.sleep(0.01)
    print(left)
    print(*(pid for pid, _ in kept))
