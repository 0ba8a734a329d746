"""Does something as soon as the client has read all that was sent before a moment.

The client has both ends of the yell channel. A *marker* is a message that the client sends to
itself through that channel. When the client reads it, it has read everything that other processes
had sent before. A *barrier* is a marker together with a function that the client calls then::

    send(then) ──── a marker ────▶ yell channel ────▶ passed(number, ...) ────▶ then(...)

Three parts of the client use barriers: recoveries (`recovery.py`), time limits (`deadlines.py`),
and messages of several tasks (`batches.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Container

from .._messages.channels import PoolChannels

Then = Callable[[Container[int]], bytes | None]
"""A function that is called when a marker has come round, with the lock held. Its argument has the
tasks whose outcomes have been read and are not in the books yet. It may return further outcomes, in
the form of the body of an OUTCOMES packet."""


class Barriers:
    """The markers that are on their way. Call all methods with the client's lock held."""

    def __init__(self, channels: PoolChannels) -> None:
        self._channels = channels
        self._under_way: dict[int, Then] = {}
        self._last_number = 0

    def send(self, then: Then) -> bool:
        """Send a marker, and call ``then`` when it has come round. Returns False if the channel is
        full. The I/O thread empties it in its next turn, so the caller tries again then."""
        if not self._channels.send_marker(self._last_number + 1):
            return False
        self._last_number += 1
        self._under_way[self._last_number] = then
        return True

    def passed(self, number: int, just_read: Container[int]) -> bytes:
        """Call the function of the marker that has come round, and return the outcomes that it
        returns. A marker with an unknown number is ignored: a worker may have forged it.

        Args:
            number: the marker's.
            just_read: the tasks whose outcomes have been read and are not in the books yet.
        """
        then = self._under_way.pop(number, None)
        return b"" if then is None else then(just_read) or b""
