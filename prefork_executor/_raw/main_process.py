"""What a raw pool does in its main process: fork, reap, wait, read yells, and end all children.

The pool blocks all signals except SIGCHLD while it works on its books, and all signals while it
forks. They are open while it waits and while a data hook runs. So a handler of yours runs between
two steps, never within one. It may call ``pf_done``, which then does everything at once, except
that what the interrupted step still uses is closed only when that step ends (``_depth`` counts
nested steps). A handler may also raise, at any line at which signals are open. So everything
that must be undone happens within the ``try`` that undoes it, and a value is set back to what it
was, not decremented.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from .._board.scoreboard import RAW
from .._fork_safety import random_streams
from .._messages.channels import new_board
from .._pool.worker_pool import WorkerPool
from .._support.handlers import is_by_handler
from .._support.logs import logger
from .._system import descriptors, processes, signals
from .._system.descriptors import Doorbell
from .backlog import Backlog
from .child import Child
from .data_hook import HookProcess, YellReader
from .events import Events
from .given import INTERVAL, Readiness
from .hook_end import HookDeadline, HookOverdue
from .options import Settings
from .stacks import Stacks
from .threads import ThreadWatch
from .wear import ChildLimits, Wear

T = TypeVar("T")
YELLS_A_TURN = 100
"""Yells that a hook in the main process gets before the pool looks after its children again."""
_ALL_BUT_CHILD = {*signals.ALL_SIGNALS} - {signal.SIGCHLD}
"""SIGCHLD has the pool's own handler, which only wakes the pool. It is open even if our caller, or
the program that started us, has blocked it: otherwise the pool would not notice deaths."""


class MainProcess:
    """The process that has set up the pool. In a child, what is left of it there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hook = settings.hook
        self._pid = os.getpid()
        self.child: Child | None = None
        """In a child: its side of the pool."""
        self._owed = 0
        self._failures = 0
        self._is_done = False
        self._raised: BaseException | None = None
        self._leave: SystemExit | None = None
        self._hook_deadline = HookDeadline(None)
        self._events = Events(settings.watchers)
        self._threads = ThreadWatch()
        self._threads.look()
        self._depth = 0
        self._mask: set[int] = set()
        with contextlib.ExitStack() as opened:
            self._open(opened, settings)
            self._opened = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack, settings: Settings) -> None:
        self._yells, self._yells_far = descriptors.socket_pair()
        opened.callback(self._yells.close)
        opened.callback(self._yells_far.close)
        self._doorbell = Doorbell.new()
        opened.callback(self._doorbell.close)
        self._board = new_board(settings.limits.max_workers)
        opened.callback(self._board.close)
        self._board.introduce(RAW, self._pid, **settings.limits.spares)
        self._pool = WorkerPool(
            settings.limits,
            self._board,
            self._doorbell,
            child_handlers=settings.handlers,
            disown=self._disown,
            retire_signal=signal.SIGTERM,
            leave_within=settings.term_timeout,
            heed=self._events.decided,
        )
        opened.callback(self._pool.close)
        self._open_wear(opened, settings.child_limits)
        self._backlog = Backlog(settings.listeners, self._board)
        self._readiness = Readiness()
        opened.callback(self._readiness.close)
        self._reader = YellReader(self._yells, self._hook and self._call_hook)
        self._hook_process: HookProcess | None = None
        if self._hook is not None and not settings.hook_in_main:
            self._hook_process = HookProcess(self._reader, self._settle_hook_process)
        else:
            self._pool.poller.register(self._yells.fileno())
        _become_group_leader()

    def _open_wear(self, opened: contextlib.ExitStack, limits: ChildLimits) -> None:
        self._stacks: Stacks | None = None
        if limits.busy_timeout is not None:
            # The pool closes it at its end.
            file = tempfile.TemporaryFile(prefix="prefork-stacks-")  # noqa: SIM115
            self._stacks = Stacks(opened.enter_context(file).fileno())
        self._wear = Wear(limits, self._pool, self._stacks) if limits.are_set else None

    def _disown(self) -> None:
        """In a new child: close what belongs to the main process alone."""
        self._yells.close()
        self._readiness.close()
        self._board.disarm()
        if self._hook_process is not None:
            self._hook_process.let_go()

    def _settle_hook_process(self) -> None:
        self._pool.disown_all()
        self._readiness.close()
        self._yells_far.close()
        signals.restore_mask(self._mask)

    # --- what the caller's functions do here -----------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """The children that have not been reaped yet."""
        return self._pool.pids

    @property
    def error(self) -> bytes | str:
        """While the hook runs: the bytes of its yell, if they could not be thawed."""
        return self._reader.unthawed or ""

    def whip_kids(
        self, code: Callable[..., object], args: tuple[Any, ...], timeout: float | None
    ) -> int | None:
        """See PreforkPool.whip_kids."""
        with self._signals_held("pf_whip_kids"):
            self._regulate()
            while self._owed and not self._is_done:
                if self._fork_one():
                    self._run_and_exit(code, args)
            if self._failed_fork():
                return None
            self._wait(timeout)
        return 0 if self._is_done else 1

    def kid_new(self) -> int | None:
        """See PreforkPool.kid_new."""
        with self._signals_held("pf_kid_new"):
            while not self._is_done:
                self._regulate()
                before = set(self._pool.pids)
                if self._owed and self._fork_one():
                    signals.restore_mask(self._mask)
                    return 0
                if self._failed_fork():
                    return None
                for pid in set(self._pool.pids) - before:
                    return pid
                self._wait()
        return -1

    def reload(self) -> None:
        """See PreforkPool.reload."""
        if not self._is_main():
            return
        with self._signals_held("pf_reload"):
            if not self._is_done:
                self._pool.replace_all()
                self._doorbell.ring()

    def done(self, exitcode: int | None) -> None:
        """See PreforkPool.done."""
        if not self._is_main():
            return
        with self._signals_held("pf_done"):
            if not self._is_done:  # A handler may have done it just before signals were blocked.
                self._is_done = True
                self._see_all_off()
        if exitcode is not None:
            self._leave = SystemExit(exitcode)
            raise self._leave

    # --- the main process's steps, with signals held ------------------------------------------

    def _is_main(self) -> bool:
        return self.child is None and os.getpid() == self._pid

    @contextlib.contextmanager
    def _signals_held(self, name: str) -> Iterator[None]:
        if not self._is_main():
            raise RuntimeError(f"{name} was called outside the process that set up the pool")
        outer, depth, mask = self._mask, self._depth, signals.current_mask()
        try:
            self._mask, self._depth = mask, depth + 1
            signals.restore_mask(_ALL_BUT_CHILD)
            yield
        finally:
            if self._is_main():
                self._mask, self._depth = outer, depth
                if self._is_done and not depth:
                    self._opened.close()
                signals.restore_mask(mask)

    def _with_signals_open(self, call: Callable[..., T], *args: Any) -> T:
        """Call with the signal mask that our caller had, except that nothing may interrupt the
        end.

        This is no context manager: a handler that raises just before the block's end would
        leave that to the garbage collector, and signals would stay blocked for good."""
        mask = signals.current_mask()
        try:
            if not self._is_done:
                signals.restore_mask(self._mask - {signal.SIGCHLD})
            return call(*args)
        finally:
            if self._is_main():
                signals.restore_mask(mask)

    def _regulate(self) -> None:
        if self._is_done:
            return
        self._release_the_dead()  # A handler may have raised before this was done.
        if self._hook_process is not None:
            self._hook_process.ensure_running()
        if self._wear is not None:
            self._wear.look()
        if self._readiness.is_awaited and self._pool.serves():
            self._readiness.tell()
        waiting = self._backlog.look()
        if not self._owed and not self._pool.is_quiet():
            self._failures = self._pool.failed_forks
            self._owed = self._pool.regulate(lambda _counts: waiting).start

    def _fork_one(self) -> bool:
        """Returns True in the new child, where signals are still blocked: a handler may raise."""
        self._owed -= 1
        processes.flush_streams()
        self._threads.look()
        before = set(self._pool.pids)
        seat = self._pool.fork_worker()
        if seat is None:
            for pid in set(self._pool.pids) - before:
                self._events.started(pid)
            return False
        random_streams.renew()
        if self._stacks is not None:
            self._stacks.offer()
        hooked = self._hook is not None
        self.child = Child(
            seat,
            self._board,
            self._yells_far,
            self._doorbell,
            hooked=hooked,
            generation=self._pool.generation,
            handshake_timeout=self._settings.handshake_timeout,
        )
        return True

    def _failed_fork(self) -> bool:
        if self._pool.failed_forks == self._failures:
            return False
        self._failures = self._pool.failed_forks
        self._owed = 0
        return self._settings.return_on_failure

    def _run_and_exit(self, code: Callable[..., object], args: tuple[Any, ...]) -> NoReturn:
        assert self.child is not None
        status = 1
        try:
            signals.restore_mask(self._mask)
            try:
                code(*args)
                status = 0
            except SystemExit as leave:
                status = _exit_status(leave)
            self.child.exit(status)
        except BaseException:  # Whatever it is, the child ends here.
            when = "while it served" if self.child.has_served else "before it had served"
            logger.exception("child %d was ended by an exception %s", os.getpid(), when)
            self.child.fail()
        finally:  # Even if a handler raises, this ends the child.
            processes.leave(status)

    def _wait(self, timeout: float | None = None) -> None:
        self._deliver_events()
        ready = self._with_signals_open(self._wait_for_events, timeout)
        if not self._is_done:
            self._look_after_events(ready)
        self._deliver_events()

    def _wait_for_events(self, timeout: float | None) -> list[int]:
        # A handler may have called done() when the signals were unblocked.
        return [] if self._is_done else self._pool.wait(self._due_in(timeout))

    def _due_in(self, timeout: float | None = None) -> float | None:
        """Seconds until there is something to do that does not wake the pool, ``timeout`` at
        most."""
        due = [timeout]
        if self._hook_process is not None:
            due.append(self._hook_process.due_in())
        if self._wear is not None and not self._is_done:
            due.append(self._wear.due_in())
        if not self._is_done:
            due.append(self._backlog.due_in())
            due.append(INTERVAL if self._readiness.is_awaited else None)
        return min([seconds for seconds in due if seconds is not None], default=None)

    def _look_after_events(self, ready: list[int]) -> None:
        self._release_the_dead()
        if self._yells.fileno() in ready:
            self._reader.read(YELLS_A_TURN)

    def _release_the_dead(self) -> None:
        for death in self._pool.reap():
            self._events.ended(death, self._pool.reason_of(death))
            self._pool.release(death)

    def _deliver_events(self) -> None:
        """Call the user's functions for all that has happened. One that raises is logged."""
        while (event := self._events.next()) is not None:
            try:
                self._guard(event.name, self._call_here, event.function, *event.args)
            except Exception:
                logger.exception("%s%r failed", event.name, event.args)

    def _call_hook(self, pid: int, data: Any, exitcode: int | None) -> None:
        hook = self._hook
        assert hook is not None
        if self._settings.hook_in_main:
            self._guard("child_data_hook", self._call_here, hook, pid, data, exitcode)
        else:
            self._guard("child_data_hook", hook, pid, data, exitcode)

    def _guard(self, name: str, call: Callable[..., object], *args: Any) -> None:
        """Call one of the user's hooks. If it calls ``sys.exit``, that ends this call only. If it
        forks, the new process ends with this call, however the call ends: it is none of the
        pool's."""
        here, status = os.getpid(), 1
        try:
            call(*args)
            status = 0
        except SystemExit as leave:
            status = _exit_status(leave)
            if os.getpid() != here:
                return
            if leave is self._leave or is_by_handler(leave):
                raise
            logger.exception(
                "%s called sys.exit(%r): that ended this call of it, and nothing else",
                *(name, leave.code),
            )
        except BaseException:
            if os.getpid() != here:
                logger.exception("a process that %s has forked failed", name)
            raise
        finally:
            if os.getpid() != here:
                processes.leave(status)

    def _call_here(self, hook: Callable[..., object], *args: Any) -> None:
        """Call a hook in the main process. At the end of the pool it has a deadline."""
        if not self._is_done:
            self._with_signals_open(hook, *args)
            return
        try:
            self._hook_deadline.run(hook, *args)
        except HookOverdue:
            given_up = self._reader.drop()
            logger.exception(
                "a hook did not return in the main process %d, and was ended (see hook_timeout); "
                "yells given up: %d",
                *(self._pid, given_up),
            )
        except (Exception, SystemExit) as raised:
            if raised is not self._leave:
                raise
            self._raised = self._raised or raised  # It must not cut the end short.
        except BaseException as raised:
            self._raised = self._raised or raised

    def _see_all_off(self) -> None:
        timeout = self._settings.hook_timeout
        self._hook_deadline = HookDeadline(
            None if timeout is None else timeout + self._settings.term_timeout
        )
        self._pool.end_all(signal.SIGTERM)
        while self._pool.pids:
            if self._hook_process is not None:
                self._hook_process.ensure_running()  # If the channel is full, children wait.
            self._look_after_events(self._pool.wait(self._due_in()))
            self._deliver_events()
            self._pool.see_off()
        if self._hook_process is not None:
            self._hook_process.finish(HookDeadline(timeout))
        else:
            self._reader.read()
        self._deliver_events()
        self._doorbell.ring()  # This may run within a wait, which must end.
        if self._raised is not None:
            raise self._raised


def _become_group_leader() -> None:
    """Lead a process group of our own, as the original does, unless we lead one already."""
    with contextlib.suppress(PermissionError):
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)


def _exit_status(leave: SystemExit) -> int:
    if leave.code is None:
        return 0
    if isinstance(leave.code, int):
        return leave.code & 0xFF
    print(leave.code, file=sys.stderr)
    return 1
