"""What a raw pool tells of itself: in the log, and to the user's functions.

Something that happens becomes an event at once. The functions are called later, between two steps
of the main process, when its books are in order. So they may call ``pf_reload`` and ``pf_done``.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable
from typing import Any

from .._board.decisions import read_decision
from .._messages.wire import Death
from .._support.logs import logger
from .._support.named_tuples import NamedTuple
from .._system import processes


class Watchers(NamedTuple):
    """The user's functions; None: there is none."""

    on_child_start: Callable[[int], object] | None
    on_child_exit: Callable[[int, int, str], object] | None
    on_decision: Callable[[Any], object] | None


class Event(NamedTuple):
    """A call of one of these functions that is due."""

    name: str
    function: Callable[..., object]
    args: tuple[Any, ...]


class Events:
    """The events that no function has been called for yet.

    Args:
        watchers: the functions.
    """

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        self._due: collections.deque[Event] = collections.deque()

    def started(self, pid: int) -> None:
        """A child was forked."""
        self._add("on_child_start", pid)

    def ended(self, death: Death, reason: str) -> None:
        """A child was reaped."""
        code, number = processes.split_status(death.status)
        self._add("on_child_exit", death.pid, code if number is None else -number, reason)

    def decided(self, packed: bytes) -> None:
        """The pool has decided something."""
        if self._watchers.on_decision is None and not logger.isEnabledFor(logging.INFO):
            return
        decision = read_decision(packed)
        if decision.started or decision.retired:
            logger.info(
                "%d children: %s: %s",
                *(decision.workers, _changes(decision), decision.reason),
            )
        self._add("on_decision", decision)

    def next(self) -> Event | None:
        """The oldest, which is then no longer due."""
        return self._due.popleft() if self._due else None

    def _add(self, name: str, *args: Any) -> None:
        function = getattr(self._watchers, name)
        if function is not None:
            self._due.append(Event(name, function, args))


def _changes(decision: Any) -> str:
    changes = {"starting": decision.started, "retiring": decision.retired}
    return ", ".join(f"{what} {number}" for what, number in changes.items() if number)
