"""``prefork-executor list``: the pools of this user on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from prefork_executor import status
from prefork_executor.cli import _common
from prefork_executor.status import PoolStatus

HEAD = ("PID", "SUPERVISOR", "KIND", "WORKERS", "BUSY", "BACKLOG", "AGE", "COMMAND")


def add_to(subcommands: Any) -> None:
    """Add the parser."""
    parser = subcommands.add_parser(
        "list",
        help="the pools of this user on this machine",
        description="The pools of this user on this machine: executors, Pools and servers in raw "
        "mode. A pool is listed from its first task on.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the pools. Returns the exit code."""
    pools = status.pools()
    if options.json:
        print(json.dumps([dataclasses.asdict(pool) for pool in pools]))
        return 0
    # A program that reads this output wants whole lines.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    lines = list(_common.table(HEAD, map(_row, pools), {"KIND", "COMMAND"})) if pools else []
    for line in lines or ["no pool of this user is running"]:
        print(_common.cut(line, width))
    for line in _others():
        print(line)
    return 0


def _row(pool: PoolStatus) -> tuple[str, ...]:
    return (
        *(str(pool.pid), str(pool.supervisor or "-"), pool.kind),
        f"{len(pool.workers)}/{pool.max_workers}",
        *(str(pool.busy), str(pool.backlog)),
        _common.span(max(0.0, time.time() - pool.started)),
        pool.command,
    )


def _others() -> Iterator[str]:
    for error in status.unreadable():
        yield f"not shown: {error}"
