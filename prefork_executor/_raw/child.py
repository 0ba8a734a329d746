"""A raw-mode child's side: its marks on the scoreboard, its yells, its accept.

Every change of its status rings the doorbell, because the main process waits for
nothing else.

How a child that is retired loses nothing
-----------------------------------------
The main process retires idle children by SIGTERM, and may be wrong about one: it may have
just taken a connection and not yet said so. So SIGTERM meets a handler of ours first. If the
signal retires the child, and that is busy or has taken something since it was last idle (see
`takes.py`), it goes on, and leaves when it is idle again: by ``idle``, or by asking
for more. In every other case it leaves at once. To leave is to call the handler that the user
has for SIGTERM, or the signal's default effect.

* A signal that comes between the interpreter's last look for signals and a system call that
  waits is not noticed until that call returns. So a child that does not say that it has HEARD
  is sent another: an idle one that was retired, and one that ``pf_done`` ends, busy or not.
* A signal from outside, and that of ``pf_done``, which DOOMED tells apart, is passed on at once.
* The user's own handler may be installed at any time. It is taken over when the child next
  says what it does, or asks for work.

A child that takes connections by ``accept`` here never dies of SIGTERM: from its first accept
on, the handler only records the signal and wakes the wait. Whoever was woken looks for a
connection before it looks whether to leave, because the kernel wakes one child a connection,
and the others would sleep on. A handler of the user's own is called when the child leaves.

A sibling that is killed in the moment it was woken takes the wake-up with it. That is
why a wait ends after LOOK_AGAIN seconds and the child looks for itself.

`_board/worker_states.py` has the table of a child's states.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import pickle
import signal
import socket
import time
import types
from typing import Any, NoReturn

from .._board import scoreboard as sb
from .._board import worker_states
from .._board.scoreboard import Scoreboard
from .._board.worker_states import Event
from .._messages import channels
from .._messages.wire import Kind
from .._pool.worker_pool import Seat
from .._support.handlers import let_through
from .._support.named_tuples import NamedTuple
from .._system import platform, processes, signals
from .._system.descriptors import Doorbell, Poller, Socket
from .._system.signals import Handler
from .takes import Takes

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


class Child:
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
        self._board = board
        self._slot = seat.slot
        self._words = board.words
        self._base = board.base(seat.slot)
        self._generation = generation
        self._leash = seat.leash
        self._yells = yells
        self._doorbell = doorbell
        self._hooked = hooked
        self._poller: Poller | None = None
        self._bell: Doorbell | None = None
        self._listener = -1
        self._asked = 0
        self._terminated = False
        self._is_to_leave = False
        self._theirs: Handler = signal.SIG_DFL
        self._ours = self._on_sigterm  # One object: whether it is installed is asked often.
        self._thread = _thread.get_ident()
        self._takes = Takes(self._before_take)
        self._adopt()
        self._takes.begin()
        self._mark(Event.CHILD_STARTS)

    @property
    def _state(self) -> int:
        return self._words[self._base + sb.HOLDS] & sb.STATE_MASK

    def _mark(self, event: str) -> None:
        self._words[self._base + sb.SINCE] = time.monotonic_ns()
        self._say(event)
        self._ring()

    def _say(self, event: str) -> None:
        if worker_states.report_to:
            self._board.check(self._slot, event)
        state = worker_states.TABLE[event][1]
        self._words[self._base + sb.HOLDS] = sb.pack_holds(state, self._asked)

    def _ring(self) -> None:
        # The main process may have been killed; then the leash tells, and nobody hears.
        with contextlib.suppress(ConnectionError):
            self._doorbell.ring()

    def busy(self) -> None:
        self._adopt()
        if self._state != sb.BUSY:
            self._mark(Event.CHILD_IS_BUSY)
        self._takes.clear()

    def idle(self) -> None:
        self._adopt()
        self._takes.clear()
        if self._state != sb.IDLE:
            if self._state == sb.BUSY:
                self._words[self._base + sb.DONE] += 1
            self._mark(Event.CHILD_IS_IDLE)
        if self._is_to_leave:
            self._give_way(signal.SIGTERM, None)

    # --- SIGTERM ----------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Stand before the handler that the user has installed, if it is a new one."""
        theirs = signal.getsignal(signal.SIGTERM)
        is_at_rest = theirs == signal.SIG_IGN or theirs is None
        if theirs is self._ours or is_at_rest or _thread.get_ident() != self._thread:
            return
        self._theirs = theirs
        signals.set_handler(signal.SIGTERM, self._ours)

    def _before_take(self) -> bool:
        """As it asks for work. False: what it gets is not the work that it is idle for."""
        if self._state != sb.IDLE or _thread.get_ident() != self._thread:
            return False
        self._adopt()
        if self._is_to_leave:  # It has had what it was let go on for.
            self._takes.clear()
            self._give_way(signal.SIGTERM, None)
        return True

    def _on_sigterm(self, number: int, frame: types.FrameType | None) -> None:
        words, base = self._words, self._base
        if os.getpid() != self._pid:
            self._give_way(number, frame)  # It has forked, and this is no child of the pool.
            return
        doomed = words[base + sb.DOOMED]
        words[base + sb.HEARD] = 1 + doomed
        if self._bell is not None:
            self._terminated = True
        elif words[base + sb.RETIRE] and not doomed and (self._state == sb.BUSY or self._takes):
            self._is_to_leave = True
        else:
            self._give_way(number, frame)

    def _give_way(self, number: int, frame: types.FrameType | None) -> None:
        """Do what the signal would have done."""
        self._is_to_leave = False
        if callable(self._theirs):
            self._theirs(number, frame)
            return
        signals.set_handler(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # --- taking connections -----------------------------------------------------------------

    def accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        poller = self._poller_for(listener)
        self.idle()
        self._asked += 1
        self._say(Event.CHILD_ASKS)
        if self._is_told_to_leave():
            self._depart()
            return None
        while True:
            ready = poller.wait(LOOK_AGAIN)
            if self._bell is not None and self._bell.read_end in ready:
                self._bell.hush()
            connection = self._take(listener)
            if connection is not None:
                return connection
            if self._leash in ready or self._is_told_to_leave():
                self._depart()
                return None

    def _take(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        # While it says TAKING nobody retires it.
        self._say(Event.CHILD_LOOKS)
        try:
            connection = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            self._say(Event.CHILD_FINDS_NOTHING)
            return None
        if platform.FALLBACK:
            connection[0].setblocking(True)  # Elsewhere it inherits the listener's mode.
        self._mark(Event.CHILD_ACCEPTS)
        return connection

    def _is_told_to_leave(self) -> bool:
        return self._terminated or bool(self._words[self._base + sb.RETIRE])

    def leaving(self) -> bool:
        """Whether it should take nothing more once what it holds is done."""
        return self._is_told_to_leave() or self._words[sb.GENERATION] != self._generation

    def _depart(self) -> None:
        self._mark(Event.CHILD_LEAVES)
        if callable(self._theirs):
            signals.set_handler(signal.SIGTERM, self._theirs)
            if self._terminated:
                self._theirs(signal.SIGTERM, None)

    def _poller_for(self, listener: socket.socket) -> Poller:
        if self._poller is None:
            self._poller = Poller()
            self._poller.register(self._leash)
            self._record_sigterm(self._poller)
        if listener.fileno() != self._listener:
            if self._listener >= 0:
                with contextlib.suppress(OSError, KeyError):
                    self._poller.unregister(self._listener)
            listener.setblocking(False)
            self._poller.register(listener.fileno(), shared=True)
            self._listener = listener.fileno()
        return self._poller

    def _record_sigterm(self, poller: Poller) -> None:
        self._adopt()
        if signal.getsignal(signal.SIGTERM) is not self._ours:
            return
        self._bell = Doorbell.new()
        poller.register(self._bell.read_end)
        signal.set_wakeup_fd(self._bell.write_end, warn_on_full_buffer=False)

    # --- speaking and leaving -----------------------------------------------------------------

    def yell(self, data: Any, flags: YellFlags) -> bool:
        if self._hooked:
            parts = [freeze(data)]
            channels.send(self._yells, Kind.YELL, self._pid, flags.to_int(), parts)
            self._ring()
        return self._hooked

    def exit(self, status: int) -> NoReturn:
        # One that never was busy does not say that it leaves: if it was young as well,
        # the pool takes its end for a crash, or it would fork such children in a loop.
        if self._state == sb.BUSY:
            self._words[self._base + sb.DONE] += 1
        if self._words[self._base + sb.DONE]:
            self._mark(Event.CHILD_LEAVES)
        processes.leave(status)
