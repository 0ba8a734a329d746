"""The reader of a raw pool's yells, in the main process or in one of its own.

If the hook raises, that is logged, and the hook still gets the next yell. If the hook's process
dies, that is logged, and it is forked again. The yell that it had taken is lost, and no other:
the others stay in the channel until a process takes them. A process that dies before it has
taken any would be forked again and again, so the time until the next one grows.

The hook's process has a leash, as a worker has: a pipe whose writing end only the main process
holds. When that end is closed, the process reads what is left and ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import posix
import signal
import time
from collections.abc import Callable
from typing import Any

from .._messages import channels
from .._messages.channels import DONTWAIT, Packet, Receiver
from .._messages.wire import Kind
from .._pool.regulator import MAX_BACKOFF, MIN_BACKOFF
from .._support.logs import logger
from .._system import descriptors, processes, signals
from .._system.descriptors import Poller, Socket
from ..errors import ProtocolError, describe_end
from .child import YellFlags
from .hook_end import HookDeadline
from .options import DataHook

MIN_POLL, MAX_POLL = 0.001, 0.05
"""Seconds between two looks, at the end, whether the hook's process has ended: at first, and at
most."""
MAX_FAILURES = 5
"""Hook processes in a row that die before taking a yell. After that many, the end of the pool no
longer waits: with the pauses between them this takes a second and a half."""


class YellReader:
    """Takes yells from their channel and calls the hook for each."""

    def __init__(self, yells: Socket, hook: DataHook | None) -> None:
        self._receiver = Receiver(yells)
        self._hook = hook
        # Shared with the hook's process. Only one process reads at a time.
        self._taken = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self.unthawed: bytes = b""
        """While the hook runs: the bytes of its yell, if they could not be thawed."""

    @property
    def descriptor(self) -> int:
        return self._receiver.end.fileno()

    @property
    def taken(self) -> int:
        """How many yells have been taken so far, in any process."""
        return self._taken[0]

    def drop(self) -> int:
        """Take all yells that are there and drop them. Returns how many there were."""
        before, self._hook = self.taken, None
        self.read()
        return self.taken - before

    def read(self, limit: int | None = None) -> None:
        """Read the yells that are there now, at most ``limit``."""
        while limit is None or limit > 0:
            try:
                packet = self._receiver.receive(DONTWAIT)
            except (BlockingIOError, EOFError):
                return
            except ProtocolError:
                logger.exception("a malformed yell was dropped")
                continue
            self._taken[0] += 1  # Before the hook runs, since the hook may end this process.
            self._handle(packet)
            limit = None if limit is None else limit - 1

    def _handle(self, packet: Packet) -> None:
        if self._hook is None or packet.kind != Kind.YELL:
            channels.discard(packet)
            return
        pid, flags = packet.number, YellFlags.from_int(packet.extra)
        before = self.unthawed
        try:
            data = self._open(packet, flags.thaw)
            self._hook(pid, data, flags.exitcode)
        except Exception:
            logger.exception("child_data_hook failed for a yell of child %d", pid)
        finally:
            self.unthawed = before

    def _open(self, packet: Packet, thaw: bool) -> Any:
        frozen = channels.open_parts(packet)[0]
        if not thaw:
            return bytes(frozen)
        try:
            return pickle.loads(frozen)
        except Exception:
            self.unthawed = bytes(frozen)
            return None


class HookProcess:
    """The process in which the hook runs, if it has one of its own. Not yet forked.

    Args:
        reader: reads the yells there.
        settle: called there when its handlers are installed. It closes what belongs to the
            main process alone, and unblocks the signals.
    """

    def __init__(self, reader: YellReader, settle: Callable[[], None]) -> None:
        self._reader = reader
        self._settle = settle
        self._pid = 0
        self._leash = -1
        self._taken_before = 0
        self._forget_failures()

    def ensure_running(self) -> None:
        """Fork the process, or fork it again if it has ended. If it is too early for that, do
        nothing: call this again after :meth:`due_in` seconds."""
        if self._pid:
            status = processes.try_reap(self._pid)
            if status is None:
                return
            self._ended(status)
        if time.monotonic() < self._due:
            return
        try:
            self._fork()
        except OSError as error:
            logger.warning("the data hook's process could not be forked: %s", error)
            self._failed()

    def due_in(self) -> float | None:
        """Seconds until the process may be forked again; None while it runs."""
        return None if self._pid else max(0.0, self._due - time.monotonic())

    def _ended(self, status: int) -> None:
        self._pid = 0
        self.let_go()
        has_taken = self._reader.taken != self._taken_before
        if status:
            how = describe_end(*processes.split_status(status))
            lost = (
                "; the yell that it was handling is lost" if has_taken else " before it took a yell"
            )
            logger.error("the data hook's process %s%s", how, lost)
        if has_taken:
            self._forget_failures()
        else:
            self._failed()

    def _forget_failures(self) -> None:
        self._failures = 0
        self._delay = 0.0
        self._due = 0.0

    def _failed(self) -> None:
        self._failures += 1
        self._delay = min(MAX_BACKOFF, 2 * self._delay or MIN_BACKOFF)
        self._due = time.monotonic() + self._delay

    def let_go(self) -> None:
        """In the main process: tell the hook's process that no more yells will come. In a child:
        close the copy of the leash, which would keep that process from ending."""
        if self._leash >= 0:
            posix.close(self._leash)
            self._leash = -1

    def _fork(self) -> None:
        main = os.getpid()
        self._taken_before = self._reader.taken
        processes.flush_streams()
        leash, self._leash = os.pipe()
        try:
            pid, mask = processes.fork_masked()
        except OSError:
            posix.close(leash)
            self.let_go()
            raise
        if pid:
            self._pid = pid
            posix.close(leash)
            signals.restore_mask(mask)
            return
        self._live_and_leave(main, leash)

    def _live_and_leave(self, main: int, leash: int) -> None:
        status = 1
        try:
            self._become_hook_process(main)
            self._read_until_end_of(leash)
            status = 0
        except BaseException:
            logger.exception("the data hook's process failed")
        finally:
            processes.leave(status)

    def _become_hook_process(self, main: int) -> None:
        signals.forget_handlers()
        # This process ends when the main process says so, after the last child's last yell.
        # Unlike SIG_IGN, a handler does not pass to programs that the hook runs.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _do_nothing)
        processes.die_with_parent(main)
        self.let_go()
        self._settle()

    def _read_until_end_of(self, leash: int) -> None:
        poller = Poller()
        poller.register(leash)
        poller.register(self._reader.descriptor)
        while True:
            ready = poller.wait()
            self._reader.read()
            if leash in ready:
                return

    def finish(self, deadline: HookDeadline) -> None:
        """Let the process read what is left, and wait for its end. If it dies, another reads the
        rest. If MAX_FAILURES in a row take no yell, or when the deadline is over, the rest is
        given up."""
        self._forget_failures()
        while self._pid or descriptors.readable(self._reader.descriptor):
            if self._failures == MAX_FAILURES:
                self._give_up(f"died {MAX_FAILURES} times in a row before it took a yell")
                return
            descriptors.pause(self.due_in() or 0.0)  # By now no child waits for this process.
            self.ensure_running()
            if self._pid:
                self.let_go()
                if not self._has_ended_before(deadline):
                    self._kill()
                    return

    def _has_ended_before(self, deadline: HookDeadline) -> bool:
        delay = MIN_POLL
        while (status := processes.try_reap(self._pid)) is None:
            if deadline.is_over:
                return False
            descriptors.pause(delay)
            delay = min(2 * delay, MAX_POLL)
        self._ended(status)
        return True

    def _kill(self) -> None:
        processes.send_signal(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._give_up(f"{self._pid} did not come to an end, and was killed (see hook_timeout)")
        self._pid = 0

    def _give_up(self, why: str) -> None:
        given_up = self._reader.drop()
        logger.error("the data hook's process %s; yells given up: %d", why, given_up)


def _do_nothing(_signum: int, _frame: object) -> None:
    """A handler for signals that must have no effect."""
