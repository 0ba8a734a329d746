"""What ``prefork-executor top`` draws: the state of a pool, and its recent course.

In the style of Apache's scoreboard and of uwsgitop: figures, a letter for each worker's
place, the course of the number of workers and of the backlog, and a table of the workers.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prefork_executor._support.wording import counted
from prefork_executor.cli._common import at_maximum, cut, memory, size, span
from prefork_executor.cli._looks import LEGEND, LETTERS, Looks, letters
from prefork_executor.cli.status import change, waits
from prefork_executor.status import PoolStatus, WorkerStatus

COLOURS = {"S": "cyan", "_": "green", "W": "yellow", "G": "magenta", ".": "bright_black"}
BARS = "▁▂▃▄▅▆▇█"
MAX_BOARD_LINES = 4
LABEL = 9
DECISIONS_SHOWN = 3
MIN_ROWS = 3
"""Workers to show before there is room for a decision."""

SortKey = Callable[[WorkerStatus, float], float | str]
SORTS: dict[str, SortKey] = {
    "pid": lambda row, _: row.pid,
    "state": lambda row, _: row.state,
    "time": lambda row, _: -row.in_state,
    "cpu": lambda row, cpu: -cpu,
    "memory": lambda row, _: -(row.memory or 0),
    "done": lambda row, _: -row.tasks_done,
    "task": lambda row, _: row.task or "~",
}


class View:
    """The picture of one pool over several looks."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._looks = Looks()
        self._sort = "pid"
        self._reverse = False

    def add(self, pool: PoolStatus) -> None:
        """Add the next look."""
        self._looks.add(pool)

    def press(self, keys: str) -> None:
        """Do what these keys mean."""
        for key in keys:
            if key == "s":
                names = list(SORTS)
                self._sort = names[(names.index(self._sort) + 1) % len(names)]
            elif key == "r":
                self._reverse = not self._reverse

    @contextlib.contextmanager
    def screen(self) -> Iterator[Callable[[], None]]:
        """Take the whole terminal until the block ends. Gives a function that draws."""
        with self._console.screen(hide_cursor=True) as screen:

            def draw() -> None:
                width, height = self._console.size
                screen.update(self.picture(width, height))

            yield draw

    def print_plain(self) -> None:
        """Print the whole picture, however high it is."""
        console = Console(highlight=False, color_system=None)
        console.print(self.picture(console.width, None))

    # --- the parts ------------------------------------------------------------------------

    def picture(self, width: int, height: int | None) -> Group:
        """The whole picture in this many columns and lines. None: as many as necessary."""
        pool = self._looks.now
        assert pool is not None
        width = max(1, width)  # Some terminals say 0.
        head = [*self._figures(pool, width), *_board(pool, width), *self._courses(pool, width)]
        decisions = _decisions(pool, width)
        if height is None:
            return Group(*head, self._table(pool, width, len(pool.workers)), *decisions)
        # If there is little room, workers come before decisions. The keys are always shown.
        room = height - len(head) - 2
        shown = max(0, room - min(len(pool.workers), MIN_ROWS))
        decisions = decisions[-shown:] if shown else []
        room -= len(decisions)
        if room <= 0:
            return Group(*head[: max(0, height - 1)], self._footer(width))
        blank = [Text("")] * (room - min(room, len(pool.workers)))
        table = self._table(pool, width, room)
        return Group(*head, table, *blank, *decisions, self._footer(width))

    def _figures(self, pool: PoolStatus, width: int) -> list[Text]:
        title = f"{pool.kind} of process {pool.pid}, open for {span(pool.time - pool.started)}: "
        states = ", ".join(f"{n} {state}" for state, n in pool.states.items() if n)
        lines = [
            f"workers {len(pool.workers)} of {pool.max_workers}"
            + (f": {states}" if states else ""),
            f"tasks done {pool.tasks_done}, {self._looks.rate()}/s; "
            f"backlog {pool.backlog}, at most {pool.max_backlog}",
            f"waits {waits(pool)}",
            f"at maximum {at_maximum(pool)}; "
            f"forks {pool.forks}{_cost(pool)}, retired {pool.retirements}, "
            f"died {pool.deaths + pool.other_deaths}",
        ]
        if pool.kind == "raw":
            done = f"requests done {pool.tasks_done}, {self._looks.rate()}/s"
            queue = f"; listen queue {pool.backlog}, at most {pool.max_backlog}"
            lines[1:3] = [done + (queue if pool.listeners else "")]
        if pool.memory_bound is not None:
            lines.append(f"memory {memory(pool)}")
        first = Text(cut(title + pool.command, width), style="bold", no_wrap=True)
        return [first, *(Text(cut(line, width), no_wrap=True) for line in lines)]

    def _courses(self, pool: PoolStatus, width: int) -> list[Text]:
        lines = [_course("workers", self._looks.workers, width, pool.max_workers)]
        if pool.kind == "executor" or pool.listeners:
            lines.append(_course("backlog", self._looks.backlog, width, None))
        return lines

    def _table(self, pool: PoolStatus, width: int, room: int) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=width)
        for name in ("PID", "STATE", "FOR", "DONE", "MEMORY", "CPU%"):
            justify = "left" if name == "STATE" else "right"
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("TASK", no_wrap=True, overflow="ellipsis", ratio=1)
        key = SORTS[self._sort]
        rows = sorted(pool.workers, key=lambda row: row.pid)
        rows.sort(key=lambda row: key(row, self._looks.cpu(row)), reverse=self._reverse)
        shown = rows if len(rows) <= room else rows[: max(0, room - 1)]
        for row in shown:
            cells = (
                *(str(row.pid), row.state, span(row.in_state), str(row.tasks_done)),
                *(size(row.memory), f"{self._looks.cpu(row):.0f}", row.task or "-"),
            )
            table.add_row(*map(Text, cells), style=COLOURS[LETTERS[row.state]])
        if len(shown) < len(rows):
            table.add_row(*[""] * (len(table.columns) - 1), f"and {len(rows) - len(shown)} more")
        return table

    def _footer(self, width: int) -> Text:
        order = f"{self._sort}, reversed" if self._reverse else self._sort
        text = cut(f"q quit   s sort (by {order})   r reverse", width)
        return Text(text, style="reverse", no_wrap=True)


def _board(pool: PoolStatus, width: int) -> list[Text]:
    """A letter for each slot, as far as there is room, and the legend."""
    places = letters(pool, width * MAX_BOARD_LINES)
    lines = []
    for start in range(0, len(places), width):
        line = Text(no_wrap=True)
        for letter in places[start : start + width]:
            line.append(letter, style=COLOURS[letter])
        lines.append(line)
    return [*lines, Text(cut(LEGEND, width), style="dim", no_wrap=True)]


def _cost(pool: PoolStatus) -> str:
    return "" if pool.start_cost is None else f" of {span(pool.start_cost)} each"


def _course(name: str, values: collections.deque[int], width: int, maximum: int | None) -> Text:
    """The course of a number, the latest at the right. The full height is ``maximum``, or else
    the largest number."""
    room = max(1, width - LABEL - 8)
    shown = list(values)[-room:]
    top = max(1, maximum or max(shown, default=1))
    line = Text(f"{name:<{LABEL}}", no_wrap=True)
    line.append(sparkline(shown, top).rjust(room), style="blue")
    line.append(f" {'' if maximum else '^'}{top}"[:8])
    return line


def sparkline(values: list[int], top: int) -> str:
    """A bar for each value, a space for 0. ``top`` has the full height."""
    steps = len(BARS)
    return "".join(
        BARS[min(steps, -(-value * steps // top)) - 1] if value > 0 else " " for value in values
    )


def _decisions(pool: PoolStatus, width: int) -> list[Text]:
    lines = []
    for decision in pool.decisions[-DECISIONS_SHOWN:]:
        at = time.strftime("%H:%M:%S", time.localtime(decision.time))
        text = f"{at} {counted(decision.workers, 'worker')}{change(decision)}: {decision.reason}"
        lines.append(Text(cut(text, width), style="dim", no_wrap=True))
    return lines
