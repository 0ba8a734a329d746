"""Where a thing belongs: which global of which module leads to it, and whose module that is.

A module is a *library's* if its file lies with Python's own modules or installed ones, or if it
has no file. Any other is the user's *own*, above all the main module. Own modules are searched a
few steps deep, libraries only at their surface. What is not found has no owner.
"""

from __future__ import annotations

import collections
import gc
import itertools
import os
import sys
import types
from collections.abc import Callable, Iterator

from .._support.named_tuples import NamedTuple

MAIN_NAMES = ("__main__", "__mp_main__")
"""The names of the caller's main module: the usual one, and that of one imported anew."""

_STEPS = 4
"""Steps from a module's global to a thing: an object, its attributes, a container, its content.
A ZipFile's file is three steps away."""
_MAX_OBJECTS = 20_000
"""Objects to look at, the nearest first. This takes about ten milliseconds."""
_TOO_LONG = 1000
"""Members from which on a container counts as a table, and is not searched."""
_NOWHERE = (types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.FrameType)
"""Objects that lead everywhere, and so do not tell where a thing belongs."""
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep


class Owner(NamedTuple):
    """A module's global. It is the thing itself, or leads to it in some ``steps``."""

    module: str
    name: str
    steps: int

    def __str__(self) -> str:
        module = MAIN_NAMES[0] if self.module in MAIN_NAMES else self.module
        return f"{'in ' if self.steps else ''}`{self.name}` of {module}"


class Owners:
    """What modules hold. They are searched once, when the first question comes."""

    def __init__(self) -> None:
        self._deep: list[tuple[object, Owner]] | None = None

    def find(self, is_it: Callable[[object], bool]) -> Owner | None:
        """The nearest owner. One in an own module precedes one in a library."""
        if self._deep is None:
            self._deep = list(_search_own())
        for thing, owner in self._deep:
            if is_it(thing):
                return owner
        for module in _modules():
            for name, value in _globals(module):
                if is_it(value):
                    return Owner(module.__name__, name, 0)
        return None

    def instances(self, kinds: set[type]) -> Iterator[object]:
        """The objects of exactly these types."""
        if self._deep is None:
            self._deep = list(_search_own())
        yield from (thing for thing, _ in self._deep if type(thing) in kinds)
        for module in _modules():
            for value in list(vars(module).values()):
                if type(value) in kinds:
                    yield value


def is_own(name: str) -> bool:
    """Whether the module of this name is the user's own."""
    if name in MAIN_NAMES:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or file.startswith((_STANDARD, _PACKAGE)):
        return False
    return not any(part in file for part in _INSTALLED)


def _modules() -> Iterator[types.ModuleType]:
    for module in list(sys.modules.values()):
        # type() instead of isinstance(), here and below: it does not load what a proxy stands for.
        if issubclass(type(module), types.ModuleType):
            yield module


def _globals(module: types.ModuleType) -> list[tuple[str, object]]:
    return list(vars(module).items())


def _search_own() -> Iterator[tuple[object, Owner]]:
    """All objects within a few steps of an own module's globals, the nearest first."""
    own = sorted(filter(is_own, list(sys.modules)), key=lambda name: name not in MAIN_NAMES)
    todo = collections.deque(
        (value, Owner(module, name, 0))
        for module in own
        for name, value in _globals(sys.modules[module])
    )
    seen = {id(vars(sys.modules[module])) for module in own}
    while todo and len(seen) < _MAX_OBJECTS:
        thing, owner = todo.popleft()
        if id(thing) in seen or _leads_nowhere(thing):
            continue
        seen.add(id(thing))
        yield thing, owner
        if owner.steps < _STEPS:
            further = owner._replace(steps=owner.steps + 1)
            todo.extend(zip(gc.get_referents(thing), itertools.repeat(further), strict=False))


def _leads_nowhere(thing: object) -> bool:
    kind = type(thing)
    if issubclass(kind, type):
        return vars(thing).get("__module__") not in MAIN_NAMES
    if kind is types.FunctionType:
        return getattr(thing, "__module__", None) not in MAIN_NAMES
    if issubclass(kind, _NOWHERE):
        return True
    return kind in (list, tuple, dict, set) and len(thing) > _TOO_LONG  # type: ignore[arg-type]
