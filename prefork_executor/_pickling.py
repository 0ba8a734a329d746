"""Calls and results to payloads and back.

The rule for functions and classes
----------------------------------
By reference (a module and a name) wherever the worker has that very object:
nothing but the name travels. By value (cloudpickle) where it has not: lambdas,
closures, and what ``__main__`` has defined or redefined since the pool started.
Which definitions of ``__main__`` the worker has is known to :mod:`._held_main`.
What a function that goes by value uses goes with it by the same rule, data by
value: a table of a gigabyte should be used by a function that the worker has.

The other way, what a worker's ``__main__`` has goes by reference: the caller has
it too, under the same name, and only the caller's own class is any use to it.

How
---
Plain pickle is tried first because it runs in C; what it made is right unless

* the name ``__main__`` appears in it;
* a ``multiprocessing`` connection does, which pickle would send as the bare
  number of a descriptor, another one in the other process;
* the user has told cloudpickle to take some module by value.

In these cases, and where pickle fails, cloudpickle's pickler goes over it, with
the rule above. A function of ``__main__`` that the worker holds travels as its
bare qualified name, so that ordinary scripts keep the quick way.

Big buffers (protocol 5) are not copied into the pickle, nor are big bytes that are an
argument or a result themselves. A task's function gets
them, like all of its arguments, as its own: what it changes nobody else sees.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import multiprocessing.connection
import pickle
import socket
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import _wire
from ._culprit import describe, find_culprit
from ._held_main import (
    MAIN_NAMES,
    is_definition,
    is_here,
    main_module,
    resolve,
)
from ._held_main import HeldMain as HeldMain
from ._held_main import introduce_main as introduce_main
from ._held_main import main_is_importable as main_is_importable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    _ByReference = Callable[[Any], bool]

Part = bytes | pickle.PickleBuffer
OUT_OF_BAND = _wire.INLINE_LIMIT
"""Bytes from which on a buffer travels out of band: what does not fit a packet."""
MOST_BUFFERS = _wire.MOST_PARTS - 1
"""Buffers of one payload that travel out of band; any more go into the pickle."""

_MOST_CODES = 256
"""Codes of functions that travel by value whose reductions are remembered."""
_OF_MAIN = b"_main__"
"""In a pickle, either name of ``__main__``."""
_OF_CONNECTIONS = b"multiprocessing.connection"
_modules = sys.modules
_Cached: type = type(functools.lru_cache(len))


class NeedsMain(Exception):  # noqa: N818 - a condition, not an error
    """The call refers to ``__main__`` and it is not yet known what the worker's
    ``__main__`` holds. Never leaves the package: the call waits until it is.

    Attributes:
        call: what to give to :func:`dump_call` then: the arguments as they were
            now, so that it makes no difference what becomes of them.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.call = (fn, *_snapshot(args, dict(kwargs)))


# --- what a task runs -----------------------------------------------------------------


class Chunk:
    """What a task of a map with a chunksize runs: ``fn`` for each item of a chunk, whose
    arguments come by columns: one tuple for each of fn's parameters."""

    __slots__ = ("fn",)

    def __init__(self, fn: Any) -> None:
        # On its way to a worker: the name of a function of ``__main__``, perhaps.
        self.fn = fn

    def __call__(self, *columns: Iterable[Any]) -> list[Any]:
        fn = self.fn
        # Not by map(): a StopIteration of fn's would look like the end of the columns.
        if len(columns) == 1:
            return [fn(item) for item in columns[0]]
        return [fn(*args) for args in zip(*columns, strict=True)]


def user_function(fn: Any) -> Any:
    """The function of the user's, out of partials and chunks."""
    while isinstance(fn, functools.partial | Chunk):
        fn = fn.func if isinstance(fn, functools.partial) else fn.fn
    return fn


def task_name(fn: object) -> str:
    """How messages call a task: the qualified name of its function."""
    fn = user_function(fn)
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module and module != "builtins" else str(name)


# --- calls ----------------------------------------------------------------------------


def dump_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    held: HeldMain | None,
) -> list[Part]:
    """A call as a payload. ``held`` is None while it is not known.

    Raises:
        NeedsMain: the call cannot be pickled rightly before ``held`` is known.
        pickle.PicklingError: something in it cannot be pickled; the message
            says what.
    """
    target: Any = fn
    inner = fn.fn if type(fn) is Chunk else fn
    if type(inner) is types.FunctionType and inner.__module__ == "__main__":
        if held is None:
            raise NeedsMain(fn, args, kwargs)
        if held.holds(inner):
            name = inner.__qualname__
            target = Chunk(name) if inner is not fn else name
    for value in args:
        if type(value) is bytes and len(value) >= OUT_OF_BAND:
            args = tuple(map(_apart, args))
            break
    call = (target, args, kwargs)
    # Plain pickle would fail for a lambda, or a function from within a function.
    is_local = type(inner) is types.FunctionType and "<" in inner.__qualname__
    parts = None if is_local else _dump_plainly(call)
    # Written out, because this is what every submit costs; and find() because `in`
    # asks first whether the bytes are a number, which takes ten times as long.
    if (
        parts is not None
        and parts[0].find(_OF_MAIN) < 0
        and parts[0].find(_OF_CONNECTIONS) < 0
        and not ("cloudpickle" in _modules and _by_value_modules())
    ):
        return parts
    if held is None:
        raise NeedsMain(fn, args, kwargs)
    by_reference = functools.partial(_is_held, held)
    try:
        return _dump_by_rule(call, by_reference)
    except Exception as error:
        raise _explain_call(fn, args, kwargs, by_reference, error) from error


def _apart(value: Any) -> Any:
    """Big bytes as a buffer that travels out of band, and arrives as bytes."""
    is_big = type(value) is bytes and len(value) >= OUT_OF_BAND
    return pickle.PickleBuffer(value) if is_big else value


def load_call(
    parts: Sequence[memoryview | bytes],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function and its arguments. Raises whatever unpickling raises."""
    target, args, kwargs = loads(parts)
    if type(target) is str:
        target = _of_main(target)
    elif type(target) is Chunk and type(target.fn) is str:
        target = Chunk(_of_main(target.fn))
    return target, args, kwargs


def _of_main(name: str) -> Any:
    fn = resolve(vars(main_module()), name)
    if fn is None:
        raise AttributeError(f"the worker's __main__ has no {name!r}")
    return fn


def _is_held(held: HeldMain, thing: Any) -> bool:
    return is_definition(thing) and held.holds(thing)


def _by_value_modules() -> bool:
    """Whether the user has told cloudpickle to take some module by value."""
    return bool(_modules["cloudpickle"].list_registry_pickle_by_value())


def _snapshot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Copies, as a worker would have got them; the originals if that fails."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps((args, kwargs), 5, buffer_callback=buffers.append)
        if _OF_CONNECTIONS not in data:
            copies: tuple[Any, ...] = pickle.loads(data, buffers=buffers)
            return copies
    except Exception:
        pass
    return args, kwargs


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
    try:
        found_there = _OF_MAIN not in pickle.dumps(thing, 5) or main_is_importable()
    except Exception:
        found_there = False
    if not found_there:
        with contextlib.suppress(Exception):
            return _ByValue(_pickle_by_rule(thing, _never, None))
    return thing


def _never(_thing: Any) -> bool:
    return False


def explain_start(things: Mapping[str, Any], error: Exception) -> pickle.PicklingError | None:
    """Which part of these things made the start of a supervisor fail with this error,
    because it cannot be pickled. None: they had no part in it."""

    def why_not(thing: Any) -> Exception | None:
        try:
            pickle.dumps(portable(thing), 5)
        except Exception as found:
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
        pickle.PicklingError: something in it cannot be pickled; the message
            says what.
    """
    try:
        return _dump_from_worker(result)
    except Exception as error:
        raise _explain(result, "result", f"the result of task {task_name(fn)}") from error


def dumps(thing: Any) -> list[Part]:
    """Anything else that a worker sends, as a payload.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message
            says what.
    """
    try:
        return _dump_from_worker(thing)
    except Exception as error:
        raise _explain(thing, "data", "this") from error


def _explain(thing: Any, place: str, what: str) -> pickle.PicklingError:
    found = find_culprit(thing, place, _why_not(is_here))
    return pickle.PicklingError(f"{what} cannot be pickled: {found}")


def dump_whole(thing: Any) -> bytes:
    """The same in one piece, its buffers included. Raises what pickling raises."""
    try:
        data = pickle.dumps(thing, 5)
        if _OF_CONNECTIONS not in data:
            return data
    except Exception:
        pass
    return _pickle_by_rule(thing, is_here, None)


def loads(parts: Sequence[memoryview | bytes]) -> Any:
    """What a payload holds. Raises whatever unpickling raises."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _dump_from_worker(thing: Any) -> list[Part]:
    thing = _apart(thing)
    parts = _dump_plainly(thing)
    if parts is not None and parts[0].find(_OF_CONNECTIONS) < 0:
        return parts
    return _dump_by_rule(thing, is_here)


# --- pickling ------------------------------------------------------------------------------


def _dump_plainly(thing: Any) -> list[Any] | None:
    """By plain pickle: bytes and then buffers. None if it fails."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(thing, 5, buffer_callback=buffers.append)
        if not buffers:
            return [data]
        if len(buffers) <= MOST_BUFFERS and all(map(_is_big, buffers)):
            return [data, *buffers]
        # Again, because a quicker callback serves the many that have no buffers.
        buffers.clear()
        data = pickle.dumps(thing, 5, buffer_callback=_keeping(buffers))
    except Exception:
        return None
    return [data, *buffers]


def _dump_by_rule(thing: Any, by_reference: _ByReference) -> list[Part]:
    buffers: list[pickle.PickleBuffer] = []
    return [_pickle_by_rule(thing, by_reference, _keeping(buffers)), *buffers]


def _is_big(buffer: pickle.PickleBuffer) -> bool:
    view = memoryview(buffer)
    return view.nbytes >= OUT_OF_BAND and view.contiguous


def _keeping(buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], bool]:
    """Pickle's callback: takes big buffers and says of the others that they shall
    stay in the pickle."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if len(buffers) >= MOST_BUFFERS or not _is_big(buffer):
            return True
        buffers.append(buffer)
        return False

    return keep


def _pickle_by_rule(thing: Any, by_reference: _ByReference, callback: Any) -> bytes:
    file = io.BytesIO()
    _rule_pickler()(file, by_reference, callback).dump(thing)
    return file.getvalue()


@functools.cache
def _rule_pickler() -> Any:
    # cloudpickle is imported when the first call needs it, and not before.
    import cloudpickle  # type: ignore[import-untyped]

    own = cloudpickle.Pickler.__module__
    maker = sys.modules[own]

    class RulePickler(cloudpickle.Pickler):  # type: ignore[misc]
        _reducers: ClassVar = {
            **cloudpickle.Pickler._dispatch_table,
            **_connection_reducers(),
            io.TextIOWrapper: _reduce_text_file,
            types.CodeType: _with_its_file(cloudpickle.Pickler._dispatch_table[types.CodeType]),
        }

        def __init__(self, file: Any, by_reference: _ByReference, callback: Any) -> None:
            # cloudpickle chains these maps, but every object is looked up in them.
            self.dispatch_table = {**copyreg.dispatch_table, **self._reducers}
            super().__init__(file, protocol=5, buffer_callback=callback)
            self._by_reference = by_reference

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is types.FunctionType:
                # What its reductions are made of: several to each function, and all there.
                if obj.__module__ == own and vars(maker).get(obj.__name__) is obj:
                    return NotImplemented
            elif not issubclass(kind, type):
                return self._reduce_cached(obj) if kind is _Cached else NotImplemented
            if self._by_reference(obj):
                return NotImplemented
            reduced = super().reducer_override(obj)
            return reduced if kind is types.FunctionType else _with_its_name(obj, reduced)

        def _reduce_cached(self, obj: Any) -> Any:
            # cloudpickle would send any lru_cache by reference.
            if self._by_reference(obj) or _is_in_its_module(obj):
                return NotImplemented
            parameters = obj.cache_parameters()
            return _make_cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])

    return RulePickler


def _with_its_file(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """cloudpickle's reduction of code, with the name of its file. From version 3.1.3 on
    it puts another in its place, and a traceback would show no source. Remembered, because a
    lambda in a loop is another function each time, of the same code."""
    known: dict[int, tuple[types.CodeType, Any]] = {}

    def reduce_code(code: types.CodeType) -> Any:
        # By its id, because code from another file may be equal to it.
        found = known.get(id(code))
        if found is None:
            make, parts = reduce(code)
            named = (code.co_filename if part == "<dynamic-code>" else part for part in parts)
            if len(known) >= _MOST_CODES:
                known.clear()
            found = known[id(code)] = code, (make, tuple(named))
        return found[1]

    return reduce_code


def _with_its_name(kind: type, reduced: Any) -> Any:
    """cloudpickle's reduction of a class, with the name of the class in full, which
    it forgets, and that of ``__main__`` as the caller calls it."""
    if isinstance(reduced, tuple) and len(reduced) == 6:
        attributes = reduced[2][0]
        attributes["__qualname__"] = kind.__qualname__
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
    # cloudpickle would send the text of a file that is open for reading, all of it.
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"cannot pickle {type(file).__name__!r} object: it is an open file")


def _connection_reducers() -> dict[type, Any]:
    """How multiprocessing sends a connection or a socket, which makes it the other
    process's own. As under ProcessPoolExecutor."""
    registered = multiprocessing.connection.reduction.ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    kinds = (socket.socket, multiprocessing.connection.Connection)
    return {kind: registered[kind] for kind in kinds if kind in registered}


# --- saying what cannot be pickled -------------------------------------------------------


def _explain_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    by_reference: _ByReference,
    error: Exception,
) -> pickle.PicklingError:
    places = [("the function", fn)]
    places += [(f"args[{i}]", arg) for i, arg in enumerate(args)]
    places += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
    why_not = _why_not(by_reference)
    for place, thing in places:
        if why_not(thing) is not None:
            reason = find_culprit(thing, place, why_not)
            break
    else:
        reason = describe(error)
    return pickle.PicklingError(f"task {task_name(fn)} cannot be sent to a worker: {reason}")


class _Nowhere:
    """A file for a pickle that nobody will read."""

    def write(self, data: bytes) -> int:
        return len(data)


def _why_not(by_reference: _ByReference) -> Callable[[Any], Exception | None]:
    def why_not(thing: Any) -> Exception | None:
        try:
            _rule_pickler()(_Nowhere(), by_reference, _is_small).dump(thing)
        except Exception as error:
            return error
        return None

    return why_not


def _is_small(buffer: pickle.PickleBuffer) -> bool:
    return not _is_big(buffer)
