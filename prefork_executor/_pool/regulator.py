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
5. Idle workers above ``max_spare`` retire at once. Of those that have been idle
   for ``idle_timeout`` seconds ``min_spare`` stay, and the others retire: the pool
   is as large as the largest demand of the last ``idle_timeout`` seconds, and the
   spares besides. (Were the spares of that demand's moment counted against those
   of now, a load that goes up and down would lose and get one each time.) That
   dwell keeps the pool from flapping. Nothing retires while there is a backlog.
6. A look takes its readings one after another, while the workers go on: a worker
   that has just taken a task may still count as idle, and the task as nowhere.
   So a look is *in doubt* while more tasks are outstanding than the workers
   less ``min_spare``, though nothing seems to lack; then the next one comes
   after RAMP_INTERVAL, and while the doubt lasts (their owner is slow to read
   outcomes, say) after as long as it has lasted, MAX_DOUBT at most. Without
   doubt ``enough`` is the number of tasks that changes the picture: whoever
   counts them wakes the pool above it, so that a pool at rest need not look.
   Tasks too short to be seen can make that happen thousands of times a second,
   so of two looks in quick succession the second, if it starts nobody, does not
   listen until another RAMP_INTERVAL later.

Holding: workers that die on their own before they have done anything are
*crashes*. The first FREE_CRASHES in a row are replaced at once (an
out-of-memory killer may pick a fresh worker, once). Then the pool waits for
MIN_BACKOFF seconds, and is on *probation*: workers are started one at a time,
with that wait between them. Each crash of what was started since doubles the
wait, up to MAX_BACKOFF; those of workers from before do not, or a burst that
dies as one would cost the longest wait at once. A worker that settles down ends
the streak, and with it the probation. Failed forks are held in the same manner,
from the first one on; a fork that succeeds ends their streak. That wait belongs to
growth: where there are fewer workers than there were when the fork failed, their
places are free, and they are replaced without it.

Sources of the ideas: Apache httpd's prefork MPM (idle spares between a minimum
and a maximum, the doubling spawn rate), uWSGI's backlog cheaper (growth by
backlog), PHP-FPM (never more than the lack).
"""

from __future__ import annotations

import math

from .._support.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RAMP_INTERVAL = 0.01
"""Seconds between two steps of growth by backlog: several forks' worth of time."""
RAMP_REST = 0.5
"""Seconds without growth after which the next burst begins at a step of one."""
MAX_RAMP = 32
"""Workers in one step at most, as in Apache: forking more delays all else."""
MAX_DOUBT = 0.1
"""Seconds that a look in doubt waits at most for the next."""
MIN_LOOK_INTERVAL = 0.1
"""Seconds between two looks for idle workers at least, however short idle_timeout
is: looking at a saturated pool more often would cost more than it saves."""
FREE_CRASHES = 2
"""Crashes in a row that are replaced without delay."""
MIN_BACKOFF = 0.1
"""Seconds that the first held start waits."""
MAX_BACKOFF = 30.0
"""Seconds that any held start waits at most."""


class Limits(NamedTuple):
    """What the user asked for. All counts are workers; idle_timeout is seconds."""

    max_workers: int
    min_spare: int
    max_spare: int
    start_workers: int
    idle_timeout: float | None

    @property
    def spares(self) -> dict[str, Any]:
        """What is said of them where the pool is introduced, by the names there."""
        return {
            "min_spare": self.min_spare,
            "max_spare": self.max_spare,
            "idle_timeout": self.idle_timeout,
        }


class Counts(NamedTuple):
    """What the pool sees at one moment.

    ``now`` is in seconds on a monotonic clock. ``idle_long`` is the number of
    idle workers whose idleness has lasted ``idle_timeout``; ``idle_next`` the
    time at which the next one's will have (None: of those idle now, nobody's).
    ``backlog`` is the number of tasks that wait as far as the pool can see;
    ``outstanding`` that of all tasks not resolved, as far as their owner knows
    (None: nobody counts them). ``crashes``, ``forks`` and ``failed_forks`` are what
    was seen since the last call, ``live_at_failure`` how many workers there were when the
    last of these forks failed (None: as many as now); ``settled`` says that some worker
    started after the last crash has proved itself.
    """

    now: float
    starting: int = 0
    idle: int = 0
    busy: int = 0
    leaving: int = 0
    backlog: int = 0
    outstanding: int | None = None
    idle_long: int = 0
    idle_next: float | None = None
    crashes: int = 0
    forks: int = 0
    failed_forks: int = 0
    live_at_failure: int | None = None
    settled: bool = False

    @property
    def live(self) -> int:
        return self.starting + self.idle + self.busy + self.leaving

    @property
    def spares(self) -> int:
        return self.starting + self.idle


class Streak(NamedTuple):
    """Failures of one kind in a row: how many, how many waits they have cost,
    when the latest wait ends, and whether anything was started since it began."""

    length: int = 0
    waits: int = 0
    until: float = -math.inf
    tried: bool = True

    def longer_by(self, failures: int, free: int, now: float) -> Streak:
        length = self.length + failures
        if length <= free or not self.tried:
            return self._replace(length=length)
        return Streak(length, self.waits + 1, now + backoff(self.waits + 1), tried=False)

    def tried_at(self, now: float) -> Streak:
        if not self.waits:
            return self
        return self._replace(until=now + backoff(self.waits), tried=True)


def backoff(waits: int) -> float:
    """How many seconds the wait of this number in a row is."""
    return min(MAX_BACKOFF, MIN_BACKOFF * 2.0 ** min(waits - 1, 30))


class Memory(NamedTuple):
    """What the regulator carries from one call to the next."""

    begun: bool = False
    step: int = 1
    last_growth: float = -math.inf
    crashes: Streak = Streak()
    failed_forks: Streak = Streak()
    live_at_failure: int = 0
    doubt_since: float | None = None
    last_look: float = -math.inf

    @property
    def held_until(self) -> float:
        return max(self.crashes.until, self.failed_forks.until)

    @property
    def on_probation(self) -> bool:
        return bool(self.crashes.waits or self.failed_forks.waits)


class Decision(NamedTuple):
    """What to do now: workers to start and idle workers to retire, with the reason.

    ``check_in`` says when to ask again if nothing happens (seconds; None: never),
    ``enough`` above how many outstanding tasks to ask at once (None: whatever
    their number, there is nothing to decide before ``check_in``).
    """

    start: int = 0
    retire: int = 0
    reason: str = ""
    check_in: float | None = None
    enough: int | None = None


def regulate(counts: Counts, limits: Limits, memory: Memory) -> tuple[Decision, Memory]:
    """Decide from one look at the pool. Raises nothing, changes nothing."""
    memory = _note_failures(counts, memory)
    room = limits.max_workers - counts.live
    promised = min(room, _promised_lack(counts, limits, memory))
    wanted = min(room, max(promised, counts.backlog + limits.min_spare - counts.spares))
    if wanted <= 0:
        decision = _shrink(counts, limits)
    elif counts.now < memory.held_until and not (freed := _freed(counts, memory)):
        wait = memory.held_until - counts.now
        return Decision(reason=_why_held(memory), check_in=wait), memory
    elif counts.now < memory.held_until:
        decision, memory = _grow(counts, limits, memory, min(promised, freed), min(wanted, freed))
    else:
        decision, memory = _grow(counts, limits, memory, promised, wanted)
    return _listen(decision, counts, limits, memory)


def _note_failures(counts: Counts, memory: Memory) -> Memory:
    crashes, failed_forks = memory.crashes, memory.failed_forks
    if counts.crashes:
        crashes = crashes.longer_by(counts.crashes, FREE_CRASHES, counts.now)
    elif counts.settled:
        crashes = Streak()
    if counts.forks:
        failed_forks = Streak()
    live_at_failure = memory.live_at_failure
    if counts.failed_forks:
        failed_forks = failed_forks.longer_by(counts.failed_forks, 0, counts.now)
        known = counts.live_at_failure
        live_at_failure = counts.live if known is None else known
    return memory._replace(
        crashes=crashes, failed_forks=failed_forks, live_at_failure=live_at_failure
    )


def _freed(counts: Counts, memory: Memory) -> int:
    """How many workers may be started though forks have failed: in the places of those that
    have ended since."""
    if counts.now < memory.crashes.until:
        return 0
    return max(0, memory.live_at_failure - counts.live)


def _promised_lack(counts: Counts, limits: Limits, memory: Memory) -> int:
    # Spares that a backlog will take in a moment are not spares: rule 4 sees to them.
    lack = limits.min_spare - counts.spares
    return lack if memory.begun else max(lack, limits.start_workers - counts.live)


def _grow(
    counts: Counts, limits: Limits, memory: Memory, promised: int, wanted: int
) -> tuple[Decision, Memory]:
    since = counts.now - memory.last_growth
    limit = 1 if memory.on_probation else wanted
    step = 1 if since > RAMP_REST else memory.step
    ramped = min(step, limit) if since >= RAMP_INTERVAL else 0
    start = max(min(promised, limit), ramped)
    if start <= 0:
        return Decision(check_in=RAMP_INTERVAL - since), memory
    memory = memory._replace(
        begun=True,
        step=min(2 * step, MAX_RAMP) if ramped else step,
        last_growth=counts.now if ramped else memory.last_growth,
        crashes=memory.crashes.tried_at(counts.now),
        failed_forks=memory.failed_forks.tried_at(counts.now),
    )
    grown = counts._replace(starting=counts.starting + start)
    check_in = RAMP_INTERVAL if start < wanted else _until_next_idle_timeout(grown, limits)
    return Decision(start, 0, _why_grow(counts, start), check_in), memory


def _listen(
    decision: Decision, counts: Counts, limits: Limits, memory: Memory
) -> tuple[Decision, Memory]:
    """Rule 6: what number of tasks is to make us look before the time, and
    whether this look can be believed."""
    if counts.outstanding is None:
        return decision, memory
    workers = counts.spares + counts.busy + decision.start - decision.retire
    suffice = max(0, workers - limits.min_spare)
    in_vain = not decision.start and counts.now - memory.last_look < RAMP_INTERVAL / 2
    memory = memory._replace(last_look=counts.now)
    if counts.live + decision.start >= limits.max_workers:
        return decision, memory._replace(doubt_since=None)
    doubt_since = None
    if counts.outstanding > suffice:
        doubt_since = memory.doubt_since
        if doubt_since is None or decision.start:
            doubt_since = counts.now
        wait = min(MAX_DOUBT, max(RAMP_INTERVAL, counts.now - doubt_since))
        decision = decision._replace(check_in=_sooner(decision.check_in, wait))
    elif in_vain:
        check_in = _sooner(decision.check_in, RAMP_INTERVAL)
        decision = decision._replace(check_in=check_in)
    if decision.check_in is None or decision.check_in > RAMP_INTERVAL:
        decision = decision._replace(enough=max(suffice, counts.outstanding))
    return decision, memory._replace(doubt_since=doubt_since)


def _sooner(check_in: float | None, wait: float) -> float:
    return wait if check_in is None else min(check_in, wait)


def _shrink(counts: Counts, limits: Limits) -> Decision:
    check_in = _until_next_idle_timeout(counts, limits)
    if counts.backlog:
        return Decision(check_in=check_in)
    over_max = min(counts.idle, counts.spares - limits.max_spare)
    timed_out = counts.idle_long - limits.min_spare
    retire = max(over_max, timed_out, 0)
    if retire == 0:
        return Decision(check_in=check_in)
    reason = (
        f"{_so_many(counts.spares, 'spare')}, over the {limits.max_spare} at most"
        if over_max >= timed_out
        else f"{counts.idle_long} idle for over {limits.idle_timeout:g} s"
    )
    return Decision(0, retire, reason, check_in)


def _until_next_idle_timeout(counts: Counts, limits: Limits) -> float | None:
    # A worker that is busy now may go idle without a sound, so the look is due
    # one idle_timeout from now at the latest while there is anybody to spare.
    if limits.idle_timeout is None or counts.spares + counts.busy <= limits.min_spare:
        return None
    unheard = max(limits.idle_timeout, MIN_LOOK_INTERVAL)
    if counts.idle_next is None:
        return unheard
    return min(unheard, max(0.0, counts.idle_next - counts.now))


def _why_grow(counts: Counts, start: int) -> str:
    if counts.backlog:
        return f"{_so_many(counts.backlog, 'task')} waiting, {counts.spares} idle"
    return f"{counts.spares} idle, {start} lacking"


def _why_held(memory: Memory) -> str:
    if memory.failed_forks.until > memory.crashes.until:
        times = _so_many(memory.failed_forks.length, "time")
        return f"fork failed {times} in a row; starting none for now"
    return (
        f"{_so_many(memory.crashes.length, 'worker')} in a row died before they did anything; "
        "starting none for now"
    )


def _so_many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
