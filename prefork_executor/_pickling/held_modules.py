"""Which modules the workers can import, other than ``__main__``.

A reference to a module's function is right if the worker finds the same module. That is so
for whatever Python finds by itself. It is not for a module that the program has made by
hand, has loaded from a file that lies on no path, or has found by a path that it has added
after the supervisor began; nor does a worker have it by inheritance, unless it was there
when the supervisor was forked. What such a module, a *strange* one, defines travels by
value, as what ``__main__`` defines does.

The names of modules are looked at as they come, and a module is judged once. What cannot be
told is not strange: it goes by reference, as ever.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from collections.abc import Iterable

from .._support.handlers import let_through
from .main_snapshot import MAIN_NAMES

_NOT_FILES = ("built-in", "frozen")
_modules = sys.modules


class HeldModules:
    """What workers of one supervisor find. Made when that starts.

    Args:
        is_forked: whether the supervisor has what this process has loaded.
    """

    def __init__(self, *, is_forked: bool) -> None:
        self._path = list(sys.path)
        self._places = {os.path.abspath(place) for place in self._path}
        self._finders = list(sys.meta_path)
        self._judged = set(_modules if is_forked else MAIN_NAMES)
        self._judged.update(MAIN_NAMES)
        self.count = len(_modules) if is_forked else -1
        """Modules there were at the last look."""
        self.names: tuple[bytes, ...] = ()
        """The strange ones among them, as a pickle names them. Public, with the count,
        because every submit asks: see :meth:`are_in`."""
        self._strange: frozenset[str] = frozenset()

    def are_in(self, pickled: bytes) -> bool:
        """Whether a plain pickle names strange modules."""
        if len(_modules) != self.count:
            self._look()
        return bool(self.names) and any(pickled.find(name) >= 0 for name in self.names)

    def is_strange(self, name: object) -> bool:
        """Whether a module of this name is. Asks nobody anew."""
        return name in self._strange

    def _look(self) -> None:
        self.count = len(_modules)
        new = [name for name in list(_modules) if name not in self._judged]
        self._judged.update(new)
        strange = {name for name in new if self._is_strange_module(name)}
        if strange:
            self._strange |= strange
            self.names = tuple(name.encode(errors="surrogatepass") for name in self._strange)

    def _is_strange_module(self, name: str) -> bool:
        top = name.partition(".")[0]
        if top != name and top in _modules:
            return top in self._strange
        module = _modules.get(name)
        try:
            return type(module) is types.ModuleType and not self._finds(name, module)
        except Exception as error:
            let_through(error)
            return False  # A finder of somebody's, or a module's own __getattr__.

    def _finds(self, name: str, module: types.ModuleType) -> bool:
        spec = vars(module).get("__spec__")
        if spec is None:
            return not _is_made_of_python(module)
        if isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            return True  # What C defines cannot travel by value.
        origin = spec.origin
        if origin is None or origin in _NOT_FILES or self._is_on_path(spec):
            return True
        return any(_is_same(found, origin) for found in self._specs(name))

    def _is_on_path(self, spec: importlib.machinery.ModuleSpec) -> bool:
        """Whether it lies where it is to be looked for; the usual case, without a look."""
        place, file = os.path.split(os.path.abspath(str(spec.origin)))
        is_package = spec.submodule_search_locations is not None
        place, base = os.path.split(place) if is_package else (place, file.partition(".")[0])
        return base == spec.name and place in self._places

    def _specs(self, name: str) -> Iterable[object]:
        for finder in self._finders:
            if finder is importlib.machinery.PathFinder:
                yield importlib.machinery.PathFinder.find_spec(name, self._path)
            else:
                yield finder.find_spec(name, None)


def _is_same(found: object, origin: str) -> bool:
    other = getattr(found, "origin", None)
    return other is not None and (
        other == origin or os.path.realpath(other) == os.path.realpath(origin)
    )


def _is_made_of_python(module: types.ModuleType) -> bool:
    """Whether it holds functions of its own: extensions make modules without any, for
    themselves."""
    return any(
        type(thing) is types.FunctionType and thing.__module__ == module.__name__
        for thing in list(vars(module).values())
    ) or "__builtins__" in vars(module)
