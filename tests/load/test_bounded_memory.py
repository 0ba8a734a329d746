"""What tasks cost of the caller's memory: as much as are there at a time, however many
there are in all; and no more than ProcessPoolExecutor takes for the same tasks.

Each program is a process of its own, so that it measures nothing but its pool. With
PREFORK_EXECUTOR_LONG=1 they are given fifty and ten times as many tasks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scripts import BOUND, run_script

LONG = os.environ.get("PREFORK_EXECUTOR_LONG") == "1"
MAPPED = 1_000_000 if LONG else 20_000
SUBMITTED = 100_000 if LONG else 10_000
BUFFERSIZE = 100
LONGEST = 1800.0 if LONG else BOUND
pytestmark = pytest.mark.timeout(2 * LONGEST)


def measured(directory: Path, program: str, *args: object) -> dict[str, Any]:
    """What a program prints of itself, as JSON."""
    found: dict[str, Any] = json.loads(
        run_script(directory, program, *map(str, args), bound=LONGEST)
    )
    return found


MAP = """
    import gc, json, sys, tracemalloc
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
"""


def test_a_map_with_a_buffersize_holds_no_more_tasks_the_longer_it_is(tmp_path: Path) -> None:
    short = measured(tmp_path, MAP, MAPPED // 4, BUFFERSIZE)
    long = measured(tmp_path, MAP, MAPPED, BUFFERSIZE)
    for found in (short, long):
        # A task and its future for each result that is to come, and those on their way.
        assert BUFFERSIZE <= found["most"] <= 3 * BUFFERSIZE, found
        assert found["left"] <= 2, "all but the last, which a finished thread may hold"
    assert long["peak"] <= 1.5 * short["peak"], (short, long)


SUBMIT = """
    import concurrent.futures, json, os, sys, time, tracemalloc
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
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("measure", ["traced", "resident"])
def test_a_task_that_waits_takes_no_more_than_under_the_process_pool_executor(
    tmp_path: Path, measure: str
) -> None:
    ours = measured(tmp_path, SUBMIT, "ours", measure, SUBMITTED)["each"]
    theirs = measured(tmp_path, SUBMIT, "theirs", measure, SUBMITTED)["each"]
    assert ours <= theirs, f"{ours:.0f} bytes a task, where theirs takes {theirs:.0f}"


ENDS = """
    import gc, json, threading, time
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
"""


def test_nothing_is_kept_of_a_task_however_it_has_ended(tmp_path: Path) -> None:
    found = measured(tmp_path, ENDS)
    assert found["most"] >= 1500
    assert found["left"] == 0
    assert found["kinds"] == [
        *("CallPicklingError", "LookupError", "NoneType", "TaskAborted", "TypeError")
    ]
