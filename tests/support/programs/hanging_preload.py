import sys
import time

from prefork_executor import PreforkExecutor


def hang():
    print("begun", flush=True)
    sum(range(10**11))  # One call of C, in which no thread of Python runs.


if __name__ == "__main__":
    executor = PreforkExecutor(1, sys.argv[1], preload=hang)
    executor.submit(abs, 1)
    time.sleep(600)
