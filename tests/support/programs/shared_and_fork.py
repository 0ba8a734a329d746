import os
import sys
import threading
import warnings

from prefork_executor import shared_executor

warnings.simplefilter("ignore")  # Of a fork of a process that has threads.


def square(x):
    return x * x


def ask_all_the_time():
    while not is_over:
        shared_executor(max_workers=3)


if __name__ == "__main__":
    is_over = False
    executor = shared_executor(max_workers=3, mp_context="fork", idle_timeout=None)
    before = executor.submit(os.getpid).result()
    # Whatever the other thread holds at that moment, the child can use its own.
    thread = threading.Thread(target=ask_all_the_time)
    thread.start()
    for number in range(5):
        pid = os.fork()
        if not pid:
            result = executor.submit(square, 3).result()
            own = executor.submit(os.getppid).result() != os.getppid()
            mine = {worker.pid for worker in shared_executor().stats().workers}
            whose = "own" if own and before not in mine else "the parent's"
            if number == 0:
                print(f"child: {result}, {whose} pool, {executor._max_workers}", flush=True)
            sys.exit(result != 9 or whose != "own")
        assert os.waitpid(pid, 0)[1] == 0
    is_over = True
    thread.join()
    result = executor.submit(square, 4).result()
    whose = "same" if before in {w.pid for w in executor.stats().workers} else "another"
    print(f"parent: {result}, {whose} pool, {executor._max_workers}")
