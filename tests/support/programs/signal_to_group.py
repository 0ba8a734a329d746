import os
import signal
import sys
import threading
import time

from prefork_executor import PreforkExecutor


def work(i):
    open(sys.argv[1] + "/began-%d" % i, "w").close()
    time.sleep(0.7)
    return i


def first(executor, out):
    out.append(executor.submit(abs, -1).result())


if __name__ == "__main__":
    os.setpgid(0, 0)
    directory, method, number, starter = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    asked = threading.Event()
    signal.signal(number, lambda *_: asked.set())
    executor = PreforkExecutor(2, method)
    if starter == "thread":
        thread = threading.Thread(target=first, args=(executor, []))
        thread.start()
        thread.join()
    futures = [executor.submit(work, i) for i in range(5)]
    while len(os.listdir(directory)) < 3:  # This script and two tasks.
        time.sleep(0.01)
    os.killpg(0, number)
    while not asked.is_set():
        time.sleep(0.01)
    executor.shutdown(wait=True)
    print([future.result(0) for future in futures])
