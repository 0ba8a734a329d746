"""``prefork-executor status``: one pool at one moment."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from prefork_executor._support.wording import counted
from prefork_executor.cli import _common
from prefork_executor.cli._common import span
from prefork_executor.stats import ScalingDecision
from prefork_executor.status import PoolStatus, WorkerStatus

HEAD = ("PID", "STATE", "FOR", "DONE", "MEMORY", "CPU", "AGE", "TASK")
DECISIONS_SHOWN = 10


def add_to(subcommands: Any) -> None:
    """Add the parser."""
    parser = subcommands.add_parser(
        "status",
        help="one pool: its workers, backlog, waits, decisions",
        description="One pool at this moment: its workers and what each does, the backlog, how "
        "long tasks wait, and why it last grew or shrank.",
    )
    _common.add_pid(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the pool. Returns the exit code."""
    with _common.chosen(options.pid) as watch:
        pool = watch.read()
    if options.json:
        print(json.dumps({**dataclasses.asdict(pool), "states": pool.states}))
        return 0
    for line in _lines(pool):
        print(line)
    return 0


def _lines(pool: PoolStatus) -> Iterator[str]:
    yield f"{pool.kind} of process {pool.pid}: {pool.command}"
    for name, value in _facts(pool):
        yield f"  {name:<13} {value}"
    if pool.workers:
        yield ""
        yield from _common.table(HEAD, map(_row, pool.workers), {"STATE", "TASK"})
    if pool.decisions:
        yield ""
        yield "latest decisions"
        yield from map(_decision, pool.decisions[-DECISIONS_SHOWN:])


def _facts(pool: PoolStatus) -> Iterator[tuple[str, str]]:
    states = ", ".join(f"{number} {state}" for state, number in pool.states.items())
    yield "supervisor", str(pool.supervisor or "not yet")
    yield "open for", span(pool.time - pool.started)
    yield (
        "workers",
        f"{len(pool.workers)} of {pool.max_workers}: {states}; peak {pool.peak_workers}",
    )
    bound = "least" if pool.kind == "executor" else "most"
    yield "spares", f"{pool.min_spare} to {pool.max_spare}; those above the {bound} {stay(pool)}"
    yield "a start takes", span(pool.start_cost)
    if pool.kind == "executor":
        yield "backlog", f"{pool.backlog}; at most {pool.max_backlog}"
        yield "waits", waits(pool)
    elif pool.listeners:
        yield "listen queue", f"{pool.backlog}; at most {pool.max_backlog}"
    if pool.memory_bound is not None:
        yield "memory", _common.memory(pool)
    yield "at maximum", _common.at_maximum(pool)
    yield "tasks done", str(pool.tasks_done)
    yield "forks", str(pool.forks)
    yield (
        "ends",
        (
            f"{pool.retirements} retired, {pool.deaths} died with a task, "
            f"{pool.other_deaths} died without one"
        ),
    )
    yield "reloads", str(pool.generation)


def stay(pool: PoolStatus) -> str:
    """How long an idle worker stays."""
    if pool.idle_timeout is None:
        return "for ever"
    if pool.idle_timeout == "auto":
        return "for as long as a start is worth"
    return f"for {pool.idle_timeout:g} s"


def waits(pool: PoolStatus) -> str:
    """The percentiles of the waits, in one line."""
    found = pool.waits
    if not found.samples:
        return "none measured in the last minute"
    of = ", ".join(f"p{p} {span(getattr(found, f'p{p}'))}" for p in (50, 90, 99))
    return f"{of} ({found.samples} measured)"


def _row(worker: WorkerStatus) -> tuple[str, ...]:
    return (
        *(str(worker.pid), worker.state, span(worker.in_state), str(worker.tasks_done)),
        *(_common.size(worker.memory), span(worker.cpu), span(worker.age)),
        worker.task or "-",
    )


def _decision(decision: ScalingDecision) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(decision.time))
    return f"  {at}  {counted(decision.workers, 'worker')}{change(decision)}: {decision.reason}"


def change(decision: ScalingDecision) -> str:
    """What the decision did: ``, +2``. Empty if it did nothing."""
    started = f", +{decision.started}" if decision.started else ""
    return started + (f", -{decision.retired}" if decision.retired else "")
