"""Message types to bytes and back. No sockets and no processes here.

Every message, on every channel, is one packet: a header of HEADER.size bytes
and a body. The header's fields:

======  =====  =================================================================
kind    u8     a :class:`Kind`; each kind travels on one channel only
flags   u8     BIG: the body is a table of part sizes, and the parts themselves
               lie in a shared file whose descriptor travels with the packet.
               NAMES: see CALLS
               HELD: see CALL
parts   u32    how many parts there are; without BIG always 1, the body itself,
               unless its kind says otherwise
number  u64    a task's number or a process id; the kind says which
extra   u64    a second number; the kind says which
======  =====  =================================================================

Part 0 is a pickle; the parts from 1 on are its out-of-band buffers (protocol 5), in
order. In the shared file every part begins at a multiple of ALIGNMENT. A part that has
READ beside its size in the table arrives as bytes, any other as a view of the file.
"""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator, Sequence

from .._support.named_tuples import NamedTuple
from .._support.wording import counted
from ..errors import ProtocolError

HEADER = struct.Struct("<BBxxIQQ")
BIG = 1
NAMES = 2
HELD = 4
READ = 1 << 63
"""Beside a part's size in the table: the receiver reads the part instead of mapping it."""
ALIGNMENT = 4096
"""Bytes. A page, which is enough for every NumPy type and vector instruction. At 64, a second
part would begin 16 bytes further into its page than a big bytes object does. Some processors
(EPYC) then copy at a fifth of their speed."""
INLINE_LIMIT = 32 * 1024
"""Bytes of body that travel in the packet itself. Above this, one copy into a shared file and a
mapping cost less than pushing the bytes through the socket. Below it, several packets fit into
the smallest usual socket buffer."""
HELD_LIMIT = 1024
"""Bytes of a packet that say which units of the executor's resources a task holds."""
PACKET_LIMIT = HEADER.size + HELD_LIMIT + INLINE_LIMIT
MAX_PARTS = (INLINE_LIMIT) // 8
"""At this number the table of sizes fills the body."""
MAX_PEAK = 1 << 56
"""Bytes: more than any process may have."""
LIGHT = 1 << 20
"""Bytes up to which a task has taken no memory: what Python needs for any task, and what the
kernel does not count at once. It tells nothing of them."""
MAX_CALLS = 64
"""Calls in one message: a slot of the scoreboard says how many come after a task, 63 at most."""


class Kind:
    """Plain ints instead of an enum: they are compared several times for each task."""

    # task pipe
    CALL = 1
    """number: the task's; extra: see :func:`pack_call_meta`. Body: the pickled call. With HELD,
    the size (u16) of a pickle that says which units of the executor's resources the task holds,
    and that pickle, come before the rest of the body."""
    CALLS = 2
    """Tasks known to be short. number: the first task's, the others count up from it; parts: how
    many; extra: as for CALL. Body: their sizes (u32); with NAMES, if their functions differ, the
    indices of their names (u16); then the pickled calls."""
    # yell channel
    RESULT = 16
    """number: the task's; extra: ns it ran. Body: the pickled result."""
    FAILURE = 17
    """As RESULT; body: the pickled :class:`~prefork_executor._pickling.calls.Failure`."""
    YELL = 18
    """number: the worker's pid. Body: pickled data for the caller's hook."""
    READY = 19
    """number: the worker's pid; extra: its slot. It will take tasks now. Body: with a bound for
    the pool's memory, what it takes of that (u64); else nothing."""
    INITIALIZER_FAILED = 20
    """number: the worker's pid; extra: which step of its start failed (`_server/users_code.py`).
    Body: a pickled Failure."""
    DEATH = 21
    """From the supervisor. number: the pid. Body: DEATH_BODY."""
    DECISION = 22
    """From the supervisor. Body: a packed decision (`_board/decisions.py`)."""
    SUPERVISOR_READY = 23
    """From the supervisor. It will now fork workers. number: its process id."""
    MARKER = 24
    """From the client to itself: all that was sent before it has been read."""
    START_FAILED = 25
    """From the supervisor, which ends because of it. number: which step of its start failed
    (`_server/users_code.py`). Body: a pickled Failure."""
    RELOADED = 26
    """From the supervisor. number: that of the last RELOAD that is complete."""
    WORKERS_TOLD = 27
    """From the supervisor: the workers that END_WORKERS named will take no more tasks. number:
    that command's extra."""
    OUTCOMES = 28
    """Body: outcomes one after another. Each is a whole RESULT or FAILURE packet that has its
    size in place of its number of parts. While a recording is on, a SPAN precedes each."""
    UNBEGUN = 29
    """number: a task; extra: how many there are, counting up from it. A worker has taken them
    and will not begin them."""
    STOPPED = 30
    """From the supervisor. number: the pid of a worker that a signal has stopped."""
    SPAN = 31
    """Only within OUTCOMES. number: the task's; extra: ns it ran. Body: SPAN_BODY."""
    MAIN_SNAPSHOT = 40
    """From the process that has imported main anew. Body: pickled: what its ``__main__`` holds,
    why workers may not share it, and whether they do."""
    PEAK = 41
    """number: the task's, whose outcome follows; it has taken more than LIGHT. Body: PEAK_BODY.
    Sent in pools with a bound for their memory only."""
    # control
    DESCRIPTORS = 32
    """To the supervisor, with the descriptors of the channels and the board."""
    SHUTDOWN = 33
    """To the supervisor: retire every worker, then end."""
    END_WORKERS = 34
    """To the supervisor: end all the workers there are, now. number: the signal."""
    END_TASK = 35
    """To the supervisor: end the worker that runs this task. number: the task's;
    extra: the worker's slot."""
    RELOAD = 36
    """To the supervisor: replace all workers by new ones. number: the one that RELOADED
    returns."""
    KEEP_OLD = 37
    """To the supervisor: stop a RELOAD that is not complete."""
    END_WORKER = 38
    """To the supervisor: end this worker. number: its pid; extra: the signal."""
    SIGN = 39
    """To the supervisor: write this number on the board."""
    RETIRE_WORKER = 42
    """To the supervisor: have this worker leave as soon as it holds nothing. number: its pid."""


PEAK_BODY = struct.Struct("<QQ")
"""bytes that the task has added to its worker at most, and that earlier ones had left there."""
SPAN_BODY = struct.Struct("<QII")
"""When the task began (ns, monotonic clock), its worker's pid and slot."""
DEATH_BODY = struct.Struct("<qQQQQQQQQQ")
"""Wait status, slot index, state, task, tasks done, flags, tail, born, since, at."""
TOLD = 1
"""In a death's flags: the worker had been told to leave, or was ended on purpose."""
OUT_OF_MEMORY = 2
"""In a death's flags: the system was killing processes for lack of memory then."""
NEW = 4
"""In a death's flags: the worker was to replace others, which still live; see RELOAD."""


class Death(NamedTuple):
    """A worker's end as the supervisor saw it, with the content of its slot. ``at`` is the time
    (ns, monotonic clock, like the slot's times)."""

    pid: int
    status: int
    slot: int
    state: int
    task: int
    done: int
    flags: int = 0
    tail: int = 0
    born: int = 0
    since: int = 0
    at: int = 0


_HELD_SIZE = struct.Struct("<H")


def pack(kind: int, number: int = 0, extra: int = 0, body: bytes = b"", held: bytes = b"") -> bytes:
    """A packet whose one part is its body. ``held``: see CALL."""
    if held:
        return HEADER.pack(kind, HELD, 1, number, extra) + _with_size(held) + body
    return HEADER.pack(kind, 0, 1, number, extra) + body


def _with_size(held: bytes) -> bytes:
    return _HELD_SIZE.pack(len(held)) + held


def split_held(body: memoryview) -> tuple[bytes, memoryview]:
    """What the body of a CALL with HELD begins with, and the rest.

    Raises:
        ProtocolError: it is no such body.
    """
    if len(body) < _HELD_SIZE.size:
        raise ProtocolError(f"a call of {counted(len(body), 'byte')} that holds units")
    end = _HELD_SIZE.size + _HELD_SIZE.unpack_from(body)[0]
    if end > len(body):
        raise ProtocolError(f"units in {end} bytes of a call of {len(body)}")
    return bytes(body[_HELD_SIZE.size : end]), body[end:]


def unpack_command(packet: bytes) -> tuple[int, int, int]:
    """A command to the supervisor: its kind, number and extra.

    Raises:
        ProtocolError: it is no command, or cannot be carried out.
    """
    if len(packet) != HEADER.size:
        raise ProtocolError(f"a command of {counted(len(packet), 'byte')}")
    kind, _, _, number, extra = HEADER.unpack(packet)
    if not (Kind.SHUTDOWN <= kind <= Kind.SIGN or kind == Kind.RETIRE_WORKER):
        raise ProtocolError(f"a command of kind {kind}")
    sent = {Kind.END_WORKERS: number, Kind.END_WORKER: extra}.get(kind)
    if sent is not None and sent not in signal.valid_signals():
        raise ProtocolError(f"a command to end workers by signal {sent}")
    return kind, number, extra


def pack_big(kind: int, number: int, extra: int, sizes: Sequence[int], held: bytes = b"") -> bytes:
    """A packet whose parts lie in a shared file. ``sizes`` are in bytes, some with READ. ``held``:
    see CALL."""
    table = struct.pack(f"<{len(sizes)}Q", *sizes)
    if held:
        return HEADER.pack(kind, BIG | HELD, len(sizes), number, extra) + _with_size(held) + table
    return HEADER.pack(kind, BIG, len(sizes), number, extra) + table


TICK = 10
"""Times of submission travel as nanoseconds on the monotonic clock, without their last 10
bits. So they fit beside a name, for nine years."""


def pack_call_meta(name: int, submitted: int) -> int:
    """What a call carries beside its pickle: the index of its name, and when it was submitted
    (in ticks; 0 if its wait is not measured)."""
    return submitted << 16 | name


def unpack_call_meta(meta: int) -> tuple[int, int]:
    """The index of the name, and the time of submission in nanoseconds, or 0."""
    return meta & 0xFFFF, meta >> 16 << TICK


def pack_calls(
    number: int, bodies: Sequence[bytes], meta: int = 0, names: Sequence[int] = ()
) -> bytes:
    """A packet of calls whose tasks' numbers follow each other."""
    count = len(bodies)
    sizes = struct.pack(f"<{count}I", *map(len, bodies))
    indices = struct.pack(f"<{len(names)}H", *names)
    header = HEADER.pack(Kind.CALLS, NAMES if names else 0, count, number, meta)
    return b"".join((header, sizes, indices, *bodies))


def unpack_names(count: int, body: memoryview) -> Sequence[int]:
    """The indices of the names in the body of a CALLS packet with NAMES, after
    :func:`unpack_calls` has checked the body."""
    return struct.unpack_from(f"<{count}H", body, 4 * count)


def unpack_calls(count: int, body: memoryview, flags: int = 0) -> list[memoryview]:
    """The calls in the body of a CALLS packet.

    Raises:
        ProtocolError: there are too many, or the body is not as long as its calls.
    """
    start = 6 * count if flags & NAMES else 4 * count
    if not 0 < count <= MAX_CALLS or start > len(body):
        raise ProtocolError(f"{counted(count, 'call')} in {counted(len(body), 'byte')}")
    bodies = []
    for size in struct.unpack_from(f"<{count}I", body):
        bodies.append(body[start : start + size])
        start += size
    if start != len(body):
        raise ProtocolError(f"calls of {counted(start, 'byte')} in {counted(len(body), 'byte')}")
    return bodies


def unpack_outcomes(body: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Kind, task, duration and pickle of each outcome in the body of an OUTCOMES packet.

    Raises:
        ProtocolError: the body does not end where an outcome ends.
    """
    at, end = 0, len(body)
    while at < end:
        if at + HEADER.size > end:
            raise ProtocolError(f"half an outcome at byte {at} of {end}")
        kind, _, size, number, duration = HEADER.unpack_from(body, at)
        at += HEADER.size + size
        if at > end:
            raise ProtocolError(f"an outcome of {counted(size, 'byte')} that ends at {at} of {end}")
        yield kind, number, duration, body[at - size : at]


def unpack_span(body: memoryview) -> tuple[int, int, int]:
    """When a task began, and its worker's pid and slot.

    Raises:
        ProtocolError: the body is not that of a SPAN.
    """
    if len(body) != SPAN_BODY.size:
        raise ProtocolError(f"a task's span of {counted(len(body), 'byte')}")
    begin, pid, slot = SPAN_BODY.unpack(body)
    return begin, pid, slot


def unpack_peak(body: bytes | memoryview) -> tuple[int, int]:
    """What a task has added to its worker, and what earlier ones had left there.

    Raises:
        ProtocolError: it is no PEAK's body, or no process is so large.
    """
    if len(body) != PEAK_BODY.size:
        raise ProtocolError(f"a task's peak of {counted(len(body), 'byte')}")
    added, left = PEAK_BODY.unpack(body)
    if max(added, left) >= MAX_PEAK:
        raise ProtocolError(f"a task that has taken {added} bytes beside {left}")
    return added, left


def unpack_ready(body: bytes | memoryview) -> int | None:
    """What a new worker takes of the memory, if it says so.

    Raises:
        ProtocolError: it is no READY's body.
    """
    if len(body) not in (0, 8):
        raise ProtocolError(f"a worker that is ready in {counted(len(body), 'byte')}")
    return int.from_bytes(body, "little") if body else None


def unpack_sizes(parts: int, table: memoryview) -> list[int]:
    """The parts' sizes from the body of a BIG packet, some with READ.

    Raises:
        ProtocolError: the table does not have one entry for each part.
    """
    if parts < 1 or parts > MAX_PARTS or len(table) != 8 * parts:
        raise ProtocolError(f"{counted(len(table), 'byte')} of sizes for {counted(parts, 'part')}")
    return list(struct.unpack(f"<{parts}Q", table))


def offsets(sizes: Sequence[int]) -> list[int]:
    """Where each part begins in the shared file. The last entry is where the last part's
    padding ends: the smallest size of the file."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    return starts


def pack_death(death: Death) -> bytes:
    return pack(Kind.DEATH, death.pid, 0, DEATH_BODY.pack(*death[1:]))


def unpack_death(pid: int, body: bytes | memoryview) -> Death:
    try:
        return Death(pid, *DEATH_BODY.unpack(body))
    except struct.error as error:
        raise ProtocolError(f"a death notice of {counted(len(body), 'byte')}") from error
