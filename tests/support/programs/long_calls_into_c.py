import itertools
import os
import re
import sys
import time

from light_tasks import note

from prefork_executor import PreforkExecutor


def add_up(started, what="sum"):
    note(started, what)
    sum(itertools.repeat(1))  # C code that never looks at signals.


def backtrack(started):
    note(started, "re")
    re.match(r"(a*)*b", "a" * 60)  # Exponential, also in C.


def nest(started):
    with PreforkExecutor(1) as executor:
        executor.submit(add_up, started, "nested").result()


if __name__ == "__main__":
    executor = PreforkExecutor(4, sys.argv[1], min_spare_workers=1)
    for task in (add_up, backtrack, nest):
        executor.submit(task, sys.argv[2])
    time.sleep(600)
