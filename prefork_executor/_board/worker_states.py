"""The states of a worker, and who leads it from one to another.

A worker's state lies in the word HOLDS of its slot (`scoreboard.py`). The word has one writer at
a time: the pool, until it forks; then the worker, until it has ended; then the pool again, which
frees the slot. The client frees it if the supervisor has died.

========  ===========================================  ==========================================
state     what it means                                what it does not imply
========  ===========================================  ==========================================
FREE      Nobody has the slot.                         That all slots without a worker are FREE:
                                                       a supervisor may be killed as it frees one.
                                                       PID says whether there is a worker.
STARTING  The pool is about to fork the worker, or     That there is a process: the pool says it
          the worker runs the user's code for its      before it forks.
          start.
IDLE      The worker holds nothing, and waits.         That it sleeps: a message may have woken
                                                       it, and nobody else. So a death in IDLE
                                                       can leave a message that nobody takes.
TAKING    The worker asks for work, and has not said   That it has got something, or that it has
          yet what it has got.                         not. No other state is in doubt.
BUSY      The worker holds the task that the word      That the task has begun: the worker names
          names. The user's code runs.                 it before. That it still runs: its outcome
                                                       may be on its way. That the worker goes on
                                                       with the next task of its message.
LEAVING   The worker takes nothing more.               That it has ended, or ends soon: it may run
                                                       the user's finalizer. In a raw pool it is
                                                       the user's code that leaves or does not.
========  ===========================================  ==========================================

`TABLE` has every transition: in which states it may come, and to which it leads. `WRITERS` says
who makes it. What is not in there cannot happen; if it does, that is a fault of this package.

A worker changes its state three times a task, so in production nobody checks that. The tests do, in
every process that they start: while PREFORK_EXECUTOR_CHECKS is the path of a file,
`Scoreboard.check` raises IllegalTransition, and appends it to the file, because the end of a
worker may go unnoticed. Another test holds the table against the code that writes HOLDS.
"""

from __future__ import annotations

import contextlib
import enum
import os

from ..errors import IllegalTransition


class State(enum.IntEnum):
    """See the head of this file."""

    FREE = 0
    STARTING = 1
    IDLE = 2
    TAKING = 3
    BUSY = 4
    LEAVING = 5


class Event:
    """What leads from one state to another. The first word says who makes it; see `WRITERS`.
    (No enum: to make one of this size takes a pool's start longer than all else here.)"""

    POOL_FORKS = "POOL_FORKS"
    """It is about to fork a worker into the slot."""
    POOL_FREES = "POOL_FREES"
    """The worker's death has been told, or it could not be forked. After a supervisor's death
    the client does this."""
    WORKER_ASKS = "WORKER_ASKS"
    """It is about to ask the task pipe for a message."""
    WORKER_FINDS_NOTHING = "WORKER_FINDS_NOTHING"
    """There was none: it waits for one."""
    WORKER_DROPS = "WORKER_DROPS"
    """What it has got was no task."""
    WORKER_NAMES = "WORKER_NAMES"
    """It names the task that it has got, or the first of those."""
    WORKER_NAMES_NEXT = "WORKER_NAMES_NEXT"
    """It names the next task of the message, and looks whether it may begin it."""
    WORKER_NAMES_LAST = "WORKER_NAMES_LAST"
    """It may not. It names the task again that it has done last, and gives the next back."""
    WORKER_LEAVES = "WORKER_LEAVES"
    """It has been told to, has done its number of tasks, or cannot start, or nobody hears it."""
    CHILD_STARTS = "CHILD_STARTS"
    """It has been forked, and nothing of the user's has run yet."""
    CHILD_IS_IDLE = "CHILD_IS_IDLE"
    """The user's code says that it has done its work, or asks for more."""
    CHILD_IS_BUSY = "CHILD_IS_BUSY"
    """The user's code says that it has something to do."""
    CHILD_ASKS = "CHILD_ASKS"
    """It waits for a connection, as it has not done before."""
    CHILD_LOOKS = "CHILD_LOOKS"
    """It is about to accept a connection."""
    CHILD_FINDS_NOTHING = "CHILD_FINDS_NOTHING"
    """There was none, or another child was quicker."""
    CHILD_ACCEPTS = "CHILD_ACCEPTS"
    """It has got a connection."""
    CHILD_LEAVES = "CHILD_LEAVES"
    """It has been told to, and holds nothing; or the user's code ends it."""


WRITERS = {
    "POOL": ("_pool/worker_pool.py", "_board/scoreboard.py"),
    "WORKER": ("_server/worker.py",),
    "CHILD": ("_raw/child.py",),
}
"""Which file has the code that makes the events of this first word."""


_FREE, _STARTING, _IDLE, _TAKING, _BUSY, _LEAVING = State
TABLE: dict[str, tuple[tuple[State, ...], State]] = {
    # A supervisor that was killed as it freed the slot has left there what was in it.
    Event.POOL_FORKS: (tuple(State), _STARTING),
    Event.POOL_FREES: (tuple(State), _FREE),
    Event.WORKER_ASKS: ((_STARTING, _IDLE, _BUSY), _TAKING),
    Event.WORKER_FINDS_NOTHING: ((_TAKING,), _IDLE),
    Event.WORKER_DROPS: ((_TAKING,), _IDLE),
    Event.WORKER_NAMES: ((_TAKING,), _BUSY),
    Event.WORKER_NAMES_NEXT: ((_BUSY,), _BUSY),
    Event.WORKER_NAMES_LAST: ((_BUSY,), _BUSY),
    # LEAVING: it leaves for a failure, and cannot tell that either.
    Event.WORKER_LEAVES: ((_STARTING, _IDLE, _TAKING, _BUSY, _LEAVING), _LEAVING),
    Event.CHILD_STARTS: ((_STARTING,), _IDLE),
    # TAKING: a signal handler of the user's has raised as it took something.
    # LEAVING: it was told to leave, and the user's code goes on.
    Event.CHILD_IS_IDLE: ((_TAKING, _BUSY, _LEAVING), _IDLE),
    Event.CHILD_IS_BUSY: ((_IDLE, _TAKING, _LEAVING), _BUSY),
    Event.CHILD_ASKS: ((_IDLE,), _IDLE),
    Event.CHILD_LOOKS: ((_IDLE,), _TAKING),
    Event.CHILD_FINDS_NOTHING: ((_TAKING,), _IDLE),
    Event.CHILD_ACCEPTS: ((_TAKING,), _BUSY),
    Event.CHILD_LEAVES: ((_IDLE, _TAKING, _BUSY, _LEAVING), _LEAVING),
}
"""For each event the states in which it may come, and the one that it leads to."""

CHECKS = "PREFORK_EXECUTOR_CHECKS"
"""The environment variable with the path of the file for reports."""
report_to = os.environ.get(CHECKS, "")
"""That path; empty: nobody checks."""


def check_from_now_on(path: str) -> None:
    """In tests: check in this process, and in those that it starts; report to this file."""
    global report_to
    os.environ[CHECKS] = report_to = path


def check(event: str, state: int, what: str) -> None:
    """Whether this event may come in this state. ``what`` is whose state it is.

    Raises:
        IllegalTransition: it may not. That has been reported.
    """
    if state in TABLE[event][0]:
        return
    name = State(state).name if state in list(State) else str(state)
    error = IllegalTransition(what, name, event)
    with contextlib.suppress(OSError), open(report_to, "a", encoding="utf-8") as report:
        report.write(f"{error} (process {os.getpid()})\n")
    raise error
