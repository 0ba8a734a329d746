"""A signal that strikes at a chosen line of the package, and a handler of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

SOON = 15.0
"""Seconds after which a test takes something for deadlocked, where it must give it up to
end at all."""


@contextlib.contextmanager
def handler_of_sigusr1(handler: Callable[[], None]) -> Iterator[None]:
    """Calls it at SIGUSR1; and fails if it, or what it has interrupted, comes to no end."""

    def give_up(_signum: int, _frame: object) -> None:
        pytest.fail("deadlock")

    old = signal.signal(signal.SIGUSR1, lambda *_: handler())
    old_alarm = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SOON)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_alarm)
        signal.signal(signal.SIGUSR1, old)


class Strike:
    """Raises SIGUSR1 at the n-th line that this thread goes through in these files, here
    and in no supervisor that is forked meanwhile."""

    def __init__(self, line: int, files: set[str]) -> None:
        self._left = line
        self._process = os.getpid()
        self._files = files

    @property
    def has_struck(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> None:
        self._old = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._old)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, _frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and os.getpid() == self._process:
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGUSR1)
        return self._line
