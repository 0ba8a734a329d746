"""Tasks that take memory, for pools with a bound for it. The module imports next to nothing,
because a worker imports it in the middle of its first task."""

from __future__ import annotations

import mmap
import os
import time

from light_tasks import note

MIB = 2**20
_kept: list[bytearray] = []
_mapped: list[mmap.mmap] = []


def take(mib: int, seconds: float = 0.1, journal: str = "") -> int:
    """Takes so much for so long."""
    if journal:
        note(journal, f"begun {mib} {time.monotonic()}")
    taken = bytearray(mib * MIB)
    time.sleep(seconds)
    if journal:
        note(journal, f"ended {mib} {time.monotonic()}")
    return len(taken) // MIB


def offer_for_killing() -> None:
    """An initializer: if memory is short, the kernel is to kill a worker, and no other process."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def take_until(mib: int, journal: str, gate: str) -> int:
    """Takes so much until the gate is there."""
    note(journal, f"begun {mib} {time.monotonic()}")
    taken = bytearray(mib * MIB)
    while not os.path.exists(gate):
        time.sleep(0.005)
    note(journal, f"ended {mib} {time.monotonic()}")
    return len(taken) // MIB


def read_mapped_until(path: str, journal: str, gate: str) -> int:
    """Maps the file, which stays mapped in its worker, and reads all of it. Returns at the gate."""
    with open(path, "rb") as file:
        _mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    read = sum(len(_mapped[-1][at : at + 1]) for at in range(0, len(_mapped[-1]), mmap.PAGESIZE))
    note(journal, f"begun {read}")
    while not os.path.exists(gate):
        time.sleep(0.005)
    return read


def take_when_both_are_there(mib: int, journal: str, gate: str) -> int:
    """Takes nothing before two have begun, and keeps it until the gate is there. Each run leaves a
    line, so later ones do not wait for others."""
    note(journal, "begun")
    while _lines(journal) < 2:
        time.sleep(0.005)
    taken = bytearray(mib * MIB)
    while not os.path.exists(gate):
        time.sleep(0.005)
    return len(taken) // MIB


def keep_from_the_start(mib: int) -> None:
    """An initializer, which loads a model for example."""
    _kept.append(bytearray(b"x") * (mib * MIB))


def keep(mib: int, journal: str, workers: int) -> int:
    """Leaves so much in its worker; waits until as many as that do."""
    _kept.append(bytearray(mib * MIB))
    note(journal, "kept")
    while _lines(journal) < workers:
        time.sleep(0.005)
    return os.getpid()


def _lines(path: str) -> int:
    # It is closed: under fork a worker has pytest's hook for what cannot be raised, which keeps
    # the frame of a function that leaves a file open, and with that what the frame holds.
    with open(path) as file:
        return len(file.readlines())
