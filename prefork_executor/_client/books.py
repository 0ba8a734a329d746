"""The books of one client, and the lock that guards them.

The locks
---------
There are three kinds. Whoever takes more than one takes them in this order:

1. ``DirectReader.reading``: only its holder reads from the yell channel. The I/O thread has
   it always, except while it waits; so ``on_yell`` and callbacks run while it is held.
2. ``Books.lock`` guards all that is in here. Every thread takes it, for as short a time as
   possible: nothing is pickled, copied or hashed while it is held, and no future gets its
   result. Only the first start of a pool takes longer, and who submits meanwhile waits for it.
3. The lock of one future, in which nothing else is taken.

While a thread holds one of the last two, it runs no code of the user's, with one exception: a
signal handler runs wherever it comes in. So ``Books.lock`` is one that its holder may take
again, and `_support/locks.py` says how it gets free when a handler raises.
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
    """What the caller's threads and the I/O thread both write."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ledger = Ledger()
        self.deadlines = Deadlines()
        self.history = History()
        self.lifecycle = Lifecycle()
        self.recorder: Recorder | None = None
        """Of the recording that is on."""

    def record(self, recorder: Recorder | None) -> None:
        """From now on, for this recorder."""
        self.recorder = recorder

    def disown(self) -> None:
        """In a child that the caller forked, where others than this thread may have held the
        lock."""
        self.lock = threading.RLock()
        self.recorder = None
        self.lifecycle.become_copy()
