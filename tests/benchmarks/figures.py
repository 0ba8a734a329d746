"""The pictures of docs/performance.md: what performance.py has measured, as SVG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import report
from arrivals import MOST
from measuring import Figures, Work
from performance_pools import FIXED, NO_PEERS, OURS
from works import WORKS

mpl.use("svg")
# The same figures are to make the same file: no date, no random ids. Text stays text.
mpl.rcParams.update({"svg.hashsalt": "performance", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot  # noqa: E402

OUR_COLOUR, PEER_COLOUR, LIMIT_COLOUR = "#c2410c", "#94a3b8", "#cbd5e1"
FIXED_COLOUR = "#475569"
BAR, GAP, WIDTH = 0.21, 0.45, 7.5
"""Inches: the height of a bar and what is between two groups of them, the width of all."""
LONGEST = 4.0
"""What a bar shows of a multiple where less is better: beyond that they all lose."""
THROUGHPUT = ("no_op", "map_one", "map_chunks", "lambdas", "cpu", "crowd")
LATENCY = (
    *("round_trip", "array_argument", "array_echo", "bytes_echo"),
    *("cold_start", "imported", "idle_memory"),
)
TRACE = "trace"


def draw(document: dict[str, Any], directory: Path) -> list[Path]:
    """Every picture for which there are figures."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, works in (("throughput", THROUGHPUT), ("latency", LATENCY)):
        entries = {work: document["works"][work] for work in works if work in document["works"]}
        if entries:
            drawn.append(directory / f"performance-{name}.svg")
            draw_bars(entries, drawn[-1])
    if TRACE in document["works"]:
        drawn.append(directory / "performance-trace.svg")
        draw_trace(document["works"][TRACE], drawn[-1])
    return drawn


def save(figure: Any, file: Path) -> None:
    """Write it, the same bytes for the same figures."""
    figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


# --- bars --------------------------------------------------------------------------------------


def multiples(work: Work, entry: Figures) -> dict[str, float]:
    """Each pool's median as a multiple of the reference's."""
    medians = {
        pool: statistics.median(found)
        for pool in entry["pools"]
        if (found := report.values(entry["pools"], pool))
    }
    if work.reference not in medians:
        return {}
    return {pool: median / medians[work.reference] for pool, median in medians.items()}


def draw_bars(entries: dict[str, Figures], file: Path) -> None:
    """A group of bars for each work."""
    groups = {WORKS[name]: multiples(WORKS[name], entry) for name, entry in entries.items()}
    groups = {work: found for work, found in groups.items() if found}
    bars = [len(found) for found in groups.values()]
    mean = sum(bars) * BAR / len(bars)
    figure, axes = pyplot.subplots(
        *(len(bars), 1),
        figsize=(WIDTH, sum(bars) * BAR + len(bars) * GAP),
        height_ratios=bars,
        gridspec_kw={"hspace": GAP / mean, "left": 0.35, "right": 0.9},
        squeeze=False,
    )
    for axis, (work, found) in zip(axes[:, 0], groups.items(), strict=True):
        draw_group(axis, work, found)
    save(figure, file)


def draw_group(axis: Any, work: Work, found: dict[str, float]) -> None:
    """One work: a bar for each pool, with its multiple written at its end."""
    pools, longest = list(found)[::-1], math.inf if work.unit.more_is_better else LONGEST
    lengths = [min(found[pool], longest) for pool in pools]
    bars = axis.barh(pools, lengths, color=[_colour(pool) for pool in pools])
    axis.bar_label(bars, [_label(found[pool], longest) for pool in pools], padding=3)
    better = "more is better" if work.unit.more_is_better else "less is better"
    title = f"{work.title} ({work.unit.value}; {work.reference} = 1; {better})"
    axis.set_title(title, loc="right", x=1.1, fontsize=9)
    axis.axvline(1, color="black", linewidth=0.5)
    axis.set_ylim(-0.6, len(pools) - 0.4)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def _label(multiple: float, longest: float) -> str:
    return f"{multiple:.2f}" if multiple <= longest else f"{multiple:.0f}, cut off"


def _colour(pool: str) -> str:
    if pool in (OURS, FIXED):
        return OUR_COLOUR if pool == OURS else FIXED_COLOUR
    return LIMIT_COLOUR if pool in NO_PEERS else PEER_COLOUR


# --- the trace ---------------------------------------------------------------------------------


def draw_trace(entry: Figures, file: Path) -> None:
    """Workers and tasks that wait, over time."""
    series = {pool: rounds[-1]["series"] for pool, rounds in entry["pools"].items() if rounds}
    figure, (workers, waiting) = pyplot.subplots(2, 1, sharex=True, figsize=(WIDTH, 4))
    for pool, found in series.items():
        if pool in (OURS, FIXED):
            _draw_line(workers, found["workers"], pool)
            _draw_line(waiting, found["waiting"], pool)
    workers.set_ylabel("workers")
    workers.set_ylim(0, MOST + 1)
    workers.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    waiting.set_ylabel("tasks that wait")
    waiting.set_xlabel("seconds; the most of each second")
    for axis in (workers, waiting):
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, file)


def _draw_line(axis: Any, values: Sequence[float], pool: str) -> None:
    style: dict[str, Any] = {"linewidth": 1.4} if pool == OURS else {"linewidth": 0.9}
    axis.step(range(len(values)), values, where="post", label=pool, color=_colour(pool), **style)
