"""Which process workers are forked from: the one that has run the user's code, or a clean one.

The process that multiprocessing starts never runs a line of the user's. For each stage of
that code (see `users_code.py`) it forks a child that does, and watches:

    the clean process ── forks ──▶ a stage's process: runs it, and looks at what it now holds
        │                             │
        │ ◀── NOT_SHARED ─────────────┤ a thread, a connection, ...: it ends; workers are forked
        │                             │   from here, and each runs this stage for itself
        │ ◀── SHARED ─────────────────┘ nothing: it runs the next stage, or the pool

So of each two processes one waits and one works. The one that waits has the life of the other:
when the caller has gone it kills it, whatever it does, be it in one long call of C that lets no
thread of its own run; and when the other ends, it ends in the same manner, so that the caller,
whose child it is, sees how. The other way the kernel sees to it: a stage's process is killed
when the one that waits for it ends.

What ``preload`` leaves behind that may not be shared is an error: it is there for sharing. What
main leaves behind is no more than the reason why each worker imports main for itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import time
from collections.abc import Sequence

from .._board import scoreboard as sb
from .._messages import channels as channels_module
from .._messages.channels import WorkerChannels
from .._messages.wire import Kind
from .._pickling import calls, exceptions
from .._pickling.calls import Part
from .._system import descriptors, processes, signals
from .._system.descriptors import Poller, Socket
from . import end_signals
from .settings import Settings
from .users_code import MAIN, PRELOAD, Step, UserCode, failure_phrase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

logger = logging.getLogger("prefork_executor")

SHARED, NOT_SHARED = b"s", b"n"
"""What a stage's process says to the one that has forked it."""
LEAVE_WITHIN = 10.0
"""Seconds that a stage's process of no use may take to end: to run what was registered for
that, say. Then SIGKILL."""
KILL_WITHIN = 0.5
"""Seconds that one which runs the pool may take to end when the caller has gone."""
LOOK_INTERVAL = 0.1
"""Seconds between two looks for an end, where there is no pidfd that would tell of it."""


class Preparation:
    """Runs the user's code that comes before tasks, each stage in a process of its own."""

    def __init__(
        self,
        settings: Settings,
        user_code: UserCode,
        channels: WorkerChannels,
        control: Socket,
        client: int | None,
    ) -> None:
        self._settings = settings
        self._user_code = user_code
        self._channels = channels
        self._control = control
        self._client = client
        self._parent: Socket | None = None
        self._leaving: Leaving | None = None

    def run(self) -> bool:
        """Returns in the process that is to run the pool, True; and False in others that
        are to end. Those that wait end in here."""
        self._channels.board.words[sb.MAIN] = os.getpid()
        self._channels.lifeline.hang_on()
        if not self._settings.is_forked and not self._user_code.has_main:
            self._tell_main({}, [], True)
        for stage in self._user_code.stages:
            if not self._fork():
                # In the clean process again, which does without.
                self._channels.board.words[sb.MAIN] = os.getpid()
                break
            if not self._run_stage(stage):
                return False
        return True

    @property
    def parent(self) -> Socket | None:
        """At its end if the process that watches this one has ended; None: none does."""
        return self._parent

    @property
    def patience(self) -> float | None:
        """Seconds after which :meth:`look` is to be called at the latest."""
        return None if self._leaving is None else self._leaving.patience

    def look(self, *, wait: bool = False) -> None:
        """See a stage's process off that is of no use."""
        if self._leaving is not None and self._leaving.has_ended(wait=wait):
            self._leaving = None

    def close(self) -> None:
        """Close what is this process's own, as its forks do: in them this is a copy."""
        if self._parent is not None:
            self._parent.close()
        self._leaving = None

    # --- the process that waits -------------------------------------------------------

    def _fork(self) -> bool:
        """True in the stage's process; False in this one, if it goes on by itself."""
        here, there = descriptors.control_pair()
        parent = os.getpid()
        processes.flush_streams()
        processes.import_for_children()
        try:
            pid, mask = processes.fork_masked()
        except OSError as error:
            logger.warning("the user's code runs in every worker: no process for it: %s", error)
            self._user_code.why_not = f"no process could be forked for its import: {error}"
            here.close()
            there.close()
            return False
        if pid:
            signals.restore_mask(mask)
            there.close()
            with contextlib.closing(here):
                self._watch(pid, here)
            return False
        processes.die_with_parent(parent)
        self._channels.lifeline.hang_on()
        end_signals.ignore()
        signals.restore_mask(mask)
        here.close()
        self.close()
        self._parent = there
        self._channels.board.words[sb.MAIN] = os.getpid()
        return True

    def _watch(self, pid: int, link: Socket) -> None:
        """Wait for what the child says. Returns if it is of no use."""
        child = processes.open_pidfd(pid)
        poller = Poller()
        try:
            poller.register(link.fileno())
            poller.register(self._control.fileno(), end_only=True)
            for descriptor in (child, self._client):
                if descriptor is not None:
                    poller.register(descriptor)
            self._see_to(pid, link, poller, child is not None)
        finally:
            poller.close()
            if child is not None:
                descriptors.close_quietly([child])

    def _see_to(self, pid: int, link: Socket, poller: Poller, is_told: bool) -> None:
        is_shared = False
        while True:
            ready = poller.wait(None if is_told else LOOK_INTERVAL)
            if self._client in ready or descriptors.is_at_end(self._control):
                _end_with_caller(pid, KILL_WITHIN if is_shared else 0.0)
            if link.fileno() in ready:
                said = link.recv(1)
                if said == NOT_SHARED:
                    self._user_code.is_told = True
                    self._leaving = Leaving(pid)
                    return
                is_shared = is_shared or said == SHARED
                if not said:
                    poller.unregister(link.fileno())
            status = processes.try_reap(pid)
            if status is not None:
                _end_likewise(status)

    # --- the process that runs the stage --------------------------------------------------

    def _run_stage(self, stage: list[Step]) -> bool:
        """Whether this process may go on, and fork workers. If not, it is to end."""
        if not all(map(self._run_step, stage)):
            return False
        self._say(SHARED)
        return True

    def _run_step(self, step: Step) -> bool:
        from .._fork_safety.holdings import Holdings, in_the_way, left_running, watching

        try:
            with self._user_code.keeping_handlers():
                if step.prepare is not None:
                    step.prepare()
                before = Holdings.now()
                with watching() as seen:
                    step.run()
        except BaseException as error:
            return self._fail(step.number, error)
        finally:
            signals.install_handlers({signal.SIGINT: signal.SIG_IGN})
            end_signals.ignore()
        self._user_code.left.remove(step)
        if step.number == MAIN:
            return self._may_share_main(in_the_way(before, seen))
        left = left_running(before)
        return not left or self._fail(PRELOAD, _left_behind(left))

    def _may_share_main(self, reasons: list[str]) -> bool:
        is_shared = not reasons or self._settings.share_main is True
        self._tell_main(calls.introduce_main(), reasons, is_shared)
        if not is_shared:
            self._say(NOT_SHARED)
        return is_shared

    def _tell_main(
        self, fingerprints: dict[str, bytes], reasons: list[str], is_shared: bool
    ) -> None:
        tell(
            self._channels,
            Kind.MAIN_SNAPSHOT,
            0,
            [pickle.dumps((fingerprints, reasons, is_shared))],
        )

    def _say(self, what: bytes) -> None:
        assert self._parent is not None
        with contextlib.suppress(ConnectionError):
            self._parent.send(what)

    def _fail(self, number: int, error: BaseException) -> bool:
        logger.critical("%s", failure_phrase(number), exc_info=error)
        failure = exceptions.dump_failure(error, skip_frames=1)
        tell(self._channels, Kind.START_FAILED, number, failure)
        return False


class Leaving:
    """A stage's process of no use, which is to end by itself."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._deadline = time.monotonic() + LEAVE_WITHIN
        self._is_killed = False

    @property
    def patience(self) -> float | None:
        """Seconds until it will be killed; None: it has been."""
        return None if self._is_killed else max(0.0, self._deadline - time.monotonic())

    def has_ended(self, *, wait: bool) -> bool:
        """Whether it has; kills it if its time is up. ``wait``: until it has."""
        while processes.try_reap(self._pid) is None:
            if not self._is_killed and time.monotonic() > self._deadline:
                logger.warning(
                    "process %d, which has imported the main module, did not end in %g s; "
                    "killing it",
                    *(self._pid, LEAVE_WITHIN),
                )
                processes.send_signal(self._pid, signal.SIGKILL)
                self._is_killed = True
            if not wait:
                return False
            descriptors.pause(LOOK_INTERVAL / 10)
        return True


def tell(channels: WorkerChannels, kind: int, number: int, parts: Sequence[Part]) -> None:
    """Tell the client, and wait until there is room for it."""
    with contextlib.suppress(ConnectionError):
        channels_module.send(channels.yells, kind, number, 0, parts)


def _left_behind(reasons: list[str]) -> RuntimeError:
    return RuntimeError(
        f"it has left behind what workers cannot share: {'; '.join(reasons)}. "
        "Do that in an initializer, which runs in each worker."
    )


def _end_with_caller(pid: int, patience: float) -> NoReturn:
    """The caller has gone. The child sees that as well, if it runs the pool and is not stopped."""
    deadline = time.monotonic() + patience
    while processes.try_reap(pid) is None:
        if time.monotonic() >= deadline:
            processes.send_signal(pid, signal.SIGKILL)
            break
        descriptors.pause(LOOK_INTERVAL / 10)
    os._exit(0)


def _end_likewise(status: int) -> NoReturn:
    """Let this process end as its child has, for whoever waits for this one."""
    code, number = processes.split_status(status)
    if number is not None:
        processes.end_by_signal(number)
    raise SystemExit(code)
