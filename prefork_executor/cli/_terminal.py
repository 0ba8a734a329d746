"""A terminal's keys, one at a time, while something is drawn on it.

Whatever ends the drawing, an exception or a signal that can be caught, the terminal is
then restored. Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit. Ctrl-Z
has no effect while something is drawn: it would leave the drawing in the shell.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_KEYS = 64
"""Bytes to read at once. No user types more between two looks."""


class Keys:
    """Waits for keys, and for a change of the terminal's size."""

    def __init__(self, keyboard: int | None, wake_up: int) -> None:
        self._keyboard = keyboard
        self._wake_up = wake_up

    def wait(self, seconds: float) -> str | None:
        """The keys pressed within ``seconds`` at most. An empty string if there were none, or
        the size of the terminal has changed. None if the terminal has gone."""
        sources = [self._wake_up] if self._keyboard is None else [self._wake_up, self._keyboard]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._wake_up in ready:
            os.read(self._wake_up, MAX_KEYS)
        if self._keyboard not in ready or self._keyboard is None:
            return ""
        try:
            pressed = os.read(self._keyboard, MAX_KEYS)
        except OSError:
            return None
        return pressed.decode(errors="replace") or None


@contextlib.contextmanager
def keys() -> Iterator[Keys]:
    """The keys of standard input, if that is a terminal. Call it in the main thread."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    keyboard = sys.stdin.fileno() if is_terminal else None
    with contextlib.ExitStack() as undo:
        wake_up, far = os.pipe()
        undo.callback(os.close, wake_up)
        undo.callback(os.close, far)
        os.set_blocking(far, False)
        undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(far, warn_on_full_buffer=False))
        for number, handler in _HANDLERS.items():
            undo.callback(signal.signal, number, signal.signal(number, handler) or signal.SIG_DFL)
        if keyboard is not None:
            undo.callback(termios.tcsetattr, keyboard, termios.TCSADRAIN, _attributes(keyboard))
            tty.setcbreak(keyboard)
        yield Keys(keyboard, wake_up)


def _attributes(keyboard: int) -> list[Any]:
    return termios.tcgetattr(keyboard)


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _note_size(_number: int, _frame: object) -> None:
    """Only exists so that the signal wakes us. Every drawing asks for the size."""


_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGWINCH: _note_size,
    signal.SIGTERM: _leave,
    signal.SIGHUP: _leave,
    signal.SIGTSTP: signal.SIG_IGN,
}
