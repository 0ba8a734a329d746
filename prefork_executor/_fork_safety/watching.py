"""What can only be seen while it happens, as a process runs the user's code before it forks.

* A function registered with ``atexit`` runs once, at the end of the process that registered it.
  It does not run at the end of each process that is forked from that one.
* ``os.getpid()`` and random bytes from the system belong to one process. A name of a log file,
  an id, or a seed that is made from them must not be the same in all forked processes.
* The same holds for numbers drawn from the module ``random``. If a program seeds that module,
  each process would begin with that seed.

Only calls on behalf of the user's own code count. Going outwards from the call, a frame of one
of the user's modules comes before an import. (Or a frame of this package does, which calls
``preload``.) What a library does while it is imported is its own housekeeping: it is prepared for
forks, or it would break every program that forks.

Not seen: functions that other code took out of their modules before (``from os import getpid``
in a library that is already loaded), ``uuid.uuid1()``, and the clock.
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
"""Modules that need the answer only for the moment (a line of a log has a process id), that ask
again after a fork, or that are judged elsewhere (``weakref.finalize`` registers itself)."""


class Watched:
    """A record of what was seen, as phrases."""

    def __init__(self) -> None:
        self.phrases: list[str] = []
        self.has_ended = False

    def note(self, what: str, frame: types.FrameType | None) -> None:
        place = None if self.has_ended or not what else _place(frame)
        phrase = f"{what} ({place})"
        if place is not None and phrase not in self.phrases:
            self.phrases.append(phrase)


class _Patch:
    """Replaces a module's function for a while by one that takes notes."""

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
    """While the block runs in this process, record what `in_the_way` cannot find out
    afterwards."""
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
    """Modules that have meanwhile imported a replaced function by name get the original."""
    spaces = {
        id(vars(module)) for module in list(sys.modules.values()) if hasattr(module, "__dict__")
    }
    for holder in gc.get_referrers(*[patch.wrapper for patch in patches.values()]):
        # Only in modules: a class does not expect other code to write into it.
        if type(holder) is dict and id(holder) in spaces:
            for name, value in list(holder.items()):
                if (patch := patches.get(id(value))) is not None:
                    holder[name] = patch.original


def _place(frame: types.FrameType | None) -> str | None:
    """The line of the user's own code that has asked for this; None if there is none."""
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
    """The functions, and what to say when one is called; nothing, if the call is harmless."""
    yield atexit, "register", _say_registered
    yield os, "getpid", lambda: "the process id, which was asked for by os.getpid()"
    yield os, "urandom", _say_bytes
    # random keeps it under a name of its own, and secrets and numpy ask by that.
    yield random, "_urandom", lambda count: "" if _is_numpys(count) else _say_bytes()
    for name, function in list(vars(random).items()):
        if getattr(function, "__self__", None) is _RANDOM and name not in _QUIET:
            yield random, name, lambda *_, name=name: f"random.{name}(), called for this process"


_RANDOM = getattr(random, "_inst", None)
"""The generator whose methods are the module's functions."""
_QUIET = ("getstate", "setstate")
"""They draw nothing. A state that is set was drawn elsewhere."""


def _is_numpys(count: int) -> bool:
    """numpy takes this many bytes for each generator, even for one that is given a seed.
    `in_the_way` looks for the generators themselves."""
    return count == 16 and "numpy.random" in sys.modules


def _say_registered(function: object = None, *_: object) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"the function {name}, registered with atexit"


def _say_bytes(*_: object) -> str:
    return "random bytes of the system, taken for this process"
