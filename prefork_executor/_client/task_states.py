"""The states of a task, and the events that lead from one to another.

=========  =========================================  =========================================
state      what it means                              what it does not imply
=========  =========================================  =========================================
WAITING    The task waits to be sent.                 That it can be cancelled: it may have been
                                                      sent before, and have come back. Then it
                                                      has a number. That it will be sent: its
                                                      future may have been cancelled.
IN_FLIGHT  The task has been sent, and the books do   That a worker has it: it may still lie in
           not have its outcome.                      the pipe. That it has no outcome: the I/O
                                                      thread may have read it, and not have
                                                      entered it yet.
TO_END     The task is in flight, and must be ended:  That its worker will be ended: its outcome
           it was aborted, is over its time, or       may come before. If that is a result, the
           takes too much memory. It has a verdict,   future gets the result.
           the error for its future if it does not
           run again.
TO_FAIL    The task had to be ended, and has come     That its future has the verdict: the future
           back before it began. It is not sent       gets it when the task's turn comes.
           again.
GIVEN_UP   The task's future got its error before     That its place in the queue is free: the
           the task's turn came.                      task is passed over when its turn comes.
DONE       The task is no longer in the books.        That its future has ended: the I/O thread
                                                      resolves it later, without the lock.
=========  =========================================  =========================================

The state tells where in the books a task is. A task that is WAITING, TO_FAIL or GIVEN_UP is in the
ledger's queue. A task that is IN_FLIGHT or TO_END is among those in flight. A task that is DONE is
in neither. (A new task is WAITING, too, before the client enters it into the books.)

Only the ledger makes the transitions, with the client's lock held, as `NEXT` says. An event that
`NEXT` does not have for a state cannot come in that state. If it does come, that is a fault of this
package. A transition has two steps: it changes the task's state and its place. A signal handler in
the main thread may raise between the two. `Ledger.complete_send` makes up for that.
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """See the head of this file."""

    WAITING = 1
    IN_FLIGHT = 2
    TO_END = 3
    TO_FAIL = 4
    GIVEN_UP = 5
    DONE = 6


class Event:
    """What leads from one state to another. (No enum: see `_board/worker_states.py`.)"""

    SENT = "SENT"
    """The client is about to put the task into the task pipe."""
    CAME_BACK = "CAME_BACK"
    """No worker will begin the task as it was sent. It did not fit into the pipe, or the client
    took it out of the pipe again, or a worker had taken it that has died or has given it back."""
    CONDEMNED = "CONDEMNED"
    """The task must be ended, and has a verdict."""
    LOST = "LOST"
    """The task's run has ended with its worker, at its time limit, or for the memory it took, and
    the caller allows another run."""
    REPRIEVED = "REPRIEVED"
    """The task had to be ended for the memory it took, and has not begun. So it takes none, and is
    sent again."""
    SETTLED = "SETTLED"
    """The task's outcome has been read, or the task cannot be sent."""
    DROPPED = "DROPPED"
    """The caller has aborted the task before its turn came."""
    PASSED_OVER = "PASSED_OVER"
    """The task's turn has come, and it is not sent."""
    DISCARDED = "DISCARDED"
    """The task is given up, with others or alone. The pool is broken, or its workers are ended, or
    the waiting tasks are cancelled, or the call cannot be pickled."""


# The states are an IntEnum and have plain names here, because that makes the two look-ups for each
# task quicker.
WAITING, IN_FLIGHT, TO_END, TO_FAIL, GIVEN_UP, DONE = State
NEXT: dict[str, dict[State, State]] = {
    Event.SENT: {WAITING: IN_FLIGHT},
    Event.CAME_BACK: {IN_FLIGHT: WAITING, TO_END: TO_FAIL},
    # A task may be aborted twice, or when it is already over its time.
    Event.CONDEMNED: {IN_FLIGHT: TO_END, TO_END: TO_END},
    Event.LOST: {IN_FLIGHT: WAITING, TO_END: WAITING},
    Event.REPRIEVED: {TO_FAIL: WAITING},
    Event.SETTLED: {IN_FLIGHT: DONE, TO_END: DONE},
    Event.DROPPED: {WAITING: GIVEN_UP, TO_FAIL: GIVEN_UP},
    Event.PASSED_OVER: {WAITING: DONE, TO_FAIL: DONE, GIVEN_UP: DONE},
    # From every state, so that every future ends even after a fault of this package.
    Event.DISCARDED: dict.fromkeys(State, DONE),
}
