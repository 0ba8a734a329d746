"""What the workers of the chaos test and of the soak run, and what they leave in the ledger."""

from __future__ import annotations

import collections
import fcntl
import os
import random
import time
from pathlib import Path
from typing import Any, NoReturn

from prefork_executor import held_resources, yell
from prefork_executor._server import worker as worker_module

YELLS = 4
BIG = 100_000
"""Bytes: travels in a shared file of its own, either way."""
HELD = 8 * 2**20
"""Bytes that a task holds for a moment, in a pool with a bound for them."""

EXITCODE = 5
STAY = 600.0
"""Seconds, beyond all limits."""

LINGERS = 0.2
"""The share of messages over which a worker lingers, at each of two moments."""
LINGER = 0.01
"""Seconds that it lingers, at most."""


def linger_where_it_hurts() -> None:
    """As an initializer: this worker takes its time where its death is hardest to judge,
    which it would pass in microseconds: woken by a message that it has not asked for yet,
    and with a task in its hands that it has not named yet."""
    worker = worker_module.Worker
    waits, serves = worker._wait_for_work, worker._serve

    def wait_for_work(self: Any) -> bool:
        woken = waits(self)
        linger()
        return woken

    def serve(self: Any, packet: Any) -> None:
        linger()
        serves(self, packet)

    worker._wait_for_work = wait_for_work  # type: ignore[method-assign]
    worker._serve = serve  # type: ignore[method-assign]


def linger() -> None:
    if random.random() < LINGERS:
        time.sleep(random.uniform(0, LINGER))


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") * (BIG // 4)


def record(ledger: str, mark: str, number: int) -> None:
    """One line by one write: whole, whoever else writes, and there whoever dies next."""
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{mark} {number} {os.getpid()}\n".encode())
    os.close(descriptor)


def trivial(ledger: str, number: int, _: bytes) -> int:
    record(ledger, "begun", number)
    record(ledger, "ended", number)
    return number


def nap(ledger: str, number: int, _: bytes) -> int:
    record(ledger, "begun", number)
    time.sleep(number % 5 / 1000)
    record(ledger, "ended", number)
    return number


def hold(ledger: str, number: int, _: bytes) -> int:
    """Takes memory for a moment."""
    record(ledger, "begun", number)
    held = bytearray(HELD)
    time.sleep(number % 5 / 1000)
    record(ledger, "ended", number)
    return number if held else -1


def hold_unit(ledger: str, number: int, _: bytes) -> int:
    """Shows that no other task holds the unit that it has been given. The kernel unlocks the file
    when the process ends, however it ends."""
    record(ledger, "begun", number)
    (unit,) = held_resources()["unit"]
    with open(f"{ledger}.unit{unit}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(number % 5 / 1000)
    record(ledger, "ended", number)
    return number


def carry(ledger: str, number: int, data: bytes) -> bytes:
    record(ledger, "begun", number)
    answer = data[::-1]
    record(ledger, "ended", number)
    return answer


def say(ledger: str, number: int, _: bytes) -> int:
    record(ledger, "begun", number)
    for i in range(YELLS):
        # The last one is big.
        yell((number, i, payload(number) if i == YELLS - 1 else b""))
    record(ledger, "ended", number)
    return number


def fail(ledger: str, number: int, _: bytes) -> NoReturn:
    record(ledger, "begun", number)
    record(ledger, "ended", number)
    raise ValueError(number)


def exit_at_once(ledger: str, number: int, _: bytes) -> NoReturn:
    record(ledger, "begun", number)
    os._exit(EXITCODE)


def stay(ledger: str, number: int, _: bytes) -> NoReturn:
    record(ledger, "begun", number)
    time.sleep(STAY)
    raise AssertionError("nobody has ended this task")


Records = collections.defaultdict[int, list[int]]
"""The processes that have written a mark of a task, by its number."""


def read_ledger(ledger: Path) -> tuple[Records, Records]:
    """Who has begun which task, and who has ended it."""
    begun, ended = Records(list), Records(list)
    with open(ledger, encoding="ascii") as lines:
        for line in lines:
            mark, number, pid = line.split()
            {"begun": begun, "ended": ended}[mark][int(number)].append(int(pid))
    return begun, ended
