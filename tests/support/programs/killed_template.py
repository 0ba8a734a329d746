import os
import signal
import sys
import time

import psutil

from prefork_executor import PreforkExecutor


def parents():
    return os.getppid(), psutil.Process(os.getppid()).ppid()


if __name__ == "__main__":
    with PreforkExecutor(2, sys.argv[1], min_spare_workers=2) as executor:
        forker, above = executor.submit(parents).result()
        assert above != os.getpid()
        workers = [psutil.Process(worker.pid) for worker in executor.stats().workers]
        for pid in {"forker": [forker], "above": [above], "both": [above, forker]}[sys.argv[2]]:
            os.kill(pid, signal.SIGKILL)
        print(psutil.wait_procs(workers, timeout=60)[1])
        again, _ = executor.submit(parents).result()
        print(again != forker)
        sys.stderr = open(os.devnull, "w")
