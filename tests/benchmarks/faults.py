"""What process pools do under injected faults, pool by pool, fault by fault, in one run.

    python tests/benchmarks/faults.py [--pool NAME]... [--fault NAME]... [--rounds N]
                                      [--output FILE]

Needs the extra "bench", and Linux. Every scenario is played in a fresh process, which is
ended with all it has started before the next begins. A future counts as one that hangs
after eight seconds. A Markdown table goes to stdout, one row a fault and one column a
pool; every figure to the file. A round takes some ten minutes, most of them waiting for
what hangs. What comes of a fault may depend on chance; then the cell says how often.

The scenarios are in fault_scenarios.py, the pools in pools.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fault_programs import become_subreaper, run
from fault_scenarios import FAULTS
from fault_stage import PATIENCE, Figures, Outcome
from pools import POOLS, WORKERS

FIGURES = Path(__file__).parent.parent.parent / "docs" / "figures" / "faults.json"
SLOW = 1.0
"""Seconds from which on the table mentions them."""

Results = dict[str, dict[str, list[Figures]]]
"""Figures by fault and pool, one a round."""


def measure(faults: Iterable[str], pools: Iterable[str], rounds: int) -> Results:
    """Play every scenario with every pool, one after the other, so many times."""
    become_subreaper()
    return {
        fault: {pool: [measure_one(fault, pool) for _ in range(rounds)] for pool in pools}
        for fault in faults
    }


def measure_one(fault: str, pool: str) -> Figures:
    """Play one scenario with one pool, and say on stderr how it went."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        figures = run(pool, fault, FAULTS[fault].watch, Path(directory))
    taken = time.monotonic() - began
    print(f"{taken:5.1f} s  {fault:22} {pool:20} {cell(figures)}", file=sys.stderr)
    return figures


# --- the table ---------------------------------------------------------------------------------


def lost(figures: Figures) -> str:
    """Tasks that were not to blame."""
    count = 0 if figures["outcome"] == Outcome.REFUSED else figures.get("lost")
    return f"{count} of {figures['of']} others lost" if count else ""


def hung(figures: Figures) -> str:
    """What has not resolved: tasks that were not to blame, or else the one that was."""
    count = figures.get("hung")
    if count:
        return f"{count} of {figures['of']} others hang"
    return "its own future" if figures.get("own_hung") else ""


def unusable(figures: Figures) -> str:
    """Whether the pool takes work afterwards, where the outcome does not say so."""
    is_news = figures["outcome"] != Outcome.BROKEN and figures.get("usable_after") is False
    return "unusable after" if is_news else ""


def slow(figures: Figures) -> str:
    """How long it took."""
    seconds = figures.get("seconds")
    return f"{seconds:.1f} s" if seconds and seconds >= SLOW else ""


def forks(figures: Figures) -> str:
    """How often an initializer was tried."""
    return f"forks: {figures['forks']}" if "forks" in figures else ""


def left(figures: Figures) -> str:
    """Processes that a dead program, or executor, has left."""
    counts = [
        f"{figures[key]} after {key.removeprefix('left_').removesuffix('s')} s"
        for key in ("left_2s", "left_10s")
        if figures.get(key)
    ]
    return ", ".join(counts)


def done(figures: Figures) -> str:
    """Work that was done before the end."""
    return f"{figures['done']} of {figures['of']} done" if "done" in figures else ""


def noise(figures: Figures) -> str:
    """What the user has to read."""
    if figures["outcome"] == Outcome.NOT_TOLD and figures.get("told_on_stderr"):
        return "it is on stderr"
    lines = figures.get("stderr_lines")
    return f"{lines} lines of stderr" if lines else ""


def ending(figures: Figures) -> str:
    """What does not end when it should."""
    if "shutdown_error" in figures:
        return "shutdown fails"
    if figures.get("shutdown", 0) is None:
        return "shutdown hangs"
    return "program does not exit" if figures.get("exit", 0) is None else ""


def orphans(figures: Figures) -> str:
    """Processes that are there two seconds after the program."""
    count = figures.get("orphans")
    return f"orphans: {count}" if count else ""


def reason(figures: Figures) -> str:
    """Why there is nothing to measure."""
    return str(figures.get("reason", "")).strip().splitlines()[-1] if figures.get("reason") else ""


DETAILS: tuple[Callable[[Figures], str], ...] = (
    *(lost, hung, unusable, slow, noise, forks, left, done, ending, orphans, reason),
)


def cell(figures: Figures) -> str:
    """A few words: the outcome, the error, and what else is worth a word."""
    error = f" ({figures['error']})" if figures.get("error") else ""
    details = [text for detail in DETAILS if (text := detail(figures))]
    return "; ".join([f"{figures['outcome']}{error}", *details])


def cell_of_rounds(rounds: list[Figures]) -> str:
    """The same for all rounds; the rounds that differ in more than numbers, each."""
    alike: dict[str, list[str]] = {}
    for text in map(cell, rounds):
        alike.setdefault(re.sub(r"[0-9.]+", "", text), []).append(text)
    if len(alike) == 1:
        return cell(rounds[0])
    return "<br>".join(
        f"{len(texts)} of {len(rounds)} times: {texts[0]}" for texts in alike.values()
    )


def table(results: Results, pools: list[str]) -> str:
    """Markdown: a row a fault, a column a pool."""
    rows = [["", *(f"`{pool}`" for pool in pools)], ["---"] * (len(pools) + 1)]
    for fault, by_pool in results.items():
        rows.append([FAULTS[fault].title, *(cell_of_rounds(by_pool[pool]) for pool in pools)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- the command -------------------------------------------------------------------------------


def document(results: Results, pools: list[str]) -> Figures:
    """All that was measured, and with what."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "workers": WORKERS,
        "hangs_after_seconds": PATIENCE,
        "versions": {pool: POOLS[pool].version() for pool in pools},
        "faults": {
            fault: {"title": FAULTS[fault].title, "pools": by_pool}
            for fault, by_pool in results.items()
        },
    }


def added_to(file: Path, measured: Figures) -> Figures:
    """What the file has, with what was measured now in its place."""
    if not file.exists():
        return measured
    had = json.loads(file.read_text(encoding="utf-8"))
    for fault, entry in measured["faults"].items():
        pools = {**had["faults"].get(fault, {"pools": {}})["pools"], **entry["pools"]}
        had["faults"][fault] = {**entry, "pools": pools}
    return {**measured, "versions": {**had["versions"], **measured["versions"]}} | {
        "faults": {fault: had["faults"][fault] for fault in FAULTS if fault in had["faults"]}
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pool", action="append", choices=POOLS, help="only this; repeatable")
    parser.add_argument(
        "--fault", action="append", choices=FAULTS, metavar="NAME", help="only this; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=1, help="times each scenario is played")
    parser.add_argument(
        "--output",
        type=Path,
        help="every figure goes here, in the place of what the file has of the same fault and "
        "pool; by default to docs/figures/faults.json, and nowhere if not everything is measured",
    )
    return parser.parse_args()


def main() -> int:
    """Measure, show, keep the figures. Fails if a scenario itself did."""
    options = parse()
    pools = [pool for pool in POOLS if pool in (options.pool or POOLS)]
    faults = [fault for fault in FAULTS if fault in (options.fault or FAULTS)]
    results = measure(faults, pools, options.rounds)
    print(table(results, pools))
    output = options.output
    if output is None and not options.pool and not options.fault:
        output = FIGURES
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(added_to(output, document(results, pools)), indent=1)
        output.write_text(f"{text}\n", encoding="utf-8")
    return int(any_scenario_failed(results))


def any_scenario_failed(results: Results) -> bool:
    """Whether something went wrong that is no pool's doing."""
    return any(
        figures["outcome"] == Outcome.SCENARIO_FAILED
        for by_pool in results.values()
        for rounds in by_pool.values()
        for figures in rounds
    )


if __name__ == "__main__":
    sys.exit(main())
