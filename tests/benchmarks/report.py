"""The tables and pictures of what performance.py has measured, made from its file.

    python tests/benchmarks/report.py [--json FILE] [--output DIRECTORY]

The tables go to stdout. By default they also go into docs/performance.md, between its
two marks, and the pictures beside the file, into docs/figures; with ``--output``
everything goes into that directory instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from measuring import BEST, Figures, Target, Work
from performance_pools import FIXED, NO_PEERS, ONE_BY_ONE
from works import WORKS

DOCS = Path(__file__).parent.parent.parent / "docs"
FIGURES = DOCS / "figures" / "performance.json"
"""Files beside it whose names go on with a version have the figures of other Pythons."""
PAGE = DOCS / "performance.md"
BEGIN = "<!-- begin: made by tests/benchmarks/report.py -->"
END = "<!-- end: made by tests/benchmarks/report.py -->"
WIDTH = 4
"""Works in one table of all pools."""

Results = dict[str, list[Figures]]
"""Figures by pool, one a round."""


def load(file: Path) -> dict[str, Any]:
    """What was measured so far."""
    if not file.exists():
        return {"works": {}}
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


# --- numbers -----------------------------------------------------------------------------------


def values(results: Results, pool: str, figure: str = "value") -> list[float]:
    """One a round; none if the pool cannot do it."""
    return [rounds[figure] for rounds in results.get(pool, []) if figure in rounds]


def best_peer(work: Work, results: Results) -> str | None:
    """The one with the best median."""
    medians = {
        pool: statistics.median(found)
        for pool in results
        if pool not in NO_PEERS and (found := values(results, pool))
    }
    if not medians:
        return None
    choose = max if work.unit.more_is_better else min
    return choose(medians, key=lambda pool: medians[pool])


def compare(work: Work, results: Results, target: Target) -> tuple[float, list[float]] | None:
    """Our figure, or its ratio to another pool's, by the medians; and the same in each
    round. None: there is nothing to compare."""
    ours = values(results, work.ours, target.figure)
    if target.than is None:
        return (statistics.median(ours), ours) if ours else None
    than = best_peer(work, results) if target.than == BEST else target.than
    theirs = values(results, than or "", target.figure)
    if not ours or not theirs:
        return None
    rounds = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return statistics.median(ours) / statistics.median(theirs), rounds


# --- tables ------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def target_rows(work: Work, results: Results) -> Iterable[list[str]]:
    """A row for each target: what it is, what was measured, whether it is reached."""
    for target in work.targets:
        text = str(target).replace(BEST, f"{BEST} ({best_peer(work, results) or 'none'})")
        found = compare(work, results, target)
        if found is None:
            yield [work.title, text, "not measured", ""]
            continue
        measured, rounds = found
        write = target.unit.write if target.than is None else _ratio
        spread = f" ({write(min(rounds))} to {write(max(rounds))})" if len(rounds) > 1 else ""
        figure = "" if target.figure == "value" else f"{target.figure.replace('_', ' ')}: "
        verdict = "yes" if target.holds(measured) else "**no**"
        yield [work.title, text, f"{figure}{write(measured)}{spread}", verdict]


def _ratio(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"{value:.{min(digits, 3)}f} x"


def cell_of_one(work: Work, figures: Figures) -> str:
    """One measurement's value, or why there is none."""
    for reason in ("unsupported", "failed"):
        if reason in figures:
            return str(figures[reason])
    return work.unit.write(figures["value"])


def cell(work: Work, results: Results, pool: str) -> str:
    """The median, and what it is in terms of ours; or why there is none."""
    rounds = results.get(pool)
    if not rounds:
        return ""
    found, ours = values(results, pool), values(results, work.ours)
    if not found:
        return cell_of_one(work, rounds[-1])
    median = statistics.median(found)
    if pool == work.ours or not ours:
        return work.unit.write(median)
    return f"{work.unit.write(median)} ({_ratio(statistics.median(ours) / median)})"


def cost_rows(work: Work, results: Results) -> Iterable[list[str]]:
    """What a task costs: microseconds of a CPU, in the client and elsewhere."""
    for pool in results:
        client, others = values(results, pool, "client_us"), values(results, pool, "others_us")
        if client:
            costs = [f"{statistics.median(found):,.1f}" for found in (client, others)]
            yield [work.title, pool, *costs]


def circumstance(entry: Figures) -> str:
    """Where and when, in a line."""
    before, after = entry["load_before"][0], entry["load_after"][0]
    quick = ", quick" if entry["quick"] else ""
    return (
        f"Python {entry['python']}, {entry['system']}, {entry['cpus']} CPUs, {entry['at']}, "
        f"{entry['rounds']} rounds{quick}, load {before:.1f} to {after:.1f}"
    )


def tables(document: dict[str, Any]) -> str:
    """All of them."""
    works = [(WORKS[name], entry) for name, entry in document["works"].items()]
    if not works:
        return "Nothing was measured."
    targets = [row for work, entry in works for row in target_rows(work, entry["pools"])]
    costs = [row for work, entry in works for row in cost_rows(work, entry["pools"])]
    parts = [
        markdown(["work", "target", "measured (rounds)", "reached"], targets),
        "All pools, medians; in brackets what ours is of theirs:",
        *_pool_tables(works),
        "What a task costs, in microseconds of a CPU (medians), in the client and in all "
        "other processes of the pool; other load changes this less than it does the times:",
        markdown(["work", "pool", "client", "others"], costs),
        "Measured with:",
        _with_what(works),
    ]
    return "\n\n".join(parts)


def of_other_pythons() -> Iterable[str]:
    """For each other Python that was measured: what of the targets was reached."""
    for file in sorted(FIGURES.parent.glob("performance-*.json")):
        works = [(WORKS[name], entry) for name, entry in load(file)["works"].items()]
        python = works[0][1]["python"]
        rows = [row for work, entry in works for row in target_rows(work, entry["pools"])]
        yield f"The same with Python {python}:"
        yield markdown(["work", "target", "measured (rounds)", "reached"], rows)


def _pool_tables(works: list[tuple[Work, Figures]]) -> Iterable[str]:
    """A row each pool. Several tables, because one would be too wide."""
    for start in range(0, len(works), WIDTH):
        some = works[start : start + WIDTH]
        pools = dict.fromkeys(pool for _, entry in some for pool in entry["pools"])
        head = ["", *(work.title for work, _ in some)]
        yield markdown(
            head,
            ([pool, *(cell(work, entry["pools"], pool) for work, entry in some)] for pool in pools),
        )


def _with_what(works: list[tuple[Work, Figures]]) -> str:
    lines = [f"- {work.name}: {circumstance(entry)}" for work, entry in works]
    versions = {pool: version for _, entry in works for pool, version in entry["versions"].items()}
    distinct = [f"{pool} {v}" for pool, v in versions.items() if not v.startswith("Python")]
    own = [text for text in distinct if not text.startswith((FIXED, ONE_BY_ONE))]
    return "\n".join([*lines, f"- {', '.join(own)}"])


# --- the page ----------------------------------------------------------------------------------


def insert(page: str, text: str) -> str:
    """The page with what is between its marks replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} has lost its marks, {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def publish(file: Path = FIGURES, output: Path | None = None) -> str:
    """Write the pictures and the page. Returns the tables."""
    import figures

    document = load(file)
    text = "\n\n".join([tables(document), *of_other_pythons()])
    figures.draw(document, FIGURES.parent if output is None else output)
    if output is None:
        PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    else:
        (output / "tables.md").write_text(f"{text}\n", encoding="utf-8")
    return text


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=FIGURES)
    parser.add_argument("--output", type=Path, help="instead of the documentation")
    options = parser.parse_args()
    print(publish(options.json, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
