"""Threads that libraries keep, and that a fork does no harm: which, how many, and why.

A fork copies the thread that calls it and no other. A library whose threads are gone in the
child waits for them in vain, unless it has asked to be told of forks (``pthread_atfork``) and
takes them down before, or starts new ones after. These do:

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

OpenBLAS built over OpenMP is not among them: its threads are OpenMP's. GNU's OpenMP hangs in a
child whose parent has used it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

SURVIVING_NAMES = frozenset({"jemalloc_bg_thd"})
"""Names by which the kernel knows threads of libraries that come through a fork."""

_OPENBLAS = re.compile(r"/lib(scipy_)?(open)?blas[^/]*\.so[^/]*$")
_OWN_THREADS = 1
"""What OpenBLAS answers when asked how it runs in parallel: by threads that it keeps itself."""


def surviving(libraries: Iterable[str]) -> int:
    """How many threads that have no name of their own are OpenBLAS's, by the paths of
    the libraries that this process has loaded."""
    return sum(_openblas_threads(path) for path in libraries if _OPENBLAS.search(path))


def _openblas_threads(path: str) -> int:
    import ctypes  # Only where there is such a library: it takes a millisecond.

    try:
        library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        return 0
    if _ask(library, "get_parallel") != _OWN_THREADS:
        return 0
    return max(0, _ask(library, "get_num_threads") - 1)


def _ask(library: ctypes.CDLL, question: str) -> int:
    """Builds differ in what stands before and after the names of their functions."""
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            function = getattr(library, f"{prefix}openblas_{question}{suffix}", None)
            if function is not None:
                return int(function())
    return 0
