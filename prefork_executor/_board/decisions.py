"""How a decision is written down, the regulator's or one about memory: on the board, in messages,
and in histories.

A decision is packed once, when it is made. Only code that shows it to a person unpacks it. A pool
must not import :mod:`prefork_executor.stats` at its start, because that would take too long.
"""

from __future__ import annotations

import struct
import time

from .._support.wording import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..stats import ScalingDecision

_HEAD = struct.Struct("<qIIIH")
"""When (ns since the epoch), live workers before it, started, retired, and how many bytes of text
follow: why."""
_MAX_REASON_BYTES = 2**16 - 1


def pack_decision(live: int, start: int, retire: int, reason: str) -> bytes:
    """This many of those alive are started or retired now, or none for this reason."""
    text = reason.encode(errors="replace")[:_MAX_REASON_BYTES]
    return _HEAD.pack(time.time_ns(), live, start, retire, len(text)) + text


def check_decision(packed: bytes) -> None:
    """Raise ValueError if no decision was packed so."""
    if len(packed) < _HEAD.size or len(packed) != _HEAD.size + _HEAD.unpack_from(packed)[-1]:
        raise ValueError(f"{counted(len(packed), 'byte')} cannot be a decision")


def read_decision(packed: bytes) -> ScalingDecision:
    """What :func:`pack_decision` has packed. Of the reason there is what is there: the board may
    have cut it short."""
    from ..stats import ScalingDecision

    at, live, start, retire, size = _HEAD.unpack_from(packed)
    return ScalingDecision(
        at / 1e9, live, start, retire, printable(packed[_HEAD.size : _HEAD.size + size])
    )


def printable(text: bytes) -> str:
    """The text without anything that would do something to a terminal."""
    decoded = text.decode(errors="replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in decoded)
