"""A recording in the Chrome trace format, which Perfetto and chrome://tracing open.

There is a lane for each slot of the pool: its workers, one after another, and the tasks that
they ran. There are lanes for the regulator's decisions and for tasks that no worker began, and
counters of busy and idle workers and of waiting tasks. The format's times are microseconds.
Ours have three decimals, so that no nanosecond is lost.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterator
from typing import Any

from .._support.wording import counted
from .model import Run, TaskRow, Timeline

PID = 1
"""The one process that the trace shows: the pool as a whole."""
DECISIONS, NEVER_RAN, FIRST_SLOT = 0, 1, 2
"""The lanes, by the format's tid."""
_COLORS = {"raised": "bad", "died": "terrible", "timed out": "terrible", "aborted": "terrible"}

Event = dict[str, Any]


def trace(timeline: Timeline) -> Iterator[str]:
    """The file's text in pieces, one event a line."""
    yield '{"traceEvents":[\n'
    separator = ""
    for event in _events(timeline):
        yield separator + json.dumps(event, separators=(",", ":"))
        separator = ",\n"
    rest = {"displayTimeUnit": "ms", "otherData": _summary(timeline)}
    yield "\n]," + json.dumps(rest)[1:] + "\n"


def _summary(timeline: Timeline) -> dict[str, Any]:
    return {
        "recorder": f"prefork_executor {timeline.version}",
        "began_at": timeline.epoch,
        "seconds": (timeline.end - timeline.begin) / 1e9,
        "max_workers": timeline.max_workers,
        "tasks": timeline.tasks,
        "outcomes": timeline.outcomes,
        "tasks_left_out": timeline.left_out,
        "workers_left_out": timeline.lives_left_out,
        "decisions_left_out": timeline.decisions_left_out,
    }


def _events(timeline: Timeline) -> Iterator[Event]:
    yield from _names(timeline)
    yield from _lives(timeline)
    for row in timeline.rows:
        yield from _task(row, timeline)
    yield from _decisions(timeline)
    yield from _counters(timeline)


def _names(timeline: Timeline) -> Iterator[Event]:
    pool = f"pool of at most {counted(timeline.max_workers, 'worker')}"
    yield {"ph": "M", "name": "process_name", "pid": PID, "args": {"name": pool}}
    slots = {life.slot for life in timeline.lives}
    slots |= {run.slot for row in timeline.rows for run in row.runs}
    lanes = {DECISIONS: "decisions", NEVER_RAN: "tasks that no worker began"}
    lanes |= {FIRST_SLOT + slot: f"worker {slot}" for slot in sorted(slots)}
    for tid, name in lanes.items():
        lane = {"ph": "M", "pid": PID, "tid": tid}
        yield {**lane, "name": "thread_name", "args": {"name": name}}
        yield {**lane, "name": "thread_sort_index", "args": {"sort_index": tid}}


def _span(begin: int, end: int, slot: int, timeline: Timeline) -> Event:
    """What began before the recording is shown from the recording's beginning on."""
    begin = max(begin, timeline.begin)
    return {
        "ph": "X",
        "ts": _micro(begin - timeline.begin),
        "dur": _micro(max(0, end - begin)),
        "pid": PID,
        "tid": FIRST_SLOT + slot,
    }


def _micro(nanoseconds: int) -> float:
    return nanoseconds / 1000


def _milli(nanoseconds: int) -> float:
    return nanoseconds / 1_000_000


def _lives(timeline: Timeline) -> Iterator[Event]:
    for life in timeline.lives:
        arguments = {"pid": life.pid, **({"ended": life.how} if life.how else {})}
        span = _span(life.born, life.end, life.slot, timeline)
        yield {**span, "name": f"process {life.pid}", "cat": "worker", "args": arguments}


def _task(row: TaskRow, timeline: Timeline) -> Iterator[Event]:
    for count, run in enumerate(row.runs, 1):
        is_last = count == len(row.runs)
        outcome = row.outcome if is_last else "lost, and run again"
        arguments = _arguments(row, run, outcome, row.error if is_last else "")
        if len(row.runs) > 1:
            arguments["run"] = f"{count} of {len(row.runs)}"
        color = {"cname": _COLORS[outcome]} if outcome in _COLORS else {}
        span = _span(run.begin, run.end, run.slot, timeline)
        yield {**span, "name": row.name, "cat": "task", **color, "args": arguments}
    if not row.runs:
        arguments = {"outcome": row.outcome, "waited_ms": _milli(row.waited)}
        if row.error:
            arguments["error"] = row.error
        where = {"ph": "i", "s": "t", "pid": PID, "tid": NEVER_RAN, "cat": "task"}
        yield {
            **where,
            "name": row.name,
            "ts": _micro(row.ended - timeline.begin),
            "args": arguments,
        }


def _arguments(row: TaskRow, run: Run, outcome: str, error: str) -> Event:
    arguments: Event = {"outcome": outcome, "worker_pid": run.pid}
    if error:
        arguments["error"] = error
    if run is row.runs[0]:
        arguments["waited_ms"] = _milli(row.waited)
    arguments["ran_ms"] = _milli(run.end - run.begin)
    return arguments


def _decisions(timeline: Timeline) -> Iterator[Event]:
    for decision in timeline.decisions:
        numbers = {"start": decision.started, "retire": decision.retired}
        name = ", ".join(f"{what} {number}" for what, number in numbers.items() if number)
        since = max(0.0, decision.time - timeline.epoch)
        yield {
            "ph": "i",
            "s": "p",
            "name": name,
            "cat": "decision",
            "ts": round(since * 1e6, 3),
            "pid": PID,
            "tid": DECISIONS,
            "args": {"reason": decision.reason, "workers_before": decision.workers},
        }


def _counters(timeline: Timeline) -> Iterator[Event]:
    """A value each time one changes, and the last. Each is the mean over its bucket."""
    curves = [c.points(timeline.end) for c in (timeline.live, timeline.busy, timeline.waiting)]
    values = [
        (live.at, _workers(live.mean, busy.mean), {"waiting": round(waiting.mean, 3)})
        for live, busy, waiting in zip(*curves, strict=True)
    ]
    live, busy, waiting = (points[-1] for points in curves)
    values.append((timeline.end, _workers(live.level, busy.level), {"waiting": waiting.level}))
    for column, name in ((1, "workers"), (2, "waiting tasks")):
        for value, same in itertools.groupby(values, key=operator.itemgetter(column)):
            at = _micro(next(same)[0] - timeline.begin)
            yield {"ph": "C", "name": name, "pid": PID, "ts": at, "args": value}


def _workers(live: float, busy: float) -> dict[str, float]:
    return {"busy": round(busy, 3), "idle": round(max(0, live - busy), 3)}
