"""Sending and receiving messages, big payloads included.

A *payload* is a list of parts: a pickle, and its out-of-band buffers. One that
fits a packet travels in it. A bigger one is written into a shared file (a memfd
on Linux) whose descriptor travels with the packet (SCM_RIGHTS). The receiver
maps the file privately. So its pages are shared until they are written to, and
arrays over them are writable.

Nothing here sets O_NONBLOCK on a socket: that would affect every process that
shares the end. A call that must not block uses MSG_DONTWAIT.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import posix
import socket
from collections.abc import Sequence
from pickle import PickleBuffer

from .._board.scoreboard import FILE_NAME, Scoreboard
from .._support import faults
from .._support.named_tuples import NamedTuple
from .._support.wording import counted
from .._system.descriptors import (
    CMSG_CLOEXEC,
    Doorbell,
    Lifeline,
    Socket,
    adopted_socket,
    close_quietly,
    is_at_end,
    pause,
    socket_pair,
)
from .._system.shared_files import file_size_limit, map_private, map_shared, shared_file
from ..errors import ProtocolError
from . import wire
from .payload_files import PayloadFiles, new_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Ancillary = list[tuple[int, int, bytes]]
    Taken = tuple[int, Ancillary, int, Any]
    """What ``recvmsg_into`` returns: a message's size, and what came with it."""

Part = bytes | PickleBuffer | memoryview
DONTWAIT = int(socket.MSG_DONTWAIT)  # A plain int: combining enum members is slow.
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)
_MAX_DESCRIPTORS = 8
REFERENCES_INTERVAL = 0.002
"""Seconds after which a sender that may wait tries again when too many descriptors are
under way. Nothing tells when some have arrived."""
MAX_READ = 1024 * 1024
"""Bytes up to which a pickle is read from its file. Mapping costs as much as copying a few
hundred kilobytes."""
_NONE: list[int] = []


class Packet(NamedTuple):
    """One received message. ``body`` is a view into the receiver's buffer, valid
    until the next receive. ``descriptor`` is that of the shared file, or -1."""

    kind: int
    flags: int
    parts: int
    number: int
    extra: int
    body: memoryview
    descriptor: int


class Parcel:
    """A big payload in its file, ready to be sent. Copying it took time, and sending it takes
    none. Closing it may take time again: the last close of a file frees its memory."""

    __slots__ = ("_file", "table")

    def __init__(self, file: tuple[int, int], table: list[int]) -> None:
        self._file: tuple[int, int] | None = file
        self.table = table

    def send(
        self,
        end: Socket,
        kind: int,
        number: int,
        extra: int,
        flags: int = 0,
        held: bytes = b"",
    ) -> None:
        """Send it once, and then close it. Raises what :func:`send` raises. After
        BlockingIOError it can be sent again."""
        if self._file is None:
            raise ValueError("a parcel that has been sent")
        packet = wire.pack_big(kind, number, extra, self.table, held)
        faults.at("payload.sends")
        send_descriptors(end, packet, [self._file[0]], flags)
        faults.at("payload.sent")

    def give_to(self, files: PayloadFiles) -> None:
        """It will not be sent, so its file may carry another payload."""
        file, self._file = self._file, None
        if file is not None:
            files.give(file)

    def close(self) -> None:
        """Let go of its file. Safe to call again."""
        file, self._file = self._file, None
        if file is not None:
            posix.close(file[0])

    __del__ = close


def wrap(parts: Sequence[Part], files: PayloadFiles | None = None) -> Parcel:
    """Copy a payload into one of the ``files``, or a new one.

    Raises:
        OSError: no descriptor or no memory was left for it.
        BufferError, ValueError: a buffer cannot be read.
    """
    views = [part.raw() if isinstance(part, PickleBuffer) else memoryview(part) for part in parts]
    if len(views) > wire.MAX_PARTS:
        raise OSError(errno.EMSGSIZE, f"a payload of {len(views)} out-of-band buffers")
    starts = wire.offsets([view.nbytes for view in views])
    file = (files.take if files is not None else new_file)(starts[-1])
    parcel = Parcel(file, _table(views))
    for view, start in zip(views, starts, strict=False):
        faults.at("payload.writes", file[0], view, start)
        _write_all(file[0], view, start)
    return parcel


def send(
    end: Socket,
    kind: int,
    number: int,
    extra: int,
    parts: Sequence[Part],
    flags: int = 0,
    files: PayloadFiles | None = None,
    held: bytes = b"",
) -> None:
    """Send one message. A big payload travels in one of the ``files``, if one fits. ``held``: see
    `wire.Kind.CALL`.

    Raises:
        BlockingIOError: the channel is full (with DONTWAIT in ``flags``).
        OSError: the other end is gone; or, for a big payload, no descriptor or
            no memory was left for the shared file.
    """
    if len(parts) == 1:
        body = parts[0]
        if isinstance(body, bytes) and len(body) <= wire.INLINE_LIMIT:
            end.send(wire.pack(kind, number, extra, body, held), flags)
            return
    parcel = wrap(parts, files)
    try:
        parcel.send(end, kind, number, extra, flags, held)
    except BlockingIOError:
        if files is not None:
            parcel.give_to(files)  # For the next attempt.
        raise
    finally:
        parcel.close()


def send_with_spare(
    end: Socket, kind: int, number: int, extra: int, body: bytes, files: PayloadFiles
) -> bool:
    """Send a small message, and with it a spare one of the ``files`` for the receiver to use.
    Returns False if it was not sent, because no file is spare or the channel is full."""
    file = files.take_spare()
    if file is None:
        return False
    try:
        send_descriptors(end, wire.pack(kind, number, extra, body), [file[0]], DONTWAIT)
    except OSError:
        # Any error: the caller then sends the message alone, and can report what that raises.
        files.give(file)
        return False
    posix.close(file[0])
    return True


def _keep_spare(packet: Packet, files: PayloadFiles | None) -> None:
    """The other end of :func:`send_with_spare`."""
    if packet.descriptor >= 0 and files is not None:
        files.give((packet.descriptor, os.fstat(packet.descriptor).st_size))
    else:
        discard(packet)


def _table(views: Sequence[memoryview]) -> list[int]:
    """The parts' sizes, and which parts the receiver reads: those of bytes. Code that is given
    a read-only buffer must accept bytes. Reading copies once, and if all parts are read,
    nothing needs to be mapped. Only a big pickle is better mapped: it is used at once."""
    is_read = [type(view.obj) is bytes and view.contiguous for view in views]
    is_read[0] = is_read[0] and views[0].nbytes <= MAX_READ
    return [
        view.nbytes | (wire.READ if read else 0) for view, read in zip(views, is_read, strict=True)
    ]


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view.nbytes:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def send_descriptors(
    end: Socket, packet: bytes, descriptors: Sequence[int], flags: int = 0
) -> None:
    """Send a packet that carries open descriptors.

    The kernel limits how many descriptors each user (except root) may have under way, to as
    many as a process may have open. Beyond that every channel counts as full.
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    while True:
        try:
            end.sendmsg([packet], [rights], flags)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            if flags & DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        pause(REFERENCES_INTERVAL)


def receive_descriptors(end: Socket) -> tuple[int, list[int]]:
    """Wait for a packet that carries descriptors. Returns its kind and the descriptors.

    Raises:
        EOFError: the other end is gone.
    """
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    # Receive this one packet only: on a stream the next may follow at once.
    data, ancillary, _, _ = end.recvmsg(wire.HEADER.size, space, CMSG_CLOEXEC)
    if not data:
        raise EOFError
    return data[0], _descriptors(ancillary)


def _descriptors(ancillary: Ancillary) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class Receiver:
    """Receives messages from one end, always into the same buffer."""

    def __init__(self, end: Socket) -> None:
        self.end = end
        self._view = memoryview(bytearray(wire.PACKET_LIMIT + 1))
        self._buffers = [self._view]

    def receive(self, flags: int = 0) -> Packet:
        """Take one message.

        Raises:
            BlockingIOError: there is none (with DONTWAIT in ``flags``).
            EOFError: there will be none, because the other end is gone.
            ProtocolError: what came is not a message of ours.
        """
        taken = self.end.recvmsg_into(self._buffers, _ONE_DESCRIPTOR, flags | CMSG_CLOEXEC)
        return self.packet(taken[0], taken[1])

    def receive_to(self, taken: list[Taken]) -> None:
        """Take one message, if there is one, and add it to ``taken`` in the same step, so that
        no signal handler can run in between. :meth:`packet` decodes it.

        Raises:
            BlockingIOError: there is none.
        """
        flags = DONTWAIT | CMSG_CLOEXEC
        taken.extend(map(self.end.recvmsg_into, (self._buffers,), (_ONE_DESCRIPTOR,), (flags,)))

    def packet(self, size: int, ancillary: Ancillary) -> Packet:
        """The message that was received last.

        Raises:
            EOFError, ProtocolError: as :meth:`receive`.
        """
        descriptors = _descriptors(ancillary) if ancillary else _NONE
        if not wire.HEADER.size <= size <= wire.PACKET_LIMIT or len(descriptors) > 1:
            close_quietly(descriptors)
            if not size and is_at_end(self.end):
                raise EOFError
            beside = counted(len(descriptors), "descriptor")
            raise ProtocolError(f"a packet of {counted(size, 'byte')} with {beside}")
        header = wire.HEADER.unpack_from(self._view)
        descriptor = descriptors[0] if descriptors else -1
        return Packet._make((*header, self._view[wire.HEADER.size : size], descriptor))


def open_parts(packet: Packet, files: PayloadFiles | None = None) -> list[memoryview | bytes]:
    """The payload of a packet. Its shared file is read or mapped, and then closed, or
    kept among the ``files``.

    Raises:
        OSError: the descriptor did not arrive (this process has too many open),
            or there is no room to map the file.
        MemoryError: there is no room to read it.
        ProtocolError: the table of sizes does not fit the file.
    """
    if not packet.flags & wire.BIG:
        _keep_spare(packet, files)
        return [packet.body]
    descriptor = packet.descriptor
    if descriptor < 0:
        raise OSError(
            errno.EMFILE, "a big payload could not be received: too many open descriptors"
        )
    try:
        table = wire.unpack_sizes(packet.parts, packet.body)
        sizes = [entry & ~wire.READ for entry in table]
        starts = wire.offsets(sizes)
        size = os.fstat(descriptor).st_size
        if not 0 < starts[-1] <= size:
            raise ProtocolError(
                f"a shared file of {counted(size, 'byte')} that does not hold {starts[-1]}"
            )
        faults.at("payload.opens")
        is_mapped = not all(entry & wire.READ for entry in table)
        whole = map_private(descriptor, starts[-1]) if is_mapped else None
        parts = [
            _read(descriptor, part, start)
            if entry & wire.READ or whole is None
            else whole[start : start + part]
            for entry, part, start in zip(table, sizes, starts, strict=False)
        ]
        faults.at("payload.opened")
        if files is not None:
            # Mark it as given away first, or an interrupt would have it closed twice.
            file, descriptor = (descriptor, size), -1
            if whole is None:
                files.give(file)
            else:
                files.give_when_unmapped(file, whole.obj)
        return parts
    finally:
        if descriptor >= 0:
            posix.close(descriptor)


def _read(descriptor: int, size: int, start: int) -> bytes:
    try:
        data = os.pread(descriptor, size, start)
        while len(data) < size:  # One read returns 2 GiB at most.
            more = os.pread(descriptor, size - len(data), start + len(data))
            if not more:
                raise ProtocolError("a shared file that has become shorter")
            data += more
    except MemoryError:
        why = f"{os.strerror(errno.ENOMEM)} for the {size} bytes of a payload"
        raise MemoryError(why) from None
    return data


def discard(packet: Packet) -> None:
    """Close the file that a packet carries, unread."""
    if packet.descriptor >= 0:
        posix.close(packet.descriptor)


# --- what one pool shares -------------------------------------------------------------------


class WorkerChannels(NamedTuple):
    """The ends of the supervisor and its workers."""

    tasks: Socket
    yells: Socket
    doorbell: Doorbell
    board: Scoreboard
    lifeline: Lifeline
    """The client's."""

    @classmethod
    def receive(cls, control: Socket, slots: int) -> WorkerChannels:
        """Wait for the descriptors that :meth:`PoolChannels.give_to` sends. This process
        cannot write to the board through the board's descriptor.

        Raises:
            EOFError: the client has gone.
        """
        _, (tasks, yells, bell_read, bell_write, board, life) = receive_descriptors(control)
        made = cls(
            tasks=adopted_socket(tasks),
            yells=adopted_socket(yells),
            doorbell=Doorbell(bell_read, bell_write),
            board=open_board(board, slots),
            lifeline=Lifeline(life, -1),
        )
        made.board.disarm()
        return made

    def close(self) -> None:
        for end in (self.tasks, self.yells):
            end.close()
        self.doorbell.close()
        self.board.close()
        self.lifeline.close()


def new_board(slots: int) -> Scoreboard:
    """A board for this many workers.

    Raises:
        OSError: no descriptor, or no room.
    """
    size = Scoreboard.size_for(slots, file_size_limit())
    return open_board(shared_file(FILE_NAME, size), slots)


def open_board(descriptor: int, slots: int) -> Scoreboard:
    """The board in this file. Only this descriptor of it is open, and the board owns it from
    now on.

    Raises:
        OSError: no room.
    """
    try:
        size = min(os.fstat(descriptor).st_size, Scoreboard.size_for(slots))
        mapped = map_shared(descriptor, size)
    except BaseException:
        posix.close(descriptor)
        raise
    return Scoreboard(descriptor, slots, mapped)


def _pair(undo: contextlib.ExitStack) -> tuple[Socket, Socket]:
    """Two connected ends. ``undo`` closes them if a later step fails."""
    ends = socket_pair()
    for end in ends:
        undo.callback(end.close)
    return ends


class PoolChannels:
    """All channels of one pool, both ends, as its client owns them.

    Raises OSError, and leaves nothing open, if no descriptor or memory is left.
    Because the client holds both ends, it can take back what it sent, give the far ends to a
    second supervisor after the first, and send markers to itself.
    """

    def __init__(self, slots: int) -> None:
        with contextlib.ExitStack() as undo:
            self.tasks, self._tasks_far = _pair(undo)
            self.yells, self.yells_far = _pair(undo)
            self.doorbell = Doorbell.new()
            undo.callback(self.doorbell.close)
            self.lifeline = Lifeline.new()
            undo.callback(self.lifeline.close)
            self.board = new_board(slots)
            undo.pop_all()
        self.files = PayloadFiles(on_spare=self.wake)
        self.upstream = Receiver(self.yells)
        self.task_reader = Receiver(self._tasks_far)
        self.is_open = True

    def give_to(self, control: Socket) -> None:
        """Send the far ends to a supervisor."""
        descriptors = [
            self._tasks_far.fileno(),
            self.yells_far.fileno(),
            self.doorbell.read_end,
            self.doorbell.write_end,
            self.board.descriptor,
            self.lifeline.read_end,
        ]
        send_descriptors(control, wire.pack(wire.Kind.DESCRIPTORS), descriptors)

    def wake(self) -> None:
        """Wake the thread that reads upstream. If the channel is full, it is awake."""
        with contextlib.suppress(OSError):
            self.send_marker(0)

    def send_marker(self, number: int) -> bool:
        """Send a marker to ourselves. Returns False if the channel is full or cut."""
        try:
            self.yells_far.send(wire.pack(wire.Kind.MARKER, number), DONTWAIT)
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def are_cut(self) -> bool:
        """Whether a process that inherited an end has shut it down for all processes."""
        nothing = wire.pack(wire.Kind.MARKER)
        for end in (self.yells_far, self.tasks):
            try:
                end.send(nothing, DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                return True
        return False

    def renew(self) -> None:
        """Put new sockets in place of the old ones. Objects of this process that hold an end
        now hold the new one. No other process has the new ones.

        Raises:
            OSError: no descriptor left.
        """
        for olds in ((self.tasks, self._tasks_far), (self.yells, self.yells_far)):
            for old, new in zip(olds, socket_pair(), strict=True):
                os.dup2(new.fileno(), old.fileno(), inheritable=False)
                new.close()

    def close(self) -> None:
        """Close every end. Safe to call again."""
        self.is_open = False
        for end in (self.tasks, self._tasks_far, self.yells, self.yells_far):
            end.close()
        self.doorbell.close()
        self.board.close()
        self.lifeline.close()
        self.files.close()
