"""Hash every file under a directory through an elastic pool of workers.

    python examples/checksum_tree.py [DIR] [--verify] [--output FILE]

Without DIR it hashes the standard library of this Python. The pool starts with one
worker, grows while files wait, and shrinks again when the work is done. At the end the
program prints how the pool grew and shrank. ``--verify`` hashes everything once more
in this process, and compares the digests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prefork_executor import PreforkExecutor, ScalingDecision

READ_SIZE = 1024 * 1024
"""Bytes that are read at a time, so that large files do not fill the memory."""
SHRINK_PATIENCE = 30.0
"""Seconds to wait, at most, for the idle workers to retire at the end."""


class Digest(NamedTuple):
    """One file's outcome: its digest in hexadecimal, or the reason why it has none."""

    path: str
    size: int
    digest: str
    error: str


def digest_file(path: str) -> Digest:
    """Hash one file. A file that cannot be read is an outcome, not a failure."""
    hasher = hashlib.sha256()
    size = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(READ_SIZE):
                hasher.update(block)
                size += len(block)
    except OSError as error:
        return Digest(path, size, "", f"{type(error).__name__}: {error.strerror}")
    return Digest(path, size, hasher.hexdigest(), "")


def regular_files(directory: Path) -> Iterator[str]:
    """Every regular file under a directory, in a stable order. Links are not followed."""
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def digest_tree(paths: list[str], executor: PreforkExecutor, console: Console) -> list[Digest]:
    """Hash the files in the pool, with a progress bar on the console."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        results = executor.map(digest_file, paths, chunksize=32, buffersize=128)
        return list(progress.track(results, total=len(paths), description="Hashing"))


def wait_for_rest(executor: PreforkExecutor, spares: int) -> None:
    """Wait until the idle workers beyond the spares have retired."""
    deadline = time.monotonic() + SHRINK_PATIENCE
    while len(executor.stats().workers) > spares and time.monotonic() < deadline:
        time.sleep(0.02)


def print_growth(decisions: tuple[ScalingDecision, ...], console: Console) -> None:
    """One line for each change of the pool's size."""
    began = decisions[0].time if decisions else 0.0
    console.print("How the pool grew and shrank:")
    for decision in decisions:
        change = decision.started - decision.retired
        console.print(
            f"  {decision.time - began:7.3f} s  {decision.workers:3d} workers {change:+d}"
            f"  ({decision.reason})",
            highlight=False,
        )


def verify(digests: list[Digest], console: Console) -> int:
    """Hash the files again without a pool. Returns how many digests differ."""
    began = time.perf_counter()
    differing = [one.path for one in digests if digest_file(one.path) != one]
    seconds = time.perf_counter() - began
    for path in differing:
        console.print(f"[red]differs:[/red] {path}", highlight=False)
    verdict = f"{len(differing)} differ" if differing else "same digests"
    console.print(
        f"Verified: {verdict}, compared with a serial run of {len(digests)} files ({seconds:.2f} s)"
    )
    return len(differing)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    stdlib = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("directory", nargs="?", type=Path, default=stdlib, metavar="DIR")
    parser.add_argument("--max-workers", type=int, default=None, help="default: one for each CPU")
    parser.add_argument("--verify", action="store_true", help="compare with a serial run")
    parser.add_argument(
        "--output", type=Path, help="write the digests here, in the format of sha256sum"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the example. Returns the exit status."""
    options = parse_arguments(arguments)
    console = Console()
    if not options.directory.is_dir():
        console.print(f"[red]{options.directory} is not a directory[/red]")
        return 2
    paths = list(regular_files(options.directory))
    began = time.perf_counter()
    with PreforkExecutor(options.max_workers, idle_timeout=0.5) as executor:
        digests = digest_tree(paths, executor, console)
        seconds = time.perf_counter() - began
        wait_for_rest(executor, spares=1)
        stats = executor.stats()
    print_growth(stats.decisions, console)
    unread = [one for one in digests if one.error]
    size = sum(one.size for one in digests)
    console.print(
        f"{len(digests)} files, {size / 1e6:.1f} MB, {len(unread)} unreadable, in {seconds:.2f} s "
        f"with at most {stats.peak_workers} workers"
    )
    if options.output:
        lines = [f"{one.digest}  {one.path}\n" for one in digests if one.digest]
        options.output.write_text("".join(lines), encoding="utf-8")
    return int(bool(options.verify and verify(digests, console)))


if __name__ == "__main__":
    sys.exit(main())
