"""What the client is told besides outcomes and yells: how each kind is read, and what the client
then does. The table is at the end.

A notice is read wholly before the client acts on it. If it is malformed, reading it raises, and
all of it is dropped. If it carries a descriptor, that is closed in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from .._board import decisions
from .._messages import channels, wire
from .._messages.channels import Packet
from .._messages.wire import Death, Kind
from .._pickling import calls, exceptions
from .._pickling.blame import describe
from .._server.users_code import failure_phrase
from .._support import faults
from .._support.logs import logger
from .._system import processes
from ..errors import ProtocolError
from .barriers import Barriers
from .deaths import Deaths
from .dispatch import Dispatcher
from .outcomes import Outcome, open_all
from .recovery import Recoveries
from .reloads import Reloads
from .shared_state import SharedState
from .supervisors import Supervisors
from .workers_main import WorkersMain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


Parts = list[memoryview | bytes]


def read_notice(packet: Packet) -> Any:
    """What a notice says besides its numbers.

    Raises:
        ProtocolError: no process should have sent this to the client.
        Exception: its body is not what it should be.
    """
    parts = channels.open_parts(packet)
    row = _TABLE.get(packet.kind)
    if row is None:
        raise ProtocolError(f"nothing awaits kind {packet.kind}, number {packet.number}")
    return row[0](packet.number, parts)


def _nothing(_number: int, _parts: Parts) -> None:
    """For kinds whose numbers say everything."""


def _process(pid: int, _parts: Parts) -> None:
    if not 0 < pid < 2**31:
        raise ProtocolError(f"a process of number {pid}")


def _death(pid: int, parts: Parts) -> Death:
    death = wire.unpack_death(pid, parts[0])
    processes.split_status(death.status)  # Raises if no process can end with this status.
    return death


def _decision(_number: int, parts: Parts) -> bytes:
    packed = bytes(parts[0])
    decisions.check_decision(packed)
    return packed


def _main(_number: int, parts: Parts) -> tuple[dict[str, bytes], tuple[str, ...], bool]:
    fingerprints, reasons, is_shared = calls.loads(parts)
    return dict(fingerprints), tuple(map(str, reasons)), bool(is_shared)


def _ready(_number: int, parts: Parts) -> int | None:
    return wire.unpack_ready(parts[0])


def _peak(_number: int, parts: Parts) -> tuple[int, int]:
    return wire.unpack_peak(parts[0])


def _failure(_number: int, parts: Parts) -> BaseException:
    return exceptions.load_failure(parts)


class Notices:
    """Handles notices in the I/O thread.

    Args:
        shared, recoveries, barriers, deaths, dispatcher, main, reloads, supervisors: the client's.
        break_off: called with a reason and an exception if the pool cannot go on.
    """

    def __init__(
        self,
        shared: SharedState,
        recoveries: Recoveries,
        barriers: Barriers,
        deaths: Deaths,
        dispatcher: Dispatcher,
        main: WorkersMain,
        reloads: Reloads,
        supervisors: Supervisors,
        break_off: Callable[[str, BaseException | None], None],
    ) -> None:
        self._shared = shared
        self._recoveries = recoveries
        self._barriers = barriers
        self._deaths = deaths
        self._dispatcher = dispatcher
        self._main = main
        self._reloads = reloads
        self._supervisors = supervisors
        self._break_off = break_off

    def handle(self, packet: Packet, outcomes: list[Outcome]) -> None:
        """Read a notice and act on it, or log it if it is malformed. ``outcomes`` were read
        before it, and are not in the books yet."""
        faults.at("client.heeds", packet.kind)
        try:
            told = read_notice(packet)
        except BaseException as error:
            # Even SystemExit: unpickling the user's exceptions may raise it.
            logger.error(
                "a malformed message of kind %d was dropped: %s", packet.kind, describe(error)
            )
            return
        _TABLE[packet.kind][1](self, packet, told, outcomes)

    def ready(self, packet: Packet, size: int | None, _outcomes: list[Outcome]) -> None:
        self._deaths.worker_is_ready(packet.number)
        if size is not None and (watch := self._shared.memory) is not None:
            with self._shared.lock:
                watch.note_new(size)

    def initializer_failed(
        self, packet: Packet, error: BaseException, _outcomes: list[Outcome]
    ) -> None:
        self._deaths.failed_to_start(packet.number, failure_phrase(packet.extra), error)

    def death(self, _packet: Packet, death: Death, outcomes: list[Outcome]) -> None:
        self._deaths.died(death, outcomes)

    def decision(self, _packet: Packet, decision: bytes, _outcomes: list[Outcome]) -> None:
        with self._shared.lock:
            self._shared.history.enter(decision)
        if (recorder := self._shared.recorder) is not None:
            recorder.decided(decision)

    def supervisor_ready(self, packet: Packet, _told: None, _outcomes: list[Outcome]) -> None:
        self._supervisors.is_ready(packet.number)

    def main_snapshot(
        self,
        _packet: Packet,
        told: tuple[dict[str, bytes], tuple[str, ...], bool],
        _outcomes: list[Outcome],
    ) -> None:
        self._main.told(*told)

    def start_failed(self, packet: Packet, error: BaseException, _outcomes: list[Outcome]) -> None:
        phrase = failure_phrase(packet.number)
        self._break_off(f"{phrase}: {type(error).__name__}: {error}", error)

    def marker(self, packet: Packet, _told: None, outcomes: list[Outcome]) -> None:
        with self._shared.lock:
            just_read = {done.number for done in outcomes}
            found = self._barriers.passed(packet.number, just_read)
        open_all(memoryview(found), outcomes, self._shared.ledger, self._shared.recorder)

    def peak(self, packet: Packet, told: tuple[int, int], _outcomes: list[Outcome]) -> None:
        with self._shared.lock:
            self._shared.ledger.note_peak(packet.number, *told)

    def workers_told(self, packet: Packet, _told: None, _outcomes: list[Outcome]) -> None:
        with self._shared.lock:
            self._dispatcher.release(packet.number)

    def reloaded(self, packet: Packet, _told: None, _outcomes: list[Outcome]) -> None:
        self._reloads.end(packet.number)

    def stopped(self, _packet: Packet, _told: None, _outcomes: list[Outcome]) -> None:
        # As after a death in IDLE: a message may have woken this worker and no other.
        with self._shared.lock:
            self._recoveries.drain_pipe()

    def unbegun(self, packet: Packet, _told: None, _outcomes: list[Outcome]) -> None:
        self._deaths.requeue_unbegun(packet.number, packet.extra)


Reader = Callable[[int, Parts], "Any"]
Handler = Callable[[Notices, Packet, "Any", list[Outcome]], None]

_TABLE: dict[int, tuple[Reader, Handler]] = {
    Kind.READY: (_ready, Notices.ready),
    Kind.INITIALIZER_FAILED: (_failure, Notices.initializer_failed),
    Kind.DEATH: (_death, Notices.death),
    Kind.DECISION: (_decision, Notices.decision),
    Kind.SUPERVISOR_READY: (_process, Notices.supervisor_ready),
    Kind.MAIN_SNAPSHOT: (_main, Notices.main_snapshot),
    Kind.MARKER: (_nothing, Notices.marker),
    Kind.START_FAILED: (_failure, Notices.start_failed),
    Kind.RELOADED: (_nothing, Notices.reloaded),
    Kind.STOPPED: (_nothing, Notices.stopped),
    Kind.WORKERS_TOLD: (_nothing, Notices.workers_told),
    Kind.UNBEGUN: (_nothing, Notices.unbegun),
    Kind.PEAK: (_peak, Notices.peak),
}
