import os
import signal
import sys
import time

from prefork_executor import PreforkExecutor


def end(number, _frame):
    open("told", "w").close()
    signal.signal(number, before)  # As coverage does.
    os.kill(os.getpid(), number)


def set_handler():
    global before
    before = signal.signal(signal.SIGTERM, end)


os.register_at_fork(after_in_child=set_handler)


def hang():
    open("runs", "w").close()
    time.sleep(600)


if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        future = executor.submit(hang)
        while not os.path.exists("runs"):
            time.sleep(0.01)
        (process,) = executor._processes.values()
        executor.abort(future)
        process.join(60)
        print(type(future.exception(60)).__name__, process.exitcode, os.path.exists("told"))
