"""What the main process of a pool writes of its past on the board, for all who look.

==============  ==================================================================
word            meaning
==============  ==================================================================
FORKS           workers that were forked
RETIREMENTS     workers that ended in order: told to leave, or by themselves, after
                max_tasks_per_child tasks, say
DEATHS          workers that ended while they held a task
OTHER_DEATHS    workers that ended in any other way: as they started, say, or killed
                while they were idle
DONE_BEFORE     tasks that workers have finished which live no more
PEAK            the most workers there have been
USED            slots from this one on have never had a worker
FULL_TIMES      how often there came to be as many workers as there may be
FULL_FOR        how long in all (ns) there were, before FULL_SINCE
FULL_SINCE      since when there are now (ns, monotonic clock); 0: there are not
DECISIONS       decisions written so far to the pool's ring of the latest
==============  ==================================================================

Every fork is a live worker or in one of the three counts of ends, whatever ended it. They
live on the board, so they outlive a supervisor.
"""

from __future__ import annotations

import time

from . import scoreboard as sb
from .scoreboard import Scoreboard, Slot


class Counters:
    """Writes for one pool. ``full`` is the number of workers there may be."""

    def __init__(self, board: Scoreboard, full: int) -> None:
        self._board = board
        self._words = board.words
        self._full = full
        self._end_fullness()  # If the one who wrote this before us was killed while full.

    def takes_slot(self, place: int) -> None:
        """A worker is about to be forked into this slot."""
        self._words[sb.USED] = max(self._words[sb.USED], place + 1)

    def forked(self, live: int) -> None:
        """A worker was forked; so many are alive now."""
        words = self._words
        words[sb.FORKS] += 1
        words[sb.PEAK] = max(words[sb.PEAK], live)
        if live >= self._full and not words[sb.FULL_SINCE]:
            words[sb.FULL_TIMES] += 1
            words[sb.FULL_SINCE] = time.monotonic_ns()

    def ended(self, slot: Slot, *, was_told: bool, is_crash: bool) -> None:
        """The worker that had this slot was reaped."""
        count_end(self._board, slot, was_told=was_told, is_crash=is_crash)
        self._end_fullness()

    def _end_fullness(self) -> None:
        words = self._words
        if since := words[sb.FULL_SINCE]:
            words[sb.FULL_SINCE] = 0
            words[sb.FULL_FOR] += max(0, time.monotonic_ns() - since)


def count_end(board: Scoreboard, slot: Slot, *, was_told: bool, is_crash: bool) -> None:
    """Count the end of a worker by the kind that it was of. From now on it is not live."""
    board.words[board.base(slot.place) + sb.ENDED] = 1
    board.words[sb.DONE_BEFORE] += slot.done
    if slot.state == sb.BUSY:
        board.words[sb.DEATHS] += 1
    elif was_told or (slot.state == sb.LEAVING and not is_crash):
        board.words[sb.RETIREMENTS] += 1
    else:
        board.words[sb.OTHER_DEATHS] += 1


def count_the_left(board: Scoreboard) -> None:
    """Count the workers of a main process that was killed: they have ended with it. It may
    not have said any more that it had forked one, or which."""
    words = board.words
    for slot in board.read_all():
        if not words[board.base(slot.place) + sb.ENDED]:
            count_end(board, slot, was_told=False, is_crash=False)
    ended = words[sb.RETIREMENTS] + words[sb.DEATHS] + words[sb.OTHER_DEATHS]
    words[sb.OTHER_DEATHS] += max(0, words[sb.FORKS] - ended)
    words[sb.FORKS] = max(words[sb.FORKS], ended)
