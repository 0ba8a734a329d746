"""How the pool regulates itself, beside a pool of fixed size: docs/regulation.md's figures.

    python tests/benchmarks/regulation.py [--draw] [--rounds N]

Needs the extra "bench", and Linux. Three loads (a burst, a trickle, a heavy tail), two
pools in turn, three rounds, a process of its own for each; seven minutes in all. The
process submits tasks that sleep, by a schedule that is the same for both pools; this one
looks at it from outside: how many workers there are, and what memory they take. What was
seen goes to docs/figures/regulation.json; from that come the pictures, of the last round,
and the table on the page, of the medians of all. ``--draw`` makes these again and measures nothing.

A task's wait is from its submit to its first line, by the clock that all processes of a
machine share. Memory is the proportional set size of everything the process has forked,
supervisor included: a page that four processes share counts a quarter in each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from arrivals import percentile

from prefork_executor import PreforkExecutor

ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "docs" / "figures"
JSON = FIGURES / "regulation.json"
PAGE = ROOT / "docs" / "regulation.md"
BEGIN = "<!-- begin: made by tests/benchmarks/regulation.py -->"
END = "<!-- end: made by tests/benchmarks/regulation.py -->"

OURS, FIXED = "PreforkExecutor", "ProcessPoolExecutor"
MOST, IDLE_TIMEOUT = 16, 3.0
"""Workers at most, in both pools; seconds after which ours lets an idle one go."""
TABLE = 20 * 2**20
"""Bytes that every worker has for itself, as if it held a model."""
LOOK, WEIGH = 0.05, 0.25
"""Seconds between two counts of the workers, and between two looks at their memory."""
BOUND = 120.0
"""Seconds that one run may take; the longest takes thirty."""

MIB = 2**20

Schedule = Iterator[tuple[float, float]]
Look = tuple[float, int, int]
"""When, how many workers there are, and MiB of memory in all of the pool."""
Figures = dict[str, Any]


# --- the loads ---------------------------------------------------------------------------------


def burst() -> Schedule:
    """Forty tasks of half a second at once, twice."""
    for begin in (1.0, 10.0):
        yield from [(begin, 0.5)] * 40


def trickle() -> Schedule:
    """Four tasks a second, of 50 ms each."""
    for number in range(60):
        yield 1.0 + number * 0.25, 0.05


def heavy_tail() -> Schedule:
    """Fifteen tasks a second that come when they like; half take less than 65 ms, five of
    325 more than 0.9 s: a Pareto distribution."""
    chance, now = random.Random(7), 1.0
    while (now := now + chance.expovariate(15.0)) < 21.0:
        yield now, 0.04 * chance.paretovariate(1.4)


@dataclass(frozen=True)
class Load:
    """What is submitted, and for how long the pool is looked at afterwards."""

    title: str
    schedule: Callable[[], Schedule]
    rest: float


LOADS = {
    "burst": Load("two bursts of 40 tasks of 0.5 s", burst, 5.0),
    "trickle": Load("a trickle: 4 tasks a second, 0.05 s each", trickle, 2.0),
    "heavy-tail": Load("a heavy tail: 15 tasks a second, 0.04 to 2.3 s", heavy_tail, 5.0),
}


# --- the process that is looked at -------------------------------------------------------------

_table = b""


def hold() -> None:
    """Have memory of one's own."""
    global _table
    _table = os.urandom(4096) * (TABLE // 4096)


def nap(seconds: float) -> float:
    """Begin, and sleep. When did it begin?"""
    began = time.monotonic()
    time.sleep(seconds)
    return began


def make(pool: str) -> Executor:
    """A pool of that kind, not yet started."""
    if pool == FIXED:
        return ProcessPoolExecutor(MOST, initializer=hold)
    return PreforkExecutor(MOST, initializer=hold, idle_timeout=IDLE_TIMEOUT)


def submit_all(executor: Executor, schedule: Schedule) -> Iterator[tuple[float, Future[float]]]:
    """Each task when its time has come, whatever has become of those before."""
    origin = time.monotonic()
    for moment, seconds in schedule:
        time.sleep(max(0.0, origin + moment - time.monotonic()))
        yield time.monotonic(), executor.submit(nap, seconds)


def play(load: Load, pool: str) -> None:
    """Play a load, then tell when each task was submitted and when it began."""
    with make(pool) as executor:
        began = time.monotonic()
        submitted = list(submit_all(executor, load.schedule()))
        tasks = [(moment - began, future.result() - began) for moment, future in submitted]
        time.sleep(load.rest)
        print(json.dumps({"began": began, "tasks": tasks}), flush=True)


# --- looking at it -----------------------------------------------------------------------------


def record(name: str, pool: str) -> Figures:
    """Play a load in a process of its own, and look at it until its end."""
    command = [sys.executable, __file__, "--play", name, pool]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            looks = list(watch(psutil.Process(process.pid), supervisors=int(pool == OURS)))
        except BaseException:
            process.kill()
            raise
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
    looks = [(round(now - told["began"], 3), *seen) for now, *seen in looks if now > told["began"]]
    tasks = [(round(submit, 3), round(begin, 4)) for submit, begin in told["tasks"]]
    return {"looks": list(changes(looks)), "tasks": tasks}


def changes(looks: Sequence[Look]) -> Iterator[Look]:
    """Those that saw something else than the one before, and the last."""
    yield looks[0]
    for before, look in itertools.pairwise(looks):
        if look[1:] != before[1:] or look is looks[-1]:
            yield look


def watch(program: psutil.Process, supervisors: int) -> Iterator[Look]:
    """Look at it until its end."""
    deadline, weighed, memory = time.monotonic() + BOUND, 0.0, 0
    while program.is_running() and program.status() != psutil.STATUS_ZOMBIE:
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"the program still runs after {BOUND:g} s")
        children = program.children(recursive=True)
        if now - weighed >= WEIGH:
            weighed, memory = now, round(sum(map(weight, children)) / MIB)
        yield now, max(0, len(children) - supervisors), memory
        time.sleep(max(0.0, LOOK - (time.monotonic() - now)))


def weight(process: psutil.Process) -> int:
    """Its proportional set size in bytes; nothing if it has gone."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


# --- what it comes to --------------------------------------------------------------------------


def summary(run: Figures) -> dict[str, float]:
    """What the table on the page has."""
    waits = [begin - submit for submit, begin in run["tasks"]]
    times, workers, memory = zip(*run["looks"], strict=True)
    steps = [after - before for before, after in itertools.pairwise(times)]
    paid = sum(step * count for step, count in zip(steps, workers, strict=False))
    held = sum(step * size for step, size in zip(steps, memory, strict=False))
    return {
        "worker_seconds": paid,
        "most_workers": max(workers),
        "mean_memory": held / sum(steps),
        "median_wait": statistics.median(waits),
        "late_wait": percentile(waits, 0.99),
    }


def medians(rounds: Sequence[Figures]) -> dict[str, float]:
    """The same for all rounds."""
    found = [summary(run) for run in rounds]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def table(document: Figures) -> list[str]:
    """The table in Markdown."""
    lines = [
        "| load | pool | workers at most | worker-seconds | mean memory | wait, median "
        "| wait, 99th percentile |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pools in document["runs"].items():
        for pool, rounds in pools.items():
            found = medians(rounds)
            lines.append(
                f"| {name} | `{pool}` | {found['most_workers']:.0f} "
                f"| {found['worker_seconds']:.0f} | {found['mean_memory']:.0f} MiB "
                f"| {found['median_wait'] * 1e3:.1f} ms | {found['late_wait'] * 1e3:.0f} ms |"
            )
    return lines


def waiting(run: Figures) -> tuple[list[float], list[int]]:
    """How many tasks have been submitted and not begun, whenever that changes."""
    changes = sorted(
        [(submit, 1) for submit, _ in run["tasks"]] + [(begin, -1) for _, begin in run["tasks"]]
    )
    times, counts = [0.0], [0]
    for moment, change in changes:
        times.append(moment)
        counts.append(counts[-1] + change)
    return times, counts


def draw(document: Figures) -> None:
    """The pictures, and the page's table."""
    # Importing it sets matplotlib up; measuring needs none of it.
    import figures

    for name, pools in document["runs"].items():
        rows = figures.pyplot.subplots(
            *(3, 1), sharex=True, gridspec_kw={"hspace": 0.35}, figsize=(figures.WIDTH, 5)
        )
        figure, (tasks, workers, memory) = rows
        for pool, rounds in pools.items():
            run = rounds[-1]
            style = {"color": figures.OUR_COLOUR, "linewidth": 1.6, "zorder": 3}
            if pool == FIXED:
                style = {"color": figures.FIXED_COLOUR, "linewidth": 1.0, "linestyle": "--"}
            times, counts, weights = zip(*run["looks"], strict=True)
            tasks.step(*waiting(run), where="post", **style)
            workers.step(times, counts, where="post", label=pool, **style)
            memory.step(times, weights, where="post", **style)
        tasks.set_title(LOADS[name].title, loc="left", fontsize=10)
        workers.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.95))
        tasks.set_ylabel("tasks that wait")
        workers.set_ylabel("workers")
        memory.set_ylabel("memory, MiB")
        memory.set_xlabel("seconds")
        tasks.set_ylim(bottom=0, top=max(4, tasks.get_ylim()[1]))
        workers.set_ylim(0, MOST + 2)
        memory.set_ylim(bottom=0)
        for axis in (tasks, workers, memory):
            axis.spines[["top", "right"]].set_visible(False)
        figure.align_ylabels()
        figures.save(figure, FIGURES / f"regulation-{name}.svg")
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    made = "\n".join([*where(document), "", *table(document)])
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def where(document: Figures) -> list[str]:
    """On what it was measured."""
    return [
        f"Python {document['python']}, {document['cpus']} CPUs, medians of "
        f"{document['rounds']} rounds; load of the machine {document['load'][0]:.1f} before, "
        f"{document['load'][1]:.1f} at the end. The pictures show the last round."
    ]


def measure(rounds: int) -> Figures:
    """Every load, so many times, the pools in turn."""
    load = [os.getloadavg()[0]]
    runs: dict[str, dict[str, list[Figures]]] = {name: {OURS: [], FIXED: []} for name in LOADS}
    for _ in range(rounds):
        for name, pools in runs.items():
            for pool, found in pools.items():
                found.append(record(name, pool))
    return {
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "load": [*load, os.getloadavg()[0]],
        "runs": runs,
    }


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--play", nargs=2, metavar=("LOAD", "POOL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(LOADS[options.play[0]], options.play[1])
        return
    if not options.draw:
        JSON.write_text(json.dumps(measure(options.rounds)) + "\n", encoding="utf-8")
    draw(json.loads(JSON.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
