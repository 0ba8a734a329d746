"""What comparison.py lets workers do."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from notes import REASON, note, noted

MIB = 1024 * 1024
LOGGER = "comparison"
LOADED: list[str] = []
"""What a program loads before its pool starts."""
_hoard: list[bytearray] = []


def pid() -> int:
    """Which process runs this."""
    return os.getpid()


def place() -> tuple[int, int]:
    """The same, and which interpreter of the process."""
    from concurrent import interpreters

    return os.getpid(), interpreters.get_current().id


def nap(seconds: float) -> int:
    """The same, a little later."""
    time.sleep(seconds)
    return os.getpid()


def noted_nap(path: str, seconds: float) -> int:
    """The same; and say when it begins."""
    note(path)
    return nap(seconds)


def add(one: int, other: int) -> int:
    """A sum."""
    return one + other


def double(number: int) -> int:
    """A product."""
    return 2 * number


def beat(path: str) -> None:
    """Run for a minute, and show it: a byte more in the file every 50 ms."""
    for _ in range(1200):
        with open(path, "ab") as file:
            file.write(b".")
        time.sleep(0.05)


def kill_self(path: str) -> NoReturn:
    """Die as by the kernel's hand; say that it began."""
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_once(path: str) -> str:
    """Die at the first try."""
    if not noted(path):
        kill_self(path)
    return "done"


def fail() -> None:
    """Raise, a call further down."""
    fail_further_down()


def fail_further_down() -> NoReturn:
    """The frame that a traceback should have."""
    raise LookupError("nobody has this")


def fill(view: memoryview) -> int:
    """Write into a big argument."""
    view[:] = b"x" * len(view)
    return len(view)


def length(array: Any) -> int:
    """Take a big argument."""
    return len(array)


def zeros(count: int) -> Any:
    """Give a big result."""
    import numpy as np

    return np.zeros(count)


def hoard(mib: int) -> int:
    """Keep so much memory, that is really used, in this process."""
    _hoard.append(bytearray(os.urandom(1) * mib * MIB))
    return os.getpid()


def what_is_loaded() -> list[str]:
    """What the worker finds."""
    return LOADED


def load(path: str) -> None:
    """Load what is to be there once; say so."""
    note(path)
    LOADED.append("by preload")


def refuse(*_: object, **__: object) -> NoReturn:
    """An initializer that fails."""
    raise RuntimeError(REASON)


def nest(name: str) -> int:
    """Run a task in a pool of the same kind."""
    from comparison_pools import KINDS

    pool = KINDS[name]()
    result: int = pool.many(double, [(20,), (21,)])()[1]
    pool.close()
    return result


def nest_pids() -> tuple[int, list[int]]:
    """The process of this task, and those of a loop of joblib's within."""
    from comparison_pools import KINDS

    return os.getpid(), KINDS["joblib"]().many(nap, [(0.1,)] * 4)()


def nest_in_dask() -> int:
    """The same as Dask's documentation says."""
    from distributed import worker_client

    with worker_client() as client:
        result: int = client.submit(double, 21).result()
        return result


def yell_five() -> str:
    """Five messages, and a result."""
    from prefork_executor import yell

    for number in range(5):
        yell(number)
    return "done"


def put_five(queue: Any) -> str:
    """The same over a queue."""
    for number in range(5):
        queue.put(number)
    return "done"


def advance_five() -> int:
    """Advance the bar of the map that this belongs to."""
    from prefork_executor.integrations.progress import advance

    for _ in range(5):
        advance(1)
    return os.getpid()


def log(number: int = 0) -> int:
    """Log a warning."""
    logging.getLogger(LOGGER).warning("from a worker, %d", number)
    return os.getpid()


def log_to(queue: Any) -> None:
    """An initializer: what this process logs goes into a queue."""
    from logging.handlers import QueueHandler

    logging.getLogger(LOGGER).handlers = [QueueHandler(queue)]


def trace_id() -> int:
    """The trace that this runs in."""
    from opentelemetry import trace

    return trace.get_current_span().get_span_context().trace_id


def trace_id_of(carrier: dict[str, str]) -> int:
    """The same, of a context that was carried by hand."""
    from opentelemetry import context, propagate

    token = context.attach(propagate.extract(carrier))
    try:
        return trace_id()
    finally:
        context.detach(token)


def note_then(path: str, number: int) -> int:
    """Note a number."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def wait_for(path: str) -> None:
    """Until a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)


def cpus() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def adder(number: int) -> Callable[[int], int]:
    """A closure."""
    return lambda other: number + other
