"""Which modules the workers can import, other than ``__main__``.

A reference to a module's function is right if the worker finds the same module. It does for
every module that Python finds on its own. It does not for a module that the program has made
by hand, has loaded from a file on no path, or has found by a path that it added after the
supervisor began. Nor does a worker inherit such a module, unless it was there when the
supervisor was forked. These modules are called *strange*. What they define travels by value,
as what ``__main__`` defines does.

A module is judged once, when its name first appears. If the judgement is impossible, the module
does not count as strange: it goes by reference, as with pickle.
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
    """The modules that the workers of one supervisor find. Made when that starts.

    Args:
        is_forked: whether the supervisor has all modules that this process has loaded.
    """

    def __init__(self, *, is_forked: bool) -> None:
        self._path = list(sys.path)
        self._places = {os.path.abspath(place) for place in self._path}
        self._finders = list(sys.meta_path)
        self._judged = set(_modules if is_forked else MAIN_NAMES)
        self._judged.update(MAIN_NAMES)
        self.count = len(_modules) if is_forked else -1
        """How many modules there were at the last check."""
        self.names: tuple[bytes, ...] = ()
        """The strange ones among them, as a pickle names them. Public, like the count, because
        every submit reads them: see :meth:`are_in`."""
        self._strange: frozenset[str] = frozenset()

    def are_in(self, pickled: bytes) -> bool:
        """Whether a plain pickle names strange modules."""
        if len(_modules) != self.count:
            self._look()
        return bool(self.names) and any(pickled.find(name) >= 0 for name in self.names)

    def is_strange(self, name: object) -> bool:
        """Whether the module of this name is strange, by the last check."""
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
            return False  # A finder of the user's raised, or a module's own __getattr__ did.

    def _finds(self, name: str, module: types.ModuleType) -> bool:
        spec = vars(module).get("__spec__")
        if spec is None:
            return not _is_made_of_python(module)
        if isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            return True  # What is defined in C cannot travel by value.
        origin = spec.origin
        if origin is None or origin in _NOT_FILES or self._is_on_path(spec):
            return True
        return any(_is_same(found, origin) for found in self._specs(name))

    def _is_on_path(self, spec: importlib.machinery.ModuleSpec) -> bool:
        """Whether it lies where Python would look for it: the usual case, without a search."""
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
    """Whether it has functions written in Python. Extensions make modules for themselves that
    have none."""
    return any(
        type(thing) is types.FunctionType and thing.__module__ == module.__name__
        for thing in list(vars(module).values())
    ) or "__builtins__" in vars(module)
