"""Shared files that have carried a payload, kept to carry another.

A new file has no pages yet: to get them costs its writer about as much as to fill them.
So big payloads travel in files that have travelled before. A payload's file is its
receiver's alone, since the sender has closed it; so whoever has received it may use it for
what it sends, as soon as nobody looks at what was in it. Between a caller and a worker the
same few files go to and fro: a worker whose outcome needs none sends its spare one back with it.

* A file whose payload is mapped becomes spare when the mapping has gone. Until then that
  takes an open descriptor; thousands of arrays may be alive, so the oldest are given up.
* A process that forks may leave its copy somebody who looks at what was mapped then. Such
  a file never becomes spare. (C code that forks and runs on without a word to Python,
  with a task's argument in its hands when the task has long ended, is not noticed.)
* Nobody keeps them who has no use for them: after UNUSED seconds they are dropped.

Any thread may come here, and a garbage collector in the middle of anything. So there is
no lock, and each step on what is shared is one step for all threads.
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
"""Spare, and mapped, files of one process: one that goes, one that comes back, twice."""
MAX_BYTES = 64 * 1024 * 1024
"""Bytes of spare files that one process keeps."""
GRAIN = 64 * 1024
"""Files have a multiple of so many bytes, so that one also fits the next payload if that
is not much larger. What is not written to takes no memory."""
UNUSED = 1.0
"""Seconds after which those that were not used are dropped: between two tasks of a busy
program there is less, and less than this nobody minds them."""

_File = tuple[int, int]
"""A descriptor, and the size of its file in bytes."""


def new_file(size: int) -> _File:
    """A file of at least so many bytes.

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
        on_spare: called in whatever thread it happens when a mapping has gone and its
            file is the first spare one, so that somebody drops it in the end.
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
    def drop_at(self) -> float | None:
        """When they will have been of no use for long, on the monotonic clock; None: there
        are none."""
        return self._used_at + UNUSED if self._free else None

    def take(self, size: int) -> _File:
        """A file of at least this many bytes, and not of many more: a spare one, or a new
        one. It is the caller's from now on.

        Raises:
            OSError: no descriptor, or no room.
        """
        for file in sorted(self._free, key=_size):
            if size <= file[1] <= 2 * size:
                with contextlib.suppress(ValueError):  # Somebody else was quicker.
                    self._free.remove(file)
                    self._used_at = time.monotonic()
                    return file
        return new_file(size)

    def take_spare(self) -> _File | None:
        """The spare file that was used last, if there is one. It is the caller's now."""
        with contextlib.suppress(IndexError):
            return self._free.pop()
        return None

    def give(self, file: _File) -> None:
        """Nobody looks into this file any more."""
        kept = sum(map(_size, self._free))
        if self._is_closed or len(self._free) >= MAX_FILES or kept + file[1] > MAX_BYTES:
            posix.close(file[0])
            return
        self._used_at = time.monotonic()
        self._free.append(file)
        if self._is_closed:
            self.drop()

    def give_when_unmapped(self, file: _File, mapping: object) -> None:
        """This file is looked into as long as somebody refers to ``mapping``."""
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
            posix.close(file[0])  # The child that is being forked may be looking into it.
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
        """What is mapped now may be mapped elsewhere, too."""
        for descriptor in list(self._mapped):
            self._give_up(descriptor)

    def drop_unused(self) -> None:
        """Drop them, if it is time."""
        at = self.drop_at
        if at is not None and time.monotonic() >= at:
            self.drop()

    def drop(self) -> None:
        """Drop them, used or not."""
        with contextlib.suppress(IndexError):
            while True:
                posix.close(self._free.pop()[0])

    def close(self) -> None:
        """Drop them, and take no more. Safe to call again."""
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
    _give_up_all_mapped()  # What other threads have mapped meanwhile.
    _forks.pop()


def _after_fork_in_child() -> None:
    _forks.clear()
    for known in list(_all.values()):
        if (files := known()) is not None:
            files.close()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
