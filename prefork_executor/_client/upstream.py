"""What comes upstream: outcomes, yells, and notices."""

from __future__ import annotations

from collections.abc import Callable

from .._messages import channels
from .._messages.channels import Packet, PoolChannels
from .._messages.wire import Kind
from .._pickling import calls
from .._support.logs import logger
from ..errors import ProtocolError
from .direct import DirectReader
from .notices import Notices
from .outcomes import Outcome, open_all, open_outcome
from .shared_state import SharedState
from .supervisors import Supervisors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


MAX_OUTCOMES = 256
"""Outcomes to read before their futures are resolved, if a message has many."""
BATCH = 64
"""Messages to read before their futures are resolved and new tasks are sent."""


class YellHooks:
    """The hooks for what tasks yell: the one for its type, or else ``on_yell``."""

    def __init__(self, on_yell: Callable[[int, Any], object] | None) -> None:
        self._on_yell = on_yell
        self._by_type: dict[type, Callable[[int, Any], object]] = {}

    def add(self, kind: type, hook: Callable[[int, Any], object]) -> None:
        """Call this hook from now on for yells of exactly this type."""
        self._by_type[kind] = hook

    def call(self, packet: Packet) -> None:
        """In the I/O thread."""
        if self._on_yell is None and not self._by_type:
            channels.discard(packet)
            return
        try:
            data = calls.loads(channels.open_parts(packet))
            hook = self._by_type.get(type(data), self._on_yell)
            if hook is not None:
                hook(packet.number, data)
        except BaseException:
            # Even SystemExit: it would end this thread, and no future would ever be resolved.
            logger.exception("on_yell failed for a message from worker %d", packet.number)


class Upstream:
    """Reads messages in the I/O thread, which holds ``DirectReader.reading``."""

    def __init__(
        self,
        shared: SharedState,
        channels: PoolChannels,
        direct: DirectReader,
        hooks: YellHooks,
        notices: Notices,
        supervisors: Supervisors,
    ) -> None:
        self._shared = shared
        self._ledger = shared.ledger
        self._channels = channels
        self._direct = direct
        self._hooks = hooks
        self._notices = notices
        self._supervisors = supervisors

    def read_batch(self, outcomes: list[Outcome], enough: int) -> bool:
        """Returns True if there may be more to read. Stops after ``enough`` outcomes."""
        was_sent = self._ledger.was_sent
        for _ in range(BATCH):
            try:
                packet = self._direct.receive(self._channels.upstream)
            except BlockingIOError:
                return False
            except EOFError:
                self._supervisors.on_cut()
                return False
            except ProtocolError as error:
                logger.error("a malformed message from a worker was dropped: %s", error)
                continue
            kind = packet.kind
            if (kind == Kind.RESULT or kind == Kind.FAILURE) and was_sent(packet.number):
                outcomes.append(open_outcome(packet, self._ledger, self._channels.files))
                if len(outcomes) == enough:
                    return False
            elif kind == Kind.OUTCOMES:
                channels.discard(packet)
                open_all(packet.body, outcomes, self._ledger, self._shared.recorder)
                if len(outcomes) > MAX_OUTCOMES:
                    return True
            elif kind == Kind.YELL:
                self._hooks.call(packet)
            else:
                self._notices.handle(packet, outcomes)
        return True
