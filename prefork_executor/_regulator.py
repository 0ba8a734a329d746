"""The regulator: how many workers to start or to retire, and when to look again.

A pure function. Time comes in with the counts, nothing is read and nothing is
done, so hours of load can be simulated in a moment and every rule tested.

The rules, in the order in which they are tried
------------------------------------------------
1. *Live* workers are all those not yet reaped: starting, idle, busy and
   leaving. Live never exceeds ``max_workers``; *room* is what is left.
2. While the pool is *held* (crash loop, failed fork) nothing is started.
3. *Spares* are workers that hold nothing and will take the next task: idle and
   starting ones. ``start_workers`` are started at first, and spares that are
   lacking under ``min_spare`` are started at once: that is a standing promise.
4. *Backlog*, tasks that no worker has begun, wants one worker each, beyond the
   spares there are. It is served in steps that double (1, 2, 4, ... 32), one
   every RAMP_INTERVAL, so that a burst of short tasks is gone before many
   workers were forked for it, and a burst of long ones has the whole maximum
   within a tenth of a second. After RAMP_REST without growth the step is 1 again.
5. Idle workers above ``max_spare`` retire at once; idle workers above
   ``min_spare`` retire after ``idle_timeout`` seconds of idleness. That dwell is
   what keeps the pool from flapping. Nothing retires while there is a backlog.

Holding: workers that die on their own before they have done anything are
*crashes*. The first FREE_CRASHES in a row are replaced at once (an
out-of-memory killer may pick a fresh worker, once); each further one doubles
the wait, from BACKOFF_FIRST to BACKOFF_MOST. A worker that settles down
ends the row. Failed forks are held in the same manner, from the first on.

Sources of the ideas: Apache httpd's prefork MPM (idle spares between a minimum
and a maximum, the doubling spawn rate), uWSGI's backlog cheaper (growth by
backlog), PHP-FPM (never more than the lack).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

RAMP_INTERVAL = 0.01
"""Seconds between two steps of growth by backlog: several forks' worth of time."""
RAMP_REST = 0.5
"""Seconds without growth after which the next burst begins at a step of one."""
RAMP_MOST = 32
"""Workers in one step at most, as in Apache: forking more delays all else."""
FREE_CRASHES = 2
"""Crashes in a row that are replaced without delay."""
BACKOFF_FIRST = 0.1
"""Seconds that the first held start waits."""
BACKOFF_MOST = 30.0
"""Seconds that any held start waits at most."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user asked for. All counts are workers; idle_timeout is seconds."""

    max_workers: int
    min_spare: int
    max_spare: int
    start_workers: int
    idle_timeout: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What the pool sees at one moment.

    ``now`` is in seconds on a monotonic clock. ``idle_long`` is the number of
    idle workers whose idleness has lasted ``idle_timeout``; ``idle_next`` the
    time at which the next one's will have (None: of those idle now, nobody's).
    ``crashes``, ``forks`` and ``failed_forks`` are what was seen since the last
    call; ``settled`` says that some worker started after the last crash has
    proved itself.
    """

    now: float
    starting: int = 0
    idle: int = 0
    busy: int = 0
    leaving: int = 0
    backlog: int = 0
    idle_long: int = 0
    idle_next: float | None = None
    crashes: int = 0
    forks: int = 0
    failed_forks: int = 0
    settled: bool = False

    @property
    def live(self) -> int:
        return self.starting + self.idle + self.busy + self.leaving

    @property
    def spares(self) -> int:
        return self.starting + self.idle


@dataclass(frozen=True, slots=True)
class Memory:
    """What the regulator carries from one call to the next."""

    begun: bool = False
    step: int = 1
    last_growth: float = -math.inf
    crashes_in_a_row: int = 0
    failed_forks_in_a_row: int = 0
    held_until: float = -math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: workers to start and idle workers to retire, with the
    reason, and when to ask again if nothing happens (seconds; None: never)."""

    start: int = 0
    retire: int = 0
    reason: str = ""
    check_in: float | None = None


def regulate(counts: Counts, limits: Limits, memory: Memory) -> tuple[Decision, Memory]:
    """Decide from one look at the pool. Raises nothing, changes nothing."""
    memory = _note_failures(counts, memory)
    room = limits.max_workers - counts.live
    promised = _promised_lack(counts, limits, memory)
    wanted = max(promised, counts.backlog + limits.min_spare - counts.spares)
    if wanted > 0 and room > 0:
        return _grow(counts, memory, min(promised, room), min(wanted, room))
    return _shrink(counts, limits), memory


def _note_failures(counts: Counts, memory: Memory) -> Memory:
    if counts.settled and not counts.crashes and memory.crashes_in_a_row:
        memory = dataclasses.replace(memory, crashes_in_a_row=0, held_until=-math.inf)
    if counts.crashes:
        crashes = memory.crashes_in_a_row + counts.crashes
        memory = dataclasses.replace(memory, crashes_in_a_row=crashes)
        if crashes > FREE_CRASHES:
            memory = _hold(memory, counts.now, crashes - FREE_CRASHES)
    if counts.failed_forks:
        failed = memory.failed_forks_in_a_row + counts.failed_forks
        memory = dataclasses.replace(memory, failed_forks_in_a_row=failed)
        memory = _hold(memory, counts.now, failed)
    elif counts.forks:
        memory = dataclasses.replace(memory, failed_forks_in_a_row=0)
    return memory


def _hold(memory: Memory, now: float, failures: int) -> Memory:
    wait = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(failures - 1, 30))
    return dataclasses.replace(memory, held_until=max(memory.held_until, now + wait))


def _promised_lack(counts: Counts, limits: Limits, memory: Memory) -> int:
    if not memory.begun:
        return max(limits.start_workers, limits.min_spare) - counts.live
    # Spares that a backlog will take in a moment are not spares: rule 4 sees to them.
    return limits.min_spare - counts.spares


def _grow(counts: Counts, memory: Memory, promised: int, wanted: int) -> tuple[Decision, Memory]:
    now = counts.now
    if now < memory.held_until:
        return Decision(reason=_why_held(memory), check_in=memory.held_until - now), memory
    step = 1 if now - memory.last_growth > RAMP_REST else memory.step
    since = now - memory.last_growth
    ramped = min(step, wanted) if since >= RAMP_INTERVAL else 0
    start = max(promised, ramped, 0)
    if start == 0:
        return Decision(check_in=RAMP_INTERVAL - since), memory
    memory = dataclasses.replace(
        memory,
        begun=True,
        step=min(2 * step, RAMP_MOST) if ramped else step,
        last_growth=now if ramped else memory.last_growth,
    )
    return Decision(start, 0, _why_grow(counts, start), _until_next_step(start, wanted)), memory


def _until_next_step(start: int, wanted: int) -> float | None:
    return RAMP_INTERVAL if start < wanted else None


def _shrink(counts: Counts, limits: Limits) -> Decision:
    check_in = _until_somebody_is_tired(counts, limits)
    if counts.backlog:
        return Decision(check_in=check_in)
    over_most = min(counts.idle, counts.spares - limits.max_spare)
    tired = min(counts.idle_long, counts.spares - limits.min_spare)
    retire = max(over_most, tired, 0)
    if retire == 0:
        return Decision(check_in=check_in)
    reason = (
        f"{counts.spares} spares, over the {limits.max_spare} at most"
        if over_most >= tired
        else f"{counts.idle_long} idle for over {limits.idle_timeout:g} s"
    )
    return Decision(0, retire, reason, check_in)


def _until_somebody_is_tired(counts: Counts, limits: Limits) -> float | None:
    # A worker that is busy now may go idle without a sound, so the look is due
    # one idle_timeout from now at the latest while there is anybody to spare.
    if limits.idle_timeout is None or counts.spares + counts.busy <= limits.min_spare:
        return None
    if counts.idle_next is None:
        return limits.idle_timeout
    return min(limits.idle_timeout, max(0.0, counts.idle_next - counts.now))


def _why_grow(counts: Counts, start: int) -> str:
    if counts.backlog:
        return f"{counts.backlog} tasks waiting, {counts.spares} idle"
    return f"{counts.spares} idle, {start} lacking"


def _why_held(memory: Memory) -> str:
    if memory.failed_forks_in_a_row:
        return f"fork failed {memory.failed_forks_in_a_row} times in a row; starting none for now"
    return (
        f"{memory.crashes_in_a_row} workers in a row died before they did anything; "
        "starting none for now"
    )
