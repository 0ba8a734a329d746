"""The regulator: decides how many workers to start or to retire, and when to be asked again.

It is a pure function. The time comes in with the counts. The function neither reads nor does
anything. So a test can simulate hours of load in a moment, and every rule is tested.

The rules, in the order in which they are tried
------------------------------------------------
1. *Live* workers are all that have not been reaped: starting, idle, busy and leaving ones. There
   are never more live workers than ``max_workers``. If the pool has a bound for memory and fewer
   workers fit, that number counts instead (:meth:`Limits.fitting`). *Room* is the number of workers
   that may still be started.
2. While the pool is *held* (after crashes or a failed fork), no worker is started.
3. *Spares* are the idle and the starting workers. They hold no task and will take the next ones. At
   first, ``start_workers`` are started. If there are fewer spares than ``min_spare``, the missing
   ones are started at once.
4. The *backlog* is the tasks that no worker has begun. Each of them wants a worker, beyond the
   spares. The pool starts these workers in steps that double (1, 2, 4, ... 32), one step every
   RAMP_INTERVAL seconds. So a burst of short tasks ends before many workers are forked for it, and
   a burst of long tasks gets the whole maximum within a tenth of a second. After RAMP_REST seconds
   without growth the step is 1 again. While the backlog grows, the regulator expects it to go on
   growing for as long as a start takes. It takes the rate at which the backlog has grown since
   there was none, and expects FORESIGHT times the present backlog at most. So the cheaper a start
   is, the fewer workers are started beforehand.
5. Idle workers above ``max_spare`` retire at once. Of the workers that have been idle for their
   *dwell*, ``min_spare`` stay, and the others retire. (The ``min_spare`` are counted only
   among these. If spares that were busy lately counted, a load that goes up and down would lose a
   worker and start one each time.) The dwell keeps the pool from starting and
   retiring workers in turn. While there is a backlog, no worker retires. If ``idle_timeout`` is a
   number, it is the dwell of every worker. Then the pool is as large as the largest demand of the
   last ``idle_timeout`` seconds, plus the spares. If it is "auto", see below. In raw pools
   (``surplus_only``) idle workers retire only above ``max_spare``, and only after their dwell.
6. A look reads the slots one after another, while the workers go on. So a worker that has just
   taken a task may still count as idle, and its task may not be counted at all. A look is *in
   doubt* if more tasks are outstanding than there are workers less ``min_spare``, although no
   worker seems to be missing. Then the next look comes after RAMP_INTERVAL seconds. If the doubt
   lasts (for example because the client is slow to read outcomes), each next look comes after as
   long as the doubt has lasted, MAX_DOUBT seconds at most. Without doubt, ``enough`` is the number
   of outstanding tasks above which the client wakes the pool. So a pool at rest need not look. Many
   short tasks could wake the pool in this way thousands of times a second. So if two looks come in
   quick succession, and the second starts no worker, the next look comes only after RAMP_INTERVAL
   seconds.

What a start is worth
---------------------
With ``idle_timeout`` "auto", each worker has a dwell of its own (:meth:`Limits.dwell`).

* Whether to keep an idle worker is the *ski rental* problem. An idle second is the rent, and a new
  start is the price of buying. If one rents for as long as buying would have cost, one pays at most
  twice as much as with knowledge of the future, and no deterministic rule does better. A start
  costs its own seconds, and the wait of the task that needs the worker, which weighs more. Both
  together are STARTS_WORTH times ``start_cost``. The pool measures ``start_cost``. So workers that
  start quickly leave sooner, and workers that start slowly are still there when the next burst
  comes.
* Not every worker is worth its start. A message wakes the worker that was at work last. So some
  workers work much and some hardly ever. If one of the latter has left, a task waits until another
  worker is free, and not for a start. So a worker must earn its idleness: in its life it may be
  idle for WORKS_WORTH times as long as it has worked. In any case it may be idle for as long as one
  start takes.
* The dwell is between MIN_DWELL and MAX_DWELL seconds.

What was tried, with this load: tasks of 50 ms, two a second; in two of every fifteen seconds a
hundred a second; 16 workers at most; a start takes 1 s. The figures are worker-seconds per second,
and the 99th percentile of the waits.

* STARTS_WORTH 1, the plain ski rental: 4.6, 760 ms. The pool forgets each burst. STARTS_WORTH 5:
  8.5, 610 ms.
* STARTS_WORTH 15, and workers need not earn their idleness: 12.2, 2 ms. With WORKS_WORTH 10: 7.7,
  109 ms; 20: 9.0, 25 ms; 50: 10.5, 11 ms. About 8, the cost of a pool of eight workers, is the
  least that works without knowing when the burst comes.
* All work of a worker's life counts, and its earlier idleness does not: 11.5. After a while every
  worker has earned enough.
* As many spares as tasks come within the time of one start: far too many if tasks are shorter than
  a start. Two tasks a second of 50 ms would keep 120 spares if a start takes 60 s, for a tenth of
  one worker's work.
* FORESIGHT 4 and 16 hardly shorten the waits of a first burst beyond FORESIGHT 2, and start more
  workers in vain. (The mean wait, for tasks of 0.5 s: 190 ms without foresight, 150 ms with 2,
  139 ms with 4.)
* MIN_DWELL 1 s: if a start takes 5 ms, the pool starts a quarter fewer workers, and tasks wait 1 ms
  less. It needs a fifth more worker-seconds, more than twice as many as a pool that knows the load.

Holding
-------
A *crash* is the death of a worker, by itself, before it has done anything. The first FREE_CRASHES
crashes in a row are replaced at once. (The out-of-memory killer may pick a new worker once.) Then
the pool waits for MIN_BACKOFF seconds, and is on *probation*: it starts one worker at a time, with
that wait between two starts. Each crash of a worker that was started since then doubles the wait,
up to MAX_BACKOFF seconds. Crashes of earlier workers do not double it. Otherwise a burst of workers
that die together would at once cost the longest wait. When a worker settles down, the series of
crashes and the probation end. Failed forks hold the pool in the same way, from the first one on. A
fork that succeeds ends their series. This wait applies to growth only: if there are fewer workers
than when the fork failed, the missing ones are replaced without waiting.

Sources of the ideas: Apache httpd's prefork MPM (idle spares between a minimum and a maximum, the
doubling spawn rate), uWSGI's backlog cheaper (growth by backlog), PHP-FPM (never more than the
lack). Karlin, Manasse, Rudolph and Sleator, "Competitive snoopy caching", 1988 (renting for as long
as buying costs: twice the optimum). Fuerst and Sharma, "FaasCache", 2021 (a warm worker is an item
in a cache: it stays according to what its start costs and how often it is used).
"""

from __future__ import annotations

import math

from .._support.named_tuples import NamedTuple
from .._support.wording import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    IdleTimeout = float | Literal["auto"] | None

RAMP_INTERVAL = 0.01
"""Seconds between two steps of growth by backlog. Several forks take about as long."""
RAMP_REST = 0.5
"""Seconds without growth after which the step is 1 again."""
MAX_RAMP = 32
"""Workers in one step at most, as in Apache. More forks at once would delay everything else."""
MAX_DOUBT = 0.1
"""Seconds until the next look after one in doubt, at most."""
MIN_LOOK_INTERVAL = 0.1
"""Seconds between two looks for idle workers at least, however short idle_timeout is. More looks at
a busy pool would cost more than they save."""
AUTO: Literal["auto"] = "auto"
"""The idle_timeout with which a worker may be idle for as long as its start is worth."""
LEARNING = 0.25
"""The share of the latest start in the mean of all starts."""
STARTS_WORTH = 15.0
"""A worker may be idle for this many times as long as a start takes. A start costs its own seconds,
and the seconds that a task waits for it, which weigh fourteen times as much."""
WORKS_WORTH = 20.0
"""The seconds of idleness that a worker earns by each second of work."""
MIN_DWELL = 0.5
"""Seconds that any worker may be idle. If it left sooner, the freed memory would be of no use."""
MAX_DWELL = 600.0
"""Seconds that a worker may be idle at most, however long its start took."""
FIRST_DWELL = 10.0
"""Seconds that a worker may be idle while the cost of a start is not known."""
FORESIGHT = 2
"""The backlog that is expected when a new worker is ready, at most, as a multiple of the present
backlog."""
FREE_CRASHES = 2
"""How many crashes in a row are replaced without delay."""
MIN_BACKOFF = 0.1
"""Seconds of the first wait while the pool is held."""
MAX_BACKOFF = 30.0
"""Seconds of any wait while the pool is held, at most."""


class Life(NamedTuple):
    """What one worker has done since it was ready, in seconds, before it became idle."""

    worked: float = 0.0
    idled: float = 0.0


NEW = Life()


class Limits(NamedTuple):
    """The limits that the user has set. All are numbers of workers, except ``idle_timeout``, which
    is in seconds, None (never) or "auto"."""

    max_workers: int
    min_spare: int
    max_spare: int
    start_workers: int
    idle_timeout: IdleTimeout
    surplus_only: bool = False
    """Idle workers retire only above ``max_spare``, and only after their dwell: raw pools."""

    @property
    def spares(self) -> dict[str, Any]:
        """The limits of spares as the arguments of `Scoreboard.introduce`."""
        return {
            "min_spare": self.min_spare,
            "max_spare": self.max_spare,
            "idle_timeout": self.idle_timeout,
        }

    def fitting(self, workers: int, counts: Counts) -> Limits:
        """These limits, if there is memory for only so many workers (0: any number). Idle workers
        beyond that are above ``max_spare``, so they retire."""
        if not workers or workers >= self.max_workers:
            return self
        spare = max(0, workers - counts.busy - counts.leaving)
        return self._replace(max_workers=workers, max_spare=min(self.max_spare, spare))

    def dwell(self, start_cost: float | None, life: Life = NEW) -> float | None:
        """The seconds that a worker may be idle before it retires (rule 5); None: for ever.

        Args:
            start_cost: seconds that a start takes; None: not known.
            life: what the worker has done.
        """
        if self.idle_timeout != AUTO:
            return self.idle_timeout
        if start_cost is None:
            return FIRST_DWELL
        earned = WORKS_WORTH * life.worked - life.idled
        worth = min(STARTS_WORTH * start_cost, max(start_cost, earned))
        return min(MAX_DWELL, max(MIN_DWELL, worth))


class Counts(NamedTuple):
    """What the pool sees at one moment.

    * ``now`` is in seconds on a monotonic clock.
    * ``backlog`` is the number of waiting tasks, as far as the pool can see. ``outstanding`` is the
      number of all unresolved tasks, as the client counts them (None: no client counts them).
    * ``idle_long`` is the number of workers that have been idle for their :meth:`Limits.dwell`.
      ``idle_next`` is the time at which the next idle worker will have been (None: none will).
    * ``crashes``, ``forks`` and ``failed_forks`` count what has happened since the last call.
      ``live_at_failure`` is how many workers were live when the latest of these forks failed (None:
      as many as now). ``settled``: a worker that was started after the last crash has settled down.
    * ``start_cost`` is how many seconds a start takes, from the fork until the worker is ready
      (None: not known).
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
    start_cost: float | None = None

    @property
    def live(self) -> int:
        return self.starting + self.idle + self.busy + self.leaving

    @property
    def spares(self) -> int:
        return self.starting + self.idle


class Streak(NamedTuple):
    """Failures of one kind in a row: how many, how many waits they have cost, when the latest wait
    ends, and whether a worker was started since that wait began."""

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


def learn(start_cost: float | None, took: float) -> float:
    """The new mean cost of a start, after one more start, which took ``took`` seconds. The older a
    start is, the less it counts."""
    return took if start_cost is None else start_cost + LEARNING * (took - start_cost)


def backoff(waits: int) -> float:
    """The seconds of the wait with this number in a row; the first is 1."""
    return min(MAX_BACKOFF, MIN_BACKOFF * 2.0 ** min(waits - 1, 30))


class Memory(NamedTuple):
    """What the regulator keeps from one call to the next."""

    begun: bool = False
    step: int = 1
    last_growth: float = -math.inf
    crashes: Streak = Streak()
    failed_forks: Streak = Streak()
    live_at_failure: int = 0
    doubt_since: float | None = None
    last_look: float = -math.inf
    backlog: int = 0
    backlog_since: float = -math.inf

    @property
    def held_until(self) -> float:
        return max(self.crashes.until, self.failed_forks.until)

    @property
    def on_probation(self) -> bool:
        return bool(self.crashes.waits or self.failed_forks.waits)


class Decision(NamedTuple):
    """What to do now: how many workers to start and how many idle workers to retire, and why.

    If nothing happens, the regulator must be asked again in ``check_in`` seconds (None: never). It
    must be asked at once when more than ``enough`` tasks are outstanding (None: their number does
    not matter before ``check_in``).
    """

    start: int = 0
    retire: int = 0
    reason: str = ""
    check_in: float | None = None
    enough: int | None = None


def regulate(counts: Counts, limits: Limits, memory: Memory) -> tuple[Decision, Memory]:
    """Decide what to do after one look at the pool."""
    memory = _note_failures(counts, memory)
    room = limits.max_workers - counts.live
    promised = min(room, _promised_lack(counts, limits, memory))
    expected, memory = _foresee(counts, memory)
    wanted = min(room, max(promised, expected + limits.min_spare - counts.spares))
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
    """How many workers may be started although forks have failed, in place of workers that have
    ended since."""
    if counts.now < memory.crashes.until:
        return 0
    return max(0, memory.live_at_failure - counts.live)


def _promised_lack(counts: Counts, limits: Limits, memory: Memory) -> int:
    # The backlog will soon take some of these spares. Rule 4 replaces those.
    lack = limits.min_spare - counts.spares
    return lack if memory.begun else max(lack, limits.start_workers - counts.live)


def _foresee(counts: Counts, memory: Memory) -> tuple[int, Memory]:
    """Rule 4: how many tasks are expected to wait when a worker that is started now is ready."""
    backlog, since = counts.backlog, memory.backlog_since
    if not backlog or not memory.backlog:
        since = counts.now
    expected, lasted = backlog, counts.now - since
    if backlog > memory.backlog and lasted > 0:
        growth = backlog * (counts.start_cost or 0.0) / lasted
        expected = min(FORESIGHT * backlog, backlog + int(growth))
    return expected, memory._replace(backlog=backlog, backlog_since=since)


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
    """Rule 6: decide above how many tasks the client wakes the pool, and whether this look is in
    doubt."""
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
    if limits.surplus_only:
        over_max, timed_out = min(over_max, counts.idle_long), 0
    retire = max(over_max, timed_out, 0)
    if retire == 0:
        return Decision(check_in=check_in)
    reason = (
        f"{counted(counts.spares, 'spare')}, more than the {limits.max_spare} allowed"
        if over_max >= timed_out
        else _why_timed_out(counts, limits)
    )
    return Decision(0, retire, reason, check_in)


def _until_next_idle_timeout(counts: Counts, limits: Limits) -> float | None:
    # A busy worker may become idle without waking the pool. So while a worker may retire, the next
    # look is due after one dwell at the latest.
    dwell = limits.dwell(counts.start_cost)
    if dwell is None or counts.spares + counts.busy <= limits.min_spare:
        return None
    if limits.surplus_only and (counts.spares <= limits.max_spare or counts.idle_next is None):
        return None  # A raw child that becomes idle wakes the pool.
    unheard = max(dwell, MIN_LOOK_INTERVAL)
    if counts.idle_next is None:
        return unheard
    return min(unheard, max(0.0, counts.idle_next - counts.now))


def _why_grow(counts: Counts, start: int) -> str:
    if counts.backlog:
        return f"{counted(counts.backlog, 'task')} waiting, {counts.spares} idle"
    return f"{counts.spares} idle, {start} lacking"


def _why_timed_out(counts: Counts, limits: Limits) -> str:
    if limits.idle_timeout != AUTO:
        return f"{counts.idle_long} idle for over {limits.idle_timeout:g} s"
    if counts.start_cost is None:
        return f"{counts.idle_long} idle for over {FIRST_DWELL:g} s"
    return f"{counts.idle_long} idle for longer than a start of {_span(counts.start_cost)} is worth"


def _why_held(memory: Memory) -> str:
    if memory.failed_forks.until > memory.crashes.until:
        times = counted(memory.failed_forks.length, "time")
        return f"fork failed {times} in a row; starting none for now"
    return (
        f"{counted(memory.crashes.length, 'worker')} in a row died before they did anything; "
        "starting none for now"
    )


def _span(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
