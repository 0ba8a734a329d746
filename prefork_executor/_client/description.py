"""What the repr of an executor says: its state, and how much there is of what.

A debugger, a log or a signal handler may ask for it at any moment, in a thread that holds any
lock. So this takes no lock, and reads each number by itself: they need not be of one moment.
"""

from __future__ import annotations

from .._board import scoreboard as sb
from .._board.scoreboard import Scoreboard
from .._support.wording import counted
from .ledger import Ledger
from .phases import Lifecycle, Phase

_STATES = {
    Phase.OPEN: "running",
    Phase.CLOSING: "shutting down",
    Phase.ENDING: "shutting down",
    Phase.ENDED: "shut down",
}


def describe(
    lifecycle: Lifecycle, ledger: Ledger, board: Scoreboard | None, max_workers: int
) -> str:
    """State and size of an executor, without its name. ``board`` is None before the start."""
    if lifecycle.is_copy:
        return "of another process"
    if lifecycle.broken is not None:
        return f"broken: {lifecycle.broken[0]}"
    if lifecycle.phase is Phase.ENDED:
        return _STATES[lifecycle.phase]
    if board is None:
        return f"not started, {counted(max_workers, 'worker')} at most"
    sizes = [f"{_live(board)} of at most {counted(max_workers, 'worker')}"]
    waiting = ledger.backlog + len(ledger.awaiting)
    sizes += [f"{counted(waiting, 'task')} waiting"] if waiting else []
    sizes += [f"{counted(len(ledger.in_flight), 'task')} sent"] if ledger.in_flight else []
    return ", ".join([_STATES[lifecycle.phase], *sizes])


def _live(board: Scoreboard) -> int:
    try:
        return sum(state != sb.FREE for state in board.states())
    except (ValueError, TypeError):
        return 0  # Another thread has just closed it.
