"""The quick way for lambdas and other functions that go by value.

cloudpickle takes a function apart in Python code, for every call anew: that was two thirds of what
a submitted lambda cost. What does not change from call to call is its *head*: the code, the names,
and what its module is called. The caller makes a head once for each code and keeps it as bytes.
They go with every call, since any worker may take it, but a worker unpickles equal bytes only once.

What can change goes anew with each call: default values, the contents of closures, and the globals
that the code names. A worker makes a new function for each task, so what one task stores in such a
function's globals no other task sees.

The code is marshalled. So it keeps the name of its file, and neither process needs cloudpickle.
It is read only by workers of the same pool, which run the same Python.

Some functions are left to cloudpickle: those with annotations or attributes, those that use a
package (its submodules would have to be imported, too), and those that use what plain pickle
cannot pickle or what is defined in ``__main__``. :func:`.calls.dump_call` sees to the last two.
"""

from __future__ import annotations

import builtins
import importlib
import marshal
import sys
import types

from .code_objects import global_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_HEADS = 256
"""Heads that a process remembers, at most."""
_OF_MODULE = ("__name__", "__package__", "__path__", "__file__")
"""What a function's globals say of its module. Functions ask for these by other means than names in
their code: when they import or log, for example."""
_ANNOTATIONS = "__annotate__" if sys.version_info >= (3, 14) else "__annotations__"


class Head:
    """What stays the same of the functions that share one code.

    Attributes:
        names: the globals that the code names, other than those in the head.
        data: the head as bytes.
    """

    def __init__(self, function: types.FunctionType) -> None:
        self.code = function.__code__
        """Held, so that its id is not given to another code."""
        self.identity = _identity(function)
        names = global_names(function.__code__)
        self.names = [name for name in names if name not in _OF_MODULE]
        self.data = marshal.dumps((function.__code__, *self.identity))


def _identity(function: types.FunctionType) -> tuple[Any, ...]:
    of_module = function.__globals__
    return (
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        {name: of_module[name] for name in _OF_MODULE if name in of_module},
    )


_heads: dict[int, Head | None] = {}
"""In the caller, by the id of the code; None: it cannot be marshalled."""


class LocalFunction:
    """Stands for a function in a call, and arrives as a function.

    Attributes:
        head: see there.
    """

    __slots__ = ("_modules", "_state", "head")

    def __init__(self, head: Head, modules: dict[str, str], state: tuple[Any, ...]) -> None:
        self.head = head
        self._modules = modules
        self._state = state

    def __reduce__(self) -> Any:
        return rebuild, (self.head.data, self._modules, *self._state)


def take_apart(function: types.FunctionType) -> LocalFunction | None:
    """What to pickle instead of this function. None: leave it to cloudpickle."""
    if function.__dict__ or getattr(function, _ANNOTATIONS):
        return None
    if getattr(function, "__type_params__", ()):
        return None
    head = _head(function)
    if head is None:
        return None
    used, modules = {}, {}
    of_module = function.__globals__
    for name in head.names:
        if name in of_module:
            thing = of_module[name]
            if type(thing) is not types.ModuleType:
                used[name] = thing
            elif sys.modules.get(thing.__name__) is thing and not hasattr(thing, "__path__"):
                modules[name] = thing.__name__
            else:
                return None
    contents: tuple[Any, ...] = ()
    if function.__closure__ is not None:
        try:
            contents = tuple([cell.cell_contents for cell in function.__closure__])
        except ValueError:
            return None  # A variable that has no value yet.
    state = (used, function.__defaults__, function.__kwdefaults__, contents)
    return LocalFunction(head, modules, state)


def _head(function: types.FunctionType) -> Head | None:
    key = id(function.__code__)
    head = _heads.get(key)
    if head is not None and head.code is function.__code__:
        if head.identity == _identity(function):
            return head
    elif key in _heads:
        return None
    try:
        head = Head(function)
    except ValueError:
        head = None
    if len(_heads) >= MAX_HEADS:
        _heads.clear()
    _heads[key] = head
    return head


_loaded: dict[bytes, tuple[Any, ...]] = {}
"""In a worker: what the heads hold."""


def rebuild(
    data: bytes,
    modules: dict[str, str],
    used: dict[str, Any],
    defaults: tuple[Any, ...] | None,
    keyword_defaults: dict[str, Any] | None,
    contents: tuple[Any, ...],
) -> types.FunctionType:
    """The function, in a worker. Pickles name this."""
    found = _loaded.get(data)
    if found is None:
        if len(_loaded) >= MAX_HEADS:
            _loaded.clear()
        found = _loaded[data] = marshal.loads(data)
    code, name, qualname, module, doc, of_module = found
    used.update(of_module)
    used["__builtins__"] = builtins.__dict__
    for alias, of in modules.items():
        used[alias] = sys.modules.get(of) or importlib.import_module(of)
    closure = tuple(map(types.CellType, contents)) if code.co_freevars else None
    function = types.FunctionType(code, used, name, defaults, closure)
    function.__qualname__, function.__module__ = qualname, module
    function.__doc__, function.__kwdefaults__ = doc, keyword_defaults
    return function
