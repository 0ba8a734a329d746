import sys
from concurrent.futures import wait

from light_tasks import run_until

from prefork_executor import PreforkExecutor


def ask():
    return futures[0].result()


def wait_for_it():
    return wait(futures)


futures = []
if __name__ == "__main__":
    other, executor = PreforkExecutor(1, "fork"), PreforkExecutor(1, "fork")
    futures.append(other.submit(run_until, "gate", "started"))
    for task in (ask, wait_for_it):
        print(type(executor.submit(task).exception()).__name__)
    open("gate", "w").close()
    executor.shutdown()
    other.shutdown()
