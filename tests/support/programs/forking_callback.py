import os
import sys
import threading

from light_tasks import square

from prefork_executor import PreforkExecutor


def note(_):
    with open("notes", "a") as notes:
        print("parent" if os.getpid() == parent else "child", file=notes)


def fork(_):
    if os.fork() == 0:
        note(_)  # And goes on as if it were the executor's thread.


if __name__ == "__main__":
    parent = os.getpid()
    executor = PreforkExecutor(1, "fork")
    executor.submit(square, 1).result()
    executor.submit(square, 2).add_done_callback(fork)
    for i in range(20):
        executor.submit(square, i).add_done_callback(note)
    executor.shutdown()
    os.wait()
    print(open("notes").read().split().count("child"), open("notes").read().count("parent"))
