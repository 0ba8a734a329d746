"""Tells which part of an object cannot be pickled, and where it is.

pickle's own message names a type, but not the place. So only when pickling has failed, the
object is taken apart in the way pickle does. A part that cannot be pickled alone is searched
in turn: ``args[0]['lock'] is a _thread.lock (...)``. The search is limited in depth and
breadth. Where it ends, that part is the answer.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterator, Mapping

from .._support.handlers import let_through
from .code_objects import codes
from .ways import is_written_in_c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    WhyNot = Callable[[Any], BaseException | None]
    """The exception that pickling this raises, or None."""

_BOUND = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
_DEPTH = 8
"""Levels of containers and attributes to search."""
_BREADTH = 1000
"""Parts of one object to search."""


def find_culprit(thing: Any, place: str, why_not: WhyNot) -> str:
    """The innermost part that cannot be pickled, its place, and why."""
    for _ in range(_DEPTH):
        inner = _first_bad_part(thing, place, why_not)
        if inner is None:
            break
        place, thing = inner
    error = why_not(thing)
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
    return f"{place} is a {kind}" + (f" ({describe(error)})" if error is not None else "")


def describe(error: BaseException) -> str:
    """An exception in one line, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except BaseException as reason:
        let_through(reason)
        text = f"<its str() raised {type(reason).__name__}>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _first_bad_part(thing: Any, place: str, why_not: WhyNot) -> tuple[str, Any] | None:
    try:
        for inner_place, inner in itertools.islice(_parts(thing, place), _BREADTH):
            if inner is not thing and why_not(inner) is not None:
                return inner_place, inner
    except Exception as error:
        let_through(error)
        # The object cannot even be taken apart, so it is the answer itself.
        return None
    return None


def _parts(thing: Any, place: str) -> Iterator[tuple[str, Any]]:
    if type(thing) is types.FunctionType:
        yield from _parts_of_function(thing, place)
    elif issubclass(type(thing), type):
        if not is_written_in_c(thing):
            yield from _attributes(vars(thing), place)
    elif isinstance(thing, _BOUND):
        yield f"{place}.__self__", thing.__self__
    elif isinstance(thing, functools.partial):
        yield f"{place}.func", thing.func
        yield from _parts_of_container(thing.args, f"{place}.args")
        yield from _parts_of_container(thing.keywords, f"{place}.keywords")
    elif isinstance(thing, dict | list | tuple | set | frozenset):
        yield from _parts_of_container(thing, place)
    else:
        yield from _parts_of_object(thing, place)


def _parts_of_container(thing: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        for key, value in thing.items():
            yield f"{place}[{_brief(key)}]", value
            yield f"a key of {place}", key
    elif isinstance(thing, set | frozenset):
        for item in thing:
            yield f"an item of {place}", item
    else:
        for number, item in enumerate(thing):
            yield f"{place}[{number}]", item


def _parts_of_function(function: types.FunctionType, place: str) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"{place}'s variable {name!r}", cell.cell_contents
        except ValueError:
            continue  # It has no value yet.
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"{place}'s default {number}", value
    yield from _parts_of_container(function.__kwdefaults__ or {}, f"{place}'s defaults")
    yield from _attributes(function.__dict__, place)
    # These globals only travel if the function goes by value. It does: it cannot be pickled.
    for name in sorted({name for inner in codes(code) for name in inner.co_names}):
        if name in function.__globals__:
            yield f"{place}'s global {name!r}", function.__globals__[name]


def _parts_of_object(thing: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What pickle would send with the object, according to its ``__reduce__``."""
    reduced = thing.__reduce_ex__(5)
    if not isinstance(reduced, tuple):
        return
    reduced = (*reduced, None, None, None)
    arguments, state, items, pairs = reduced[1], reduced[2], reduced[3], reduced[4]
    yield from _attributes_of_state(state, place)
    if isinstance(thing, BaseException):
        yield from _parts_of_container(arguments, f"{place}.args")
    else:
        for argument in arguments:
            what = "the class" if issubclass(type(argument), type) else "a constructor argument"
            yield f"{what} of {place}", argument
    for number, item in enumerate(items or ()):
        yield f"{place}[{number}]", item
    for key, value in pairs or ():
        yield f"{place}[{_brief(key)}]", value


def _attributes_of_state(state: Any, place: str) -> Iterator[tuple[str, Any]]:
    """By pickle's convention the state is a dict of attributes, or a pair of that and a dict of
    slots. A class may also use a format of its own."""
    halves = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if all(half is None or isinstance(half, dict) for half in halves):
        for half in halves:
            yield from _attributes(half or {}, place)
    elif state is not None:
        yield f"the state of {place}", state


def _attributes(values: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for name, value in list(values.items()):
        yield f"{place}.{name}", value


def _brief(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 60 else f"{text[:57]}..."
