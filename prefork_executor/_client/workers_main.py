"""What the workers have in their main module, as far as the client knows."""

from __future__ import annotations

from .._pickling.calls import HeldModules, MainSnapshot
from .._support.logs import logger
from .shared_state import SharedState

_NOT_SHARED = "each worker imports the main module for itself, because workers could not share: %s"
_SHARED = "share_main is True, so workers share what the main module holds: %s"


class WorkersMain:
    """Known from the start if workers are forked from the caller's process. Otherwise known when
    the supervisor has reported it."""

    # From look on.
    snapshot: MainSnapshot
    modules: HeldModules

    def __init__(self, shared: SharedState, *, is_forked: bool) -> None:
        self._shared = shared
        self._is_forked = is_forked
        self._in_the_way: tuple[str, ...] = ()

    def look(self) -> None:
        """Set what the workers of a supervisor that starts now will have."""
        self.modules = HeldModules(is_forked=self._is_forked)
        if self._is_forked:
            self.snapshot = MainSnapshot.forked()
        else:
            self.snapshot = MainSnapshot.expected()

    def forget(self) -> None:
        """With the lock held: what the next workers have is not known yet."""
        self.snapshot = MainSnapshot.expected()

    def told(
        self, fingerprints: dict[str, bytes], reasons: tuple[str, ...], is_shared: bool
    ) -> None:
        """The supervisor has reported what main holds, and what prevents sharing it."""
        # Without the lock: comparing what main holds takes hashing.
        snapshot = self.snapshot
        if not snapshot.is_known:
            snapshot = MainSnapshot.imported(fingerprints, is_common=is_shared)
        with self._shared.lock:
            self.snapshot = snapshot
            said, self._in_the_way = self._in_the_way, reasons
            self._shared.history.workers_import_main(() if is_shared else reasons)
        if reasons and reasons != said:
            logger.info(_SHARED if is_shared else _NOT_SHARED, "; ".join(reasons))
