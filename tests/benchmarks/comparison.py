"""What process pools can do, feature by feature, pool by pool: every cell is run.

    python tests/benchmarks/comparison.py [--feature NAME]... [--pool NAME]... [--jobs N]

Needs Python 3.14 and the group "comparison". A probe runs in a directory and a process of its
own, with all that it starts, for two minutes at most. The figures go to
docs/figures/comparison.json, where those of the features and pools that were not asked for stay
as they are; the table goes into docs/comparison.md. All of it takes some minutes.

A probe that finds what it does not know, a new parameter for instance, fails, and so does
the command: "no" is never written down because nobody has looked again.

The probes are in comparison_{work,workers,data,tools,told,brought}.py, the
pools in comparison_pools.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
from comparison_brought import BROUGHT
from comparison_data import DATA, ERRORS
from comparison_pools import FEATURES, KINDS, Cell
from comparison_told import TOLD
from comparison_tools import WITH
from comparison_work import CONTROL
from comparison_workers import ENDS, WORKERS

HERE = str(Path(__file__).parent)
"""Where tasks are imported from, also by a new interpreter, which does not know the script's."""
ROOT = Path(__file__).parent.parent.parent
FIGURES = ROOT / "docs" / "figures" / "comparison.json"
PAGE = ROOT / "docs" / "comparison.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BOUND = 120.0
"""Seconds that a probe may take: a cluster of Dask's is not started at once on a busy machine."""
MARK = "COMPARISON_PROBE"
"""A variable of the environment by which a probe's processes are known."""
FAILED = "probe failed"
JOBS = 4
"""Most probes wait most of the time."""
ORDER = (*(CONTROL, WORKERS, DATA, ERRORS, ENDS), *(WITH, TOLD, BROUGHT))
"""The groups as they come in the table."""

Figures = dict[str, Any]


# --- a probe -----------------------------------------------------------------------------------


def measure(feature: str, pool: str) -> Figures:
    """Run one probe, and leave nothing of it."""
    with tempfile.TemporaryDirectory(prefix="comparison-") as directory:
        return run(feature, pool, Path(directory))


def run(feature: str, pool: str, directory: Path) -> Figures:
    """What the probe has written, or why it has written nothing."""
    mark = uuid.uuid4().hex
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "--probe", feature, pool],
            cwd=directory,
            env={**os.environ, MARK: mark, "PYTHONWARNINGS": "ignore", "PYTHONPATH": HERE},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(process, directory / "cell")
        finally:
            end(mark)
            process.wait()
    if (directory / "cell").exists():
        found: Figures = json.loads((directory / "cell").read_text(encoding="utf-8"))
        return found
    lines = (directory / "output").read_text(errors="replace").splitlines()
    return Cell(FAILED, "", "\n".join(lines[-30:]))._asdict()


def wait_for(process: subprocess.Popen[bytes], cell: Path) -> None:
    """Until the probe has its answer, or ends without."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline and process.poll() is None and not cell.exists():
        time.sleep(0.02)


def end(mark: str) -> None:
    """Kill all processes of a probe, wherever they have gone, until there is none."""
    while marked := [process for process in psutil.process_iter() if is_marked(process, mark)]:
        for process in marked:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(marked, 1.0)


def is_marked(process: psutil.Process, mark: str) -> bool:
    """Whether it has the mark in its environment, as all have that a probe starts."""
    try:
        return bool(process.environ().get(MARK) == mark)
    except psutil.Error:
        return False


def answer(feature: str, pool: str) -> None:
    """In the probe's process: find out, and write it down, whole or not at all."""
    cell = FEATURES[feature].probes[pool](KINDS[pool])
    unfinished = Path("cell.unfinished")
    unfinished.write_text(json.dumps(cell._asdict()), encoding="utf-8")
    unfinished.replace("cell")


# --- all of them -------------------------------------------------------------------------------


def measure_all(wanted: Iterable[tuple[str, str]], jobs: int) -> dict[tuple[str, str], Figures]:
    """So many at a time. Says on stderr how it goes."""
    todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for pair in wanted:
        todo.put(pair)
    found: dict[tuple[str, str], Figures] = {}
    threads = [threading.Thread(target=_measure_some, args=(todo, found)) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _measure_some(
    todo: queue.SimpleQueue[tuple[str, str]], found: dict[tuple[str, str], Figures]
) -> None:
    while True:
        try:
            feature, pool = todo.get_nowait()
        except queue.Empty:
            return
        began = time.monotonic()
        figures = found[feature, pool] = measure(feature, pool)
        taken = time.monotonic() - began
        print(f"{taken:5.1f} s  {feature:14} {pool:20} {cell_of(figures)}", file=sys.stderr)
        if figures["answer"] == FAILED:
            print(figures["how"], file=sys.stderr)


# --- the page ----------------------------------------------------------------------------------


def cell_of(figures: Figures) -> str:
    """What stands in the table, without its footnote."""
    detail = figures["detail"]
    return f"{figures['answer']}: {detail}" if detail else str(figures["answer"])


def table(document: Figures) -> list[str]:
    """Its lines: a row a feature, grouped, a column a pool; then the footnotes."""
    pools, notes = list(document["versions"]), dict[str, str]()
    rows = [["", *(f"`{pool}`" for pool in pools)], ["---"] * (len(pools) + 1)]
    group = None
    for row in document["features"].values():
        if row["group"] != group:
            group = row["group"]
            rows.append([f"**{group}**", *[""] * len(pools)])
        rows.append([row["title"], *(_noted(row["pools"][pool], notes) for pool in pools)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [*lines, "", *(f"[^{name}]: {why}" for why, name in notes.items())]


def _noted(figures: Figures, notes: dict[str, str]) -> str:
    if figures["answer"] != "n/a":
        return cell_of(figures)
    name = notes.setdefault(figures["how"], f"na{len(notes) + 1}")
    return f"n/a[^{name}]"


def page(document: Figures) -> str:
    """What stands between the marks."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    source = f"Python {document['python']}, {document['system']}; {versions}."
    return "\n".join([BEGIN, "", source, "", *table(document), "", END])


def write_page(document: Figures) -> None:
    """Replace what stands between the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + page(document) + rest.partition(END)[2], encoding="utf-8")


# --- the command -------------------------------------------------------------------------------


def document(found: dict[tuple[str, str], Figures], before: Figures) -> Figures:
    """All that is known: what was measured now, and what was before."""
    old = {name: row["pools"] for name, row in before.get("features", {}).items()}
    features = {}
    in_order = sorted(FEATURES.items(), key=lambda item: ORDER.index(item[1].group))
    for name, feature in in_order:
        cells = {
            pool: found.get((name, pool)) or old.get(name, {}).get(pool)
            for pool in KINDS
            if (name, pool) in found or pool in old.get(name, {})
        }
        features[name] = {"title": feature.title, "group": feature.group, "pools": cells}
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {pool: kind.version() for pool, kind in KINDS.items()},
        "features": features,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--feature", action="append", choices=FEATURES, metavar="NAME")
    parser.add_argument("--pool", action="append", choices=KINDS, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=JOBS, help="probes at a time (default: 4)")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, keep the figures, write the table. Fails if a probe did."""
    options = parse()
    if sys.version_info < (3, 14):
        sys.exit("comparison.py needs Python 3.14, the first that has InterpreterPoolExecutor")
    if options.probe:
        answer(*options.probe)
        return 0
    wanted = [
        (feature, pool) for feature in options.feature or FEATURES for pool in options.pool or KINDS
    ]
    found = measure_all(wanted, options.jobs)
    before = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    result = document(found, before)
    FIGURES.write_text(f"{json.dumps(result, indent=1)}\n", encoding="utf-8")
    failed = [pair for pair, figures in found.items() if figures["answer"] == FAILED]
    if not failed and all(
        row["pools"].keys() == KINDS.keys() for row in result["features"].values()
    ):
        write_page(result)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
