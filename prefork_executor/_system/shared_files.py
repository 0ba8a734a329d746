"""Files that lie in memory, and memory that is mapped from files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import posix
import sys
import tempfile
import weakref

from .platform import FALLBACK, libc


def shared_file(name: str, size: int) -> int:
    """A descriptor of a new, empty file of this many bytes that lies in memory
    (on other systems, and where a sandbox refuses that: in the temporary directory) and
    vanishes with its users.

    Raises:
        OSError: no descriptor, or no room, or it would be larger than a file may be.
    """
    # Before the system finds it out, which would send SIGXFSZ.
    limit = file_size_limit()
    if limit is not None and size > limit:
        raise OSError(
            errno.EFBIG,
            f"{os.strerror(errno.EFBIG)}: {size} bytes of shared memory, where a file of this "
            f"process may have {limit} (RLIMIT_FSIZE, `ulimit -f`)",
        )
    descriptor = _memory_file(name)
    if descriptor is None:
        descriptor, path = tempfile.mkstemp(prefix=name)
        os.unlink(path)
    try:
        os.ftruncate(descriptor, size)
        _seal(descriptor)
    except BaseException:
        posix.close(descriptor)
        raise
    return descriptor


def _memory_file(name: str) -> int | None:
    """None: there are none, or they are refused, as by seccomp."""
    if FALLBACK:
        return None
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return None


def file_size_limit() -> int | None:
    """Bytes that a file may have which this process writes, one in memory included. None:
    any number."""
    import resource  # Not in what only imports the package.

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _seal(descriptor: int) -> None:
    """Whoever has the file may not change its size: those who have mapped it would be
    killed (SIGBUS) when they look behind its new end. Without effect on other files than
    those in memory."""
    if not FALLBACK:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def map_private(descriptor: int, size: int) -> memoryview:
    """The file's first ``size`` bytes, mapped copy-on-write. No descriptor stays
    open for it, so that a thousand payloads may be alive at once.

    Raises:
        OSError: no room.
    """
    return _map(descriptor, size, mmap.MAP_PRIVATE)


def map_shared(descriptor: int, size: int) -> memoryview:
    """The same, mapped as one memory for all who do. So those who run the user's code
    need no descriptor, by which that code could write to the file.

    Raises:
        OSError: no room.
    """
    return _map(descriptor, size, mmap.MAP_SHARED)


def _map(descriptor: int, size: int, kind: int) -> memoryview:
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(descriptor, size, kind, trackfd=False))
    import ctypes

    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc().mmap(None, size, access, kind, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mapped = (ctypes.c_ubyte * size).from_address(address)
    # At the interpreter's end somebody may still look at it.
    weakref.finalize(mapped, libc().munmap, ctypes.c_void_p(address), size).atexit = False
    return memoryview(mapped).cast("B")
