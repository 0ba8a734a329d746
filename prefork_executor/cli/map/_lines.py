"""The files of ``prefork-executor map``: input lines, and outputs that stay whole if interrupted.

A run can be resumed because of one rule: OUT has one line for each line of the input, in
order, and nothing else says how far a run has come. So a resumed run begins at the line after
the last whole one of OUT. A line that failed has FAILED there.

The file of errors has the details, with the number of each line. An error is written, and is on
the disk, before its line of OUT is written. So after any end, even a power failure, there may be
errors of lines that OUT does not have yet. These are cut off. But there is never a failed line
without its error.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from prefork_executor._system import descriptors

FAILED = b"null\n"
"""The line in OUT for a line that failed."""
BLOCK = 1 << 20
"""Bytes of an output that are read at a time."""
BATCH = 1 << 16
"""Bytes of the input that are read at a time, at most."""
_STREAMS = {"/dev/stdout": 1, "/dev/fd/1": 1, "/dev/stderr": 2, "/dev/fd/2": 2}
"""Files that are the command's own streams. If such a stream leads to a regular file, Linux would
open that file anew, and what others write to the stream would overwrite what we write."""


class UnusableError(Exception):
    """A file is not what the command needs. The message says what to do."""


class UnwritableError(Exception):
    """A file does not take what is to be written. The message names its option, and why."""


class Item(NamedTuple):
    """A line of the input: its number, from 1, its text without the line end, and its size in
    bytes with it. ``known`` is its line of the output if it need not run."""

    number: int
    line: bytes
    size: int
    known: bytes | None = None


class Lines:
    """The lines of a file. Without the mark (BOM) that some programs write at the beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self._batches = self._read(file)
        self._left: list[Item] = []

    def first(self, count: int) -> Iterator[Item]:
        """The first ``count`` lines, or as many as there are."""
        while count > 0 and (batch := self._left or next(self._batches, [])):
            taken, self._left = batch[:count], batch[count:]
            count -= len(taken)
            yield from taken

    def batches(self) -> Iterator[list[Item]]:
        """The lines that are left, those together that have come together."""
        if self._left:
            yield self._left
        yield from self._batches

    def _read(self, file: BinaryIO) -> Iterator[list[Item]]:
        number, begun = 1, [b""]
        while block := _read_some(file):
            head, end, rest = block.rpartition(b"\n")
            if not end:
                begun.append(rest)  # The longest lines come in many blocks.
                continue
            texts = b"".join([*begun, head]).split(b"\n")
            begun = [rest]
            yield [*_numbered(texts, number, 1)]
            number += len(texts)
        if last := b"".join(begun):
            yield [*_numbered([last], number, 0)]


def _read_some(file: BinaryIO) -> bytes:
    """What there is to read, BATCH bytes at most, as soon as there is something. Nothing at the
    end. (From a descriptor that does not block, ``read1`` returns nothing when it would have to
    wait. Another process that shares standard input may have set that.)"""
    while True:
        try:
            return os.read(file.fileno(), BATCH)
        except BlockingIOError:
            descriptors.readable(file.fileno(), timeout=None)


def _numbered(texts: list[bytes], number: int, end: int) -> Iterator[Item]:
    """``end``: the bytes of the line end that these do not have any more."""
    for text in texts:
        size = len(text) + end
        if number == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        yield Item(number, text.removesuffix(b"\r"), size)
        number += 1


def is_regular(path: Path) -> bool:
    """Whether this is a plain file of its own, which keeps what is written to it."""
    try:
        return str(path) not in _STREAMS and stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def identity(path: str | Path) -> object:
    """A key that is the same for all names of one file, links included. None if it is nothing
    that keeps data, a terminal for example, or the command's own stream."""
    if str(path) in _STREAMS:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)  # The file does not exist yet.
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


class Output:
    """A file, or another open descriptor, that grows by whole lines.

    In a regular file, lines that are written twice go to the same place. So a :meth:`write`
    that was interrupted can be repeated.
    """

    def __init__(self, descriptor: int, size: int | None, name: str, owns: bool = True) -> None:
        self._descriptor = descriptor
        self._owns = owns
        self._name = name
        self._is_file = size is not None
        # A single attribute, so that no interruption can come between two changes.
        self._state: tuple[int, list[bytes]] = (size or 0, [])

    @classmethod
    def open(cls, path: Path, name: str, size: int | None = 0) -> Output:
        """Open a file that has this size in bytes. What is behind that is cut off.

        Args:
            name: what messages call it.
            size: None: all whole lines stay. An interruption may have left half a line.

        Raises:
            UnusableError: it cannot be opened.
        """
        try:
            if (stream := _STREAMS.get(str(path))) is not None:
                return cls(stream, None, name, owns=False)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return cls(descriptor, None, name)
            size = _count_lines(path)[1] if size is None else size
            os.ftruncate(descriptor, size)
        except OSError as error:
            raise UnusableError(f"{name} cannot be opened: {error.strerror}") from None
        return cls(descriptor, size, name)

    def add(self, line: bytes) -> None:
        """Add a line to the next write."""
        self._state[1].append(line)

    @property
    def is_pending(self) -> bool:
        """Whether there is something to write."""
        return bool(self._state[1])

    @property
    def is_empty(self) -> bool:
        """Whether this is a file that has nothing in it yet."""
        return self._state == (0, [])

    def write(self) -> None:
        """Write what was added."""
        at, lines = self._state
        left = memoryview(b"".join(lines))
        while left:
            written = self._write_at(left, at)
            at, left = at + written, left[written:]
        self._state = (at, [])

    def _write_at(self, data: memoryview, at: int) -> int:
        with self._named():
            if self._is_file:
                return os.pwrite(self._descriptor, data, at)
            while True:
                try:
                    return os.write(self._descriptor, data)
                except BlockingIOError:  # Another process may share the file, and have set that.
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()

    def sync(self) -> None:
        """Return when the data is on the disk, if this is a file."""
        if self._is_file:
            with self._named():
                os.fsync(self._descriptor)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UnwritableError(f"{self._name} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the descriptor, if it is ours."""
        if self._owns:
            os.close(self._descriptor)


# --- what an earlier run has left -------------------------------------------------------------


def whole_lines(path: Path) -> tuple[int, int]:
    """How many whole lines a file has, and their size in bytes.

    Raises:
        UnusableError: its last whole line is no JSON, so this command has not written it.
    """
    if not path.exists():
        return 0, 0
    count, size = _count_lines(path)
    if count and not _is_json(_last_line(path, size)):
        raise UnusableError(
            f"line {count} of {path} is not JSON, so {path} is not an output of this command"
        )
    return count, size


def _count_lines(path: Path) -> tuple[int, int]:
    """How many whole lines a file has, and their size in bytes."""
    count = size = read = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            count += block.count(b"\n")
            if (last := block.rfind(b"\n")) >= 0:
                size = read + last + 1
            read += len(block)
    return count, size


def _last_line(path: Path, size: int) -> bytes:
    """The line that ends at this offset."""
    with path.open("rb") as file:
        taken, at = b"", size
        while at:
            step = min(BLOCK, at)
            at -= step
            file.seek(at)
            taken = file.read(step) + taken
            if (end := taken.rfind(b"\n", 0, len(taken) - 1)) >= 0:
                return taken[end + 1 :]
    return taken


_NO_JSON = (ValueError, RecursionError)
"""What reading JSON raises. RecursionError comes from thousands of nested brackets."""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except _NO_JSON:
        return False
    return True


def recorded_errors(path: Path | None) -> Iterator[tuple[dict[str, Any], int]]:
    """Each error in the file of errors, and the offset at which it ends.

    Raises:
        UnusableError: this command has not written a line of it.
    """
    if path is None or not is_regular(path):
        return
    size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            size += len(line)
            error = None
            with contextlib.suppress(*_NO_JSON):
                error = json.loads(line)
            if not isinstance(error, dict) or not isinstance(error.get("line"), int):
                raise UnusableError(f"{path} is not a file of errors that this command has written")
            yield error, size


def size_of_errors(path: Path | None, lines: int) -> int:
    """The offset up to which the errors belong to the first ``lines`` lines."""
    sizes = (size for error, size in recorded_errors(path) if error["line"] <= lines)
    return max(sizes, default=0)
