"""Signals: masks, dispositions, and Python handlers.

A process of the pool blocks signals while it forks, so that no Python handler of the
parent runs in the child before the child has installed its own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import signal
import struct
import sys
import types
from collections.abc import Callable, Iterable, Mapping

from .platform import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Handler = Callable[[int, types.FrameType | None], object] | int | signal.Handlers | None
# From `_signal`: the function in `signal` makes an enum of every number. That takes 0.2 ms for a
# full mask, at every turn of a raw main process's loop.
ALL_SIGNALS = frozenset(int(number) for number in _signal.valid_signals())


def current_mask() -> set[int]:
    """The signals that are blocked now."""
    return set(_signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def blocked_signals(pid: int) -> set[int] | None:
    """The signals that the main thread of another process blocks. None if that process has
    ended, or the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            told = dict(line.split(b":", 1) for line in file if b":" in line)
        if told[b"State"].split()[0] == b"Z":
            return None
        mask = int(told[b"SigBlk"], 16)
    except (OSError, KeyError, ValueError):
        return None
    return {number for number in range(1, signal.NSIG) if mask >> (number - 1) & 1}


def block_signals(numbers: Iterable[int]) -> None:
    """Block these signals as well. The Python handler of one that came earlier runs now, and
    may raise."""
    _signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def restore_mask(mask: set[int]) -> None:
    """Block these signals and no others. Handlers of signals that came meanwhile run now."""
    _signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def forget_handlers() -> None:
    """In a process that was forked off: remove the Python handlers, which are meant for the
    process that forked it. Ignored signals stay ignored."""
    _signal.set_wakeup_fd(-1)
    for number in ALL_SIGNALS:
        if callable(_signal.getsignal(number)):
            with contextlib.suppress(OSError, ValueError):
                set_handler(number, signal.SIG_DFL)


def set_handler(number: int, handler: Handler) -> Handler:
    """``signal.signal``, which a patched program has replaced for SIGCHLD. Returns the old
    handler, or None if Python did not install it."""
    new: Any = handler
    old: Handler = _signal.signal(number, new if callable(new) else int(new))
    return old


def install_handlers(handlers: Mapping[int, Handler]) -> None:
    for number, handler in handlers.items():
        set_handler(number, handler)


def run_handlers() -> None:
    """Run the Python handlers of signals that have come and have not been handled yet.

    From CPython 3.13 on, in a process that a thread other than the main one has forked, the
    interpreter's loop does not notice that a signal has come. Any C function that checks for
    signals notices it. This one is the cheapest."""
    repr(None)


SA_RESETHAND = 0x80000000
_FLAGS_BEHIND = 128
"""Bytes of the signal mask in Linux's C libraries. It lies between the handler and the flags of
a ``struct sigaction``."""


def default_after_next(number: int) -> None:
    """Have the kernel restore a signal's default effect when it delivers the next one. The
    current handler still runs for that one. A no-op on systems other than Linux, where
    :func:`has_default_action` could not tell either."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    action = ctypes.create_string_buffer(256)
    at = struct.calcsize("P") + _FLAGS_BEHIND
    if libc().sigaction(int(number), None, action) == 0:
        (flags,) = struct.unpack_from("=I", action, at)
        struct.pack_into("=I", action, at, flags | SA_RESETHAND)
        libc().sigaction(int(number), action, None)


def has_default_action(pid: int, number: int) -> bool:
    """Whether a process neither handles nor ignores this signal. False if the system does not
    tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = [line.split() for line in file if line.startswith((b"SigIgn", b"SigCgt"))]
        return not any(int(mask, 16) >> (number - 1) & 1 for _, mask in lines)
    except (OSError, ValueError):
        return False


def only_wake_up(_signum: int, _frame: object) -> None:
    """Stands where a handler must for the signal to reach the wake-up descriptor.

    That descriptor is written by the interpreter's C code. A handler in Python
    could not be relied upon: CPython from 3.13 on never runs one in a process that was
    forked by another thread than the main one, as a supervisor may be."""
