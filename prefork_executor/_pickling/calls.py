"""Calls and results to payloads and back.

The rule for functions and classes
----------------------------------
A function or class goes by reference (a module and a name) if the worker has that very
object: then only the name travels. It goes by value (cloudpickle) if the worker does not
have it: lambdas, closures, and what ``__main__`` has defined or redefined since the pool
started. :mod:`.main_snapshot` knows which definitions of ``__main__`` the worker has.
What a function that goes by value uses travels with it by the same rule, and data travels by
value. So a table of a gigabyte should be used by a function that the worker has.

In the other direction, what a worker's ``__main__`` has goes by reference. The caller has
it, too, under the same name, and needs its own class rather than a copy.

How
---
Plain pickle, with the registered reducers (:mod:`.reducers`), is tried first, because it
runs in C. Its result is right unless

* the name ``__main__`` appears in it;
* a ``multiprocessing`` connection appears in it, see :mod:`.reducers`;
* the user has told cloudpickle to pickle a module by value, or the workers would not
  find a module that appears in it, see :mod:`.held_modules`.

In these cases, and where pickle fails, cloudpickle's pickler pickles the object again by the
rule above. A function of ``__main__`` that the worker holds travels as its bare qualified
name, so ordinary scripts keep the quick way.

Which workers
-------------
What a payload refers to in ``__main__`` is right for the workers of one supervisor. The
objects that are meant are noted beside the payload. They are checked again when the task is sent
if the supervisor has changed, or was not yet known at submit. Definitions that its workers do
not hold go along by value, beside the bytes of the call, which stay as they are. So the arguments
are pickled once, at submit, and are never rebuilt in the caller's process; and a task runs the
code with which it was submitted.

Big buffers (protocol 5) are not copied into the pickle, nor are big bytes objects that are
themselves an argument or a result. A task gets them, like all its arguments, as its own: no
other process sees what the task changes in them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .._messages import wire
from .._support.handlers import let_through
from ..errors import CallPicklingError, ResultPicklingError
from . import promises, reducers
from .held_modules import HeldModules as HeldModules
from .main_snapshot import (
    MAIN_NAMES,
    find_definition,
    is_definition,
    is_here,
)
from .main_snapshot import MainSnapshot as MainSnapshot
from .main_snapshot import how_to_import_main as how_to_import_main
from .main_snapshot import introduce_main as introduce_main
from .main_snapshot import main_is_importable as main_is_importable
from .ways import BY_VALUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .local_functions import LocalFunction
    from .ways import Refer

Part = bytes | pickle.PickleBuffer
OUT_OF_BAND = wire.INLINE_LIMIT
"""Bytes from which on a buffer travels out of band, because it does not fit a packet."""
MAX_BUFFERS = wire.MAX_PARTS - 2
"""Buffers of one payload that travel out of band. Any more go into the pickle. Two parts are
pickles: that of the call, and that of the definitions it needs."""

OF_MAIN = b"_main__"
"""Part of either name of ``__main__`` in a pickle."""
_modules = sys.modules


# --- what a task runs -----------------------------------------------------------------


class Chunk:
    """What a task of a map with a chunksize runs: ``fn`` for each item of a chunk. The arguments
    come in columns, one tuple for each of fn's parameters."""

    __slots__ = ("__weakref__", "fn")

    def __init__(self, fn: Any) -> None:
        # On the way to a worker it may be the name of a function of ``__main__``.
        self.fn = fn

    def __reduce__(self) -> Any:
        return Chunk, (self.fn,)  # pickle's default takes three times as long.

    def __call__(self, *columns: Iterable[Any]) -> list[Any]:
        fn = self.fn
        rest: Iterator[Any] = iter(columns[0]) if len(columns) == 1 else zip(*columns, strict=True)
        _rest_of_chunks.append(rest)
        try:
            # Not map(): a StopIteration that fn raises would look like the end of the columns.
            if len(columns) == 1:
                return [fn(item) for item in rest]
            return [fn(*args) for args in rest]
        finally:
            _rest_of_chunks.pop()


_rest_of_chunks: list[Iterator[Any]] = []
"""The items that are left of the chunks that are running, the innermost last."""


def end_chunks() -> None:
    """In a process that a task has forked: if it returns from the task's function, it is not to
    run the rest of the chunk as well."""
    for rest in _rest_of_chunks:
        collections.deque(rest, maxlen=0)


class Spread:
    """Calls ``fn`` with its arguments taken from one tuple."""

    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, args: tuple[Any, ...]) -> Any:
        return self.fn(*args)


_AROUND = (functools.partial, Chunk, Spread)


def user_function(fn: Any) -> Any:
    """The user's function, taken out of partials and chunks."""
    while isinstance(fn, _AROUND):
        fn = fn.func if isinstance(fn, functools.partial) else fn.fn
    return fn


def task_name(fn: object) -> str:
    """A task's name in messages: the qualified name of its function."""
    fn = user_function(fn)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def module_name(fn: object) -> str:
    """The module that a function comes from; empty if that is ``__main__`` or unknown."""
    name = getattr(user_function(fn), "__module__", None)
    return "" if not isinstance(name, str) or name in MAIN_NAMES else name


# --- calls ----------------------------------------------------------------------------


class Names:
    """The definitions of ``__main__`` that a payload refers to by name, as the objects that are
    meant. The payload is right only for workers that hold these."""

    __slots__ = ("things",)

    def __init__(self) -> None:
        self.things: dict[str, Any] = {}


def dump_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    snapshot: MainSnapshot,
    modules: HeldModules,
) -> tuple[list[Part], Names | types.FunctionType | None]:
    """A call as a payload, and what it refers to in ``__main__``: nothing, one function, or
    more. ``modules`` are those that the workers find. While what the workers hold is only
    expected, :func:`dump_for` corrects the payload later.

    Raises:
        CallPicklingError: a part of it cannot be pickled; the message says which.
    """
    target: Any = fn
    main_function = None
    inner = fn.fn if type(fn) is Chunk else fn
    is_local = False
    if type(inner) is types.FunctionType:
        # A lambda, or a function within a function: it cannot be found by name.
        is_local = "<" in inner.__qualname__
        if not is_local and inner.__module__ == "__main__" and snapshot.holds(inner):
            main_function = inner
            name = inner.__qualname__ if snapshot.is_common else snapshot.name_for(inner)
            target = Chunk(name) if inner is not fn else name
    local = _take_apart(inner) if is_local else None
    if local is not None:
        target = Chunk(local) if inner is not fn else local
    for value in args:
        if type(value) is bytes and len(value) >= OUT_OF_BAND:
            args = tuple(map(_apart, args))
            break
    parts = _dump_plainly((target, args, kwargs)) if local is not None or not is_local else None
    # Written out, because every submit pays for it. And find(), because `in` first checks
    # whether the bytes are a number, which takes ten times as long.
    if (
        parts is not None
        and (
            parts[0].find(OF_MAIN) < 0
            # The head of a function of main names it, and is right all the same.
            or (local is not None and parts[0].count(OF_MAIN) == local.head.data.count(OF_MAIN))
        )
        and parts[0].find(reducers.OF_CONNECTIONS) < 0
        and not ("cloudpickle" in _modules and _by_value_modules())
        and ((len(_modules) == modules.count and not modules.names) or not modules.are_in(parts[0]))
    ):
        return parts, main_function
    refer = _FromCaller(snapshot, modules)
    try:
        parts = _dump_by_rule((fn if is_local else target, args, kwargs), refer)
    except Exception as error:
        let_through(error)
        raise _explain_call(fn, args, kwargs, _FromCaller(snapshot, modules), error) from error
    if main_function is not None:
        refer.names.things[main_function.__qualname__] = main_function
    return parts, refer.names if refer.names.things else None


def dump_for(
    parts: list[Part],
    names: Names | types.FunctionType,
    made_for: MainSnapshot,
    snapshot: MainSnapshot,
    modules: HeldModules,
    task: str,
) -> tuple[list[Part], Names | types.FunctionType]:
    """Adapts a call's payload that was made for workers that held ``made_for`` to workers that
    hold ``snapshot``. Definitions that it refers to, and that these do not hold, go along by
    value. The bytes of the arguments stay as they are.

    Raises:
        CallPicklingError: a definition cannot be pickled; the message says which.
    """
    things = names.things if isinstance(names, Names) else {names.__qualname__: names}
    refer = _FromCaller(snapshot, modules, made_for)
    missing = {name: thing for name, thing in things.items() if not refer.is_held(thing)}
    if not missing and snapshot.is_common:
        return parts, names
    body = parts[0]
    is_small = isinstance(body, bytes) and len(body) < OUT_OF_BAND
    try:
        # Definitions that they hold go by name, and each worker checks that it has them.
        head = pickle_by_rule((things, body if is_small else None), refer, None)
    except Exception as error:
        from .blame import describe, find_culprit  # Here and below: few programs need it.

        why_not = _why_not(_FromCaller(snapshot, modules, made_for))
        name = next((name for name in missing if why_not(missing[name]) is not None), "")
        reason = find_culprit(missing[name], name, why_not) if name else describe(error)
        raise CallPicklingError(
            f"task {task} cannot be sent to a worker, because the worker's __main__ differs from "
            f"what it was when the task was submitted: {reason}"
        ) from error
    # Definitions that go along now are needed again for other workers.
    refer.names.things.update(things)
    return [head, *parts[1 if is_small else 0 :]], refer.names


def _apart(value: Any) -> Any:
    """A big bytes object as a buffer that travels out of band, and arrives as bytes."""
    is_big = type(value) is bytes and len(value) >= OUT_OF_BAND
    return pickle.PickleBuffer(value) if is_big else value


def load_call(
    parts: Sequence[memoryview | bytes],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function and its arguments. Raises whatever unpickling raises."""
    call = loads(parts)
    if len(call) == 2:
        definitions, body = call
        return _load_with(definitions, [*parts[1:]] if body is None else [body, *parts[1:]])
    target, args, kwargs = call
    if type(target) is str:
        target = definition(target)
    elif type(target) is Chunk and type(target.fn) is str:
        target = Chunk(definition(target.fn))
    return target, args, kwargs


def _load_with(
    definitions: dict[str, Any], parts: list[memoryview | bytes]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call in this payload, with these definitions instead of those in ``__main__``."""
    _brought.update(definitions)
    try:
        return load_call(parts)
    finally:
        _brought.clear()


_brought: dict[str, Any] = {}
"""The definitions that came with the call that is being unpickled."""


_found: dict[str, Any] = {}
"""Definitions of this process's ``__main__``, by their names in calls."""
_MAX_FOUND = 1024


def definition(called: str) -> Any:
    """What this definition of ``__main__`` means in the call that is being unpickled.
    Payloads name this function. Raises what :func:`find_definition` raises."""
    if called in _brought:
        return _brought[called]
    if "\0" not in called:
        return find_definition(called)
    if called not in _found:
        # Checking that it is the one that is meant takes time.
        if len(_found) >= _MAX_FOUND:
            _found.clear()
        _found[called] = find_definition(called)
    return _found[called]


class _FromCaller:
    """How functions, classes and modules travel from the caller to a worker."""

    def __init__(
        self, snapshot: MainSnapshot, modules: HeldModules, made_for: MainSnapshot | None = None
    ) -> None:
        self._snapshot = snapshot
        self._modules = modules
        self._made_for = made_for
        self.names = Names()
        """The definitions that were referred to by name."""

    def __call__(self, thing: Any) -> Any:
        if is_definition(thing):
            if not self.is_held(thing):
                return None
            self.names.things[thing.__qualname__] = thing
            return definition, (self._snapshot.name_for(thing),)
        place = thing.__name__ if type(thing) is types.ModuleType else thing.__module__
        return BY_VALUE if self._modules.is_strange(place) else None

    def is_held(self, thing: Any) -> bool:
        """Whether the workers have it, and everything that it used at submit."""
        snapshot, made_for = self._snapshot, self._made_for
        return snapshot.holds(thing) and (
            made_for is None or all(map(snapshot.holds, made_for.used_by(thing)))
        )

    def change_globals(self, function: types.FunctionType, found: dict[str, Any]) -> None:
        """Correct the globals of a function that goes by value: its definitions are those
        of the time of submit."""
        if self._made_for is not None and function.__module__ in MAIN_NAMES:
            was = {name: self._made_for.definition(name) for name in found}
            found.update({name: thing for name, thing in was.items() if thing is not None})


def _from_worker(thing: Any) -> Any:
    """How functions, classes and modules travel from a worker to the caller."""
    return NotImplemented if is_here(thing) else None


def _by_value_modules() -> bool:
    """Whether the user has told cloudpickle to pickle a module by value."""
    # Another thread may be importing cloudpickle. Then the user cannot have told it anything yet.
    told = getattr(_modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return told is not None and bool(told())


# --- everything else --------------------------------------------------------------------


def dump_result(result: Any, fn: Callable[..., Any]) -> list[Part]:
    """A task's result as a payload; ``fn`` is what the task ran.

    Raises:
        ResultPicklingError: a part of it cannot be pickled; the message says which.
    """
    number = promises.latest()
    try:
        return _dump_from_worker(result, number)
    except Exception as error:
        let_through(error)
        explained = _explain(result, "result", f"the result of task {task_name(fn)}")
        promises.give_up_after(number)
        shown = ""
        with contextlib.suppress(Exception):
            shown = repr(result)
        raise ResultPicklingError(str(explained), result=shown) from error


def dumps(thing: Any) -> list[Part]:
    """Any other object that a worker sends, as a payload.

    Raises:
        pickle.PicklingError: a part of it cannot be pickled; the message says which.
    """
    number = promises.latest()
    try:
        return _dump_from_worker(thing, number)
    except Exception as error:
        let_through(error)
        explained = _explain(thing, "data", "this")
        promises.give_up_after(number)
        raise explained from error


def _explain(thing: Any, place: str, what: str) -> pickle.PicklingError:
    from .blame import find_culprit

    found = find_culprit(thing, place, _why_not(_from_worker))
    return pickle.PicklingError(f"{what} cannot be pickled: {found}")


def dump_part_of_failure(thing: Any) -> bytes:
    """A part of a task's failure as one piece of bytes, buffers included. Raises what pickling
    raises."""
    try:
        data = reducers.dumps_of_failure(thing)
        if reducers.OF_CONNECTIONS not in data:
            return data
    except Exception as error:
        let_through(error)
    return pickle_by_rule(thing, _from_worker, None, reducers.table_of_failure())


def loads(parts: Sequence[memoryview | bytes]) -> Any:
    """What a payload holds. Raises whatever unpickling raises."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _dump_from_worker(thing: Any, number: int) -> list[Part]:
    """``number``: of the latest promise before."""
    thing = _apart(thing)
    parts = _dump_plainly(thing)
    if parts is not None and parts[0].find(reducers.OF_CONNECTIONS) < 0:
        return parts
    promises.give_up_after(number)
    return _dump_by_rule(thing, _from_worker)


# --- pickling ------------------------------------------------------------------------------


@functools.cache
def _bundles() -> Any:
    """The module. Imported when it is first needed."""
    from . import bundles

    return bundles


@functools.cache
def _local_functions() -> Any:
    """The module. Imported when it is first needed."""
    from . import local_functions

    return local_functions


def _take_apart(function: Any) -> LocalFunction | None:
    """For a function that goes by value: what the quick way sends in its place, if it may go that
    way."""
    if reducers.pickler_is_replaced():
        return None  # The pickler in use may have a way of its own with functions.
    local: LocalFunction | None = _local_functions().take_apart(function)
    return local


@functools.cache
def _rule_pickler() -> Any:
    """The class of the pickler that can pickle by value. It is called with a file, a Refer and
    pickle's callback. It is imported when it is first needed: most programs never need it."""
    from .by_value import RulePickler

    return RulePickler


def pickle_by_rule(
    thing: Any, refer: Refer, callback: Any, registered: dict[type, Any] | None = None
) -> bytes:
    """A pickle, made with these reducers (None: all registered ones). Raises what pickling
    raises."""
    file = io.BytesIO()
    _rule_pickler()(file, refer, callback, registered).dump(thing)
    return file.getvalue()


def _dump_plainly(thing: Any) -> list[Any] | None:
    """A payload made by plain pickle: bytes, then buffers. None if that fails."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = reducers.dumps(thing, buffers.append)
        if not buffers:
            return [data]
        if len(buffers) <= MAX_BUFFERS and all(map(_is_big, buffers)):
            return [data, *buffers]
        if (bundled := _bundles().bundle(data, buffers, OUT_OF_BAND)) is not None:
            return [*bundled]
        # Once more with the callback that decides. The quicker one serves payloads with no buffers.
        buffers.clear()
        data = reducers.dumps(thing, _keeping(buffers))
    except Exception as error:
        let_through(error)
        return None
    return [data, *buffers]


def _dump_by_rule(thing: Any, refer: Refer) -> list[Part]:
    buffers: list[pickle.PickleBuffer] = []
    return [pickle_by_rule(thing, refer, _keeping(buffers)), *buffers]


def _is_big(buffer: pickle.PickleBuffer) -> bool:
    view = memoryview(buffer)
    return view.nbytes >= OUT_OF_BAND and view.contiguous


def _keeping(buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], bool]:
    """Pickle's callback: takes big buffers out, and leaves the others in the pickle."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if len(buffers) >= MAX_BUFFERS or not _is_big(buffer):
            return True
        buffers.append(buffer)
        return False

    return keep


# --- saying what cannot be pickled -------------------------------------------------------


def _explain_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    refer: Refer,
    error: Exception,
) -> CallPicklingError:
    from .blame import describe, find_culprit

    places = [("the function", fn)]
    places += [(f"args[{i}]", arg) for i, arg in enumerate(args)]
    places += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
    why_not = _why_not(refer)
    for place, thing in places:
        if why_not(thing) is not None:
            reason = find_culprit(thing, place, why_not)
            break
    else:
        reason = describe(error)
    return CallPicklingError(f"task {task_name(fn)} cannot be sent to a worker: {reason}")


class _Nowhere:
    """A file for a pickle that will not be read."""

    def write(self, data: bytes) -> int:
        return len(data)


def _why_not(refer: Refer) -> Callable[[Any], Exception | None]:
    def why_not(thing: Any) -> Exception | None:
        try:
            _rule_pickler()(_Nowhere(), refer, _is_small).dump(thing)
        except Exception as error:
            let_through(error)
            return error
        return None

    return why_not


def _is_small(buffer: pickle.PickleBuffer) -> bool:
    return not _is_big(buffer)
