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
    """A descriptor of a new file of this many zero bytes. It lies in memory (on other systems,
    or where a sandbox refuses that, in the temporary directory) and vanishes with the last
    process that uses it.

    Raises:
        OSError: no descriptor or no room is left, or a file may not be that large.
    """
    # Check it here: the system would send SIGXFSZ.
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
    """None if the system has no memory files, or refuses them, as seccomp may."""
    if FALLBACK:
        return None
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return None


def file_size_limit() -> int | None:
    """Bytes that a file written by this process may have, files in memory included. None means
    any number."""
    import resource  # Not for programs that only import the package.

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _seal(descriptor: int) -> None:
    """Forbid every holder of the file to change its size. Otherwise the kernel would kill
    (SIGBUS) a process that has mapped the file and reads beyond its new end. No effect on
    files outside memory."""
    if not FALLBACK:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def map_private(descriptor: int, size: int) -> memoryview:
    """The file's first ``size`` bytes, mapped copy-on-write. The mapping keeps no descriptor
    open, so thousands of payloads may be alive at once.

    Raises:
        OSError: no room is left.
    """
    return _map(descriptor, size, mmap.MAP_PRIVATE)


def map_shared(descriptor: int, size: int) -> memoryview:
    """The same, as memory shared by all processes that map it. So processes that run the user's
    code need no descriptor, through which that code could write to the file.

    Raises:
        OSError: no room is left.
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
    # Other objects may still look at the memory when the interpreter ends.
    weakref.finalize(mapped, libc().munmap, ctypes.c_void_p(address), size).atexit = False
    return memoryview(mapped).cast("B")
