import concurrent.futures
import json
import os
import sys
import time
import tracemalloc
from multiprocessing import active_children, get_context

from prefork_executor import PreforkExecutor


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def traced():
    return tracemalloc.get_traced_memory()[1]


name, measure, count = sys.argv[1], globals()[sys.argv[2]], int(sys.argv[3])
if measure is traced:
    tracemalloc.start()
if name == "ours":
    pool = PreforkExecutor(2, "fork")
else:
    pool = concurrent.futures.ProcessPoolExecutor(2, get_context("fork"))
blocking = [pool.submit(time.sleep, 3600) for _ in range(2)]
while not all(future.running() for future in blocking):
    time.sleep(0.01)
futures = [None] * count
before = measure()
for number in range(count):
    futures[number] = pool.submit(abs, number)
print(json.dumps({"each": (measure() - before) / count}), flush=True)
assert sum(future.done() for future in futures) == 0
# Nobody is to wait for what sleeps. Our pool ends with this process in any case.
for process in active_children() if name == "theirs" else ():
    process.kill()
os._exit(0)
