"""The phases of a client's life, and why it may take no more tasks.

=======  ==========================================================================
phase    what it means
=======  ==========================================================================
OPEN     It takes tasks.
CLOSING  It takes no more, and finishes those it has.
ENDING   All are done. It has told the supervisor to end and waits for that.
ENDED    It owns nothing any more.
=======  ==========================================================================

What happens leads from one phase to the next as `NEXT` says. What is not in there cannot
happen; if it does, that is a fault of this package. (Signal handlers may come in between any
two lines, and may submit or shut down. So a shutdown first sees to it that nothing more is
accepted, and only then looks whether the I/O thread runs.)

Beside its phase a client may be *broken*: the pool cannot go on, whatever the phase. All tasks
have failed then, and the I/O thread ends it. It may be *abandoned*: nobody refers to the
executor any more, which the I/O thread takes for a shutdown. It may be a *copy*: the program
has forked, and the client belongs to the other process.
"""

from __future__ import annotations

import enum
import os
from concurrent.futures.process import BrokenProcessPool

from .._support import exit_hooks
from ..errors import IllegalTransition


class Phase(enum.Enum):
    """See the head of this file."""

    OPEN = 1
    CLOSING = 2
    ENDING = 3
    ENDED = 4


class Event(enum.Enum):
    """What leads from one phase to another."""

    SHUTDOWN = 1
    NEVER_STARTED = 2
    """It was shut down, and no I/O thread runs."""
    STARTED = 3
    """The I/O thread runs."""
    ALL_DONE = 4
    """Nothing is left to be done, and nothing more may come."""
    ALL_CLOSED = 5
    """All processes have ended, and what the client had is closed."""
    FORKED = 6
    """This is a fork of the process that the client belongs to."""


_OPEN, _CLOSING, _ENDING, _ENDED = Phase
NEXT = {
    Event.SHUTDOWN: {
        _OPEN: _CLOSING,
        _CLOSING: _CLOSING,
        _ENDING: _ENDING,
        _ENDED: _ENDED,
    },
    Event.NEVER_STARTED: {_CLOSING: _ENDED, _ENDED: _ENDED},
    Event.STARTED: {
        _OPEN: _OPEN,
        _CLOSING: _CLOSING,
        _ENDED: _CLOSING,  # A signal handler has shut down what it found not yet started.
    },
    Event.ALL_DONE: {_CLOSING: _ENDING},
    Event.ALL_CLOSED: {
        _OPEN: _ENDED,  # It is broken.
        _CLOSING: _ENDED,
        _ENDING: _ENDED,
        _ENDED: _ENDED,
    },
    Event.FORKED: dict.fromkeys(Phase, _ENDED),
}


class Lifecycle:
    """A client's phase. Guarded by the client's lock, except that anybody may read it."""

    def __init__(self) -> None:
        self.phase = Phase.OPEN
        self.is_abandoned = False
        self.is_copy = False
        self.broken: tuple[str, BaseException | None] | None = None
        """Why the pool cannot go on, and what was raised, if it cannot."""

    def after(self, event: Event) -> None:
        """Go on to the phase that this leads to."""
        following = NEXT[event].get(self.phase)
        if following is None:
            raise IllegalTransition("the client", self.phase.name, event.name)
        self.phase = following

    def abandon(self) -> None:
        """Nobody refers to the executor any more."""
        self.is_abandoned = True

    def break_off(self, reason: str, cause: BaseException | None) -> None:
        """The pool cannot go on. The first reason stays."""
        if self.broken is None:
            self.broken = (reason, cause)

    def become_copy(self) -> None:
        """In a child that the caller forked: this is not the client."""
        self.is_copy = True
        self.after(Event.FORKED)
        self.broken = (
            "this executor belongs to the process that created it; "
            f"process {os.getpid()} was forked from that one and needs its own",
            None,
        )

    @property
    def is_to_end(self) -> bool:
        """Whether nobody needs a supervisor any more."""
        return self.phase is Phase.ENDING or self.broken is not None

    def broken_error(self) -> BrokenProcessPool:
        """What those get whose tasks it costs."""
        assert self.broken is not None
        reason, cause = self.broken
        error = BrokenProcessPool(reason)
        error.__cause__ = cause
        return error

    def check_own(self) -> None:
        """Raises if this is a fork's copy, which must touch nothing of the original's."""
        if self.is_copy:
            raise self.broken_error()

    def check_open(self) -> None:
        """Raises if it takes no tasks."""
        if self.broken is not None:
            raise self.broken_error()
        if self.phase is not Phase.OPEN:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if exit_hooks.interpreter_is_ending():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
