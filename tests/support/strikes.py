"""A signal that strikes at a chosen line of the package, and a handler of it."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from waiting import BOUND


@contextlib.contextmanager
def handler_of_sigusr1(handler: Callable[[], None]) -> Iterator[None]:
    """Calls it at SIGUSR1; and fails if it, or what it has interrupted, comes to no end."""

    def give_up(_signum: int, _frame: object) -> None:
        pytest.fail("deadlock")

    old = signal.signal(signal.SIGUSR1, lambda *_: handler())
    old_alarm = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, BOUND)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_alarm)
        signal.signal(signal.SIGUSR1, old)


def _lines_that_hold(file: str) -> Iterator[int]:
    """Those of ``finally`` clauses, and of ``with``, to which a tracer comes back at the end.
    A tracer may raise before the lock is let go; but until then the interpreter does not
    look for signals."""
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try) and node.finalbody:
            yield from range(node.finalbody[0].lineno, (node.finalbody[-1].end_lineno or 0) + 1)
        elif isinstance(node, ast.With):
            yield node.lineno


@functools.cache
def _left_out(file: str) -> frozenset[int]:
    return frozenset(_lines_that_hold(file))


class Strike:
    """Raises SIGUSR1 at the n-th line that this thread goes through in these files, here
    and in no supervisor that is forked meanwhile. Those that hold a lock do not count."""

    def __init__(self, line: int, files: set[str]) -> None:
        self._left = line
        self._process = os.getpid()
        self._left_out = {file: _left_out(file) for file in files}

    @property
    def has_struck(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._old = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._old)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._line if frame.f_code.co_filename in self._left_out else None

    def _line(self, frame: FrameType, event: str, _arg: object) -> Any:
        is_left_out = frame.f_lineno in self._left_out[frame.f_code.co_filename]
        if event == "line" and not is_left_out and os.getpid() == self._process:
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGUSR1)
        return self._line
