import sys
import time

from light_tasks import note

from prefork_executor import PreforkExecutor


def hang(started):
    note(started, "here")
    time.sleep(600)


if __name__ == "__main__":
    with PreforkExecutor(2, sys.argv[1], hang, (sys.argv[2],)) as executor:
        executor.submit(pow, 2, 3).result()
