"""The stacks of children, written by themselves, read by the main process.

A child that hangs cannot run Python code. So ``faulthandler`` writes its stack, in the handler of a
signal, in C. All children write into one file, and the main process asks one of them at a time.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time

from .._system import processes
from .._system.descriptors import pause

SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else signal.SIGXCPU
"""What asks a child for its stack. Hardly any program uses these signals."""
PATIENCE = 0.5
"""Seconds that a child has to write its stack. It has none if it is stopped, for example."""
STEP = 0.01
"""Seconds in which nothing more must come for a stack to be complete."""
MAX_BYTES = 1 << 16


class Stacks:
    """The file, and both sides of it.

    Args:
        descriptor: an empty file, which belongs to the caller. The children inherit it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def offer(self) -> None:
        """In a child: write the stacks of its threads whenever the main process asks."""
        faulthandler.register(SIGNAL, file=self._descriptor, all_threads=True)

    def of(self, pid: int) -> str:
        """The stacks of a child's threads; "" if it does not write them in time."""
        # All processes share the file's offset, so the child writes from the beginning.
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        processes.send_signal(pid, SIGNAL)
        deadline, size = time.monotonic() + PATIENCE, 0
        while time.monotonic() < deadline:
            pause(STEP)
            before, size = size, os.fstat(self._descriptor).st_size
            if size and size == before:
                break
        return os.pread(self._descriptor, min(size, MAX_BYTES), 0).decode(errors="replace")
