"""Where a scenario of faults.py plays: the pool under test, and what is measured of it.

Nothing here waits without a bound, because pools hang.
"""

from __future__ import annotations

import enum
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from fault_tasks import nap
from notes import noted
from pools import WORKERS, Options, Pool

PATIENCE = 8.0
"""Seconds after which a future that has not resolved counts as one that hangs."""
USABLE_WITHIN = 4.0
"""Seconds in which a pool that is usable runs four tasks that take no time."""
SHUTDOWN_WITHIN = 6.0
"""Seconds after which shutdown counts as hanging. No scenario leaves work for so long."""
OTHERS = 20
"""Tasks that have nothing to do with the fault."""
SHORT = 0.05
"""Seconds that each of those takes."""
REST = 0.1
"""Seconds in which a worker that has sent its result comes to wait for another task."""

Figures = dict[str, Any]


class Outcome(enum.StrEnum):
    """What may come of a fault, in a few words."""

    NOTHING_LOST = "nothing lost"
    OWN_TASK = "own task only"
    OTHERS_LOST = "other tasks lost"
    BROKEN = "pool broken"
    HANGS = "hangs"
    REFUSED = "error at once, usable after"
    TOLD = "fails with the reason"
    NOT_TOLD = "fails without the reason"
    FORK_LOOP = "hangs, forks on and on"
    ENDED = "ended"
    NOT_ENDED = "not ended"
    NOTHING_LEFT = "nothing left"
    LEFT = "processes left"
    ALL_DONE = "all done"
    WORK_LOST = "work lost"
    QUIET = "quiet"
    NOISY = "noisy"
    ERROR = "clear error"
    WORKS = "works"
    FAILS = "fails"
    CLIENT_ENDS = "program ends"
    NOT_APPLICABLE = "n/a"
    SCENARIO_FAILED = "scenario failed"


@dataclass(frozen=True)
class Tally:
    """Futures by what has become of them."""

    ok: int
    failed: int
    pending: int

    @property
    def of(self) -> int:
        """All of them."""
        return self.ok + self.failed + self.pending


class Stage:
    """What a scenario is given.

    Args:
        kind: the pool under test.
        directory: for the files by which processes tell of themselves.
    """

    def __init__(self, kind: type[Pool], directory: Path) -> None:
        self.kind = kind
        self.notes = str(directory / "notes")
        self.children = str(directory / "children")
        """Processes that a task has forked: not the pool's."""
        self._directory = directory
        self._to_close: list[Pool] = []
        self._kept: list[Pool] = []

    def pool(self, *, closing: bool = True, **options: Any) -> Pool:
        """A new pool. It is shut down after the scenario if ``closing``; else it is
        open when the interpreter ends."""
        pool = self.kind(Options(**options))
        (self._to_close if closing else self._kept).append(pool)
        return pool

    def close(self) -> Figures:
        """Shut all pools down. Seconds that took; None if it does not end."""
        began = time.monotonic()
        try:
            ended = all(within(SHUTDOWN_WITHIN, pool.shutdown) for pool in self._to_close)
        except Exception as error:
            return {"shutdown": since(began), "shutdown_error": repr(error)}
        return {"shutdown": since(began) if ended else None}

    def say_ready(self) -> None:
        """Let the fault come that is injected from outside."""
        (self._directory / "ready").touch()

    def write(self, figures: Figures) -> None:
        """Hand the figures to the one who measures; whole or not at all."""
        unfinished = self._directory / "unfinished"
        unfinished.write_text(json.dumps(figures), encoding="utf-8")
        os.replace(unfinished, self._directory / "figures")


# --- waiting -----------------------------------------------------------------------------------


def since(began: float) -> float:
    """Seconds from then to now."""
    return round(time.monotonic() - began, 2)


def eventually(condition: Callable[[], object], bound: float = PATIENCE) -> bool:
    """Wait until it is true. False: it does not come true in that many seconds."""
    deadline = time.monotonic() + bound
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def within(bound: float, call: Callable[[], object]) -> bool:
    """Whether a call ends in that many seconds. If not, it is left alone in its thread.
    Raises what the call raises."""
    called: Future[object] = Future()

    def report() -> None:
        try:
            called.set_result(call())
        except BaseException as error:
            called.set_exception(error)

    threading.Thread(target=report, daemon=True).start()
    wait([called], bound)
    if called.done():
        called.result()
    return called.done()


def wait_for_notes(path: str, count: int) -> list[int]:
    """The process ids of tasks that have begun, when there are so many."""
    eventually(lambda: len(noted(path)) >= count)
    return noted(path)


def alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- tasks -------------------------------------------------------------------------------------


def ask(pool: Pool, fn: Callable[..., Any], *args: Any) -> Future[Any]:
    """Submit a call. If the pool refuses it, a future that has failed so."""
    try:
        return pool.submit(fn, *args)
    except Exception as error:
        refused: Future[Any] = Future()
        refused.set_exception(error)
        return refused


def ask_others(pool: Pool, count: int = OTHERS) -> list[Future[Any]]:
    """Submit short tasks that do no harm."""
    return [ask(pool, nap, SHORT) for _ in range(count)]


def settle(futures: Sequence[Future[Any]], bound: float = PATIENCE) -> Tally:
    """Wait for all of them, that many seconds at most."""
    done, pending = wait(futures, bound)
    failed = sum(error_of(future) is not None for future in done)
    return Tally(len(done) - failed, failed, len(pending))


def error_of(future: Future[Any]) -> BaseException | None:
    """Why it has failed; None if it has not, or hangs."""
    if not future.done():
        return None
    return InterruptedError() if future.cancelled() else future.exception()


def error_name(future: Future[Any]) -> str | None:
    """The class of that."""
    error = error_of(future)
    return None if error is None else type(error).__name__


def whole_text(error: BaseException | None) -> str:
    """All that an exception and its causes say."""
    return "\n".join(f"{type(link).__name__}: {link}" for link in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def warm(pool: Pool) -> list[int]:
    """Let all workers start and be idle. Their process ids, as far as they answer,
    the one that answered last at the end."""
    pids: dict[int, None] = {}
    for _ in range(5):
        futures = [ask(pool, nap, 0.2) for _ in range(WORKERS)]
        if settle(futures).ok < WORKERS:
            break
        for future in futures:
            pids.pop(future.result(), None)
            pids[future.result()] = None
        if len(pids) >= WORKERS:
            break
    time.sleep(REST)
    return list(pids)


# --- judging -----------------------------------------------------------------------------------


def usable(pool: Pool) -> bool:
    """Whether tasks that are submitted now are run."""
    return settle([ask(pool, nap, 0.0) for _ in range(4)], USABLE_WITHIN).ok == 4


def among_others(pool: Pool, fault: Callable[[], Future[Any] | None]) -> Figures:
    """What a fault costs a pool that has other work before and after it.

    Args:
        pool: whose workers all run.
        fault: injects it. Its future, if it is a task.
    """
    warm(pool)
    others = ask_others(pool, OTHERS // 2)
    began = time.monotonic()
    culprit = fault()
    others += ask_others(pool, OTHERS - len(others))
    return judge(pool, culprit, others, began)


def judge(
    pool: Pool, culprit: Future[Any] | None, others: Sequence[Future[Any]], began: float
) -> Figures:
    """What has become of a task that did harm, of all others, and of the pool."""
    own = settle([] if culprit is None else [culprit])
    seconds = since(began)
    tally = settle(others, max(0.5, PATIENCE - seconds))
    figures = {
        "error": None if culprit is None else error_name(culprit),
        "seconds": None if culprit is None or own.pending else seconds,
        "own_hung": own.pending > 0,
        "lost": tally.failed,
        "hung": tally.pending,
        "of": tally.of,
        "usable_after": usable(pool),
    }
    return {"outcome": _outcome(own, tally, figures["usable_after"]), **figures}


def _outcome(own: Tally, others: Tally, is_usable: bool) -> Outcome:
    if own.pending or others.pending:
        return Outcome.HANGS
    if not is_usable:
        return Outcome.BROKEN
    if others.failed:
        return Outcome.OTHERS_LOST
    return Outcome.OWN_TASK if own.failed else Outcome.NOTHING_LOST
