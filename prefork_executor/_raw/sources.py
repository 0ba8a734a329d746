"""What a raw child waits for: its sources of work, its leash, and signals.

A source is an object with ``fileno()``, or a descriptor: a listener, a datagram socket, a pipe.
Many children wait for the same sources. On Linux the kernel wakes one of them for each event.
Python's selectors can be sources, too. The kernel wakes all children for one of those.
"""

from __future__ import annotations

import contextlib
import errno
import select
from collections.abc import Sequence
from typing import Any

from .._system import green
from .._system.descriptors import Doorbell, Poller

_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Sources:
    """The sources of one child.

    Args:
        leash: the child's end of its leash. Its end wakes every wait.
    """

    def __init__(self, leash: int) -> None:
        self._leash = leash
        self._poller = Poller()
        self._poller.register(leash)
        self._watched: list[tuple[Any, int]] = []

    def add_bell(self) -> Doorbell:
        """A new doorbell, whose rings wake every wait."""
        bell = Doorbell.new()
        self._poller.register(bell.read_end)
        return bell

    def watch(self, sources: Sequence[Any]) -> None:
        """From now on wait for these sources and no others.

        Raises:
            TypeError, ValueError: one of them is no source, or is closed.
        """
        found = [(source, descriptor_of(source)) for source in sources]
        if _are_same(found, self._watched):
            return
        for _, descriptor in self._watched:
            with contextlib.suppress(OSError, KeyError):  # It may have been closed.
                self._poller.unregister(descriptor)
        self._watched = []
        for source, descriptor in found:
            if descriptor not in [other for _, other in self._watched]:
                self._register(descriptor)
                self._watched.append((source, descriptor))

    def _register(self, descriptor: int) -> None:
        try:
            self._poller.register(descriptor, shared=True)
        except OSError as error:
            # The kernel does not wait exclusively for an epoll object.
            if error.errno != errno.EINVAL:
                raise
            self._poller.register(descriptor)

    def wait(self, timeout: float) -> tuple[list[Any], list[int]]:
        """Wait for ``timeout`` seconds at most. Returns the sources that are ready, and all
        descriptors that are."""
        ready = self._poller.wait(timeout)
        return [source for source, descriptor in self._watched if descriptor in ready], ready

    def look(self) -> list[Any]:
        """The sources that are ready now, even if the kernel has told another child of them."""
        poll = green.poll()
        for _, descriptor in self._watched:
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, events in poll.poll(0) if events & _READABLE}
        return [source for source, descriptor in self._watched if descriptor in ready]


def descriptor_of(source: Any) -> int:
    """The descriptor of a source.

    Raises:
        TypeError, ValueError: this is no source, or it is closed.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        descriptor = source
    elif callable(getattr(source, "fileno", None)):
        descriptor = source.fileno()
    else:
        kind = type(source).__name__
        raise TypeError(f"a source must be a descriptor or have a method fileno, not {kind}")
    if descriptor < 0:
        raise ValueError(f"a source is closed: {source!r}")
    return int(descriptor)


def _are_same(found: list[tuple[Any, int]], watched: list[tuple[Any, int]]) -> bool:
    """Whether these are the sources that are watched. A bare descriptor may be another file's by
    now. The others are kept, so that no other object can have their identity."""
    return len(found) == len(watched) and all(
        new is old and number == known and new is not number
        for (new, number), (old, known) in zip(found, watched, strict=True)
    )
