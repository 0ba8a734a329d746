"""The phases of a client's life, and the reasons for which it takes no more tasks.

=======  ==========================================================================
phase    what it means
=======  ==========================================================================
OPEN     The client takes tasks.
CLOSING  The client takes no more tasks, and finishes those that it has.
ENDING   All tasks are done. The client has told the supervisor to end, and waits
         until it has ended.
ENDED    The client has no processes and no channels any more.
=======  ==========================================================================

An event leads from one phase to the next, as `NEXT` says. An event that `NEXT` does not have for a
phase cannot come in that phase. If it does come, that is a fault of this package. (A signal handler
may run between any two lines, and may submit a task or shut the executor down. So a shutdown first
changes the phase, which stops further tasks, and only then looks whether the I/O thread runs.)

In any phase, a client may also be:

* *broken*: the pool cannot go on. All tasks have failed, and the I/O thread ends the pool.
* *abandoned*: nothing refers to the executor any more. The I/O thread treats that as a shutdown.
* a *copy*: the program has forked, and the client belongs to the parent process.
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
    """The client was shut down, and no I/O thread runs."""
    STARTED = 3
    """The I/O thread runs."""
    ALL_DONE = 4
    """No task is left, and the client takes no more."""
    ALL_CLOSED = 5
    """All processes have ended, and what the client had is closed."""
    FORKED = 6
    """This process was forked from the one that the client belongs to."""


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
        _ENDED: _CLOSING,  # A signal handler shut the client down while its start was under way.
    },
    Event.ALL_DONE: {_CLOSING: _ENDING},
    Event.ALL_CLOSED: {
        _OPEN: _ENDED,  # The pool is broken.
        _CLOSING: _ENDED,
        _ENDING: _ENDED,
        _ENDED: _ENDED,
    },
    Event.FORKED: dict.fromkeys(Phase, _ENDED),
}


class Lifecycle:
    """A client's phase. A thread that changes it holds the client's lock; any thread may read
    it without the lock."""

    def __init__(self) -> None:
        self.phase = Phase.OPEN
        self.is_abandoned = False
        self.is_copy = False
        self.broken: tuple[str, BaseException | None] | None = None
        """Why the pool cannot go on, with the exception that was raised, if any. None while the
        pool can go on."""

    def after(self, event: Event) -> None:
        """Go on to the phase that this event leads to.

        Raises:
            IllegalTransition: the event cannot come in the present phase.
        """
        following = NEXT[event].get(self.phase)
        if following is None:
            raise IllegalTransition("the client", self.phase.name, event.name)
        self.phase = following

    def abandon(self) -> None:
        """Note that nothing refers to the executor any more."""
        self.is_abandoned = True

    def break_off(self, reason: str, cause: BaseException | None) -> None:
        """Note why the pool cannot go on. If it is broken already, the first reason stays."""
        if self.broken is None:
            self.broken = (reason, cause)

    def become_copy(self) -> None:
        """In a child that the caller forked: note that this is only a copy."""
        self.is_copy = True
        self.after(Event.FORKED)
        self.broken = (
            "this executor belongs to the process that created it; "
            f"process {os.getpid()} was forked from that one and needs an executor of its own",
            None,
        )

    @property
    def is_to_end(self) -> bool:
        """Whether the client needs no supervisor any more."""
        return self.phase is Phase.ENDING or self.broken is not None

    def broken_error(self) -> BrokenProcessPool:
        """The error for the futures of a broken pool."""
        assert self.broken is not None
        reason, cause = self.broken
        error = BrokenProcessPool(reason)
        error.__cause__ = cause
        return error

    def check_own(self) -> None:
        """Raise BrokenProcessPool in a forked copy, which must not touch what belongs to the
        original."""
        if self.is_copy:
            raise self.broken_error()

    def check_open(self) -> None:
        """Raise BrokenProcessPool or RuntimeError if the client takes no tasks."""
        if self.broken is not None:
            raise self.broken_error()
        if self.phase is not Phase.OPEN:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if exit_hooks.interpreter_is_ending():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
