"""What this system offers, and the C library.

Linux offers the pool more than POSIX does. Each such means has a fallback that
other systems use, and that is used on Linux too when the environment variable
``PREFORK_EXECUTOR_FALLBACK`` is set to 1, so that it can be tested here:

=======================  ===========================  ==========================
purpose                  Linux                        elsewhere
=======================  ===========================  ==========================
whole messages           SOCK_SEQPACKET               SOCK_DGRAM
waking one idle worker   epoll, EPOLLEXCLUSIVE        poll; all wake, one gets it
shared memory            memfd                        an unlinked temporary file (also where
                                                      a sandbox refuses memfds)
the client's end         a pidfd                      end of file on control
the supervisor's end     PR_SET_PDEATHSIG, and a      end of file on the leash;
                         lifeline                     the client kills workers
=======================  ===========================  ==========================
"""

from __future__ import annotations

import functools
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

if not hasattr(os, "fork"):
    raise ImportError(
        f"prefork_executor needs a POSIX system with fork(); {sys.platform} has none. "
        "Use concurrent.futures.ProcessPoolExecutor here."
    )

FALLBACK = os.environ.get("PREFORK_EXECUTOR_FALLBACK") == "1" or not sys.platform.startswith(
    "linux"
)
"""Whether this process does without what only Linux has."""


def _kernel() -> tuple[int, ...]:
    """Its version, as far as it is in numbers."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0]
    return tuple(int(part) for part in (major, minor) if part.isdecimal())


WAKES_ONE = not FALLBACK and _kernel() >= (5, 11)
"""Whether of those that wait for one descriptor exclusively the first is woken, and no other,
and the next message wakes the next. Before, one could be told of two messages and the other
of none, or a wait that timed out could take the news with it."""


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library. (It takes a millisecond that programs which start no pool need not
    spend.)"""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number, offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, size, number, number, number, offset]
    libc.munmap.argtypes = [address, size]
    return libc
