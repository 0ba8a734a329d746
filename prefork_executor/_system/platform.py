"""What this system offers, and the C library.

Linux offers the pool more than POSIX does. For each such means there is a fallback, which
other systems use. To test the fallbacks on Linux, set the environment variable
``PREFORK_EXECUTOR_FALLBACK`` to 1:

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
"""Whether this process does without the means that only Linux has."""


def _kernel() -> tuple[int, ...]:
    """The kernel's version, as far as it consists of numbers."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0]
    return tuple(int(part) for part in (major, minor) if part.isdecimal())


WAKES_ONE = not FALLBACK and _kernel() >= (5, 11)
"""Whether the kernel wakes the first of the processes that wait exclusively for one descriptor
and no other, and the second for the next message. Older kernels may tell one process of two
messages and another of none, or lose the news in a wait that times out."""


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library. (Loading it takes a millisecond. A program that starts no pool need not
    spend it.)"""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    address, size, number, offset = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_long
    libc.mmap.restype = address
    libc.mmap.argtypes = [address, size, number, number, number, offset]
    libc.munmap.argtypes = [address, size]
    return libc
