"""Threads of libraries that survive a fork: which, how many, and why.

A fork copies only the thread that calls it. A library would wait in the child for its other
threads in vain, unless it has asked to be told of forks (``pthread_atfork``), and ends its threads
before or starts new ones after. These libraries do:

=============  =========================================  ==================================
library        its threads                                evidence
=============  =========================================  ==================================
OpenBLAS       one less than it uses, from its loading;   ``driver/others/memory.c`` registers
               named like the process                     ``blas_thread_shutdown`` with
                                                          ``pthread_atfork``: they are joined
                                                          before a fork, and started by the
                                                          next product that needs them
jemalloc       ``jemalloc_bg_thd``                        ``background_thread.c``: the child
(in pyarrow)                                              forgets them and starts others
=============  =========================================  ==================================

OpenBLAS built over OpenMP does not belong here: its threads are OpenMP's, and GNU's OpenMP hangs
in a child whose parent has used it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

SURVIVING_NAMES = frozenset({"jemalloc_bg_thd"})
"""Names in the kernel of library threads that survive a fork."""

_OPENBLAS = re.compile(r"/lib(scipy_)?(open)?blas[^/]*\.so[^/]*$")
_OWN_THREADS = 1
"""OpenBLAS's answer to how it runs in parallel: by threads of its own."""


def surviving(libraries: Iterable[str]) -> int:
    """How many threads without a name of their own belong to OpenBLAS. ``libraries`` are the
    paths of the libraries that this process has loaded."""
    return sum(_openblas_threads(path) for path in libraries if _OPENBLAS.search(path))


def _openblas_threads(path: str) -> int:
    import ctypes  # Only where there is such a library: the import takes a millisecond.

    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        return 0
    if _ask(library, "get_parallel") != _OWN_THREADS:
        return 0
    return max(0, _ask(library, "get_num_threads") - 1)


def _ask(library: ctypes.CDLL, question: str) -> int:
    """Builds differ in the prefixes and suffixes of their functions' names."""
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            function = getattr(library, f"{prefix}openblas_{question}{suffix}", None)
            if function is not None:
                return int(function())
    return 0
