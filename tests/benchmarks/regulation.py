"""How the pool regulates itself, beside a pool of fixed size: docs/regulation.md's figures.

    python tests/benchmarks/regulation.py [--draw] [--rounds N] [--load NAME ...]

Needs the extra "bench", and Linux. Five loads (a burst, a trickle, a heavy tail, and a
trace of bursts, with workers that start at once and with some that take a second for it), two
pools or three in turn, three rounds, a process of its own for each; half an hour in all.
With ``--load`` only these are measured, and what is known of the others stays. The process
submits tasks that sleep, by a schedule that is the same for all pools; this one looks at it
from outside: how many workers there are, and what memory they take. What was seen goes to
docs/figures/regulation.json; from that come the pictures, of the last round, and the table on
the page, of the medians of all. ``--draw`` makes these again and measures nothing.

A task's wait is from its submit to its first line, by the clock that all processes of a
machine share. Memory is the proportional set size of everything the process has forked,
supervisor included: a page that four processes share counts a quarter in each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
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
AUTO, TEN = 'PreforkExecutor, idle_timeout="auto"', "PreforkExecutor, idle_timeout=10"
TIMEOUTS: dict[str, Any] = {OURS: 3.0, AUTO: "auto", TEN: 10.0}
MOST = 16
"""Workers at most, in all pools."""
TABLE = 20 * 2**20
"""Bytes that every worker has for itself, as if it held a model. To fill them takes a processor
some 30 ms, so where workers are to start at once they have none."""
LOOK, WEIGH = 0.05, 0.25
"""Seconds between two counts of the workers, and between two looks at their memory."""
POINTS = 150
"""Parts of the time that a picture tells apart."""
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


def trace() -> Schedule:
    """The trace of the simulated runs: a minute, four bursts."""
    sys.path.append(str(ROOT / "tests" / "support"))
    from regulator_simulator import periodic

    return periodic(60.0, seed=1)


@dataclass(frozen=True)
class Load:
    """What is submitted, and for how long the pool is looked at afterwards.

    ``start`` is the seconds that a worker's initializer takes, ``table`` the bytes that it
    fills. ``is_warm``: the pool has
    served as many tasks as it has workers at first before the load begins."""

    title: str
    schedule: Callable[[], Schedule]
    rest: float
    pools: tuple[str, ...] = (OURS, FIXED)
    start: float = 0.0
    table: int = TABLE
    is_warm: bool = False


LOADS = {
    "burst": Load("two bursts of 40 tasks of 0.5 s", burst, 5.0),
    "trickle": Load("a trickle: 4 tasks a second, 0.05 s each", trickle, 2.0),
    "heavy-tail": Load("a heavy tail: 15 tasks a second, 0.04 to 2.3 s", heavy_tail, 5.0),
    "trace": Load(
        "bursts of 100 tasks a second, workers that start at once",
        *(trace, 0.5, (AUTO, TEN, FIXED), 0.0, 0, True),
    ),
    "trace-dear": Load(
        "the same, workers that take a second to start",
        *(trace, 0.5, (AUTO, TEN, FIXED), 1.0, 0, True),
    ),
}


# --- the process that is looked at -------------------------------------------------------------

_table = b""


def hold(start: float, table: int) -> None:
    """Take some time, and have memory of one's own."""
    global _table
    time.sleep(start)
    _table = os.urandom(4096) * (table // 4096)


def nap(seconds: float) -> float:
    """Begin, and sleep. When did it begin?"""
    began = time.monotonic()
    time.sleep(seconds)
    return began


def make(pool: str, load: Load) -> Executor:
    """A pool of that kind, not yet started."""
    given: dict[str, Any] = {
        # Whatever Python's default: the processes are counted from outside.
        "mp_context": multiprocessing.get_context("fork"),
        "initializer": hold,
        "initargs": (load.start, load.table),
    }
    if pool == FIXED:
        return ProcessPoolExecutor(MOST, **given)
    return PreforkExecutor(MOST, **given, idle_timeout=TIMEOUTS[pool])


def warm_up(executor: Executor, pool: str) -> None:
    """Let the workers there are at first do something."""
    list(executor.map(nap, [0.5] * (MOST if pool == FIXED else 1)))


def submit_all(executor: Executor, schedule: Schedule) -> Iterator[tuple[float, Future[float]]]:
    """Each task when its time has come, whatever has become of those before."""
    origin = time.monotonic()
    for moment, seconds in schedule:
        time.sleep(max(0.0, origin + moment - time.monotonic()))
        yield time.monotonic(), executor.submit(nap, seconds)


def play(load: Load, pool: str) -> None:
    """Play a load, then tell when each task was submitted and when it began."""
    with make(pool, load) as executor:
        if load.is_warm:
            warm_up(executor, pool)
        schedule = load.schedule()
        began = time.monotonic()
        submitted = list(submit_all(executor, schedule))
        tasks = [(moment - began, future.result() - began) for moment, future in submitted]
        time.sleep(load.rest)
        print(json.dumps({"began": began, "tasks": tasks}), flush=True)


# --- looking at it -----------------------------------------------------------------------------


def record(name: str, pool: str) -> Figures:
    """Play a load in a process of its own, and look at it until its end."""
    command = [sys.executable, __file__, "--play", name, pool]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            looks = list(watch(psutil.Process(process.pid), supervisors=int(pool != FIXED)))
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
        "| wait, 99th percentile | rounds | busy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, pools in document["runs"].items():
        for pool, rounds in pools.items():
            found = medians(rounds)
            lines.append(
                f"| {name} | `{pool}` | {found['most_workers']:.0f} "
                f"| {found['worker_seconds']:.0f} | {found['mean_memory']:.0f} MiB "
                f"| {found['median_wait'] * 1e3:.1f} ms | {found['late_wait'] * 1e3:.0f} ms "
                f"| {len(rounds)} | {document['load'][name]:.1f} |"
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


def course(times: Sequence[float], values: Sequence[int]) -> tuple[list[float], list[int]]:
    """The largest value in each part of the time, where it is another than before."""
    part = times[-1] / POINTS
    largest = [0] * (POINTS + 1)
    for since, until, value in zip(times, [*times[1:], times[-1]], values, strict=True):
        for place in range(int(since / part), int(until / part) + 1):
            largest[place] = max(largest[place], value)
    shown = [place for place in range(POINTS) if largest[place] != largest[place - 1] or not place]
    shown.append(POINTS)
    return [place * part for place in shown], [largest[place] for place in shown]


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
            elif pool == TEN:
                style = {"color": figures.PEER_COLOUR, "linewidth": 1.0, "zorder": 2}
            times, counts, weights = zip(*run["looks"], strict=True)
            tasks.step(*course(*waiting(run)), where="post", **style)
            workers.step(*course(times, counts), where="post", label=pool, **style)
            memory.step(*course(times, weights), where="post", **style)
        tasks.set_title(LOADS[name].title, loc="left", fontsize=10)
        workers.legend(
            frameon=False, ncols=3, fontsize=7, loc="lower right", bbox_to_anchor=(1.0, 0.95)
        )
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
        f"Python {document['python']}, {document['cpus']} CPUs; medians of the rounds. *Busy* is "
        "the load average before the run: how many programs wanted a processor. The pictures "
        "show the last round."
    ]


def measure(rounds: int, names: Sequence[str]) -> Figures:
    """These loads, so many times, the pools in turn."""
    load = dict.fromkeys(names, os.getloadavg()[0])
    runs: dict[str, dict[str, list[Figures]]] = {
        name: {pool: [] for pool in LOADS[name].pools} for name in names
    }
    for _ in range(rounds):
        for name, pools in runs.items():
            for pool, found in pools.items():
                found.append(record(name, pool))
    return {
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": load,
        "runs": runs,
    }


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", action="append", choices=LOADS, help="only this one")
    parser.add_argument("--play", nargs=2, metavar=("LOAD", "POOL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(LOADS[options.play[0]], options.play[1])
        return
    if not options.draw:
        found = measure(options.rounds, options.load or list(LOADS))
        if options.load:
            known = json.loads(JSON.read_text(encoding="utf-8"))
            found = {**found, **{part: {**known[part], **found[part]} for part in ("load", "runs")}}
        JSON.write_text(json.dumps(found) + "\n", encoding="utf-8")
    draw(json.loads(JSON.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
