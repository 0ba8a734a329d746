"""What can only be seen as it happens, while a process runs the user's code before it forks.

* A function registered with ``atexit`` runs once, at the end of the process that registered it,
  and not at the end of each that is forked from it.
* ``os.getpid()`` and random bytes from the system are one process's own. A name for a log file,
  an id, a seed that is made of them must not be the same in all that are forked.
* The same is true of numbers drawn from the module ``random``; and if that is given a seed, each
  process would begin with it.

Only what is done on behalf of the user's own code counts: on the way from the call outwards a
module of theirs comes before an import does (or this package does, whose call of ``preload`` it
is). What a library does as it is imported is for its own housekeeping: it knows of forks, or
would break every program that forks.

What is not seen: functions that were taken out of their modules before (``from os import
getpid`` in a library that is loaded already), ``uuid.uuid1()``, and the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import random
import sys
import types
from collections.abc import Callable, Iterator

from .owners import is_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PACKAGE = __name__.partition(".")[0]
_MOMENTARY = frozenset(
    {"asyncio", "logging", "multiprocessing", "subprocess", "tempfile", "threading", "weakref"}
    | {"joblib", _PACKAGE}
)
"""Who asks for the moment only (a line of a log has a process id), looks again after a fork, or
has a judgement of its own (``weakref.finalize`` registers itself)."""


class Watched:
    """A record of what was seen, as plain phrases."""

    def __init__(self) -> None:
        self.phrases: list[str] = []
        self.has_ended = False

    def note(self, what: str, frame: types.FrameType | None) -> None:
        place = None if self.has_ended or not what else _place(frame)
        phrase = f"{what} ({place})"
        if place is not None and phrase not in self.phrases:
            self.phrases.append(phrase)


class _Patch:
    """A function of a module that is replaced for a while by one that takes notes."""

    def __init__(self, seen: Watched, module: Any, name: str, say: Callable[..., str]) -> None:
        self.module, self.name = module, name
        self.original = original = getattr(module, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.note(say(*args), sys._getframe(1))
            return original(*args, **kwargs)

        self.wrapper = wrapper
        setattr(module, name, wrapper)

    def undo(self) -> None:
        if getattr(self.module, self.name) is self.wrapper:
            setattr(self.module, self.name, self.original)


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """While the block runs, in this process, a record is kept of what `in_the_way` cannot
    find out afterwards."""
    seen = Watched()
    patches = [_Patch(seen, module, name, say) for module, name, say in _watched()]
    try:
        yield seen
    finally:
        seen.has_ended = True
        for patch in patches:
            patch.undo()
        _put_back({id(patch.wrapper): patch for patch in patches})


def _put_back(patches: dict[int, _Patch]) -> None:
    """Modules that have imported one by name meanwhile get the original."""
    spaces = {
        id(vars(module)) for module in list(sys.modules.values()) if hasattr(module, "__dict__")
    }
    for holder in gc.get_referrers(*[patch.wrapper for patch in patches.values()]):
        # Of modules only: a class does not expect that somebody else writes into it.
        if type(holder) is dict and id(holder) in spaces:
            for name, value in list(holder.items()):
                if (patch := patches.get(id(value))) is not None:
                    holder[name] = patch.original


def _place(frame: types.FrameType | None) -> str | None:
    """Which line of the user's own code has asked for this; None if none has."""
    if frame is None or _top(frame) in _MOMENTARY:
        return None
    inner = frame
    while frame is not None:
        if is_own(_module(frame)):
            return _line(frame)
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return None
        if _top(frame) == _PACKAGE:
            return _line(inner)
        inner, frame = frame, frame.f_back
    return None


def _line(frame: types.FrameType) -> str:
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _module(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _top(frame: types.FrameType) -> str:
    return _module(frame).partition(".")[0]


def _watched() -> Iterator[tuple[Any, str, Callable[..., str]]]:
    """The functions, and what is said if somebody calls one; nothing, if it is harmless."""
    yield atexit, "register", _say_registered
    yield os, "getpid", lambda: "the process id, which was asked for by os.getpid()"
    yield os, "urandom", _say_bytes
    # random has taken a name of its own for it, by which secrets and numpy ask.
    yield random, "_urandom", lambda count: "" if _is_numpys(count) else _say_bytes()
    for name, function in list(vars(random).items()):
        if getattr(function, "__self__", None) is _RANDOM and name not in _QUIET:
            yield random, name, lambda *_, name=name: f"random.{name}(), called for this process"


_RANDOM = getattr(random, "_inst", None)
"""The generator whose methods are the functions of the module."""
_QUIET = ("getstate", "setstate")
"""They draw nothing; what is set was drawn elsewhere."""


def _is_numpys(count: int) -> bool:
    """It takes so many bytes for each generator, even one that is given a seed. What it draws
    from them is another matter: `in_the_way` looks for the generators themselves."""
    return count == 16 and "numpy.random" in sys.modules


def _say_registered(function: object = None, *_: object) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"the function {name}, registered with atexit"


def _say_bytes(*_: object) -> str:
    return "random bytes of the system, taken for this process"
