"""Shared files that have carried a payload, kept to carry another.

A new file has no pages yet. For its writer, getting the pages costs about as much as filling
them. So big payloads travel in files that have been used before. A payload's file belongs to its
receiver alone, since the sender has closed it. The receiver may use it for its own payloads when
nothing looks at its content any more. So the same few files go back and forth between a caller
and a worker. A worker whose outcome needs no file sends its spare one back with the outcome.

* A file whose payload is mapped becomes spare when the mapping is gone. Until then it takes an
  open descriptor. Thousands of arrays may be alive, so the oldest files are given up.
* When a process forks, its copy may still look at what was mapped then. Such a file never
  becomes spare. (One case is not noticed: C code forks without telling Python, and goes on
  using a task's argument after the task has ended.)
* A process drops files that it has not used for UNUSED seconds.

Any thread may call this code, and so may a garbage collection at any point. So there is no lock:
each step on shared data is atomic for all threads.
"""

from __future__ import annotations

import contextlib
import os
import posix
import time
import weakref
from collections.abc import Callable

from .._support import faults
from .._system.shared_files import file_size_limit, shared_file

MAX_FILES = 4
"""Spare and mapped files of one process: one that goes and one that comes back, twice."""
MAX_BYTES = 64 * 1024 * 1024
"""Bytes of spare files that one process keeps."""
GRAIN = 64 * 1024
"""File sizes are multiples of this many bytes, so that a file also fits a next payload that is
a little larger. Pages that are not written to take no memory."""
UNUSED = 1.0
"""Seconds after which unused files are dropped. A busy program takes less time between two
tasks, and for this time the files do no harm."""

_File = tuple[int, int]
"""A descriptor, and the size of its file in bytes."""


def new_file(size: int) -> _File:
    """A file of at least this many bytes.

    Raises:
        OSError: no descriptor, or no room.
    """
    faults.at("payload.makes_file", size)
    grown, limit = -(-size // GRAIN) * GRAIN, file_size_limit()
    if limit is not None:
        grown = max(size, min(grown, limit))
    return shared_file("prefork-payload", grown), grown


class PayloadFiles:
    """One end's files, spare and mapped.

    Args:
        on_spare: called when a mapping is gone and its file is the only spare one, so that
            the file is dropped in the end. It may be called in any thread.
    """

    def __init__(self, on_spare: Callable[[], object] = bool) -> None:
        self._on_spare = on_spare
        self._free: list[_File] = []
        self._mapped: dict[int, weakref.finalize[..., object]] = {}
        self._is_closed = False
        self._used_at = 0.0
        key = id(self)
        _all[key] = weakref.ref(self, lambda _: _all.pop(key, None))

    @property
    def due_at(self) -> float | None:
        """When the files will have been unused for long enough, in seconds on the monotonic
        clock. None if there are none."""
        return self._used_at + UNUSED if self._free else None

    def take(self, size: int) -> _File:
        """A file of at least this many bytes, and at most twice as many: a spare or a new
        one. From now on it belongs to the caller.

        Raises:
            OSError: no descriptor, or no room.
        """
        for file in sorted(self._free, key=_size):
            if size <= file[1] <= 2 * size:
                with contextlib.suppress(ValueError):  # Another thread was quicker.
                    self._free.remove(file)
                    self._used_at = time.monotonic()
                    return file
        return new_file(size)

    def take_spare(self) -> _File | None:
        """The spare file that was used last, if there is one. It now belongs to the caller."""
        with contextlib.suppress(IndexError):
            return self._free.pop()
        return None

    def give(self, file: _File) -> None:
        """Keep this file: nothing looks into it any more."""
        kept = sum(map(_size, self._free))
        if self._is_closed or len(self._free) >= MAX_FILES or kept + file[1] > MAX_BYTES:
            posix.close(file[0])
            return
        self._used_at = time.monotonic()
        self._free.append(file)
        if self._is_closed:
            self.drop()

    def give_when_unmapped(self, file: _File, mapping: object) -> None:
        """Keep this file once nothing refers to ``mapping`` any more."""
        descriptor, size = file
        if self._is_closed or size > MAX_BYTES:
            posix.close(descriptor)
            return
        mapped = list(self._mapped)
        for oldest in mapped[: max(0, len(mapped) + 1 - MAX_FILES)]:
            self._give_up(oldest)
        end = weakref.finalize(mapping, self._on_unmapped, file)
        end.atexit = False
        self._mapped[descriptor] = end

    def _on_unmapped(self, file: _File) -> None:
        if self._mapped.pop(file[0], None) is None:
            return
        if _forks:
            posix.close(file[0])  # The child that is being forked may still look into it.
        else:
            is_first = not self._free
            self.give(file)
            if is_first:
                self._on_spare()

    def _give_up(self, descriptor: int) -> None:
        end = self._mapped.pop(descriptor, None)
        if end is not None:
            end.detach()
            posix.close(descriptor)

    def give_up_mapped(self) -> None:
        """Give up the mapped files: another process may have mapped them, too."""
        for descriptor in list(self._mapped):
            self._give_up(descriptor)

    def drop_unused(self) -> None:
        """Drop the files if they have been unused for long enough."""
        at = self.due_at
        if at is not None and time.monotonic() >= at:
            self.drop()

    def drop(self) -> None:
        """Drop the files now."""
        with contextlib.suppress(IndexError):
            while True:
                posix.close(self._free.pop()[0])

    def close(self) -> None:
        """Drop the files, and keep no more. Safe to call again."""
        self._is_closed = True
        self.drop()
        self.give_up_mapped()


def _size(file: _File) -> int:
    return file[1]


_all: dict[int, weakref.ref[PayloadFiles]] = {}
_forks: list[None] = []
"""One entry for each thread that is forking now."""


def _give_up_all_mapped() -> None:
    for known in list(_all.values()):
        if (files := known()) is not None:
            files.give_up_mapped()


def _before_fork() -> None:
    _forks.append(None)
    _give_up_all_mapped()


def _after_fork_in_parent() -> None:
    _give_up_all_mapped()  # Other threads may have mapped some meanwhile.
    _forks.pop()


def _after_fork_in_child() -> None:
    _forks.clear()
    for known in list(_all.values()):
        if (files := known()) is not None:
            files.close()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
