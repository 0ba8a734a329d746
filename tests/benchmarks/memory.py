"""Pools that run out of memory: docs/memory.md's table and picture.

    python tests/benchmarks/memory.py [--draw] [--rounds N] [--mib MIB]

Needs the extra "bench", Linux, and the right to make a control group of memory (root, or one
that was delegated). Forty tasks of 50 MiB to 1.5 GiB, the same for all, go to pools of four
workers in a control group of 2 GiB; ``--mib`` makes all of that smaller in proportion. Each pool
runs in a process of its own, which joins a new group; this one looks from outside at what the
group takes, and how many of its processes the system has killed. What was seen goes to
docs/figures/memory.json; from that come the picture, of the last round, and the table.
``--draw`` makes these again and measures nothing.

A task grows to its size by 20 MiB at a time, holds it for a fifth of a second, and returns it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import control_groups  # noqa: E402 - lies beside the tests

from prefork_executor import PreforkExecutor  # noqa: E402

FIGURES = ROOT / "docs" / "figures"
JSON = FIGURES / "memory.json"
PAGE = ROOT / "docs" / "memory.md"
BEGIN = "<!-- begin: made by tests/benchmarks/memory.py -->"
END = "<!-- end: made by tests/benchmarks/memory.py -->"

MIB = 2**20
LIMIT, SMALLEST, LARGEST = 2048, 50, 1500
"""MiB: what the group has, and what the smallest and the largest task take."""
TASKS, WORKERS = 40, 4
STEP, HOLD = 20, 0.2
"""MiB that a task grows by at a time, and seconds that it holds them in the end."""
LOOK = 0.05
"""Seconds between two looks at the group."""
SPAN = 0.5
"""Seconds of which the picture shows the most: more points than that nobody could see."""
PATIENCE = 900.0
"""Seconds after which a pool counts as stuck."""

Figures = dict[str, Any]


def sizes(limit: int) -> list[int]:
    """What the tasks take, in MiB: as many of each magnitude, in an order by chance."""
    ratio = (LARGEST / SMALLEST) ** (1 / (TASKS - 1))
    found = [round(SMALLEST * ratio**place * limit / LIMIT) for place in range(TASKS)]
    random.Random(1).shuffle(found)
    return found


def grow(mib: int) -> int:
    """Take so much, by and by."""
    held = [bytearray(STEP * MIB) for _ in range(mib // STEP)]
    held.append(bytearray(mib % STEP * MIB))
    time.sleep(HOLD)
    return sum(map(len, held)) // MIB


# --- the process that is looked at -------------------------------------------------------------


def bounded(tasks: Sequence[int]) -> list[Future[int]]:
    """Ours, which learns what the function takes."""
    with PreforkExecutor(WORKERS, max_memory=0.8, retries=1) as executor:
        return [executor.submit(grow, mib) for mib in tasks]


def told(tasks: Sequence[int]) -> list[Future[int]]:
    """Ours, which is told what each task takes."""
    with PreforkExecutor(WORKERS, max_memory=0.8, retries=1) as executor:
        return [executor.with_options(memory=mib * MIB).submit(grow, mib) for mib in tasks]


def unbounded(tasks: Sequence[int]) -> list[Future[int]]:
    """Ours as it is by default."""
    with PreforkExecutor(WORKERS) as executor:
        return [executor.submit(grow, mib) for mib in tasks]


def submit_all(executor: Executor, tasks: Sequence[int]) -> list[Future[int]]:
    """The tasks' futures; where the pool takes no more, with the error of the submit."""
    futures: list[Future[int]] = []
    for mib in tasks:
        try:
            futures.append(executor.submit(grow, mib))
        except Exception as error:
            futures.append(Future())
            futures[-1].set_exception(error)
    return futures


def standard(tasks: Sequence[int]) -> list[Future[int]]:
    """The standard library's."""
    with ProcessPoolExecutor(WORKERS) as executor:
        return submit_all(executor, tasks)


def with_loky(tasks: Sequence[int]) -> list[Future[int]]:
    """Joblib's."""
    import loky

    with loky.ProcessPoolExecutor(WORKERS) as executor:
        return submit_all(executor, tasks)


def with_pebble(tasks: Sequence[int]) -> list[Future[int]]:
    """Pebble's."""
    import pebble

    with pebble.ProcessPool(WORKERS) as pool:
        futures = [pool.schedule(grow, args=(mib,)) for mib in tasks]
        pool.close()
        pool.join()
        return futures


POOLS: dict[str, Callable[[Sequence[int]], list[Future[int]]]] = {
    "PreforkExecutor, max_memory=0.8, sizes learned": bounded,
    "PreforkExecutor, max_memory=0.8, sizes given": told,
    "PreforkExecutor, no bound": unbounded,
    "ProcessPoolExecutor": standard,
    "loky": with_loky,
    "pebble": with_pebble,
}


def play(pool: str, limit: int) -> None:
    """Run all tasks, then tell what became of them."""
    began = time.monotonic()
    futures = POOLS[pool](sizes(limit))
    errors = [future.exception() for future in futures]
    names = ["result" if error is None else type(error).__name__ for error in errors]
    facts = {"began": began, "seconds": time.monotonic() - began}
    print(json.dumps({**facts, "outcomes": collections.Counter(names)}), flush=True)


# --- looking at it -----------------------------------------------------------------------------


def record(pool: str, limit: int) -> Figures:
    """Run a pool in a group of its own, and look at that until its end."""
    join = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); "
    run = "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    with control_groups.limited(limit * MIB) as folder:
        command = [sys.executable, "-c", join + run, f"{folder}/cgroup.procs", __file__]
        command += ["--play", pool, "--mib", str(limit)]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            looks, is_stuck = [], False
            while process.poll() is None:
                is_stuck = time.monotonic() - began > PATIENCE
                if is_stuck:
                    end_all(folder)
                looks.append((time.monotonic(), usage(folder)))
                time.sleep(LOOK)
            assert process.stdout is not None
            text = process.stdout.read()
        end_all(folder)
        facts = {"killed": kills(folder)}
    seen = json.loads(text) if text else {"began": began, "seconds": None, "outcomes": {}}
    looks = [(round(now - seen["began"], 2), size) for now, size in looks if now > seen["began"]]
    return {**seen, **facts, "is_stuck": is_stuck, "looks": looks}


def number_in(path: str) -> int:
    """The number that a file has."""
    return int(Path(path).read_text())


def usage(folder: str) -> int:
    """MiB that the group takes."""
    name = "memory.usage_in_bytes"
    if not os.path.exists(f"{folder}/{name}"):
        name = "memory.current"
    return number_in(f"{folder}/{name}") // MIB


def kills(folder: str) -> int:
    """How many of its processes the system has killed."""
    name = "memory.oom_control"
    if not os.path.exists(f"{folder}/{name}"):
        name = "memory.events"
    lines = Path(f"{folder}/{name}").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def end_all(folder: str) -> None:
    """End every process in the group: each was started by this benchmark."""
    for pid in Path(f"{folder}/cgroup.procs").read_text().split():
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue


# --- what it comes to --------------------------------------------------------------------------


def table(document: Figures) -> list[str]:
    """The table in Markdown, one column a round where rounds differ."""
    lines = [
        "| pool | results of 40 | what the others got | seconds | killed by the system "
        "| the most memory |",
        "|---|---|---|---|---|---|",
    ]
    for pool, rounds in document["runs"].items():
        results = [run["outcomes"].get("result", 0) for run in rounds]
        errors = {name for run in rounds for name in run["outcomes"]} - {"result"}
        seconds = ["stuck" if run["is_stuck"] else f"{run['seconds']:.0f}" for run in rounds]
        killed = [run["killed"] for run in rounds]
        most = max(size for run in rounds for _, size in run["looks"])
        what = ", ".join(f"`{name}`" for name in sorted(errors)) or "-"
        lines.append(
            f"| {pool} | {several(results)} | {what} | {', '.join(seconds)} "
            f"| {several(killed)} | {most} MiB |"
        )
    return lines


def several(numbers: Sequence[int]) -> str:
    """One number if all are the same."""
    return ", ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def draw(document: Figures) -> None:
    """The picture, and the page's table."""
    # Importing it sets matplotlib up; measuring needs none of it.
    import figures

    limit, runs = document["limit"], document["runs"]
    figure, axes = figures.pyplot.subplots(
        len(runs), 1, sharex=True, sharey=True, figsize=(figures.WIDTH, 1.3 * len(runs))
    )
    for axis, (pool, rounds) in zip(axes, runs.items(), strict=True):
        run = rounds[-1]
        times, taken = outline(run["looks"])
        is_ours = pool.startswith("PreforkExecutor")
        colour = figures.OUR_COLOUR if is_ours else figures.FIXED_COLOUR
        axis.fill(times, taken, facecolor=f"{colour}4d", edgecolor=colour, linewidth=1.0)
        axis.axhline(limit, color="grey", linewidth=0.8, linestyle="--")
        done = run["outcomes"].get("result", 0)
        axis.set_title(f"{pool}: {done} of {TASKS}", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("MiB")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figures.save(figure, FIGURES / "memory.svg")
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    made = "\n".join([where(document), "", PICTURE, "", *table(document)])
    PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def outline(looks: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """A polygon of the most that was taken in each span, in turn."""
    most: dict[int, int] = {}
    for now, size in looks:
        span = int(now / SPAN)
        most[span] = max(size, most.get(span, 0))
    times = [span * SPAN for span in most]
    return [times[0], *times, times[-1]], [0, *most.values(), 0]


PICTURE = "![What each pool takes of the control group](figures/memory.svg)"


def where(document: Figures) -> str:
    """On what it was measured."""
    limit = document["limit"]
    small, large = min(sizes(limit)), max(sizes(limit))
    return (
        f"Forty tasks of {small} to {large} MiB, four workers, a control group of {limit} MiB. "
        f"Python {document['python']}, {document['cpus']} CPUs, rounds: {document['rounds']}; load "
        f"of the machine {document['load'][0]:.1f} before, {document['load'][1]:.1f} at the end. "
        "The pictures show what the group takes at most in each half second of the last round; the "
        "dashed line is its limit."
    )


def measure(rounds: int, limit: int) -> Figures:
    """Every pool in turn, so many times."""
    load = [os.getloadavg()[0]]
    runs: dict[str, list[Figures]] = {pool: [] for pool in POOLS}
    for _ in range(rounds):
        for pool, found in runs.items():
            found.append(record(pool, limit))
            print(pool, {**found[-1], "looks": len(found[-1]["looks"])}, file=sys.stderr)
    return {
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "limit": limit,
        "load": [*load, os.getloadavg()[0]],
        "runs": runs,
    }


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=LIMIT, help="of the control group")
    parser.add_argument("--play", metavar="POOL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(options.play, options.mib)
        return
    if not options.draw:
        if not control_groups.may_be_made():
            sys.exit("no control group of memory can be made here")
        figures = measure(options.rounds, options.mib)
        JSON.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    draw(json.loads(JSON.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
