"""Survey Python source files in a pool: how many functions are documented, and which are longest.

    python examples/survey_sources.py [DIR] [--compare] [--verify]

Without DIR it surveys the standard library of this Python. Each task parses one file. The largest
files come first, so that no worker still has a large file when the others have nothing to do.
``--compare`` does the same work three times, and measures the time: without a pool, with the
standard library's ProcessPoolExecutor, and with PreforkExecutor. ``--verify`` does the work without
a pool as well, and compares the outcomes.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from prefork_executor import PreforkExecutor

LONGEST = 5
"""How many of the longest functions are shown."""
WITHOUT_POOL = "without a pool"


class Function(NamedTuple):
    """One function: its length in lines, and where it is."""

    lines: int
    path: str
    name: str


class Survey(NamedTuple):
    """What one file has. ``error`` says why it could not be parsed. Otherwise it is empty."""

    path: str
    functions: int
    documented: int
    longest: Function | None
    error: str


def survey(path: str) -> Survey:
    """Parse one file and count. A file that is not valid Python is an outcome, not a failure."""
    try:
        with warnings.catch_warnings(action="ignore"):  # The compiler warns about old code.
            tree = ast.parse(Path(path).read_bytes(), path)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return Survey(path, 0, 0, None, f"{type(error).__name__}: {error}")
    functions = documented = 0
    longest = None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            documented += ast.get_docstring(node, clean=False) is not None
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            longest = max(filter(None, [longest, Function(lines, path, node.name)]))
    return Survey(path, functions, documented, longest, "")


def source_files(directory: Path) -> list[str]:
    """The Python files under a directory, the largest first, without packages that were installed
    later. They are read once here, so that the measured times do not include the disk."""
    sizes = {}
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(set(directories) - {"site-packages", "dist-packages"})
        for path in (os.path.join(parent, name) for name in names if name.endswith(".py")):
            if os.path.isfile(path):
                sizes[path] = len(Path(path).read_bytes())
    return sorted(sizes, key=lambda path: (-sizes[path], path))


def with_pool(
    kind: Callable[[int | None], Executor], workers: int | None, paths: list[str]
) -> Iterator[Survey]:
    """The surveys of these files, by an executor of this kind."""
    with kind(workers) as executor:
        yield from executor.map(survey, paths)


def watched(surveys: Iterable[Survey], total: int, name: str, console: Console) -> list[Survey]:
    """All of them, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        return list(progress.track(surveys, total=total, description=name))


def digest(surveys: Iterable[Survey]) -> str:
    """A short digest: two outcomes with the same digest are the same."""
    return hashlib.sha256(repr(sorted(surveys)).encode()).hexdigest()[:12]


def show(surveys: list[Survey], directory: Path, console: Console) -> None:
    """Print what was found."""
    functions = sum(one.functions for one in surveys)
    documented = sum(one.documented for one in surveys)
    unread = sum(bool(one.error) for one in surveys)
    console.print(
        f"{len(surveys)} files, {unread} of which cannot be parsed; {functions} functions, "
        f"{documented / max(functions, 1):.0%} of them documented. The longest:"
    )
    longest = [one.longest for one in surveys if one.longest is not None]
    for found in sorted(longest, reverse=True)[:LONGEST]:
        where = os.path.relpath(found.path, directory)
        console.print(f"  {found.lines:5} lines: {found.name} in {where}", highlight=False)


def show_times(seconds: dict[str, float], console: Console) -> None:
    """Print how long it took, and how many times as fast as without a pool that is."""
    table = Table("", "seconds", "times as fast")
    for name, taken in seconds.items():
        ratio = seconds[WITHOUT_POOL] / taken if WITHOUT_POOL in seconds else 1.0
        table.add_row(name, f"{taken:.2f}", f"{ratio:.2f}")
    console.print(table)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    stdlib = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("directory", nargs="?", type=Path, default=stdlib, metavar="DIR")
    parser.add_argument("--max-workers", type=int, help="default: one for each CPU")
    parser.add_argument(
        "--compare", action="store_true", help="also measure other ways to do the work"
    )
    parser.add_argument("--verify", action="store_true", help="compare with a run without a pool")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the example. Returns the exit status: 1 if the outcomes differ."""
    options = parse_arguments(arguments)
    console = Console()
    if not options.directory.is_dir():
        console.print(f"[red]{options.directory} is not a directory[/red]")
        return 2
    paths = source_files(options.directory)
    workers = options.max_workers
    ways: dict[str, Callable[[], Iterable[Survey]]] = {
        "PreforkExecutor": lambda: with_pool(PreforkExecutor, workers, paths)
    }
    if options.compare:
        ways["ProcessPoolExecutor"] = lambda: with_pool(ProcessPoolExecutor, workers, paths)
    if options.compare or options.verify:
        ways[WITHOUT_POOL] = lambda: map(survey, paths)
    seconds, digests, found = {}, {}, []
    for name, way in ways.items():
        began = time.perf_counter()
        surveys = watched(way(), len(paths), name, console)
        seconds[name] = time.perf_counter() - began
        digests[name] = digest(surveys)
        found = found or surveys
    show(found, options.directory, console)
    show_times(seconds, console)
    is_same = len(set(digests.values())) == 1
    console.print(f"digest of the outcome: {digests['PreforkExecutor']}", highlight=False)
    if len(ways) > 1:
        console.print("The outcomes are the same." if is_same else f"They differ: {digests}")
    return int(not is_same)


if __name__ == "__main__":
    sys.exit(main())
