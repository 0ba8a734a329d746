"""Fences: what makes a write to the board visible before the next read or write of it.

A processor may let a read overtake an earlier write of another word (all do), and most but x86
let any two accesses to different words change places. Where two processes of a pool each write
a word and then read the other's, or one writes two words and the other reads them, somebody
has to keep the order, on both sides. :mod:`.scoreboard` has the list of these places.

One side of each is *hot*: it comes there with every task. The other is *rare*: a task that is
to be ended, one that takes long, a supervisor that looks around. So the rare side makes the
fences of both, by membarrier(2): :func:`everywhere` returns when every thread that runs in a
process which has *registered* has made a full fence, at some point between two of its
instructions; and those that do not run have made one as they stopped. So of two accesses of
the hot side, in their order in the program, either the first is seen by what the rare side
does after that, or the second sees what it did before. The hot side pays nothing.

Registered are the client and the workers. A registration is for a process's memory: a fork
has it as well, what is executed has not. It takes a microsecond; in a process with threads
some milliseconds, once.

Where membarrier is refused, as by a sandbox, or does not exist, each side makes its own fences
(:func:`here`). The client finds out, and says on the board what holds for the pool. A process
that is refused what the client was granted makes its own fences, too, if it is hot. If it is
rare, and the hot ones rely on it, it waits for a moment as well (DRAINED_AFTER): a write is
seen long before that.

======================================  ==============================================
machine                                 our own fence
======================================  ==============================================
x86, any system                         taking a lock: its LOCK prefix is a full fence
any other, Linux                        sched_yield: the scheduler begins with a full
                                        fence, as the kernel demands it of every machine
                                        (Documentation/scheduler/membarrier.rst)
any other, other systems                taking a lock, *which may be less than a fence*
======================================  ==============================================
"""

from __future__ import annotations

import os
import posix
import sys
import time
from collections.abc import Callable

from .._system.green import new_lock
from .._system.platform import FALLBACK, libc
from . import scoreboard as sb
from .scoreboard import Scoreboard

GLOBAL_EXPEDITED, REGISTER_GLOBAL_EXPEDITED = 1 << 1, 1 << 2
_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
"""Of the system call, by the machine, for programs of 64 bits."""
DRAINED_AFTER = 0.001
"""Seconds after which every processor has long written what it had to write."""

_machine = os.uname().machine
NUMBER = _NUMBERS.get(_machine) if sys.maxsize > 2**32 and not FALLBACK else None
"""Of the system call on this machine; None: it is not used here."""


def _lock_anew() -> None:
    new_lock().acquire()  # Not one that a fork could find taken.


_is_x86 = _machine in ("x86_64", "amd64", "AMD64", "i386", "i686")
here: Callable[[], object] = (
    posix.sched_yield if sys.platform.startswith("linux") and not _is_x86 else _lock_anew
)
"""A full fence of the calling thread's."""


def is_granted(command: int) -> bool:
    """Whether membarrier(2) has done this."""
    return NUMBER is not None and libc().syscall(NUMBER, command, 0, 0) == 0


def begin(board: Scoreboard) -> Callable[[], object] | None:
    """In the client, before anybody else has the board: say there how fences are made. Returns
    the same as :func:`join`."""
    board.words[sb.SPARED] = int(is_granted(GLOBAL_EXPEDITED))
    return join(board)


def join(board: Scoreboard) -> Callable[[], object] | None:
    """In a hot process: what it has to call where a fence is needed; None: nothing, because
    the others make it."""
    is_spared = board.words[sb.SPARED] and is_granted(REGISTER_GLOBAL_EXPEDITED)
    return None if is_spared else here


def everywhere(board: Scoreboard) -> None:
    """The rare side's: a full fence here, and in every hot process that makes none."""
    if not board.words[sb.SPARED]:
        here()
    elif not is_granted(GLOBAL_EXPEDITED):
        here()
        time.sleep(DRAINED_AFTER)
