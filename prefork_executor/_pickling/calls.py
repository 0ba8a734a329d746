"""Calls and results to payloads and back.

The rule for functions and classes
----------------------------------
By reference (a module and a name) wherever the worker has that very object:
nothing but the name travels. By value (cloudpickle) where it has not: lambdas,
closures, and what ``__main__`` has defined or redefined since the pool started.
Which definitions of ``__main__`` the worker has is known to :mod:`.main_snapshot`.
What a function that goes by value uses goes with it by the same rule, data by
value: a table of a gigabyte should be used by a function that the worker has.

The other way, what a worker's ``__main__`` has goes by reference: the caller has
it too, under the same name, and only the caller's own class is any use to it.

How
---
Plain pickle, with the reducers that are registered (:mod:`.reducers`), is tried first
because it runs in C; what it made is right unless

* the name ``__main__`` appears in it;
* a ``multiprocessing`` connection does, see :mod:`.reducers`;
* the user has told cloudpickle to take some module by value, or the workers would not
  find a module that appears in it, see :mod:`.held_modules`.

In these cases, and where pickle fails, cloudpickle's pickler goes over it, with
the rule above. A function of ``__main__`` that the worker holds travels as its
bare qualified name, so that ordinary scripts keep the quick way.

Which workers
-------------
What a payload refers to in ``__main__`` is right for the workers of one supervisor. It is
noted beside the payload, as the objects that are meant. If the supervisor is another when
the task is sent, or was not known when it was submitted, these are looked at again; those
that its workers do not hold go along by value, beside the bytes of the call, which stay as
they are. So the arguments are pickled once, at submit, and nothing of them is ever rebuilt
in the caller's process; and a task runs the code it was submitted with.

Big buffers (protocol 5) are not copied into the pickle, nor are big bytes that are an
argument or a result themselves. A task's function gets
them, like all of its arguments, as its own: what it changes nobody else sees.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.context import get_spawning_popen

from .._messages import wire
from .._support.handlers import let_through
from ..errors import CallPicklingError, ResultPicklingError
from . import reducers
from .blame import describe, find_culprit
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

    from .ways import Refer

Part = bytes | pickle.PickleBuffer
OUT_OF_BAND = wire.INLINE_LIMIT
"""Bytes from which on a buffer travels out of band: what does not fit a packet."""
MAX_BUFFERS = wire.MAX_PARTS - 2
"""Buffers of one payload that travel out of band; any more go into the pickle. Two parts are
pickles: that of a call, and that of the definitions it needs."""

_OF_MAIN = b"_main__"
"""In a pickle, either name of ``__main__``."""
_modules = sys.modules


# --- what a task runs -----------------------------------------------------------------


class Chunk:
    """What a task of a map with a chunksize runs: ``fn`` for each item of a chunk, whose
    arguments come by columns: one tuple for each of fn's parameters."""

    __slots__ = ("__weakref__", "fn")

    def __init__(self, fn: Any) -> None:
        # On its way to a worker: the name of a function of ``__main__``, perhaps.
        self.fn = fn

    def __reduce__(self) -> Any:
        return Chunk, (self.fn,)  # What pickle finds by itself takes three times as long.

    def __call__(self, *columns: Iterable[Any]) -> list[Any]:
        fn = self.fn
        # Not by map(): a StopIteration of fn's would look like the end of the columns.
        if len(columns) == 1:
            return [fn(item) for item in columns[0]]
        return [fn(*args) for args in zip(*columns, strict=True)]


class Spread:
    """``fn``, called with its arguments as one tuple."""

    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, args: tuple[Any, ...]) -> Any:
        return self.fn(*args)


_AROUND = (functools.partial, Chunk, Spread)


def user_function(fn: Any) -> Any:
    """The function of the user's, out of partials and chunks."""
    while isinstance(fn, _AROUND):
        fn = fn.func if isinstance(fn, functools.partial) else fn.fn
    return fn


def task_name(fn: object) -> str:
    """How messages call a task: the qualified name of its function."""
    fn = user_function(fn)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def module_name(fn: object) -> str:
    """The module that a function comes from; empty if that is ``__main__``, or unknown."""
    name = getattr(user_function(fn), "__module__", None)
    return "" if not isinstance(name, str) or name in MAIN_NAMES else name


# --- calls ----------------------------------------------------------------------------


class Names:
    """The definitions of ``__main__`` that a payload refers to by their names, as the objects
    that are meant. It is right for workers that hold these, and no others."""

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
    more. ``modules`` are those that the workers find. As long as what they hold is only
    expected, :func:`dump_for` makes of it what is right when it is known.

    Raises:
        CallPicklingError: something in it cannot be pickled; the message
            says what.
    """
    target: Any = fn
    main_function = None
    inner = fn.fn if type(fn) is Chunk else fn
    is_local = False
    if type(inner) is types.FunctionType:
        # A lambda, or a function from within a function: nothing finds it by its name.
        is_local = "<" in inner.__qualname__
        if not is_local and inner.__module__ == "__main__" and snapshot.holds(inner):
            main_function = inner
            name = inner.__qualname__ if snapshot.is_common else snapshot.name_for(inner)
            target = Chunk(name) if inner is not fn else name
    for value in args:
        if type(value) is bytes and len(value) >= OUT_OF_BAND:
            args = tuple(map(_apart, args))
            break
    call = (target, args, kwargs)
    parts = None if is_local else _dump_plainly(call)
    # Written out, because this is what every submit costs; and find() because `in`
    # asks first whether the bytes are a number, which takes ten times as long.
    if (
        parts is not None
        and parts[0].find(_OF_MAIN) < 0
        and parts[0].find(reducers.OF_CONNECTIONS) < 0
        and not ("cloudpickle" in _modules and _by_value_modules())
        and ((len(_modules) == modules.count and not modules.names) or not modules.are_in(parts[0]))
    ):
        return parts, main_function
    refer = _FromCaller(snapshot, modules)
    try:
        parts = _dump_by_rule(call, refer)
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
    """A call's payload for workers that hold this, made of one for those that held ``made_for``:
    of the definitions that it refers to, those that they do not hold go with it, by value.
    The arguments stay the bytes that they are.

    Raises:
        CallPicklingError: one of these cannot be pickled; the message says what.
    """
    things = names.things if isinstance(names, Names) else {names.__qualname__: names}
    refer = _FromCaller(snapshot, modules, made_for)
    missing = {name: thing for name, thing in things.items() if not refer.is_held(thing)}
    if not missing and snapshot.is_common:
        return parts, names
    body = parts[0]
    is_small = isinstance(body, bytes) and len(body) < OUT_OF_BAND
    try:
        # Those that they hold go as their names, by which each worker sees that it has them.
        head = _pickle_by_rule((things, body if is_small else None), refer, None)
    except Exception as error:
        why_not = _why_not(_FromCaller(snapshot, modules, made_for))
        name = next((name for name in missing if why_not(missing[name]) is not None), "")
        reason = find_culprit(missing[name], name, why_not) if name else describe(error)
        raise CallPicklingError(
            f"task {task} cannot be sent to a worker, whose __main__ has not what it had when "
            f"the task was submitted: {reason}"
        ) from error
    # Those that go along now are needed again for the next workers.
    refer.names.things.update(things)
    return [head, *parts[1 if is_small else 0 :]], refer.names


def _apart(value: Any) -> Any:
    """Big bytes as a buffer that travels out of band, and arrives as bytes."""
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
    """The call in this payload, with these in the place of what ``__main__`` has."""
    _brought.update(definitions)
    try:
        return load_call(parts)
    finally:
        _brought.clear()


_brought: dict[str, Any] = {}
"""The definitions that came with the call that is being unpickled."""


_found: dict[str, Any] = {}
"""Definitions of this process's ``__main__``, by what calls call them."""
_MAX_FOUND = 1024


def definition(called: str) -> Any:
    """What this definition of ``__main__`` means to the call that is being unpickled.
    Payloads name this function. Raises what :func:`find_definition` raises."""
    if called in _brought:
        return _brought[called]
    if "\0" not in called:
        return find_definition(called)
    if called not in _found:
        # To see that it is what is meant takes its time.
        if len(_found) >= _MAX_FOUND:
            _found.clear()
        _found[called] = find_definition(called)
    return _found[called]


class _FromCaller:
    """How things travel from the caller to a worker."""

    def __init__(
        self, snapshot: MainSnapshot, modules: HeldModules, made_for: MainSnapshot | None = None
    ) -> None:
        self._snapshot = snapshot
        self._modules = modules
        self._made_for = made_for
        self.names = Names()
        """What was referred to by its name."""

    def __call__(self, thing: Any) -> Any:
        if is_definition(thing):
            if not self.is_held(thing):
                return None
            self.names.things[thing.__qualname__] = thing
            return definition, (self._snapshot.name_for(thing),)
        place = thing.__name__ if type(thing) is types.ModuleType else thing.__module__
        return BY_VALUE if self._modules.is_strange(place) else None

    def is_held(self, thing: Any) -> bool:
        """Whether the workers have it, and all that it used then."""
        snapshot, made_for = self._snapshot, self._made_for
        return snapshot.holds(thing) and (
            made_for is None or all(map(snapshot.holds, made_for.used_by(thing)))
        )

    def change_globals(self, function: types.FunctionType, found: dict[str, Any]) -> None:
        """Those that a function is to have that goes by value: its definitions are what they
        were then."""
        if self._made_for is not None and function.__module__ in MAIN_NAMES:
            was = {name: self._made_for.definition(name) for name in found}
            found.update({name: thing for name, thing in was.items() if thing is not None})


def _from_worker(thing: Any) -> Any:
    """How things travel from a worker to the caller."""
    return NotImplemented if is_here(thing) else None


def _by_value_modules() -> bool:
    """Whether the user has told cloudpickle to take some module by value."""
    # Another thread may be importing it. Then nobody can have told it anything yet.
    told = getattr(_modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return told is not None and bool(told())


# --- what a supervisor starts with ----------------------------------------------------------


class _ByValue:
    """Is unpickled as what was pickled into it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> Any:
        return pickle.loads, (self._data,)


def portable(thing: Any) -> Any:
    """The thing, or what becomes it on the way to a spawned supervisor. There it
    is multiprocessing that pickles, which knows of no cloudpickle; it is called
    for what that process will not find: lambdas, and a notebook's definitions."""
    found_there = False
    with _nothing_passed_on():
        try:
            found_there = _OF_MAIN not in reducers.dumps(thing, None) or main_is_importable()
        except Exception as error:
            let_through(error)
    if not found_there:
        try:
            return _ByValue(_pickle_by_rule(thing, _never, None))
        except Exception as error:
            let_through(error)
    return thing


@contextlib.contextmanager
def _nothing_passed_on() -> Iterator[None]:
    """What is pickled here only to see whether it can be: the process that is being started
    gets none of its descriptors. It would get them twice, which no start of a process allows."""
    passed_on: list[int] = getattr(get_spawning_popen(), "_fds", [])
    before = len(passed_on)
    try:
        yield
    finally:
        del passed_on[before:]


def _never(_thing: Any) -> Any:
    return None


def explain_start(things: Mapping[str, Any], error: Exception) -> pickle.PicklingError | None:
    """Which part of these things made the start of a supervisor fail with this error,
    because it cannot be pickled. None: they had no part in it."""

    def why_not(thing: Any) -> Exception | None:
        try:
            reducers.dumps(portable(thing), None)
        except Exception as found:
            let_through(found)
            # A lock of multiprocessing, say, fails here, but did not fail there.
            return found if describe(found) == describe(error) else None
        return None

    for place, thing in things.items():
        if why_not(thing) is not None:
            found = find_culprit(thing, place, why_not)
            return pickle.PicklingError(f"the supervisor cannot be started: {found}")
    return None


# --- everything else --------------------------------------------------------------------


def dump_result(result: Any, fn: Callable[..., Any]) -> list[Part]:
    """A task's result as a payload; ``fn`` is what the task ran.

    Raises:
        ResultPicklingError: something in it cannot be pickled; the message
            says what.
    """
    try:
        return _dump_from_worker(result)
    except Exception as error:
        let_through(error)
        explained = _explain(result, "result", f"the result of task {task_name(fn)}")
        found = ResultPicklingError(str(explained))
        with contextlib.suppress(Exception):
            found.result = repr(result)
        raise found from error


def dumps(thing: Any) -> list[Part]:
    """Anything else that a worker sends, as a payload.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message
            says what.
    """
    try:
        return _dump_from_worker(thing)
    except Exception as error:
        let_through(error)
        raise _explain(thing, "data", "this") from error


def _explain(thing: Any, place: str, what: str) -> pickle.PicklingError:
    found = find_culprit(thing, place, _why_not(_from_worker))
    return pickle.PicklingError(f"{what} cannot be pickled: {found}")


def dump_part_of_failure(thing: Any) -> bytes:
    """A part of a task's failure in one piece, its buffers included. Raises what pickling
    raises."""
    try:
        data = reducers.dumps_of_failure(thing)
        if reducers.OF_CONNECTIONS not in data:
            return data
    except Exception as error:
        let_through(error)
    return _pickle_by_rule(thing, _from_worker, None, reducers.table_of_failure())


def loads(parts: Sequence[memoryview | bytes]) -> Any:
    """What a payload holds. Raises whatever unpickling raises."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _dump_from_worker(thing: Any) -> list[Part]:
    thing = _apart(thing)
    parts = _dump_plainly(thing)
    if parts is not None and parts[0].find(reducers.OF_CONNECTIONS) < 0:
        return parts
    return _dump_by_rule(thing, _from_worker)


# --- pickling ------------------------------------------------------------------------------


@functools.cache
def _rule_pickler() -> Any:
    """The class of the pickler that knows of values: called with a file, a Refer and pickle's
    callback. It is imported when it is first needed, as most programs never need it."""
    from .by_value import RulePickler

    return RulePickler


def _pickle_by_rule(
    thing: Any, refer: Refer, callback: Any, registered: dict[type, Any] | None = None
) -> bytes:
    """A pickle of this, by these reducers (None: all that are registered). Raises what
    pickling raises."""
    file = io.BytesIO()
    _rule_pickler()(file, refer, callback, registered).dump(thing)
    return file.getvalue()


def _dump_plainly(thing: Any) -> list[Any] | None:
    """By plain pickle: bytes and then buffers. None if it fails."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = reducers.dumps(thing, buffers.append)
        if not buffers:
            return [data]
        if len(buffers) <= MAX_BUFFERS and all(map(_is_big, buffers)):
            return [data, *buffers]
        # Again, because a quicker callback serves the many that have no buffers.
        buffers.clear()
        data = reducers.dumps(thing, _keeping(buffers))
    except Exception as error:
        let_through(error)
        return None
    return [data, *buffers]


def _dump_by_rule(thing: Any, refer: Refer) -> list[Part]:
    buffers: list[pickle.PickleBuffer] = []
    return [_pickle_by_rule(thing, refer, _keeping(buffers)), *buffers]


def _is_big(buffer: pickle.PickleBuffer) -> bool:
    view = memoryview(buffer)
    return view.nbytes >= OUT_OF_BAND and view.contiguous


def _keeping(buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], bool]:
    """Pickle's callback: takes big buffers and says of the others that they shall
    stay in the pickle."""

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
    """A file for a pickle that nobody will read."""

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
