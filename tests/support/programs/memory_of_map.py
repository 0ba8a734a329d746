import gc
import json
import sys
import tracemalloc

from prefork_executor import PreforkExecutor
from prefork_executor._client.futures import TaskFuture
from prefork_executor._client.ledger import Task


def alive():
    return sum(isinstance(thing, TaskFuture | Task) for thing in gc.get_objects())


count, buffersize = map(int, sys.argv[1:])
with PreforkExecutor(2, "fork") as executor:
    list(executor.map(abs, range(1000), buffersize=buffersize))
    tracemalloc.start()
    most, total = 0, 0
    for number in executor.map(abs, range(count), buffersize=buffersize):
        total += number
        if number % (count // 10) == 0:
            most = max(most, alive())
    assert total == count * (count - 1) // 2
    peak = tracemalloc.get_traced_memory()[1]
print(json.dumps({"most": most, "peak": peak, "left": alive()}))
