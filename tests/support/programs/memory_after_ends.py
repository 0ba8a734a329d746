import gc
import json
import threading
import time

from prefork_executor import PreforkExecutor
from prefork_executor._client.futures import TaskFuture
from prefork_executor._client.ledger import Task


def alive():
    gc.collect()
    return sum(isinstance(thing, TaskFuture | Task) for thing in gc.get_objects())


def fail(number):
    raise LookupError(number)


with PreforkExecutor(2, "fork") as executor:
    blocking = [executor.submit(time.sleep, 0.3) for _ in range(2)]
    futures = [executor.submit(abs, number) for number in range(1000)]
    futures += [executor.submit(fail, number) for number in range(100)]
    futures += [executor.submit(abs, threading.Lock()) for _ in range(100)]
    futures += [executor.submit(abs, "text") for _ in range(100)]
    aborted = [executor.submit(abs, 1) for _ in range(100)]
    cancelled = [executor.submit(abs, 1) for _ in range(100)]
    most = alive()
    assert all(map(executor.abort, aborted))
    assert all([future.cancel() for future in cancelled])
    kinds = {type(future.exception()).__name__ for future in futures + aborted}
    del blocking, futures, aborted, cancelled
    deadline = time.monotonic() + 180
    while left := alive():
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
print(json.dumps({"kinds": sorted(kinds), "most": most, "left": left}))
