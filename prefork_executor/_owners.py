"""Names for what a process holds: in which global of which module it lies.

Only for messages: nothing is decided by it, and what it does not find has no owner.
"""

from __future__ import annotations

import collections
import gc
import sys
import types
from collections.abc import Callable, Iterator

MAIN_NAMES = ("__main__", "__mp_main__")
"""What the caller's main module is called, and what it is called where it was imported anew."""

_DEEPEST = 4
"""Steps from a module's global to what it holds: an object, its attributes, a container, what
is in there. A ZipFile's file is three steps away."""
_MOST = 20_000
"""Objects that are looked at in one module. A big table is given up half-way: a message without
a name is better than one that is late."""
_SHARED = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.CodeType)
"""What leads everywhere, and so tells nothing of where a thing belongs."""


def owner(is_it: Callable[[object], bool]) -> str | None:
    """ "`conn` of __main__", if a global of that name holds what is looked for, or holds
    something that does. The caller's main module comes first."""
    for module in _modules():
        for name, value in list(vars(module).items()):
            if is_it(value):
                return f"`{name}` of {_name(module)}"
    for module in _modules():
        name_of = {id(value): name for name, value in list(vars(module).items())}
        found = _search(vars(module), is_it)
        if found is not None and found in name_of:
            return f"`{name_of[found]}` of {_name(module)}"
        if _name(module) not in MAIN_NAMES:
            break  # Others are searched on their surface only.
    return None


def _modules() -> Iterator[types.ModuleType]:
    mains = [module for name in MAIN_NAMES if (module := sys.modules.get(name)) is not None]
    yield from mains
    for module in list(sys.modules.values()):
        # type() and not isinstance(), here and below: what a proxy stands for must not be woken.
        if issubclass(type(module), types.ModuleType) and module not in mains:
            yield module


def _name(module: types.ModuleType) -> str:
    name = module.__name__
    return MAIN_NAMES[0] if name in MAIN_NAMES else name


def _search(namespace: dict[str, object], is_it: Callable[[object], bool]) -> int | None:
    """The id of the global from which it can be reached in the fewest steps."""
    todo = collections.deque((id(value), value, 0) for value in list(namespace.values()))
    seen = {id(namespace)}
    while todo and len(seen) < _MOST:
        root, thing, depth = todo.popleft()
        if id(thing) in seen or issubclass(type(thing), _SHARED):
            continue
        seen.add(id(thing))
        if is_it(thing):
            return root
        if depth < _DEEPEST:
            todo.extend((root, part, depth + 1) for part in gc.get_referents(thing))
    return None
