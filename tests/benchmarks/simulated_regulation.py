"""The regulator alone, in simulated time: docs/regulation.md's days, and its trace.

    python tests/benchmarks/simulated_regulation.py [--draw] [--quick]

Needs the extra "bench" to draw. The trace is `periodic`, with starts of 5 ms and of 1 s:
how many workers there are and what tasks wait, by "auto", by an idle_timeout of 10 s, and in
a pool of fixed size. The days are loads of several kinds with starts from 1 ms to 60 s; for
each the page tells what the pool cost, as a multiple of what one would that knows the load
beforehand, and of what the best of several idle_timeouts costs. What was found goes to
docs/figures/regulation-simulated.json; ``--draw`` makes pictures and tables again of that.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrivals import clairvoyant, cost, percentile, served

sys.path.append(str(Path(__file__).parent.parent / "support"))

from regulator_simulator import (
    Simulation,
    at_random,
    bursts,
    exponential,
    heavy_tailed,
    periodic,
)

from prefork_executor._pool.regulator import STARTS_WORTH, Limits

ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "docs" / "figures"
JSON = FIGURES / "regulation-simulated.json"
PAGE = ROOT / "docs" / "regulation.md"
MOST = 16
TRACE, SEEDS = 60.0, range(1, 6)
"""Seconds of the trace, and how many are drawn by lot: the table has the medians."""
FIRST_BURST = 13.0
"""When the trace's first burst comes."""
STARTS = {"5 ms": (3e-3, 8e-3), "1 s": (1.0, 1.01)}
DAY, HOUR = 86400.0, 3600.0
DAY_STARTS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0)
WEIGHTS = (1.0, STARTS_WORTH - 1.0)
"""How many worker-seconds a second costs that a task waits. The last is the regulator's own."""
NUMBERS = (1.0, 10.0, 60.0, 300.0, None)
"""The idle_timeouts, in seconds, of which the best is chosen when the day is over."""
DEAR = 1.0
"""Seconds from which on a start is dear: for cheaper ones one number is as good as another."""

Figures = dict[str, Any]
Tasks = list[tuple[float, float]]


# --- the trace -----------------------------------------------------------------------------------


def policies() -> dict[str, Limits]:
    """What is compared."""

    def pool(spare: int, timeout: Any) -> Limits:
        return Limits(MOST, spare, MOST, spare, timeout)

    return {"auto": pool(1, "auto"), "10 s": pool(1, 10.0), "fixed": pool(MOST, None)}


def trace(name: str, start_up: tuple[float, float], seconds: float, seed: int) -> Figures:
    """One run of it. A pool of fixed size has started when it begins."""
    tasks = list(periodic(seconds, seed))
    limits = policies()[name]
    if name == "fixed":
        waits = [begin - moment for moment, begin, _ in served(tasks, [0.0] * MOST)]
        return _found(waits, [], MOST * seconds, [(0.0, MOST), (seconds, MOST)])
    pool = Simulation(limits, tasks, start_up=start_up, seed=seed).run(seconds)
    later = pool.waits[sum(moment < 15.0 for moment, _ in tasks) :]
    live = [(change.at, change.live + change.start - change.retire) for change in pool.changes]
    return _found(pool.waits, later, pool.worker_seconds, [*live, (seconds, pool.live)])


def promptest(start: float, seconds: float, seed: int) -> float:
    """The 99th percentile of the waits in a pool that has two workers, one at work and a spare,
    when the first burst comes, starts all others with that burst's first task, and keeps them.
    Who does not know when that burst comes, and has no more than two workers until then,
    can do no better."""
    tasks = list(periodic(seconds, seed))
    first = min(moment for moment, _ in tasks if moment >= FIRST_BURST)
    waits = [
        begin - moment
        for moment, begin, _ in served(tasks, [0.0] * 2 + [first + start] * (MOST - 2))
    ]
    return percentile(waits, 0.99)


def _found(waits: list[float], later: list[float], paid: float, live: list[Any]) -> Figures:
    return {
        "p50": percentile(waits, 0.5),
        "p99": percentile(waits, 0.99),
        "p99_later": percentile(later or waits, 0.99),
        "worker_seconds": paid,
        "live": [(round(at, 3), workers) for at, workers in live],
    }


# --- the days ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Tasks that come for so many seconds to a pool of so many workers at most."""

    most: int
    seconds: float
    tasks: Callable[[], Iterator[tuple[float, float]]]


def daily(hours: float) -> Iterator[tuple[float, float]]:
    """A rate between 0 and 0.2 tasks a second that goes round once a day."""
    chance = random.Random(5)
    for moment, duration in at_random(lambda _: 0.2, exponential(15.0), hours):
        if chance.random() < 0.5 * (1 - math.cos(moment / DAY * 2 * math.pi)):
            yield moment, duration


LOADS = {
    "steady: 1 in 10 s, of 8 s": Load(
        16, DAY, lambda: at_random(lambda _: 0.1, exponential(8.0), 24)
    ),
    "a trickle: 1 in 30 s, of 2 s": Load(
        16, DAY, lambda: at_random(lambda _: 1 / 30, exponential(2.0), 24)
    ),
    "a day's rhythm: up to 1 in 5 s, of 15 s": Load(32, DAY, lambda: daily(24)),
    "heavy tails: 1 in 10 s, 0.5 s to 600 s": Load(
        32, DAY, lambda: at_random(lambda _: 0.1, heavy_tailed(0.5, 600), 24)
    ),
    "20 times as many for 30 s of 300 s": Load(
        32, DAY, lambda: at_random(bursts(0.04, 20, 300, 0.1), exponential(12.0), 24)
    ),
    "a quarter of an hour of the trace": Load(16, HOUR / 4, lambda: periodic(HOUR / 4, 1)),
}


def day(load: Load, tasks: Tasks, start: float) -> Figures:
    """What it costs, by each weight, as a multiple of the clairvoyant least."""
    found: Figures = {}
    numbers = NUMBERS if start >= DEAR else (10.0,)
    for timeout in ("auto", *numbers):
        limits = Limits(load.most, 1, load.most, 1, timeout)
        pool = Simulation(limits, tasks, start_up=(start, 1.01 * start)).run(load.seconds)
        found[str(timeout)] = {
            "worker_seconds": pool.worker_seconds,
            "waited": sum(pool.waits),
            "p99": percentile(pool.waits, 0.99),
            "forks": len(pool.forks),
        }
    found["least"] = {
        str(weight): clairvoyant(
            tasks, load.seconds, most=load.most, spare=1, start=start, weight=weight
        )
        for weight in WEIGHTS
    }
    return found


def best_number(found: Figures, weight: float) -> str:
    """The idle_timeout that turns out to have been the best."""
    return min(map(str, NUMBERS), key=lambda number: ratio(found, number, weight))


def ratio(found: Figures, policy: str, weight: float) -> float:
    """Its cost, by that of the clairvoyant pool."""
    pool = found[policy]
    paid = cost(pool["worker_seconds"], [pool["waited"]], weight)
    return float(paid / found["least"][str(weight)])


def measure(share: float) -> Figures:
    """Everything; of the days only this share."""
    traces = {
        start: {name: [trace(name, start_up, TRACE, seed) for seed in SEEDS] for name in policies()}
        for start, start_up in STARTS.items()
    }
    bound = [promptest(1.0, TRACE, seed) for seed in SEEDS]
    days: dict[str, dict[str, Figures]] = {}
    for name, load in LOADS.items():
        part = Load(load.most, load.seconds * share, load.tasks)
        tasks = [task for task in load.tasks() if task[0] < part.seconds]
        days[name] = {}
        for start in DAY_STARTS:
            found = days[name][str(start)] = day(part, tasks, start)
            both = [f"{ratio(found, 'auto', weight):.2f}" for weight in WEIGHTS]
            print(name, start, *both, found, file=sys.stderr, flush=True)
    return {"traces": traces, "promptest": bound, "days": days}


# --- the page ------------------------------------------------------------------------------------


def trace_table(document: Figures) -> list[str]:
    """The trace's figures in Markdown: medians of its seeds."""
    lines = [
        "| a start takes | `idle_timeout` | wait, median | wait, 99th percentile "
        "| the same without the first 15 s | worker-seconds |",
        "|---|---|---|---|---|---|",
    ]
    for start, pools in document["traces"].items():
        for name, runs in pools.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in _TOLD}
            waits = " | ".join(f"{middle[key] * 1e3:.0f} ms" for key in _TOLD[:3])
            shown = "a pool of fixed size" if name == "fixed" else f"`{_setting(name)}`"
            lines.append(f"| {start} | {shown} | {waits} | {middle['worker_seconds']:.0f} |")
    late = statistics.median(document["promptest"])
    lines.append(f"| 1 s | the promptest pool without foreknowledge | | {late * 1e3:.0f} ms | | |")
    return lines


_TOLD = ("p50", "p99", "p99_later", "worker_seconds")


def _setting(name: str) -> str:
    return '"auto"' if name == "auto" else "10.0"


def numbers_table(document: Figures) -> list[str]:
    """The days' costs by "auto" in Markdown, as multiples of those by the best number."""
    starts = [start for start in DAY_STARTS if start >= DEAR]
    heads = " | ".join(f"{start:g} s" for start in starts)
    lines = [f"| load | weight of a wait | {heads} |", "|---|---|" + "---|" * len(starts)]
    for name, found in document["days"].items():
        for weight in WEIGHTS:
            cells = []
            for start in starts:
                one = found[str(start)]
                number = best_number(one, weight)
                times = ratio(one, "auto", weight) / ratio(one, number, weight)
                shown = "never" if number == "None" else f"{float(number):g} s"
                cells.append(f"{times:.2f} ({shown})")
            lines.append(f"| {name} | {weight:g} | {' | '.join(cells)} |")
    return lines


def days_table(document: Figures) -> list[str]:
    """The days' costs in Markdown."""
    starts = [f"{1e3 * start:g} ms" if start < 1 else f"{start:g} s" for start in DAY_STARTS]
    heads = " | ".join(starts)
    lines = [f"| load | weight of a wait | {heads} |", "|---|---|" + "---|" * len(starts)]
    for name, found in document["days"].items():
        for weight in WEIGHTS:
            ratios = [
                f"{ratio(one, 'auto', weight):.2f} ({ratio(one, '10.0', weight):.2f})"
                for one in found.values()
            ]
            lines.append(f"| {name} | {weight:g} | {' | '.join(ratios)} |")
    return lines


def draw(document: Figures) -> None:
    """The pictures, and the page's tables."""
    # Importing it sets matplotlib up; simulating needs none of it.
    import figures

    styles: dict[str, dict[str, Any]] = {
        "fixed": {"color": figures.FIXED_COLOUR, "linewidth": 1.0, "linestyle": "--"},
        "10 s": {"color": figures.PEER_COLOUR, "linewidth": 1.0},
        "auto": {"color": figures.OUR_COLOUR, "linewidth": 1.6},
    }
    figure, axes = figures.pyplot.subplots(2, 1, sharex=True, figsize=(figures.WIDTH, 4))
    for axis, (start, pools) in zip(axes, document["traces"].items(), strict=True):
        for name, style in styles.items():
            times, workers = zip(*pools[name][0]["live"], strict=True)
            axis.step(times, workers, where="post", label=name, **style)
        axis.set_title(f"a start takes {start}", loc="left", fontsize=10)
        axis.set_ylabel("workers")
        axis.set_ylim(0, MOST + 2)
    axes[0].legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 0.95))
    axes[1].set_xlabel("seconds")
    _finish(figures, figure, axes, "trace")

    figure, grid = figures.pyplot.subplots(
        2, 3, sharex=True, sharey=True, figsize=(figures.WIDTH, 4.5)
    )
    axes = list(grid.flat)
    for axis, (name, found) in zip(axes, document["days"].items(), strict=True):
        starts = [float(start) for start in found]
        axis.axhline(2.0, color=figures.LIMIT_COLOUR, linewidth=1.0)
        for policy, style in (("10.0", styles["10 s"]), ("auto", styles["auto"])):
            ratios = [ratio(one, policy, WEIGHTS[0]) for one in found.values()]
            axis.plot(starts, ratios, label=policy.replace(".0", " s"), **style)
        axis.set_xscale("log")
        axis.set_ylim(0, 6)
        axis.set_title(name, loc="left", fontsize=7)
    axes[0].legend(frameon=False)
    axes[3].set_ylabel("cost, of the least")
    axes[4].set_xlabel("seconds that a start takes")
    _finish(figures, figure, axes, "days")
    text = PAGE.read_text(encoding="utf-8")
    tables = {
        "trace": trace_table(document),
        "days": days_table(document),
        "numbers": numbers_table(document),
    }
    for part, lines in tables.items():
        begin, end = (f"<!-- {which}: the {part}, simulated -->" for which in ("begin", "end"))
        head, _, rest = text.partition(begin)
        made = "\n".join(lines)
        text = f"{head}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")


def _finish(figures: Any, figure: Any, axes: Any, name: str) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figures.save(figure, FIGURES / f"regulation-simulated-{name}.svg")


def main() -> None:
    """Simulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="simulate nothing")
    parser.add_argument("--quick", action="store_true", help="a twelfth of each day")
    options = parser.parse_args()
    if not options.draw:
        found = measure(1 / 12 if options.quick else 1.0)
        JSON.write_text(json.dumps(found) + "\n", encoding="utf-8")
    draw(json.loads(JSON.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
