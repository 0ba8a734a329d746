"""A program with long tasks in a pool, which comparison.py interrupts and kills.

python tests/benchmarks/comparison_program.py POOL FILE
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

from comparison_pools import KINDS
from comparison_tasks import noted_nap

LONG = 20.0
"""Seconds."""


def main() -> None:
    """Each task notes its process in the file."""
    # Whoever started us may ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    notes = str(Path(sys.argv[2]).absolute())
    pool = KINDS[sys.argv[1]]()
    with block(pool):
        pool.many(noted_nap, [(notes, LONG)] * 4)()


def block(pool: Any) -> contextlib.AbstractContextManager[Any]:
    """The pool's own with block, if it has one."""
    for name in ("executor", "pool", "client"):
        if hasattr(pool, name):
            own: contextlib.AbstractContextManager[Any] = getattr(pool, name)
            return own
    return contextlib.nullcontext()


if __name__ == "__main__":
    main()
