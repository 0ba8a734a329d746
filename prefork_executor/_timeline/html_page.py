"""A recording as one HTML page: the pool's size against its backlog, and tables.

The page has no script, and loads nothing. The plot is inline SVG, and the text that a mark
shows on hover is its SVG title. The page's content security policy says the same.
"""

from __future__ import annotations

import collections
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from .._support.wording import counted
from ..stats import ScalingDecision
from .model import Point, TaskRow, Timeline, quantile

COLUMNS = 900
"""Units of the plot's width: a curve has at most this many points."""
LEFT, RIGHT, HEIGHT, GAP, TOP = 60, 30, 180, 70, 24
MAX_ROWS = 500
"""Decisions in the page's table. The plot marks the others."""
MAX_NAMES = 50
"""Functions in the page's table."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --dim: #6a6a6a; --line: #d4d4d4;
  --paper: #fdfdfd; --live: #8a93a0; --busy: #2f6fb5; --wait: #c06a14; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --dim: #9a9a9a; --line: #3a3a3a;
  --paper: #161616; --live: #7d8794; --busy: #5b9bdf; --wait: #e0913f; --bad: #f2877f; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1040px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.dim { color: var(--dim); } .bad { color: var(--bad); }
table { border-collapse: collapse; } caption { text-align: left; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; } dt { color: var(--dim); }
dd { margin: 0; font-size: 1.2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; }
svg .title { fill: var(--ink); } .axis { stroke: var(--line); }
.most { stroke: var(--dim); stroke-dasharray: 4 4; }
.live { fill: var(--live); fill-opacity: .25; stroke: var(--live); }
.busy { fill: var(--busy); fill-opacity: .45; stroke: var(--busy); }
.wait { fill: var(--wait); fill-opacity: .35; stroke: var(--wait); }
.start { fill: var(--busy); } .retire { fill: var(--live); }
"""


def page(timeline: Timeline) -> Iterator[str]:
    """The file's text in pieces."""
    began = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(timeline.epoch))
    span = _seconds((timeline.end - timeline.begin) / 1e9)
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>A pool's {span} from {began}</title>\n<style>{_STYLE}</style></head><body>\n"
        "<h1>Pool size against backlog</h1>\n"
        f'<p class="dim">{span} from {began}, at most {counted(timeline.max_workers, "worker")}. '
        f"prefork_executor {_text(timeline.version)}.</p>\n"
    )
    yield from _totals(timeline)
    yield from _plot(timeline)
    yield from _functions(timeline.rows)
    yield from _decisions(timeline)
    yield from _left_out(timeline)
    yield "</body></html>\n"


# --- in numbers -------------------------------------------------------------------------------


def _totals(timeline: Timeline) -> Iterator[str]:
    waits = sorted(row.waited for row in timeline.rows)
    length = max(1, timeline.end - timeline.begin)
    live, busy = timeline.live.points(timeline.end), timeline.busy.points(timeline.end)
    totals = {
        "tasks": f"{timeline.tasks:,}",
        "failures": f"{timeline.failures:,}",
        "tasks a second": _rate(timeline.tasks / (length / 1e9)),
        "wait, p50": _seconds(quantile(waits, 0.5) / 1e9),
        "wait, p99": _seconds(quantile(waits, 0.99) / 1e9),
        "wait, longest": _seconds(waits[-1] / 1e9 if waits else 0),
        "most workers": f"{max((point.level for point in live), default=0):,}",
        "of these busy, mean": f"{_share(busy, live):.0%}",
    }
    yield "<dl>"
    for name, value in totals.items():
        bad = ' class="bad"' if name == "failures" and timeline.failures else ""
        yield f"<div><dt>{name}</dt><dd{bad}>{value}</dd></div>"
    outcomes = sorted(timeline.outcomes.items(), key=lambda item: -item[1])
    yield "</dl>\n<p>" + ", ".join(f"{count:,} {name}" for name, count in outcomes) + "</p>\n"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(part: Sequence[Point], whole: Sequence[Point]) -> float:
    total = sum(point.mean for point in whole)
    return min(1.0, sum(point.mean for point in part) / total) if total else 0.0


def _functions(rows: Sequence[TaskRow]) -> Iterator[str]:
    by_name: dict[str, list[TaskRow]] = collections.defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    costs = {name: [_ran(row) for row in rows] for name, rows in by_name.items()}
    names = sorted(costs, key=lambda name: -sum(costs[name]))
    yield "<h2>Functions</h2>\n<table><thead><tr><th>function</th>"
    heads = ("tasks", "not returned", "ran, in all", "p50", "p99", "longest", "waited, p50")
    yield "".join(f'<th class="n">{head}</th>' for head in heads) + "</tr></thead><tbody>\n"
    for name in names[:MAX_NAMES]:
        ran, tasks = sorted(costs[name]), by_name[name]
        failures = sum(row.outcome != "returned" for row in tasks)
        waits = sorted(row.waited for row in tasks)
        times = (sum(ran), quantile(ran, 0.5), quantile(ran, 0.99), ran[-1], quantile(waits, 0.5))
        numbers = [f"{len(tasks):,}", f"{failures:,}", *(_seconds(t / 1e9) for t in times)]
        yield _row([_text(name), *numbers], numeric=range(1, len(numbers) + 1))
    yield "</tbody></table>\n"
    if len(names) > MAX_NAMES:
        yield f'<p class="dim">And {counted(len(names) - MAX_NAMES, "more function")}.</p>\n'


def _ran(row: TaskRow) -> int:
    return sum(run.end - run.begin for run in row.runs)


def _decisions(timeline: Timeline) -> Iterator[str]:
    decisions = timeline.decisions
    yield "<h2>Decisions</h2>\n"
    if not decisions:
        yield "<p>None: the number of workers did not change.</p>\n"
        return
    yield '<table><thead><tr><th class="n">at</th><th>what</th><th class="n">workers before</th>'
    yield "<th>why</th></tr></thead><tbody>\n"
    for decision in decisions[:MAX_ROWS]:
        at = _seconds(max(0.0, decision.time - timeline.epoch))
        cells = [at, _what(decision), str(decision.workers), _text(decision.reason)]
        yield _row(cells, numeric=(0, 2))
    yield "</tbody></table>\n"
    if len(decisions) > MAX_ROWS:
        yield f'<p class="dim">The plot also has {len(decisions) - MAX_ROWS:,} more.</p>\n'


def _what(decision: ScalingDecision) -> str:
    started = f"start {decision.started}" if decision.started else ""
    retired = f"retire {decision.retired}" if decision.retired else ""
    return ", ".join(filter(None, (started, retired)))


def _row(cells: Sequence[str], numeric: Iterable[int]) -> str:
    right = set(numeric)
    made = (
        f'<td class="n">{cell}</td>' if i in right else f"<td>{cell}</td>"
        for i, cell in enumerate(cells)
    )
    return f"<tr>{''.join(made)}</tr>\n"


def _left_out(timeline: Timeline) -> Iterator[str]:
    missing = {
        "task": timeline.left_out,
        "worker": timeline.lives_left_out,
        "decision": timeline.decisions_left_out,
    }
    for thing, count in missing.items():
        if count:
            yield (
                f'<p class="bad">The curves and the totals include {counted(count, thing)} more '
                "than the recording keeps; the waits and the tables do not.</p>\n"
            )


# --- the plot -----------------------------------------------------------------------------------


def _plot(timeline: Timeline) -> Iterator[str]:
    end = timeline.end
    curves = [c.points(end, COLUMNS) for c in (timeline.live, timeline.busy, timeline.waiting)]
    live, busy, waiting = curves
    maximum = max(timeline.max_workers, *(math.ceil(point.mean) for point in live))
    backlog = max((math.ceil(point.mean) for point in waiting), default=0)
    seconds = max(1, end - timeline.begin) / 1e9
    height = TOP + 2 * HEIGHT + GAP + 24
    width = LEFT + COLUMNS + RIGHT
    label = "Workers, live and busy, and tasks that wait, over time"
    yield f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n'
    yield from _panel(TOP, maximum, seconds, "workers: live (grey) and busy (blue)")
    for points, name in ((live, "live"), (busy, "busy")):
        yield _area(points, timeline, TOP, maximum, name)
    limit = _height(timeline.max_workers, TOP, maximum)
    yield f'<line class="most" x1="{LEFT}" x2="{LEFT + COLUMNS}" y1="{limit}" y2="{limit}">'
    yield f"<title>max_workers: {timeline.max_workers}</title></line>\n"
    yield from _marks(timeline, seconds)
    low = TOP + HEIGHT + GAP
    yield from _panel(low, backlog, seconds, "backlog: tasks that wait")
    yield _area(waiting, timeline, low, backlog, "wait")
    yield "</svg>\n"


def _height(value: float, top: int, maximum: float) -> float:
    return round(top + HEIGHT * (1 - value / max(1, maximum)), 2)


def _panel(top: int, maximum: int, seconds: float, title: str) -> Iterator[str]:
    bottom = top + HEIGHT
    yield f'<text class="title" x="{LEFT}" y="{top - 8}">{title}</text>\n'
    for value in _ticks(max(1, maximum), 4, whole=True):
        y = _height(value, top, maximum)
        yield f'<line class="axis" x1="{LEFT}" x2="{LEFT + COLUMNS}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:,.0f}</text>\n'
    for at in _ticks(seconds, 8):
        x = round(LEFT + COLUMNS * at / seconds, 2)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{_seconds(at)}</text>\n'


def _ticks(maximum: float, count: int, *, whole: bool = False) -> Iterator[float]:
    """Round values from 0 to ``maximum``, about ``count`` of them."""
    rough = maximum / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if not whole and step > 10:
        steps = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
        step = next((nice for nice in steps if nice >= rough), math.ceil(rough / 86400) * 86400)
    if whole:
        step = max(1.0, step)
    return itertools.takewhile(
        lambda value: value <= maximum, (step * i for i in itertools.count())
    )


def _area(points: Sequence[Point], timeline: Timeline, top: int, maximum: float, name: str) -> str:
    """The curve as steps, one for each point, with both ends drawn down to the axis."""
    length = max(1, timeline.end - timeline.begin)
    path, last = [f"M{LEFT} {top + HEIGHT}"], None
    for point in points:
        x = round(LEFT + COLUMNS * (point.at - timeline.begin) / length, 2)
        y = _height(point.mean, top, maximum)
        if y != last:
            path.append(f"H{x}V{y}")
        last = y
    path.append(f"H{LEFT + COLUMNS}V{top + HEIGHT}Z")
    return f'<path class="{name}" d="{"".join(path)}"/>\n'


def _marks(timeline: Timeline, seconds: float) -> Iterator[str]:
    """A triangle at each decision of the regulator, which shows its reasons on hover."""
    by_column: dict[tuple[int, bool], list[ScalingDecision]] = collections.defaultdict(list)
    for decision in timeline.decisions:
        share = min(1.0, max(0.0, decision.time - timeline.epoch) / seconds)
        by_column[round(share * COLUMNS / 4) * 4, bool(decision.started)].append(decision)
    for (column, is_start), decisions in by_column.items():
        x, y = LEFT + column, TOP + HEIGHT + 24
        shape = f"M{x - 5} {y + 9}h10l-5 -9z" if is_start else f"M{x - 5} {y}h10l-5 9z"
        told = [
            f"{_seconds(max(0.0, d.time - timeline.epoch))}: {_what(d)}: {d.reason}"
            for d in decisions[:6]
        ]
        if len(decisions) > len(told):
            told.append(f"and {len(decisions) - len(told)} more")
        kind = "start" if is_start else "retire"
        title = "\n".join(map(_text, told))
        yield f'<path class="mark {kind}" d="{shape}"><title>{title}</title></path>\n'


def _text(value: str) -> str:
    """Text for the page. Characters that cannot be printed, that would control a terminal, or
    that are no characters are escaped as in Python."""
    shown = (
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in value
    )
    return escape("".join(shown))


def _seconds(value: float) -> str:
    """A time in the usual units, with three digits."""
    if value <= 0:
        return "0 s"
    if value < 0.001:
        return f"{value * 1e6:.3g} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
