"""Which process workers are forked from: the one that has run the user's code, or a clean one.

The process that multiprocessing starts never runs any of the user's code. For each stage of
that code (see `users_code.py`) it forks a child, which runs the stage while it watches:

    the clean process ── forks ──▶ a stage's process: runs it, and looks at what it now holds
        │                             │
        │ ◀── NOT_SHARED ─────────────┤ a thread, a connection, ...: it ends; workers are forked
        │                             │   from the clean process, and each runs this stage
        │ ◀── SHARED ─────────────────┘ nothing: it runs the next stage, or the pool

So of each two processes one waits and one works. If the caller has gone, the waiting process
kills the other, even if that is in one long call into C that lets no thread of its own run. If
the working process ends, the waiting one, which is the caller's child, ends in the same manner,
so that the caller sees how. And the kernel kills a stage's process when the process that waits
for it ends.

If ``preload`` leaves behind what may not be shared, that is an error: it exists for sharing.
If main does, each worker merely imports main for itself.
"""

from __future__ import annotations

import contextlib
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
from .._support.logs import logger
from .._system import descriptors, processes, signals
from .._system.descriptors import Poller, Socket
from . import end_signals
from .settings import Settings
from .users_code import MAIN, PRELOAD, Step, UserCode, failure_phrase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


SHARED, NOT_SHARED = b"s", b"n"
"""What a stage's process tells the process that has forked it."""
LEAVE_WITHIN = 10.0
"""Seconds that a stage's process that workers are not forked from may take to end, for example to
run what was registered for its end. Then SIGKILL."""
KILL_WITHIN = 0.5
"""Seconds that the process that runs the pool may take to end when the caller has gone."""
LOOK_INTERVAL = 0.1
"""Seconds between two checks for a process's end, where there is no pidfd."""


class Preparation:
    """Runs the user's code that precedes tasks, each stage in a process of its own."""

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
        """Returns True in the process that must run the pool, and False in others, which must
        end. Processes that wait end in here."""
        self._channels.board.words[sb.MAIN] = os.getpid()
        self._channels.lifeline.hang_on()
        if not self._settings.is_forked and not self._user_code.has_main:
            self._tell_main({}, [], True)
        for stage in self._user_code.stages:
            if not self._fork():
                # In the clean process again: its workers run the stage themselves.
                self._channels.board.words[sb.MAIN] = os.getpid()
                break
            if not self._run_stage(stage):
                return False
        return True

    @property
    def parent(self) -> Socket | None:
        """At its end when the process that watches this one has ended; None if there is none."""
        return self._parent

    @property
    def patience(self) -> float | None:
        """Seconds after which :meth:`look` must be called."""
        return None if self._leaving is None else self._leaving.patience

    def look(self, *, wait: bool = False) -> None:
        """Check whether a stage's process that is not shared has ended."""
        if self._leaving is not None and self._leaving.has_ended(wait=wait):
            self._leaving = None

    def close(self) -> None:
        """Close what belongs to this process. Its forks call this, too: they have a copy."""
        if self._parent is not None:
            self._parent.close()
        self._leaving = None

    # --- the process that waits -------------------------------------------------------

    def _fork(self) -> bool:
        """Returns True in the stage's process, and False in this one if workers are forked
        from it."""
        here, there = descriptors.control_pair()
        parent = os.getpid()
        processes.flush_streams()
        processes.import_for_children()
        try:
            pid, mask = processes.fork_masked()
        except OSError as error:
            logger.warning(
                "each worker runs the user's code, as no process for it could be forked: %s", error
            )
            self._user_code.runs_in_workers(f"no process could be forked for its import: {error}")
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
        """Wait for the child's answer. Returns if workers cannot be forked from the child."""
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
                    self._user_code.caller_is_told()
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
        """Whether this process may go on, and fork workers. If not, it must end."""
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
    """A stage's process that workers are not forked from, and that should end on its own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._deadline = time.monotonic() + LEAVE_WITHIN
        self._is_killed = False

    @property
    def patience(self) -> float | None:
        """Seconds until it will be killed; None if it has been."""
        return None if self._is_killed else max(0.0, self._deadline - time.monotonic())

    def has_ended(self, *, wait: bool) -> bool:
        """Whether it has ended. Kills it if its time is up. ``wait``: return when it has ended."""
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
    """Tell the client. Waits until there is room for the message."""
    with contextlib.suppress(ConnectionError):
        channels_module.send(channels.yells, kind, number, 0, parts)


def _left_behind(reasons: list[str]) -> RuntimeError:
    return RuntimeError(
        f"it has left behind what workers cannot share: {'; '.join(reasons)}. "
        "Do that in an initializer, which runs in each worker."
    )


def _end_with_caller(pid: int, patience: float) -> NoReturn:
    """The caller has gone. If the child runs the pool and is not stopped, it sees that, too."""
    deadline = time.monotonic() + patience
    while processes.try_reap(pid) is None:
        if time.monotonic() >= deadline:
            processes.send_signal(pid, signal.SIGKILL)
            break
        descriptors.pause(LOOK_INTERVAL / 10)
    os._exit(0)


def _end_likewise(status: int) -> NoReturn:
    """End this process in the same way as its child, so that its parent sees how."""
    code, number = processes.split_status(status)
    if number is not None:
        processes.end_by_signal(number)
    raise SystemExit(code)
