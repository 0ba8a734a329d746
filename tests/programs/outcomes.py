"""Runs programs with both pools and makes the table of docs/migrating.md.

python tests/programs/outcomes.py                       every program and start method
python tests/programs/outcomes.py --only black,scipy --start-methods fork,spawn
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from programs.programs import NAMES
from programs.running import Outcome, Program, run


def main() -> None:
    """Run what is asked for; print the differences, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(NAMES), help="names, with commas between")
    parser.add_argument("--start-methods", default="", help="names, with commas between")
    given = parser.parse_args()
    for name in given.only.split(","):
        program = NAMES[name]
        for method in (
            given.start_methods.split(",") if given.start_methods else program.start_methods
        ):
            both(program, method)


def both(program: Program, method: str) -> None:
    """Run a program with both pools and say how that went."""
    outcomes = []
    for pool in program.pools:
        with tempfile.TemporaryDirectory(prefix="programs-") as directory:
            outcomes.append(run(program, pool, method, Path(directory)))
    standard, prefork = outcomes
    print(f"== {program.name}, {method}: {program.does}")
    for pool, outcome in zip(program.pools, outcomes, strict=True):
        print(
            f"{pool}: exit code {outcome.exitcode}, {outcome.executors} executors, "
            f"{outcome.tasks} tasks (others {outcome.strays}), {len(outcome.files)} files, "
            f"{outcome.temporary} temporary, left {outcome.processes}, {outcome.seconds:.1f} s"
        )
    if not standard.tasks:
        print(*_shown(standard), sep="\n")
    for line in difflib.unified_diff(
        _shown(standard), _shown(prefork), *program.pools, lineterm=""
    ):
        print(line)
    sys.stdout.flush()


def _shown(outcome: Outcome) -> list[str]:
    return [
        *outcome.stdout,
        "-- stderr",
        *outcome.stderr,
        "-- files",
        *map(str, outcome.files.items()),
    ]


if __name__ == "__main__":
    main()
