"""What can only be seen as it happens, while a process runs the user's code before it forks.

* A function registered with ``atexit`` runs once, at the end of the process that registered it,
  and not at the end of each that is forked from it.
* ``os.getpid()`` and random bytes from the system are one process's own. A name for a log file,
  an id, a seed that is made of them must not be the same in all that are forked.

Only what is done on behalf of the user's own code counts: on the way from the call outwards the
main module comes before an import does (or this package does, whose call of ``preload`` it is).
What a library does as it is imported is for its own housekeeping: it knows of forks, or would
break every program that forks.

What is not seen: functions that were taken out of their modules before (``from os import
getpid`` in a library that is loaded already), ``uuid.uuid1()``, and the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import random
import sys
import types
from collections.abc import Callable, Iterator

from ._owners import MAIN_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PACKAGE = __name__.partition(".")[0]
_MOMENTARY = frozenset(
    {"asyncio", "logging", "multiprocessing", "subprocess", "tempfile", "threading", "weakref"}
    | {_PACKAGE}
)
"""Those who ask for the moment only (a line of a log has a process id), look again after a fork,
or have a judgement of their own (``weakref.finalize`` registers itself)."""


class Watched:
    """A record of what was seen, as plain phrases."""

    def __init__(self) -> None:
        self.phrases: list[str] = []
        self._ends = False

    def _note(self, what: str) -> None:
        place = None if self._ends else _place(sys._getframe(2))
        phrase = f"{what} ({place})"
        if place is not None and phrase not in self.phrases:
            self.phrases.append(phrase)

    def _wrap(self, function: Callable[..., Any], say: Callable[..., str]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._note(say(*args))
            return function(*args, **kwargs)

        wrapper.__doc__, wrapper.__name__ = function.__doc__, function.__name__
        wrapper.__qualname__, wrapper.__module__ = function.__qualname__, function.__module__
        return wrapper

    def _end(self) -> None:
        self._ends = True


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """While the block runs, in this process, a record is kept of what `in_the_way` cannot
    find out afterwards."""
    seen = Watched()
    originals = [(module, name, getattr(module, name)) for module, name, _ in _WATCHED]
    wrappers = [
        seen._wrap(original, say)
        for (_, _, original), (_, _, say) in zip(originals, _WATCHED, strict=True)
    ]
    for (module, name, _), wrapper in zip(originals, wrappers, strict=True):
        setattr(module, name, wrapper)
    try:
        yield seen
    finally:
        seen._end()
        for (module, name, original), wrapper in zip(originals, wrappers, strict=True):
            if getattr(module, name) is wrapper:
                setattr(module, name, original)
            _put_back(wrapper, original)


def _put_back(wrapper: object, original: object) -> None:
    """Modules that have imported it by name meanwhile get the original."""
    holders = gc.get_referrers(wrapper)
    for holder in holders:
        if type(holder) is dict:
            for name in [name for name, value in holder.items() if value is wrapper]:
                holder[name] = original


def _place(frame: types.FrameType | None) -> str | None:
    """Which line of the user's own code has asked for this; None if none has."""
    if frame is None or _module_of(frame).partition(".")[0] in _MOMENTARY:
        return None
    inner = frame
    while frame is not None:
        if _module_of(frame) in MAIN_NAMES:
            return f"{frame.f_code.co_filename}, line {frame.f_lineno}"
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return None
        if _module_of(frame).partition(".")[0] == _PACKAGE:
            return f"{inner.f_code.co_filename}, line {inner.f_lineno}"
        inner, frame = frame, frame.f_back
    return None


def _module_of(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _say_registered(function: object = None, *_: object) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"the function {name}, registered with atexit"


def _say_pid() -> str:
    return "the process id, which was asked for by os.getpid()"


def _say_random(*_: object) -> str:
    return "random bytes of the system, taken for this process"


_WATCHED: list[tuple[Any, str, Callable[..., str]]] = [
    (atexit, "register", _say_registered),
    (os, "getpid", _say_pid),
    (os, "urandom", _say_random),
    (random, "_urandom", _say_random),
]
"""``random`` has taken a name of its own for it, by which ``secrets`` and numpy ask."""
