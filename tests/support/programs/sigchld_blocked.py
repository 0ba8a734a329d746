import multiprocessing.forkserver
import os
import signal
import sys

from prefork_executor import PreforkExecutor


def block(how):
    signal.pthread_sigmask(how, [signal.SIGCHLD])


if __name__ == "__main__":
    method, when = sys.argv[1:]
    multiprocessing.set_forkserver_preload([])
    if when == "running, and hears":
        multiprocessing.forkserver.ensure_running()
    block(signal.SIG_BLOCK)
    if when == "running, and deaf":
        multiprocessing.forkserver.ensure_running()
        block(signal.SIG_UNBLOCK)
    executor = PreforkExecutor(1, method)
    print(executor.submit(abs, -1).result())
    os.kill(executor.stats().workers[0].pid, signal.SIGKILL)
    print(executor.submit(abs, -2).result())
    executor.shutdown()
    is_blocked = signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    print(is_blocked == (when != "running, and deaf"))
