"""The progress bar of ``prefork-executor map``, on stderr, by rich if it is installed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from prefork_executor import PreforkExecutor

REFRESH = 0.2
"""Seconds between two looks at the pool."""


class Progress:
    """Shows how far the run is. This one shows only the lines that it is given."""

    def advance(self, size: int, failed: int) -> None:
        """A line of ``size`` bytes is done. ``failed``: how many have failed."""

    def tell(self, line: str) -> None:
        """Print a line for the user."""
        print(line, file=sys.stderr)


class _Bar(Progress):
    def __init__(self, bar: Any, total: int | None, executor: PreforkExecutor) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total, lines=0, failed="", workers="")
        self._executor = executor
        self._bytes = self._lines = self._failed = 0
        self._shown_at = 0.0

    def advance(self, size: int, failed: int) -> None:
        self._bytes += size
        self._lines += 1
        self._failed = failed
        now = time.monotonic()
        if now - self._shown_at > REFRESH:
            self._shown_at = now
            self.show()

    def show(self) -> None:
        stats = self._executor.stats()
        self._bar.update(
            self._task,
            completed=self._bytes,
            lines=self._lines,
            failed=f"{self._failed:,} failed" if self._failed else "",
            workers=f"{stats.busy} of {len(stats.workers)} workers busy",
        )

    def tell(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(executor: PreforkExecutor, total: int | None, *, quiet: bool) -> Iterator[Progress]:
    """A bar on the terminal, if there is one. ``total`` is in bytes; None: it is not known."""
    if quiet or not sys.stderr.isatty() or not _has_rich():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    known = [BarColumn(), TaskProgressColumn(), TimeRemainingColumn()] if total else []
    words = [TextColumn("{task.fields[%s]}" % name) for name in ("workers", "failed")]  # noqa: UP031
    lines = TextColumn("{task.fields[lines]:,} lines")
    with RichProgress(*known, lines, *words, console=Console(stderr=True)) as rich_bar:
        bar = _Bar(rich_bar, total, executor)
        try:
            yield bar
        finally:
            bar.show()


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True
