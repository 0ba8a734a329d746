"""The limits of single children: requests, memory, lifetime, and how long a request may take.

A child that has reached one of the first three is *worn*. Another takes its place. If there is
room, it starts first (see `_pool/rollover.py`). A child that has been busy for too long is killed.
Before that, its stack is logged.

So that not all children of a pool are worn at once, each has its own limits of requests and of
lifetime: they are lower than those of the pool by a random part.
"""

from __future__ import annotations

import os
import time

from .._board import scoreboard as sb
from .._board.scoreboard import Slot
from .._pool.worker_pool import WorkerPool
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from .._system import machine
from .stacks import Stacks

MEMORY_INTERVAL = 0.5
"""Seconds between two looks at the memory of children that work."""
LATE = 0.01
"""Seconds by which a time is looked at late, so that it has passed then."""
_NANO = 1_000_000_000


class ChildLimits(NamedTuple):
    """The limits of each child; None: none."""

    max_requests: int | None
    max_memory: int | None
    """Bytes of resident memory."""
    max_lifetime: float | None
    """Seconds."""
    busy_timeout: float | None
    """Seconds."""
    jitter: float
    """The part by which a child's limits of requests and lifetime are lowered at most."""

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in self[:4])


class Own(NamedTuple):
    """The limits of one child."""

    born: int
    max_requests: float
    max_lifetime: float
    done: int
    """What it had done when its memory was last looked at."""


class Wear:
    """Watches the children of one pool.

    Args:
        limits: those of each child.
        pool: replaces or kills them.
        stacks: asks children for their stacks; None if there is no ``busy_timeout``.
    """

    def __init__(self, limits: ChildLimits, pool: WorkerPool, stacks: Stacks | None) -> None:
        self._limits = limits
        self._pool = pool
        self._stacks = stacks
        self._own: dict[int, Own] = {}
        self._killed: set[int] = set()
        """When those were forked that have been killed, which no two are at the same time."""
        self._memory_at = 0.0
        self._due: float | None = None

    def due_in(self) -> float | None:
        """Seconds until the next :meth:`look` is due, if nothing else happens."""
        return None if self._due is None else max(0.0, self._due - time.monotonic()) + LATE

    def look(self) -> None:
        """Look at all children, and do what is due."""
        self._due = None
        slots = [slot for slot in self._pool.looks() if slot.born not in self._killed]
        self._own = {slot.pid: self._own_limits(slot) for slot in slots}
        looks_at_memory = self._limits.max_memory is not None and self._is_memory_due(slots)
        for slot in slots:
            if not self._is_overdue(slot) and (limit := self._worn_by(slot, looks_at_memory)):
                logger.info("child %d is replaced: it has reached %s", slot.pid, limit)
                self._pool.replace_worn(slot.pid, limit)

    def _own_limits(self, slot: Slot) -> Own:
        known = self._own.get(slot.pid)
        if known is not None and known.born == slot.born:
            return known
        part = 1 - self._limits.jitter * int.from_bytes(os.urandom(4), "little") / 2**32
        requests, lifetime = self._limits.max_requests, self._limits.max_lifetime
        return Own(
            slot.born,
            float("inf") if requests is None else max(1, round(requests * part)),
            float("inf") if lifetime is None else lifetime * part,
            0,
        )

    def _worn_by(self, slot: Slot, looks_at_memory: bool) -> str:
        """The limit that the child has reached; "" if there is none."""
        own = self._own[slot.pid]
        if slot.done >= own.max_requests:
            return "max_requests_per_child"
        ends = slot.born / _NANO + own.max_lifetime
        if time.monotonic() >= ends:
            return "max_lifetime"
        self._is_due_at(ends)
        if looks_at_memory and self._is_too_big(slot, own):
            return "max_memory_per_child"
        return ""

    # --- memory -------------------------------------------------------------------------

    def _is_memory_due(self, slots: list[Slot]) -> bool:
        """Whether to look at the memory of those that have worked since the last look."""
        if not any(self._has_worked(slot) for slot in slots):
            return False
        now = time.monotonic()
        if now < self._memory_at:
            self._is_due_at(self._memory_at)
            return False
        self._memory_at = now + MEMORY_INTERVAL
        if any(slot.state == sb.BUSY for slot in slots):
            self._is_due_at(self._memory_at)
        return True

    def _has_worked(self, slot: Slot) -> bool:
        return slot.state == sb.BUSY or slot.done != self._own[slot.pid].done

    def _is_too_big(self, slot: Slot, own: Own) -> bool:
        if not self._has_worked(slot):
            return False
        self._own[slot.pid] = own._replace(done=slot.done)
        size = machine.resident_memory(slot.pid) or 0
        return self._limits.max_memory is not None and size > self._limits.max_memory

    # --- time ---------------------------------------------------------------------------

    def _is_overdue(self, slot: Slot) -> bool:
        """Kill a child that has been busy for too long. Returns whether it was one."""
        if self._limits.busy_timeout is None or slot.state != sb.BUSY:
            return False
        ends = slot.since / _NANO + self._limits.busy_timeout
        if time.monotonic() < ends:
            self._is_due_at(ends)
            return False
        self._log_stack(slot)
        now = self._pool.board.read(slot.place)
        if (now.pid, now.state, now.since) == (slot.pid, sb.BUSY, slot.since):
            self._pool.kill_worker(slot.pid, "busy_timeout")
            self._killed.add(slot.born)
        return True

    def _log_stack(self, slot: Slot) -> None:
        stack = self._stacks.of(slot.pid) if self._stacks is not None else ""
        logger.error(
            "child %d has been busy for %.1f s, longer than busy_timeout, and is killed. %s",
            *(slot.pid, time.monotonic() - slot.since / _NANO),
            f"Its stack:\n{stack.rstrip()}" if stack else "It did not write its stack.",
        )

    def _is_due_at(self, at: float) -> None:
        if at != float("inf"):
            self._due = at if self._due is None else min(self._due, at)
