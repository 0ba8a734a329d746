"""Pickling by value: cloudpickle's pickler, with the rules of this package.

Importing this module imports cloudpickle, so it is imported when a call first needs it.

This module corrects what cloudpickle does differently from what we need. `newer_python.py` adds
what it does not know of newer Pythons:

* Registered reducers (`reducers.py`) precede cloudpickle's.
* The caller of this module decides what goes by reference.
* A function's code keeps the name of its file, so that a traceback shows its source.
  cloudpickle 3.1.3 replaces the name.
* A class keeps its qualified name. If it is of ``__main__``, it keeps the caller's name of that.
* A class that is written in C never goes by value. cloudpickle would send a class that nothing can
  make in the other process.
* ``functools.lru_cache`` objects that their module does not have go by value.
* A text file that is open for reading is refused. cloudpickle would send all its text.
"""

from __future__ import annotations

import functools
import io
import sys
import types
from collections.abc import Callable

import cloudpickle  # type: ignore[import-untyped]

from . import newer_python, reducers
from .main_snapshot import MAIN_NAMES, resolve
from .ways import BY_VALUE, is_written_in_c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from .ways import Refer

_MAX_CODES = 256
"""Codes of functions that travel by value whose reductions are remembered, at most."""
_DYNAMIC = "<dynamic-code>"
"""cloudpickle's name for the file of any code."""
_Cached: type = type(functools.lru_cache(len))


def _is_function_of(module: str, thing: object) -> bool:
    return type(thing) is types.FunctionType and thing.__module__ == module


_own_name = cloudpickle.Pickler.__module__
_maker = sys.modules[_own_name]
_makers = frozenset(thing for thing in vars(_maker).values() if _is_function_of(_own_name, thing))
"""The functions that cloudpickle's reductions call, several for each pickled function. The
workers have them."""


def _as_method(reduce: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda _pickler, thing: reduce(thing)


def _with_its_file(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """cloudpickle's reduction of code, with the name of its file. Results are remembered: a
    lambda in a loop is a new function each time, but has the same code."""
    known: dict[int, tuple[types.CodeType, Any]] = {}

    def reduce_code(code: types.CodeType) -> Any:
        # By id, because code from another file may be equal to it.
        found = known.get(id(code))
        if found is None:
            make, parts = reduce(code)
            # Not by ==: some are bytes, and Python may be told to warn of comparing those.
            named = (code.co_filename if _is_dynamic(part) else part for part in parts)
            if len(known) >= _MAX_CODES:
                known.clear()
            found = known[id(code)] = code, (make, tuple(named))
        return found[1]

    return reduce_code


def _is_dynamic(part: object) -> bool:
    return type(part) is str and part == _DYNAMIC


def _is_by_value(reduced: Any) -> bool:
    """Whether this is cloudpickle's reduction of a class that it sends by value."""
    return isinstance(reduced, tuple) and len(reduced) == 6


def _with_its_name(kind: type, reduced: Any) -> Any:
    """cloudpickle's reduction of a class, with the full name of the class, which it drops, and
    with the caller's name of ``__main__``."""
    if _is_by_value(reduced):
        attributes = reduced[2][0]
        attributes["__qualname__"] = kind.__qualname__
        newer_python.keep_annotations(kind, attributes)
        if kind.__module__ in MAIN_NAMES:
            attributes["__module__"] = "__main__"
    return reduced


def _is_in_its_module(thing: Any) -> bool:
    module = sys.modules.get(thing.__module__)
    return (
        module is not None
        and thing.__module__ not in MAIN_NAMES
        and resolve(vars(module), thing.__qualname__) is thing
    )


def _make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _reduce_text_file(file: io.TextIOWrapper) -> Any:
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"cannot pickle {type(file).__name__!r} object: it is an open file")


class RulePickler(cloudpickle.Pickler):  # type: ignore[misc]
    _own: ClassVar = {
        **cloudpickle.Pickler._dispatch_table,
        io.TextIOWrapper: _reduce_text_file,
        types.CodeType: _with_its_file(cloudpickle.Pickler._dispatch_table[types.CodeType]),
    }

    _tables: ClassVar[tuple[Any, Any]] = (None, None)
    """The registered reducers, and these merged into the table. Remembered, because they
    seldom change."""

    def __init__(
        self, file: Any, refer: Refer, callback: Any, registered: dict[type, Any] | None = None
    ) -> None:
        if registered is None:
            registered = reducers.table()
        tables = RulePickler._tables
        if tables[0] is not registered:
            # Merged: cloudpickle chains these maps, but every object is looked up in them.
            tables = RulePickler._tables = registered, {**self._own, **registered}
        self._registered, self.dispatch_table = tables
        super().__init__(file, protocol=5, buffer_callback=callback)
        self._override = reducers.override()
        self._change_globals = getattr(refer, "change_globals", None)
        self._refer = refer

    def reducer_override(self, obj: Any) -> Any:
        if self._override is not None:
            reduced = self._override(self, obj)
            if reduced is not NotImplemented:
                return reduced
        kind = type(obj)
        if kind in self._registered:
            return NotImplemented
        if kind is types.FunctionType:
            if obj in _makers:
                return NotImplemented
        elif not issubclass(kind, type):
            # Not in the table: a pickler that its own table refers to would live too long.
            reduce = self._reduce_specially.get(kind)
            return NotImplemented if reduce is None else reduce(self, obj)
        way = self._refer(obj)
        if way is not None and way is not BY_VALUE:
            return way
        if kind is types.FunctionType:
            return self._reduce_function(obj, is_by_value=way is BY_VALUE)
        by_value = _maker._dynamic_class_reduce if way else super().reducer_override
        reduced = by_value(obj)
        if is_written_in_c(obj) and _is_by_value(reduced):
            return NotImplemented  # pickle says that its module does not have it.
        return _with_its_name(obj, reduced)

    def _reduce_function(self, function: types.FunctionType, *, is_by_value: bool) -> Any:
        if not is_by_value and _maker._should_pickle_by_reference(function):
            return NotImplemented
        reduced = self._dynamic_function_reduce(newer_python.with_annotations(function))
        found = reduced[2][1]["__globals__"]
        newer_python.keep_lazy(found)
        if self._change_globals is not None:
            self._change_globals(function, found)
        return reduced

    def _reduce_cached(self, obj: Any) -> Any:
        # cloudpickle would send any lru_cache by reference.
        way = self._refer(obj)
        if way is not None and way is not BY_VALUE:
            return way
        if way is None and _is_in_its_module(obj):
            return NotImplemented
        parameters = obj.cache_parameters()
        return _make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])

    def _reduce_module(self, module: types.ModuleType) -> Any:
        if self._refer(module) is not BY_VALUE:
            return NotImplemented
        left = ("__builtins__", "__spec__", "__loader__")
        state = {name: value for name, value in vars(module).items() if name not in left}
        newer_python.keep_lazy(state)
        return _maker.dynamic_subimport, (module.__name__, state)

    _reduce_specially: ClassVar = {
        _Cached: _reduce_cached,
        types.ModuleType: _reduce_module,
        **{kind: _as_method(reduce) for kind, reduce in newer_python.reducers().items()},
    }
