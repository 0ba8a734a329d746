"""How far ``prefork-executor map`` is, on stderr: a bar on a terminal, by rich if it is installed,
or with --eta a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from prefork_executor import PreforkExecutor
from prefork_executor._support.wording import counted
from prefork_executor.cli import _common

REFRESH = 0.2
"""Seconds between two looks at the pool."""
FIRST_WORD = 1.0
"""Seconds until the first line of --eta. Then the time doubles from line to line."""
LONGEST_SILENCE = 60.0
"""Seconds between two lines of --eta, at most."""


class Progress:
    """Shows how far the run is. This one shows only the lines that it is given."""

    def skip(self, size: int) -> None:
        """A line of ``size`` bytes was done in an earlier run."""

    def advance(self, size: int, failed: int) -> None:
        """A line of ``size`` bytes is done. ``failed``: how many have failed."""

    def tell(self, line: str) -> None:
        """Print a line for the user."""
        print(line, file=sys.stderr)

    def due_in(self) -> float | None:
        """Seconds until :meth:`do` is to be called. None: it need not be."""
        return None

    def do(self) -> None:
        """Show the progress if that is due."""


class _Counts(Progress):
    """What there is to show."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bytes = self._skipped = self._lines = self._failed = 0
        self._began = time.monotonic()

    def skip(self, size: int) -> None:
        self._skipped += size
        self._bytes += size
        self._lines += 1

    def advance(self, size: int, failed: int) -> None:
        self._bytes += size
        self._lines += 1
        self._failed = failed


class _Words(_Counts):
    """A line now and then."""

    def __init__(self, total: int | None) -> None:
        super().__init__(total)
        self._due = self._began + FIRST_WORD

    def due_in(self) -> float | None:
        return max(0.0, self._due - time.monotonic())

    def do(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            elapsed = now - self._began
            self._due = now + min(elapsed, LONGEST_SILENCE)
            self.tell(f"prefork-executor map: {', '.join(self._words(elapsed))}")

    def _words(self, elapsed: float) -> Iterator[str]:
        yield counted(self._lines, "line")
        if self._failed:
            yield f"{self._failed:,} failed"
        if self._total:
            yield f"{min(100, 100 * self._bytes // self._total)}% of the input"
            done, left = self._bytes - self._skipped, self._total - self._bytes
            if done and left > 0:
                yield f"{_common.span(elapsed * left / done)} left"


class _Bar(_Counts):
    def __init__(self, bar: Any, total: int | None, executor: PreforkExecutor) -> None:
        super().__init__(total)
        self._bar = bar
        self._task = bar.add_task("", total=total, lines=counted(0, "line"), failed="", workers="")
        self._executor = executor
        self._due = 0.0

    def due_in(self) -> float | None:
        return max(0.0, self._due - time.monotonic())

    def do(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + REFRESH
            self.show()

    def show(self) -> None:
        stats = self._executor.stats()
        self._bar.update(
            self._task,
            completed=self._bytes,
            lines=counted(self._lines, "line"),
            failed=f"{self._failed:,} failed" if self._failed else "",
            workers=f"{stats.busy} of {counted(len(stats.workers), 'worker')} busy",
        )

    def tell(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(
    executor: PreforkExecutor, total: int | None, *, quiet: bool, eta: bool
) -> Iterator[Progress]:
    """A bar on the terminal, if there is one.

    Args:
        total: bytes of the input. None: it is not known.
        quiet: whether to show nothing.
        eta: whether to print lines where there can be no bar.
    """
    if quiet or not sys.stderr.isatty() or not _has_rich():
        yield _Words(total) if eta and not quiet else Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    known = [BarColumn(), TaskProgressColumn(), TimeRemainingColumn()] if total else []
    words = [TextColumn("{task.fields[%s]}" % name) for name in ("workers", "failed")]  # noqa: UP031
    lines = TextColumn("{task.fields[lines]}")
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
