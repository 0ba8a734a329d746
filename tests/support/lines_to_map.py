"""What the tests of ``prefork-executor map`` have called for each line."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn


def upper(line: str) -> str:
    return line.upper()


def same(value: Any) -> Any:
    return value


def add(a: int, b: int = 10) -> int:
    return a + b


def some_fail(line: str) -> int:
    """7 and its multiples do."""
    number = int(line)
    if number % 7 == 0:
        raise ValueError(f"unlucky {line}")
    return number * number


def some_die(line: str) -> str:
    if line == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if line == "exit":
        sys.exit(3)
    if line == "sleep":
        time.sleep(600)
    return line


def interrupts_at_2(line: str) -> str:
    if line == "2":
        raise KeyboardInterrupt
    return line


def not_json(line: str) -> Any:
    return {"set": {1, 2}, "nan": float("nan"), "path": pathlib.Path("x")}.get(line, line)


def noisy(line: str) -> str:
    print("noise", line, flush=True)
    os.write(1, b"more noise\n")
    return line


def forks(line: str) -> str:
    """The process that it forks returns, too, or raises SystemExit."""
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{line}\n")
    if not os.fork():
        if line == "2":
            sys.exit(0)
        return "not this one"
    os.wait()
    return line


def slow_some_fail(line: str) -> int:
    time.sleep(0.002)
    return some_fail(line)


def calls_counted(line: str) -> str:
    """Tell in a file that it was called."""
    with open(os.environ["CALLS"], "a") as file:
        file.write(line + "\n")
    return line


def stop(_line: str) -> NoReturn:
    """Wait until somebody ends it, once it has said that it runs."""
    pathlib.Path(os.environ["CALLS"]).touch()
    time.sleep(600)
    raise AssertionError


def repaired(line: str) -> int:
    """What some_fail should have been."""
    return int(line) * int(line)


NOT_CALLABLE = 7


def fails_twice(line: str) -> str:
    """The third call for a line returns."""
    if called(line) < 3:
        raise ValueError(f"not yet {line}")
    return line


def dies_twice(line: str) -> str:
    """The third call for a line that begins with d returns."""
    if called(line) < 3 and line.startswith("d"):
        os.kill(os.getpid(), signal.SIGKILL)
    return line


def some_die_counted(line: str) -> str:
    """Tell that it was called, and then die, sleep or return at once."""
    called(line)
    return some_die(line)


def called(line: str) -> int:
    """Note a call for this line. Returns how many there have been."""
    calls_counted(line)
    return pathlib.Path(os.environ["CALLS"]).read_text().split().count(line)


def waits_if_told(line: str) -> str:
    """Wait for the file CALLS, if the line says so."""
    if line == "slow":
        time.sleep(0.2)
    while line == "wait" and not os.path.exists(os.environ["CALLS"]):
        time.sleep(0.01)
    return line


async def later(line: str) -> str:
    """Wait in the event loop, which is the same for all lines of a worker."""
    loops.add(asyncio.get_running_loop())
    await asyncio.sleep(0)
    if line == "bad":
        raise ValueError("bad luck")
    return f"{line} {len(loops)}"


loops: set[asyncio.AbstractEventLoop] = set()


def generated(line: str) -> Iterator[str]:
    yield line


def joined(line: str, by: str, times: int = 1) -> str:
    return by.join([line] * times)


def type_of(_line: str, value: Any) -> str:
    return f"{type(value).__name__} {value}"


def fails_at_length(line: str) -> str:
    raise ValueError(f"{line}\n" * 10_000)


def slowly(line: str) -> str:
    time.sleep(0.2)
    return line


def slow_fail_counted(line: str) -> int:
    calls_counted(line)
    return slow_some_fail(line)
