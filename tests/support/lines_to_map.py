"""What the tests of ``prefork-executor map`` have called for each line."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time
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
