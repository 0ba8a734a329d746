"""A raw-mode child's side: its marks on the scoreboard, its yells, its accept.

When a child becomes idle or busy, or leaves, it rings the doorbell, because the main process waits
for nothing else. (It does not ring when it looks for a connection and finds none.)

How a retired child loses nothing
---------------------------------
The main process retires idle children by SIGTERM. It may be wrong about a child: the child may just
have taken a connection, and not have said so yet. So a handler of this package gets the SIGTERM
first. If the signal retires the child, and the child is busy or has taken something since it was
last idle (see `takes.py`), the child goes on. It leaves when it is idle again, which it says by
``idle`` or by asking for more. In every other case it leaves at once. When it leaves, it calls the
handler that the user has set for SIGTERM, or takes the signal's default action.

* If a signal comes after the interpreter's last check for signals and before a system call that
  waits, Python runs the handler only when that call returns. So the main process sends another
  signal to a child that does not say that it has HEARD the first. That holds for an idle child that
  was retired, and for any child that ``pf_done`` ends.
* A signal from outside, or from ``pf_done`` (which DOOMED tells apart), takes effect at once.
* The user's code may set a handler at any time. When the child next says what it does, or asks for
  work, this package's handler takes the place of that handler, and calls it when the child leaves.

A child that takes its work by ``accept``, ``wait`` and ``take`` never dies of SIGTERM. From the
first of these calls on, the handler only records the signal and wakes the wait. A child that has
been woken first looks for work, and then whether to leave. This order matters because the kernel
wakes only one child for each event, and the others would sleep on. The user's own handler is called
when the child leaves.

If a child is killed at the moment at which the kernel wakes it, no other child is woken. That is
why a wait ends after LOOK_AGAIN seconds, and the child then looks for work.

`_board/worker_states.py` has the table of a child's states.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import pickle
import signal
import socket
import time
import types
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any, NoReturn, TypeVar

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
from .._system.descriptors import Doorbell, Socket
from .._system.signals import Handler
from . import tls
from .sources import Sources
from .takes import Takes

T = TypeVar("T")
LOOK_AGAIN = 1.0
"""Seconds after which a waiting child looks for work, and whether to leave, although nothing has
woken it. This costs each idle child one system call a second."""
_THAW = 1
_HAS_EXITCODE = 2
_EXITCODE_SHIFT = 8


class YellFlags(NamedTuple):
    """The flags that travel beside a yell's data."""

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
    """Pickle the data in one piece, with cloudpickle if pickle cannot."""
    try:
        return pickle.dumps(data, 5)
    except Exception as error:
        let_through(error)
        import cloudpickle  # type: ignore[import-untyped]

        return bytes(cloudpickle.dumps(data, 5))


class Child:
    """This process as a child of a raw pool. It is idle at first.

    Args:
        seat: its slot and its leash.
        board: the pool's scoreboard.
        yells: the channel for what it yells.
        doorbell: wakes the main process.
        hooked: whether there is a hook for yells.
        generation: how often the pool had been reloaded when the child was forked.
        handshake_timeout: seconds that a TLS client's handshake may take.
    """

    def __init__(
        self,
        seat: Seat,
        board: Scoreboard,
        yells: Socket,
        doorbell: Doorbell,
        *,
        hooked: bool,
        generation: int,
        handshake_timeout: float,
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
        self._handshake_timeout = handshake_timeout
        self._sources: Sources | None = None
        self._bell: Doorbell | None = None
        self._last_listener: socket.socket | None = None
        self._asked = 0
        self._was_woken = False
        self._terminated = False
        self._has_departed = False
        self._is_to_leave = False
        self._theirs: Handler = signal.SIG_DFL
        self._ours = self._on_sigterm  # One object: whether it is installed is asked often.
        self._thread = _thread.get_ident()
        self._takes = Takes(self._before_take)
        self._adopt()
        self._takes.begin()
        self._mark(Event.CHILD_STARTS)

    @property
    def is_here(self) -> bool:
        """Whether this process is the child, and not one that the child has forked. Such a process
        has the same scoreboard, but no slot on it."""
        return os.getpid() == self._pid

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
        # If the main process was killed, no process reads the doorbell; the leash tells the child.
        with contextlib.suppress(ConnectionError):
            self._doorbell.ring()

    def busy(self) -> None:
        if not self.is_here:
            return
        self._adopt()
        if self._state != sb.BUSY:
            self._mark(Event.CHILD_IS_BUSY)
        else:  # It goes on with something new, for which busy_timeout begins again.
            self._words[self._base + sb.SINCE] = time.monotonic_ns()
        self._takes.clear()

    def idle(self) -> None:
        if not self.is_here:
            return
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
        """If the user has set a new handler for SIGTERM, put this package's handler in its
        place."""
        theirs = signal.getsignal(signal.SIGTERM)
        is_at_rest = theirs == signal.SIG_IGN or theirs is None
        if theirs is self._ours or is_at_rest or _thread.get_ident() != self._thread:
            return
        self._theirs = theirs
        signals.set_handler(signal.SIGTERM, self._ours)

    def _before_take(self) -> bool:
        """Prepare for a call that may take work. Returns False if what it takes need not be noted:
        the child is not idle, or another thread or process makes the call."""
        is_ours = _thread.get_ident() == self._thread and self.is_here
        if self._state != sb.IDLE or not is_ours:
            return False
        self._adopt()
        if self._is_to_leave:  # The work for which it went on after SIGTERM is done.
            self._takes.clear()
            self._give_way(signal.SIGTERM, None)
        return True

    def _on_sigterm(self, number: int, frame: types.FrameType | None) -> None:
        words, base = self._words, self._base
        if not self.is_here:
            self._give_way(number, frame)  # The child has forked; this process is none of the pool.
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
        """Do what the signal would do without this package's handler."""
        self._is_to_leave = False
        if callable(self._theirs):
            self._theirs(number, frame)
            return
        signals.set_handler(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # --- taking work ------------------------------------------------------------------------

    def accept(self, listeners: Sequence[socket.socket]) -> tuple[socket.socket, Any] | None:
        sources = self._own_sources()
        sources.watch(listeners)
        for listener in listeners:
            if listener.gettimeout() != 0:
                listener.setblocking(False)
        if not self._asks():
            return None
        while True:
            ready, woken_by = self._wait(sources, LOOK_AGAIN)
            for listener in self._in_turn(ready or listeners):
                if (connection := self._accept_from(listener)) is not None:
                    return connection
            if self._leash in woken_by or self._is_told_to_leave():
                self._depart()
                return None

    def wait(self, objects: Sequence[Any], timeout: float | None) -> list[Any] | None:
        sources = self._own_sources()
        sources.watch(objects)
        if not self._asks():
            return None
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, end - time.monotonic())
            ready, woken_by = self._wait(sources, min(LOOK_AGAIN, left))
            if ready := ready or sources.look():
                self._was_woken = True
                return ready
            if self._leash in woken_by or self._is_told_to_leave():
                self._depart()
                return None
            if time.monotonic() >= end:
                return []

    def take(self, function: Callable[[], T | None]) -> T | None:
        self._own_sources()
        if not self._asks(in_any_case=self._was_woken):
            return None
        self._was_woken = False
        self._say(Event.CHILD_LOOKS)
        try:
            taken = function()
        except (BlockingIOError, Empty):
            taken = None
        except BaseException:
            self._mark(Event.CHILD_ACCEPTS)  # It may hold what the function has taken.
            raise
        if taken is None:
            self._say(Event.CHILD_FINDS_NOTHING)
            return None
        self._mark(Event.CHILD_ACCEPTS)
        return taken

    def _asks(self, *, in_any_case: bool = False) -> bool:
        """Say that the child is idle and asks for work. If it has been told to leave, leave, and
        return False. ``in_any_case``: it was woken for this work, and no other child was."""
        if self._has_departed:
            return False
        self.idle()
        self._asked += 1
        self._say(Event.CHILD_ASKS)
        if in_any_case or not self._is_told_to_leave():
            return True
        self._depart()
        return False

    def _wait(self, sources: Sources, timeout: float) -> tuple[list[Any], list[int]]:
        ready, woken_by = sources.wait(timeout)
        if self._bell is not None and self._bell.read_end in woken_by:
            self._bell.hush()
        return ready, woken_by

    def _in_turn(self, listeners: Sequence[socket.socket]) -> Sequence[socket.socket]:
        """The listener that gave the last connection comes last."""
        if len(listeners) == 1:
            return listeners
        return sorted(listeners, key=lambda listener: listener is self._last_listener)

    def _accept_from(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        # The main process does not retire a child that says TAKING.
        self._say(Event.CHILD_LOOKS)
        is_tls = tls.speaks_tls(listener)
        try:
            connection, client = tls.accept_raw(listener) if is_tls else listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            self._say(Event.CHILD_FINDS_NOTHING)
            return None
        if platform.FALLBACK:
            # On systems other than Linux, the connection inherits the listener's mode.
            connection.settimeout(socket.getdefaulttimeout())
        self._mark(Event.CHILD_ACCEPTS)
        self._last_listener = listener
        return self._secured(connection, client, listener) if is_tls else (connection, client)

    def _secured(
        self, connection: socket.socket, client: Any, listener: socket.socket
    ) -> tuple[socket.socket, Any] | None:
        secured = tls.shake_hands(connection, client, listener, self._handshake_timeout)
        if secured is not None:
            return secured, client
        self._mark(Event.CHILD_IS_IDLE)
        return None

    def _is_told_to_leave(self) -> bool:
        return self._terminated or bool(self._words[self._base + sb.RETIRE])

    def leaving(self) -> bool:
        """Whether the child should leave when it has done what it holds."""
        return self._is_told_to_leave() or self._words[sb.GENERATION] != self._generation

    def _depart(self) -> None:
        self._has_departed = True
        self._mark(Event.CHILD_LEAVES)
        if callable(self._theirs):
            signals.set_handler(signal.SIGTERM, self._theirs)
            if self._terminated:
                self._theirs(signal.SIGTERM, None)

    def _own_sources(self) -> Sources:
        """From the first call on, SIGTERM is only recorded."""
        if self._sources is None:
            self._sources = Sources(self._leash)
            self._record_sigterm(self._sources)
        return self._sources

    def _record_sigterm(self, sources: Sources) -> None:
        self._adopt()
        if signal.getsignal(signal.SIGTERM) is not self._ours:
            return
        self._bell = sources.add_bell()
        signal.set_wakeup_fd(self._bell.write_end, warn_on_full_buffer=False)

    # --- speaking and leaving -----------------------------------------------------------------

    def yell(self, data: Any, flags: YellFlags) -> bool:
        if self._hooked:
            parts = [freeze(data)]
            channels.send(self._yells, Kind.YELL, self._pid, flags.to_int(), parts)
            self._ring()
        return self._hooked

    @property
    def has_served(self) -> bool:
        """Whether it has taken something, or has ever been busy."""
        is_busy = self._state == sb.BUSY or bool(self._takes)
        return is_busy or bool(self._words[self._base + sb.DONE])

    def fail(self) -> NoReturn:
        """Exit because of an exception. If the child holds something, it stays busy: the pool
        counts its end as a death at work, and not as that of a child that cannot start."""
        if self.is_here and self._state == sb.IDLE and self._takes:
            self._mark(Event.CHILD_IS_BUSY)
        processes.leave(1)

    def exit(self, status: int) -> NoReturn:
        if not self.is_here:
            processes.leave(status)
        # A child that never was busy does not say that it leaves. So if it is also young, the pool
        # takes its end for a crash. Otherwise the pool would fork such children in a loop.
        if self._state == sb.BUSY:
            self._words[self._base + sb.DONE] += 1
        if self._words[self._base + sb.DONE]:
            self._mark(Event.CHILD_LEAVES)
        processes.leave(status)
