"""Message types to bytes and back. No sockets and no processes here.

Every message, on every channel, is one packet: a header of HEADER.size bytes
and a body. The header's fields:

======  =====  =================================================================
kind    u8     a :class:`Kind`; each kind travels on one channel only
flags   u8     BIG: the body is a table of part sizes, and the parts themselves
               lie in a shared file whose descriptor travels with the packet
parts   u32    how many parts there are; without BIG always 1, the body itself
number  u64    a task's number, or a process id, by kind
extra   u64    a second number, by kind
======  =====  =================================================================

Part 0 is a pickle; parts 1 and up are its out-of-band buffers (protocol 5), in
order. In the shared file every part begins at a multiple of ALIGNMENT.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from .errors import ProtocolError

HEADER = struct.Struct("<BBxxIQQ")
BIG = 1
ALIGNMENT = 64
"""Bytes. A cache line, and enough for every NumPy type and vector instruction."""
INLINE_LIMIT = 32 * 1024
"""Bytes of body that travel in the packet itself. Above it, one copy into a
shared file and a mapping cost less than pushing the bytes through the socket;
it also keeps several packets within the smallest usual socket buffer."""
PACKET_LIMIT = HEADER.size + INLINE_LIMIT
MOST_PARTS = (INLINE_LIMIT) // 8
"""A table of sizes fills the body at most."""


class Kind(enum.IntEnum):
    # task pipe
    CALL = 1
    """number: the task's. Body: the pickled call."""
    # yell channel
    RESULT = 16
    """number: the task's; extra: ns it ran. Body: the pickled result."""
    FAILURE = 17
    """As RESULT; body: the pickled :class:`~prefork_executor._pickling.Failure`."""
    YELL = 18
    """number: the worker's pid. Body: pickled data for the caller's hook."""
    READY = 19
    """number: the worker's pid; extra: its slot. It will take tasks now."""
    INITIALIZER_FAILED = 20
    """number: the worker's pid. Body: a pickled Failure."""
    DEATH = 21
    """From the supervisor. number: the pid. Body: DEATH_BODY."""
    DECISION = 22
    """From the supervisor. Body: a pickled decision with its time."""
    SUPERVISOR_READY = 23
    """Body: pickled, what the supervisor's ``__main__`` holds."""
    MARKER = 24
    """From the client to itself. All that was sent before it has been read."""
    # control
    DESCRIPTORS = 32
    """To the supervisor, with the descriptors of the channels and the board."""
    SHUTDOWN = 33
    """To the supervisor: retire every worker, then end."""
    END_NOW = 34
    """To the supervisor: end every worker now, then end. number: the signal."""


DEATH_BODY = struct.Struct("<qQQQQ")
"""wait status, slot index, state, task, tasks done."""


class Death(NamedTuple):
    """A worker's end as the supervisor saw it, with its slot as it was then."""

    pid: int
    status: int
    slot: int
    state: int
    task: int
    done: int


def pack(kind: int, number: int = 0, extra: int = 0, body: bytes = b"") -> bytes:
    """A packet whose one part is its body."""
    return HEADER.pack(kind, 0, 1, number, extra) + body


def pack_big(kind: int, number: int, extra: int, sizes: list[int]) -> bytes:
    """A packet whose parts, of these sizes in bytes, lie in a shared file."""
    table = struct.pack(f"<{len(sizes)}Q", *sizes)
    return HEADER.pack(kind, BIG, len(sizes), number, extra) + table


def unpack_sizes(parts: int, table: memoryview) -> list[int]:
    """The sizes of the parts from the body of a BIG packet.

    Raises:
        ProtocolError: the table does not have one entry a part.
    """
    if parts < 1 or parts > MOST_PARTS or len(table) != 8 * parts:
        raise ProtocolError(f"{len(table)} bytes of sizes for {parts} parts")
    return list(struct.unpack(f"<{parts}Q", table))


def offsets(sizes: list[int]) -> list[int]:
    """Where each part begins in the shared file, and at the end where the last
    one's padding ends: the size of the file."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    return starts


def pack_death(death: Death) -> bytes:
    body = DEATH_BODY.pack(death.status, death.slot, death.state, death.task, death.done)
    return pack(Kind.DEATH, death.pid, 0, body)


def unpack_death(pid: int, body: bytes | memoryview) -> Death:
    try:
        return Death(pid, *DEATH_BODY.unpack(body))
    except struct.error as error:
        raise ProtocolError(f"a death notice of {len(body)} bytes") from error
