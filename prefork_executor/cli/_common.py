"""What the subcommands share: the choice of a pool, and the format of figures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from prefork_executor import status
from prefork_executor._support.wording import counted
from prefork_executor.errors import NoSuchPool, SeveralPools

ABBREVIATED = "..."


def add_pid(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says which pool."""
    parser.add_argument(
        "pid",
        metavar="PID",
        nargs="?",
        type=int,
        help="any process of the pool: the program itself, its supervisor or a worker; not "
        "needed if there is only one pool",
    )


def chosen(pid: int | None) -> status.Watch:
    """The chosen pool. Raises StatusError, which says what to do."""
    if pid is not None:
        return status.watch(pid)
    found = status.pools()
    if not found:
        why = [str(error) for error in status.unreadable()]
        raise NoSuchPool("\n".join(["no pool of this user is running", *why]))
    if len(found) > 1:
        rows = [f"  {stand_in(pool)}  {pool.command}" for pool in found]
        raise SeveralPools("\n".join(["there are several pools; choose one by its PID:", *rows]))
    return status.watch(stand_in(found[0]))


def stand_in(pool: status.PoolStatus) -> int:
    """The process id that names this pool even if its process has others."""
    return pool.supervisor or pool.pid


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: set[str]) -> Iterator[str]:
    """Lines with columns as wide as necessary, numbers to the right. ``left``: the heads of the
    text columns."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, width, name in zip(line, widths, head, strict=True)
        )
        yield "  ".join(cells).rstrip()


def at_maximum(pool: status.PoolStatus) -> str:
    """How often the pool has reached its maximum, and for how long."""
    if not pool.times_at_max:
        return "never"
    often = "once" if pool.times_at_max == 1 else f"{pool.times_at_max} times"
    return f"{often}, {span(pool.seconds_at_max)}"


def memory(pool: status.PoolStatus) -> str:
    """The memory that the workers take, the bound for it, and how many tasks that has affected."""
    return (
        f"{size(pool.memory_taken)} of {size(pool.memory_bound)}; "
        f"{counted(pool.held, 'task')} held back, {pool.memory_ended} ended"
    )


def size(number: int | None) -> str:
    """Bytes, for readers."""
    if number is None:
        return "-"
    amount, units = float(number), iter(("B", "K", "M", "G"))
    unit = next(units)
    while amount >= 1000 and (larger := next(units, None)):
        amount, unit = amount / 1024, larger
    return f"{amount:.0f}{unit}" if amount >= 10 or unit == "B" else f"{amount:.1f}{unit}"


def span(seconds: float | None) -> str:
    """A time, for readers."""
    if seconds is None:
        return "-"
    if not seconds:
        return "0 s"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02}h"
    return f"{hours}h{minutes % 60:02}m" if hours else f"{minutes}m{int(seconds) % 60:02}s"


def cut(text: str, width: int) -> str:
    """As much of the text as fits, with dots in place of the rest."""
    if len(text) <= width:
        return text
    return text[: max(0, width - len(ABBREVIATED))] + ABBREVIATED
