"""``prefork-executor map`` beside GNU parallel: a Python function over 100,000 lines.

    python tests/benchmarks/map_beside_parallel.py [--lines N] [--rounds N] [--json FILE]

Needs GNU parallel (Debian's package parallel). The ways take turns in one run, so that what else
the machine does falls on all. Each gives the results as JSON, in the order of the lines, with two
processes. There are two functions: one returns at once, one takes about 0.1 ms. The ways:

map         ``prefork-executor map lines:FUNCTION in.txt``
pipe        ``parallel --pipe -N 1000``: a Python program for each 1000 lines, which reads them from
            its stdin and calls the function for each
pipepart    ``parallel --pipepart``: the same for each of ten parts of the file, which parallel's
            own manual recommends for speed. It needs a file.
program     ``parallel python``: a program for each line, the usual form. For 200 lines only, the
            figure is for all at the same rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = 2
PER_PROGRAM = 1000
"""Lines for which parallel starts one program, with --pipe."""
PARTS = 10
SINGLE = 200
"""Lines for each of which a program is started."""
FUNCTIONS = ("at_once", "a_while")
LINES = """
import hashlib

def at_once(line):
    return line

def a_while(line):
    return hashlib.pbkdf2_hmac("sha256", line.encode(), b"", 130).hex()
"""
FILTER = """
import json, sys
import lines
function = getattr(lines, sys.argv[1])
for line in sys.stdin:
    print(json.dumps(function(line.rstrip("\\n"))))
"""
PROGRAM = """
import json, sys
import lines
print(json.dumps(getattr(lines, sys.argv[1])(sys.argv[2])))
"""


def commands(function: str, size: int) -> dict[str, list[str]]:
    """Each way's command. ``size``: bytes of in.txt."""
    python = sys.executable
    parallel = ["parallel", "--will-cite", "-k", "-j", str(JOBS)]
    by_filter = [python, "filter.py", function]
    return {
        "map": [
            *(python, "-m", "prefork_executor", "map", f"lines:{function}", "in.txt", "-q"),
            *("--max-workers", str(JOBS)),
        ],
        "pipe": [*parallel, "--pipe", "-N", str(PER_PROGRAM), *by_filter],
        "pipepart": [
            *(*parallel, "--pipepart", "-a", "in.txt", "--block", str(size // PARTS + 1)),
            *by_filter,
        ],
        "program": [*parallel, python, "program.py", function],
    }


def measure(command: list[str], way: str, folder: Path) -> float:
    """Seconds that a way takes. Checks that there is a result for each line, in order."""
    source = folder / ("few.txt" if way == "program" else "in.txt")
    with source.open("rb") as file, (folder / "out").open("wb") as out:
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, stdin=file, stdout=out, check=True)
        seconds = time.perf_counter() - began
    check(command, folder, source)
    return seconds


def check(command: list[str], folder: Path, source: Path) -> None:
    """See whether the output is the one of this input."""
    results = [json.loads(line) for line in (folder / "out").open()]
    given = source.read_text().splitlines()
    if len(results) != len(given) or (
        any("at_once" in word for word in command) and results != given
    ):
        sys.exit(f"{' '.join(command)} has not given the results of these lines")


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    if shutil.which("parallel") is None:
        sys.exit("this needs GNU parallel: apt-get install parallel")
    with tempfile.TemporaryDirectory() as name:
        figures = rounds(Path(name), options.lines, options.rounds)
    show(figures, options.lines)
    if options.json is not None:
        about = {"lines": options.lines, "rounds": options.rounds, "seconds": figures}
        options.json.write_text(json.dumps(about, indent=1) + "\n")
    return 0


def rounds(folder: Path, lines: int, times: int) -> dict[str, dict[str, list[float]]]:
    """For each function and way, the seconds for all lines in each round."""
    (folder / "lines.py").write_text(LINES)
    (folder / "filter.py").write_text(FILTER)
    (folder / "program.py").write_text(PROGRAM)
    (folder / "in.txt").write_text("".join(f"{i}\n" for i in range(lines)))
    (folder / "few.txt").write_text("".join(f"{i}\n" for i in range(SINGLE)))
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    size = (folder / "in.txt").stat().st_size
    ways = {function: commands(function, size) for function in FUNCTIONS}
    figures = {function: {way: [] for way in ways[function]} for function in FUNCTIONS}
    for _ in range(times):
        for function in FUNCTIONS:
            for way, command in ways[function].items():
                seconds = measure(command, way, folder)
                scale = lines / SINGLE if way == "program" else 1
                figures[function][way].append(seconds * scale)
    return figures


def show(figures: dict[str, dict[str, list[float]]], lines: int) -> None:
    """Print medians, and the least and the most."""
    version = subprocess.run(["parallel", "--version"], capture_output=True, text=True, check=True)
    print(f"Python {platform.python_version()}, {version.stdout.splitlines()[0]}")
    print(f"seconds for {lines:,} lines: median (least to most); times as long as map")
    for function, ways in figures.items():
        least = statistics.median(ways["map"])
        for way, seconds in ways.items():
            middle = statistics.median(seconds)
            span = f"({min(seconds):.2f} to {max(seconds):.2f})"
            print(f"{function:8} {way:9} {middle:8.2f} {span:20} {middle / least:6.1f}")


if __name__ == "__main__":
    sys.exit(main())
