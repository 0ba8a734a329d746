"""What the caller's threads and the I/O thread share of one client, and the lock that guards it.

The pages of this package call the ledger, with what stands beside it here, *the books*.

The locks
---------
There are three kinds. A thread that takes more than one takes them in this order:

1. ``DirectReader.reading``: only its holder reads from the yell channel. The I/O thread always
   has it, except while it waits. So it is held while ``on_yell`` and callbacks run.
2. ``SharedState.lock`` guards all that is in here. Every thread takes it, for as short a time as
   possible: while it is held, nothing is pickled, copied or hashed, and no future gets its
   result. Only the first start of a pool takes longer, and submits wait for it.
3. The lock of one future. A thread that holds it takes no other.

A thread that holds one of the last two runs no user code, with one exception: a signal handler
may run at any point. So ``SharedState.lock`` can be taken again by its holder, and
`_support/locks.py` says how it becomes free when a handler raises.
"""

from __future__ import annotations

import threading

from .deadlines import Deadlines
from .ledger import Ledger
from .phases import Lifecycle
from .statistics import History, Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._board.scoreboard import Scoreboard
    from .memory_watch import MemoryWatch
    from .recorder import Recorder


class SharedState:
    """What both the caller's threads and the I/O thread write."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.deadlines = Deadlines()
        self.history = History()
        self.lifecycle = Lifecycle()
        self.recorder: Recorder | None = None
        """That of the recording that is on, if any."""
        self.memory: MemoryWatch | None = None
        """What looks after the workers' memory, if there is a bound for that."""

    def bound_memory(self, watch: MemoryWatch) -> None:
        """From now on this looks after the workers' memory."""
        self.memory = watch

    def read(self, board: Scoreboard | None) -> Reading:
        """With the lock held: what statistics are made of. ``board`` is None if it is not open."""
        memory = None if self.memory is None else self.memory.stats()
        return self.history.read(board, self.ledger, memory)

    def decided(self, decision: bytes) -> None:
        """With the lock held: this decision, which is packed, was made here."""
        self.history.enter(decision)
        if self.recorder is not None:
            self.recorder.decided(decision)

    def record(self, recorder: Recorder | None) -> None:
        """Record for this recorder from now on."""
        self.recorder = recorder

    def disown(self) -> None:
        """In a child that the caller forked, where another thread may have held the lock at
        the fork."""
        self.lock = threading.RLock()
        self.recorder = None
        self.lifecycle.become_copy()
