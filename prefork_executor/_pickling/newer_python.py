"""Features of newer Pythons that cloudpickle (up to 3.1.3) does not pickle by value correctly.

* Python evaluates annotations when they are asked for (PEP 649, Python 3.14). cloudpickle asks
  a function for their values, and fails if they name what is not there. It drops those of a
  class. Here both keep their values, or, if these cannot be had, their text.
* dataclasses keep an annotation that names something not yet defined as a reference, which leads
  to all of the module. Here the reference travels as its text, with its class.
* ``type`` aliases, ``NewType``, parameter specifications and sentinels are known only by their
  names. They are looked up by name in the other process's ``__main__``. If they are not there,
  they are made anew, a sentinel only once.
* Lazily imported modules (PEP 810, Python 3.15) stay lazy: what a task does not use is not
  imported.

When cloudpickle supports one of these, our code for it can be removed.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable

from .main_snapshot import MAIN_NAMES, main_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HAS_LATE_ANNOTATIONS = sys.version_info >= (3, 14)
_Lazy: Any = getattr(types, "LazyImportType", None)
_Sentinel: Any = getattr(builtins, "sentinel", None)
_OWN_NAMES = ("__annotations__", "__annotations_cache__", "__annotate_func__", "__annotate__")
"""Names in a class's dict that belong to its annotations."""


# --- annotations ----------------------------------------------------------------------------


def with_annotations(function: types.FunctionType) -> types.FunctionType:
    """The function, or a copy whose annotations can be evaluated."""
    if not _HAS_LATE_ANNOTATIONS:
        return function
    try:
        function.__annotations__  # noqa: B018 - it is evaluated now, and remembered
    except Exception:
        return _with_text(function)
    return function


def _with_text(function: types.FunctionType) -> types.FunctionType:
    like = types.FunctionType(
        *(function.__code__, function.__globals__, function.__name__),
        *(function.__defaults__, function.__closure__),
    )
    for name in ("__kwdefaults__", "__qualname__", "__module__", "__doc__"):
        setattr(like, name, getattr(function, name))
    like.__dict__.update(function.__dict__)
    like.__annotations__ = _annotations(function)
    return like


def _annotations(thing: Any) -> dict[str, Any]:
    """The values of the annotations, else their text, else none."""
    from annotationlib import Format, get_annotations  # type: ignore[import-not-found]

    for form in (Format.VALUE, Format.STRING):
        try:
            found: dict[str, Any] = dict(get_annotations(thing, format=form))
        except Exception:
            continue
        return found
    return {}


def keep_annotations(kind: type, attributes: dict[str, Any]) -> None:
    """Add a class's annotations to these attributes, which cloudpickle sends."""
    if not _HAS_LATE_ANNOTATIONS or vars(kind).keys().isdisjoint(_OWN_NAMES):
        return
    for name in _OWN_NAMES:
        attributes.pop(name, None)
    attributes["__annotations__"] = _annotations(kind)


def _reduce_forward_reference(reference: Any) -> Any:
    state = (reference.__forward_is_class__, getattr(reference, "__owner__", None))
    return _forward_reference, (reference.__forward_arg__,), state, None, None, _complete_reference


def _forward_reference(text: str) -> Any:
    import typing  # Here and below: pools that never need it start sooner.

    return typing.ForwardRef(text)


def _complete_reference(reference: Any, state: tuple[bool, Any]) -> None:
    reference.__forward_is_class__, reference.__owner__ = state


# --- what is known by its name ----------------------------------------------------------------

Place = tuple[str, str]
"""A module's name, and a name in it."""
_sentinels: dict[Place, Any] = {}
"""Sentinels that were made here, because their places had none."""
_values: dict[int, list[Any]] = {}
"""Where the values of aliases go while these are unpickled, by the ids of the aliases."""


def _place(thing: Any) -> Place:
    module = thing.__module__
    return "__main__" if module in MAIN_NAMES else module, thing.__name__


def _find(place: Place, kind: Any) -> Any:
    module, name = place
    holder = main_module() if module == "__main__" else sys.modules.get(module)
    found = getattr(holder, "__dict__", {}).get(name)
    return found if type(found) is kind else None


def _make(place: Place, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """An object of this kind. Its constructor takes its module from the calling frame."""
    module, name = place
    call = {"kind": kind, "args": (name, *args), "kwargs": kwargs, "__name__": module}
    return eval("kind(*args, **kwargs)", call)


def _reduce_sentinel(sentinel: Any) -> Any:
    return _find_or_make_sentinel, (_place(sentinel),)


def _find_or_make_sentinel(place: Place) -> Any:
    found = _find(place, _Sentinel)
    return _sentinels.setdefault(place, _make(place, _Sentinel)) if found is None else found


def _alias_kind() -> Any:
    import typing

    return getattr(typing, "TypeAliasType", None)


def _reduce_alias(alias: Any) -> Any:
    parameters, value = alias.__type_params__, alias.__value__
    if parameters:
        return _find_or_make_generic, (_place(alias), parameters, value)
    # Its value comes later: it may refer to the alias.
    return _find_or_make_alias, (_place(alias),), value, None, None, _complete_alias


def _find_or_make_generic(place: Place, parameters: tuple[Any, ...], value: Any) -> Any:
    kind = _alias_kind()
    return _find(place, kind) or _make(place, kind, value, type_params=parameters)


def _find_or_make_alias(place: Place) -> Any:
    found = _find(place, _alias_kind())
    if found is None:
        module, name = place
        namespace: dict[str, Any] = {"__name__": module, "_value": []}
        exec(f"type {name} = _value[0]", namespace)
        found = namespace[name]
        _values[id(found)] = namespace["_value"]
    return found


def _complete_alias(alias: Any, value: Any) -> None:
    holder = _values.pop(id(alias), None)
    if holder is not None:
        holder.append(value)


def _reduce_new_type(kind: Any) -> Any:
    return _find_or_make, (_place(kind), type(kind), kind.__supertype__)


def _reduce_parameter(parameter: Any) -> Any:
    return _find_or_make, (_place(parameter), type(parameter))


def _find_or_make(place: Place, kind: Any, *args: Any) -> Any:
    return _find(place, kind) or _make(place, kind, *args)


# --- lazy imports -----------------------------------------------------------------------------


class _LazyModule:
    """Unpickles as a lazy import of this module, bound to that name."""

    def __init__(self, lazy: Any, name: str) -> None:
        self._lazy = lazy
        self._name = name

    def __reduce__(self) -> Any:
        # Only its repr tells which module it is.
        path = repr(self._lazy).removeprefix("<lazy_import '").removesuffix("'>")
        if not all(part.isidentifier() for part in path.split(".")):
            return _itself, (self._lazy.resolve(),)
        return _import_lazily, (path, self._name)


def _import_lazily(path: str, name: str) -> Any:
    place, _, last = path.rpartition(".")
    if not place or path.partition(".")[0] == name:
        statement = f"lazy import {path}"  # This binds the first of its names.
    else:
        statement = f"lazy from {place} import {last}"  # Or import a.b as c, which is the same.
    namespace: dict[str, Any] = {}
    exec(statement, namespace)
    return namespace.get(path.partition(".")[0] if statement.startswith("lazy i") else last)


def keep_lazy(function_globals: dict[str, Any]) -> None:
    """Keep the lazy imports among these lazy in the other process."""
    if _Lazy is None:
        return
    for name, value in list(function_globals.items()):
        if type(value) is _Lazy:
            function_globals[name] = _LazyModule(value, name)


# --- the table --------------------------------------------------------------------------------


def _unless_known(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def reduce_if_unknown(thing: Any) -> Any:
        module, _ = place = _place(thing)
        is_known = module != "__main__" and _find(place, type(thing)) is thing
        return NotImplemented if is_known else reduce(thing)

    return reduce_if_unknown


def reducers() -> dict[type, Callable[[Any], Any]]:
    """By type, a function that reduces an object, or returns NotImplemented."""
    import typing

    found: dict[Any, Callable[[Any], Any]] = {
        typing.NewType: _unless_known(_reduce_new_type),
        typing.ParamSpec: _unless_known(_reduce_parameter),
        typing.TypeVarTuple: _unless_known(_reduce_parameter),
    }
    if (alias := _alias_kind()) is not None:
        found[alias] = _unless_known(_reduce_alias)
    if _Sentinel is not None:
        found[_Sentinel] = _unless_known(_reduce_sentinel)
    if _Lazy is not None:
        found[_Lazy] = lambda lazy: (_itself, (lazy.resolve(),))
    if _HAS_LATE_ANNOTATIONS:
        found[typing.ForwardRef] = _reduce_forward_reference
    return found


def _itself(thing: Any) -> Any:
    return thing
