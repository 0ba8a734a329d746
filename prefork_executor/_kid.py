"""A raw-mode child's side: its marks on the scoreboard, its yells, its accept.

Every change of its status rings the doorbell, because the main process waits for
nothing else.

How accept loses no connection
------------------------------
The main process retires idle children, and may be wrong about one: it may have just
taken a connection and not yet said so. So a child that takes connections here never
dies of SIGTERM: from its first accept on, a handler only records the signal and wakes
the wait. Whoever was woken looks for a connection before it looks whether to leave,
because the kernel wakes one child a connection, and the others would sleep on. A
handler of the user's own for SIGTERM is called when the child leaves.

A sibling that is killed in the moment it was woken takes the wake-up with it. That is
why a wait ends after LOOK_AGAIN seconds and the child looks for itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import time
from typing import Any, NoReturn

from . import _channel, _posix
from . import _scoreboard as sb
from ._handlers import let_through
from ._pool import Seat
from ._posix import Doorbell, Handler, Socket, Waiter
from ._scoreboard import Scoreboard
from ._tuples import NamedTuple
from ._wire import Kind

LOOK_AGAIN = 1.0
"""Seconds after which a waiting child looks for a connection, or for a word to leave,
of which it may not have been told. One system call a second and idle child."""
_THAW = 1
_HAS_EXITCODE = 2
_EXITCODE_SHIFT = 8


class YellFlags(NamedTuple):
    """What travels beside a yell's data."""

    thaw: bool = False
    exitcode: int | None = None

    def to_int(self) -> int:
        code = 0 if self.exitcode is None else _HAS_EXITCODE | self.exitcode << _EXITCODE_SHIFT
        return code | (_THAW if self.thaw else 0)

    @classmethod
    def from_int(cls, number: int) -> YellFlags:
        exitcode = number >> _EXITCODE_SHIFT & 0xFF if number & _HAS_EXITCODE else None
        return cls(bool(number & _THAW), exitcode)


def freeze(data: Any) -> bytes:
    """Pickle data in one piece, by cloudpickle if pickle cannot."""
    try:
        return pickle.dumps(data, 5)
    except Exception as error:
        let_through(error)
        import cloudpickle  # type: ignore[import-untyped]

        return bytes(cloudpickle.dumps(data, 5))


class Kid:
    """This process as a child of a raw pool. It is idle from the start."""

    def __init__(
        self,
        seat: Seat,
        board: Scoreboard,
        yells: Socket,
        doorbell: Doorbell,
        *,
        hooked: bool,
        generation: int,
    ) -> None:
        self._pid = os.getpid()
        self._words = board.words
        self._base = board.base(seat.slot)
        self._generation = generation
        self._leash = seat.leash
        self._yells = yells
        self._doorbell = doorbell
        self._hooked = hooked
        self._waiter: Waiter | None = None
        self._bell: Doorbell | None = None
        self._listener = -1
        self._terminated = False
        self._their_handler: Handler = signal.SIG_DFL
        self._mark(sb.IDLE)

    @property
    def _state(self) -> int:
        return self._words[self._base + sb.STATE]

    def _mark(self, state: int) -> None:
        self._words[self._base + sb.SINCE] = time.monotonic_ns()
        self._words[self._base + sb.STATE] = state
        self._ring()

    def _ring(self) -> None:
        # The main process may have been killed; then the leash tells, and nobody hears.
        with contextlib.suppress(ConnectionError):
            self._doorbell.ring()

    def busy(self) -> None:
        if self._state != sb.BUSY:
            self._mark(sb.BUSY)

    def idle(self) -> None:
        if self._state != sb.IDLE:
            if self._state == sb.BUSY:
                self._words[self._base + sb.DONE] += 1
            self._mark(sb.IDLE)

    # --- taking connections -----------------------------------------------------------------

    def accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        waiter = self._waiter_for(listener)
        self.idle()
        self._words[self._base + sb.TAKES] += 1
        if self._is_told_to_leave():
            self._depart()
            return None
        while True:
            ready = waiter.wait(LOOK_AGAIN)
            if self._bell is not None and self._bell.read_end in ready:
                self._bell.hush()
            connection = self._take(listener)
            if connection is not None:
                return connection
            if self._leash in ready or self._is_told_to_leave():
                self._depart()
                return None

    def _take(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        state = self._base + sb.STATE
        # While it says TAKING nobody retires it.
        self._words[state] = sb.TAKING
        try:
            connection = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            self._words[state] = sb.IDLE
            return None
        if _posix.FALLBACK:
            connection[0].setblocking(True)  # Elsewhere it inherits the listener's mode.
        self._mark(sb.BUSY)
        return connection

    def _is_told_to_leave(self) -> bool:
        return self._terminated or bool(self._words[self._base + sb.RETIRE])

    def leaving(self) -> bool:
        """Whether it should take nothing more once what it holds is done."""
        return self._is_told_to_leave() or self._words[sb.GENERATION] != self._generation

    def _depart(self) -> None:
        self._mark(sb.LEAVING)
        theirs = self._their_handler
        if callable(theirs):
            signal.signal(signal.SIGTERM, theirs)
            if self._terminated:
                theirs(signal.SIGTERM, None)

    def _waiter_for(self, listener: socket.socket) -> Waiter:
        if self._waiter is None:
            self._waiter = Waiter()
            self._waiter.register(self._leash)
            self._record_sigterm(self._waiter)
        if listener.fileno() != self._listener:
            if self._listener >= 0:
                with contextlib.suppress(OSError, KeyError):
                    self._waiter.unregister(self._listener)
            listener.setblocking(False)
            self._waiter.register(listener.fileno(), shared=True)
            self._listener = listener.fileno()
        return self._waiter

    def _record_sigterm(self, waiter: Waiter) -> None:
        theirs = signal.getsignal(signal.SIGTERM)
        if theirs == signal.SIG_IGN:
            return
        self._bell = Doorbell.new()
        waiter.register(self._bell.read_end)
        signal.set_wakeup_fd(self._bell.write_end, warn_on_full_buffer=False)
        self._their_handler = theirs
        signal.signal(signal.SIGTERM, self._note_sigterm)

    def _note_sigterm(self, _signum: int, _frame: object) -> None:
        self._terminated = True

    # --- speaking and leaving -----------------------------------------------------------------

    def yell(self, data: Any, flags: YellFlags) -> bool:
        if self._hooked:
            parts = [freeze(data)]
            _channel.send(self._yells, Kind.YELL, self._pid, flags.to_int(), parts)
            self._ring()
        return self._hooked

    def exit(self, status: int) -> NoReturn:
        # One that never was busy does not say that it leaves: if it was young as well,
        # the pool takes its end for a crash, or it would fork such children in a loop.
        if self._state == sb.BUSY:
            self._words[self._base + sb.DONE] += 1
        if self._words[self._base + sb.DONE]:
            self._mark(sb.LEAVING)
        _posix.leave(status)
