"""The books of one client, and the lock that guards them.

The locks
---------
There are three kinds. A thread that takes more than one takes them in this order:

1. ``DirectReader.reading``: only its holder reads from the yell channel. The I/O thread always
   has it, except while it waits. So it is held while ``on_yell`` and callbacks run.
2. ``Books.lock`` guards all that is in here. Every thread takes it, for as short a time as
   possible: while it is held, nothing is pickled, copied or hashed, and no future gets its
   result. Only the first start of a pool takes longer, and submits wait for it.
3. The lock of one future. A thread that holds it takes no other.

A thread that holds one of the last two runs no user code, with one exception: a signal handler
may run at any point. So ``Books.lock`` can be taken again by its holder, and `_support/locks.py`
says how it becomes free when a handler raises.
"""

from __future__ import annotations

import threading

from .deadlines import Deadlines
from .ledger import Ledger
from .phases import Lifecycle
from .statistics import History

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .recorder import Recorder


class Books:
    """What both the caller's threads and the I/O thread write."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.deadlines = Deadlines()
        self.history = History()
        self.lifecycle = Lifecycle()
        self.recorder: Recorder | None = None
        """That of the recording that is on, if any."""

    def record(self, recorder: Recorder | None) -> None:
        """Record for this recorder from now on."""
        self.recorder = recorder

    def disown(self) -> None:
        """In a child that the caller forked, where another thread may have held the lock at
        the fork."""
        self.lock = threading.RLock()
        self.recorder = None
        self.lifecycle.become_copy()
