"""Every pool on the same work, in one run: rows of work, columns of pools, ratios.

    python tests/benchmarks/performance.py [--work NAME ...] [--pool NAME ...] [--rounds N]
                                           [--json FILE] [--quick]

Needs the extra "bench", and Linux. Each measurement has a process of its own, which is
ended with all it has started before the next begins. The pools take turns, in another
order each round, so that what else the machine does falls on all of them; what counts are
the ratios of the medians. A Markdown table goes to stdout. The figures go to the file,
each work's in the place of those it had there; from the file report.py makes the pictures
and the tables of docs/performance.md, which this command does as well if the file is the
one that belongs there.

The works are in work_*.py, the pools in performance_pools.py. The arrival trace and the
simulations take minutes for each pool and are measured only if they are named.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from measuring import Figures, Work, cpus
from performance_pools import POOLS, WORKERS
from work_program import become_subreaper, run
from works import WORKS

import prefork_executor

ROUNDS = 5
LISTS = re.compile(r"\[[\s\d.,-]+\]")


def measure(work: Work, pools: Sequence[str], rounds: int, quick: bool) -> Figures:
    """Every pool in turn, so many times. One that cannot do it is tried once."""
    entry: Figures = {**circumstances(pools), "rounds": rounds, "quick": quick}
    entry["load_before"] = os.getloadavg()
    results: dict[str, list[Figures]] = {pool: [] for pool in pools}
    for turn in range(rounds):
        for pool in rotated(pools, turn):
            if not results[pool] or "value" in results[pool][-1]:
                results[pool].append(measure_one(work, pool, quick))
    return {**entry, "load_after": os.getloadavg(), "pools": results}


def rotated(pools: Sequence[str], turn: int) -> list[str]:
    """Another one first in each round."""
    first = turn % len(pools)
    return [*pools[first:], *pools[:first]]


def measure_one(work: Work, pool: str, quick: bool) -> Figures:
    """Measure, and say on stderr what came of it."""
    began = time.monotonic()
    figures = run(work, pool, quick)
    text = report.cell_of_one(work, figures)
    print(f"{time.monotonic() - began:5.1f} s  {work.name:20} {pool:36} {text}", file=sys.stderr)
    return figures


def circumstances(pools: Sequence[str]) -> Figures:
    """With what, and where."""
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": cpus(),
        "workers": WORKERS,
        "versions": {pool: POOLS[pool].version() for pool in pools},
    }


# --- the file ----------------------------------------------------------------------------------


def keep(file: Path, name: str, entry: Figures) -> None:
    """Put a work's figures in the place of those it had; the others stay."""
    document = report.load(file)
    document["works"][name] = entry
    in_order = [name for name in WORKS if name in document["works"]]
    document["works"] = {name: document["works"][name] for name in in_order}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A list of numbers is a line, or the trace's would be thousands.
    file.write_text(LISTS.sub(_on_one_line, text) + "\n", encoding="utf-8")


def _on_one_line(match: re.Match[str]) -> str:
    return " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]")


def destination(options: argparse.Namespace) -> Path | None:
    """Where the figures go: by default into the documentation, unless they are too
    rough for that, or not of all pools."""
    if options.json is not None:
        return Path(options.json)
    return None if options.quick or options.pool else report.FIGURES


# --- the command -------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--work", nargs="+", choices=WORKS, metavar="NAME", help=f"only these: {', '.join(WORKS)}"
    )
    parser.add_argument(
        "--pool", nargs="+", choices=POOLS, metavar="NAME", help=f"only these: {', '.join(POOLS)}"
    )
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default, 1 if --quick")
    parser.add_argument(
        "--json",
        help=f"the figures go here; by default to docs/figures/{report.FIGURES.name}, "
        "and nowhere if --quick or --pool",
    )
    parser.add_argument("--quick", action="store_true", help="rough figures in a minute or two")
    return parser.parse_args()


def main() -> int:
    """Measure, show, keep the figures."""
    options = parse()
    become_subreaper()
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    file = destination(options)
    measured: dict[str, Any] = {}
    # As whatever was installed is; a checkout may not be.
    compileall.compile_dir(Path(prefork_executor.__file__).parent, quiet=1)
    for work in WORKS.values():
        pools = [pool for pool in work.pools if pool in (options.pool or POOLS)]
        is_meant = work.name in options.work if options.work else not work.is_long
        if is_meant and pools:
            entry = measure(work, pools, min(rounds, work.rounds or rounds), options.quick)
            measured[work.name] = entry
            if file is not None:
                keep(file, work.name, entry)
    print(report.tables({"works": measured}))
    if file == report.FIGURES:
        report.publish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
