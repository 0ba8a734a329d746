"""What the client is told besides outcomes and yells, and how it is read.

A notice is read before anything is done about it. So whatever a malformed one makes of
its reader is raised here, and it can be dropped as a whole. Its descriptor, if it has
one, is closed in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from . import _channel, _failures, _pickling, _processes, _wire
from ._channel import Packet
from ._wire import Death, Kind
from .errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Parts = list[memoryview | bytes]


def read_notice(packet: Packet) -> Any:
    """What a notice says besides its numbers.

    Raises:
        ProtocolError: it is nothing that anybody should have sent to the client.
        Exception: its body is not what it should be.
    """
    parts = _channel.open_parts(packet)
    read = _READERS.get(packet.kind)
    if read is None:
        raise ProtocolError(f"nobody waits for kind {packet.kind}, number {packet.number}")
    return read(packet.number, parts)


def _nothing(_number: int, _parts: Parts) -> None:
    """Its numbers say it all."""


def _process(pid: int, _parts: Parts) -> None:
    if not 0 < pid < 2**31:
        raise ProtocolError(f"a process of number {pid}")


def _death(pid: int, parts: Parts) -> Death:
    death = _wire.unpack_death(pid, parts[0])
    _processes.split_status(death.status)  # Raises for what is no process's end.
    return death


def _decision(_number: int, parts: Parts) -> tuple[float, int, int, int, str]:
    at, live, start, retire, reason = _pickling.loads(parts)
    return float(at), int(live), int(start), int(retire), str(reason)


def _main(_number: int, parts: Parts) -> tuple[dict[str, bytes], tuple[str, ...], bool]:
    held, reasons, is_shared = _pickling.loads(parts)
    return dict(held), tuple(map(str, reasons)), bool(is_shared)


def _failure(_number: int, parts: Parts) -> BaseException:
    return _failures.load_failure(parts)


_READERS: dict[int, Callable[[int, Parts], Any]] = {
    Kind.READY: _nothing,
    Kind.INITIALIZER_FAILED: _failure,
    Kind.DEATH: _death,
    Kind.DECISION: _decision,
    Kind.SUPERVISOR_READY: _process,
    Kind.MAIN_HELD: _main,
    Kind.MARKER: _nothing,
    Kind.START_FAILED: _failure,
    Kind.RELOADED: _nothing,
    Kind.STOPPED: _nothing,
    Kind.WORKERS_TOLD: _nothing,
    Kind.UNBEGUN: _nothing,
}
