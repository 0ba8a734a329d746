"""The states of a task, and what leads from one to another.

=========  =========================================  =========================================
state      what it means                              what it does not imply
=========  =========================================  =========================================
WAITING    It is to be sent.                          That it can be cancelled: it may have been
                                                      sent before, and have come back. Then it
                                                      has a number. That it is sent: its future
                                                      may have been cancelled.
IN_FLIGHT  It has been sent, and its outcome is not   That a worker has it: it may still lie in
           known.                                     the pipe. That it has no outcome: that may
                                                      have been read, and wait for the lock.
TO_END     In flight, and to be ended: it was         That its worker will be ended: its outcome
           aborted, or is over its time. It has a     may be quicker. A result stands then.
           verdict, which its future gets.
TO_FAIL    It was to be ended, and has come back,     That its future has been told: it gets the
           not begun. It is not sent again.           verdict when the task's turn comes.
GIVEN_UP   Its future has been told before its turn   That its place is free: it is passed over
           came.                                      when its turn comes.
DONE       The books know nothing more of it.         That its future has been told: that is done
                                                      after, without the lock.
=========  =========================================  =========================================

Each state has its place in the books: a task that is WAITING, TO_FAIL or GIVEN_UP is in the
ledger's queue, one that is IN_FLIGHT or TO_END among those in flight, one that is DONE in neither.
(Between its making and its entering into the books a task is WAITING, too.)

The ledger alone makes the transitions, with the client's lock held, as `NEXT` says. What is not
in there cannot happen; if it does, that is a fault of this package. A signal handler that raises
in the main thread may do so between the two steps of a transition, which are the task's state and
its place. `Ledger.complete_send` has what is done then.
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
    """It is about to be put into the task pipe."""
    CAME_BACK = "CAME_BACK"
    """No worker will begin it: it did not fit into the pipe, or was taken out of it again, or
    was in the hands of a worker that has died or does not go on."""
    CONDEMNED = "CONDEMNED"
    """It is to be ended, with a verdict."""
    LOST = "LOST"
    """Its run has ended with its worker, or at its time limit, and its caller allows another."""
    SETTLED = "SETTLED"
    """Its outcome is known; or it cannot be sent."""
    DROPPED = "DROPPED"
    """Its caller has aborted it before its turn came."""
    PASSED_OVER = "PASSED_OVER"
    """Its turn has come, and it is not sent."""
    DISCARDED = "DISCARDED"
    """All tasks, or some, are given up at once: the pool is broken, or its workers are ended, or
    those that wait are cancelled, or a call cannot be pickled."""


# An IntEnum, and plain names, because of the look-ups, of which there are two a task.
WAITING, IN_FLIGHT, TO_END, TO_FAIL, GIVEN_UP, DONE = State
NEXT: dict[str, dict[State, State]] = {
    Event.SENT: {WAITING: IN_FLIGHT},
    Event.CAME_BACK: {IN_FLIGHT: WAITING, TO_END: TO_FAIL},
    # It may be aborted when it is over its time, or twice.
    Event.CONDEMNED: {IN_FLIGHT: TO_END, TO_END: TO_END},
    Event.LOST: {IN_FLIGHT: WAITING, TO_END: WAITING},
    Event.SETTLED: {IN_FLIGHT: DONE, TO_END: DONE},
    Event.DROPPED: {WAITING: GIVEN_UP, TO_FAIL: GIVEN_UP},
    Event.PASSED_OVER: {WAITING: DONE, TO_FAIL: DONE, GIVEN_UP: DONE},
    # Whatever it is: so every future gets an end, even after a fault of ours.
    Event.DISCARDED: dict.fromkeys(State, DONE),
}
