import os
import sys
import time

import psutil

from prefork_executor import PreforkExecutor


def drop():
    if sys.argv[2] == "drops privileges":
        os.setgid(65534)
        os.setuid(65534)


if __name__ == "__main__":
    executor = PreforkExecutor(2, sys.argv[1], initializer=drop, min_spare_workers=2)
    executor.submit(abs, 1).result()
    tasks = [executor.submit(time.sleep, 600) for _ in range(2)]
    while executor.stats().busy < 2:
        time.sleep(0.01)
    family = psutil.Process().children(recursive=True)
    own = [p.pid for p in family if "resource_tracker" not in " ".join(p.cmdline())]
    workers = [worker.pid for worker in executor.stats().workers]
    print(*[pid for pid in own if pid not in workers], "-", *workers, flush=True)
    time.sleep(600)
