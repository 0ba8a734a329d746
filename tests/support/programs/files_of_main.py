import logging
import logging.handlers
import sys

from prefork_executor import PreforkExecutor

file = open("file", "a")
target = logging.FileHandler("log", delay=True)
logging.getLogger("a").addHandler(logging.handlers.MemoryHandler(1000, target=target))


def task(i):
    file.write(f"line {i}\n")
    logging.getLogger("a").warning("record %d", i)


if __name__ == "__main__":
    with PreforkExecutor(2, sys.argv[1], max_tasks_per_child=3) as executor:
        list(executor.map(task, range(10)))
    print(len(open("file").readlines()), len(open("log").readlines()))
