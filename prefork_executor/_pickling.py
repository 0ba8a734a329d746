"""Calls and results to payloads and back.

The rule for functions and classes
----------------------------------
By reference (a module and a name) wherever the worker has that very object:
nothing but the name travels. By value (cloudpickle) where it has not: lambdas,
closures, and what ``__main__`` has defined or redefined since the pool started.
For modules other than ``__main__`` the reference is right whenever pickle can
make one. For ``__main__`` it depends on how the supervisor came to be:

* forked: its ``__main__`` is the caller's as it was at that moment;
* spawned, or from a fork server: its ``__main__`` was imported anew from the
  script, without what stands under ``if __name__ == "__main__"``, and is empty
  for a notebook or an interactive session. It tells us what it has, as
  fingerprints; what looks the same here and there is held to be the same.

A function goes by reference only if all functions and classes of ``__main__``
that it uses, directly or not, are still those that the worker has. Data is not
compared: a global table of a gigabyte stays where it is, and a worker sees it as
it was when the supervisor started, as under ProcessPoolExecutor.

Plain pickle is tried first because it runs in C; what it made is right unless
the name ``__main__`` appears in it, which sends it to cloudpickle's pickler and
the rule above. A function of ``__main__`` that the worker holds travels as its
bare qualified name, so that ordinary scripts keep the quick way.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from . import _wire

Part = bytes | pickle.PickleBuffer
OUT_OF_BAND = _wire.INLINE_LIMIT
"""Bytes from which on a buffer travels out of band: what does not fit a packet."""
_DEPTH = 8
"""Levels of containers and attributes searched for what cannot be pickled."""
_BREADTH = 1000
"""Items of one container searched for it."""


class NeedsMain(Exception):  # noqa: N818 - a condition, not an error
    """The call refers to ``__main__`` and it is not yet known what the worker's
    ``__main__`` holds. Never leaves the package: the call waits until it is."""


class HeldMain:
    """What the workers' ``__main__`` holds, as objects of the caller's."""

    def __init__(self, held: Mapping[str, object]) -> None:
        self._held = dict(held)
        self._needs: dict[object, tuple[tuple[str, object], ...]] = {}

    @classmethod
    def forked(cls) -> HeldMain:
        """For a supervisor forked now."""
        return cls(dict(_definitions(vars(_main()))))

    @classmethod
    def imported(cls, fingerprints: Mapping[str, bytes]) -> HeldMain:
        """For a supervisor that has told what it holds."""
        return cls(
            {
                name: thing
                for name, thing in _definitions(vars(_main()))
                if fingerprints.get(name) == _fingerprint(thing)
            }
        )

    def holds(self, thing: Any) -> bool:
        """Whether the workers have this very function or class."""
        needs = self._needs.get(thing)
        if needs is None:
            name: str = getattr(thing, "__qualname__", "")
            if _resolve(self._held, name) is not thing:
                return False
            head = name.partition(".")[0]
            needs = self._needs[thing] = tuple(self._all_needs(head))
        now = _main().__dict__
        for name, held in needs:  # noqa: SIM110 - every submit comes by, a generator costs
            if now.get(name) is not held:
                return False
        return True

    def _all_needs(self, name: str) -> Iterator[tuple[str, object]]:
        names, seen = [name], set()
        now = vars(_main())
        while names:
            name = names.pop()
            thing = self._held.get(name)
            if thing is None and _is_definition(now.get(name)):
                # Used here and unknown to the worker: it can never be held.
                yield name, None
            if thing is None or name in seen:
                continue
            seen.add(name)
            yield name, thing
            names.extend(_names_used(thing))


def fingerprints() -> dict[str, bytes]:
    """What this process's ``__main__`` holds, for the other side's comparison."""
    return {name: _fingerprint(thing) for name, thing in _definitions(vars(_main()))}


def _main() -> types.ModuleType:
    return sys.modules["__main__"]


def _is_definition(thing: object) -> bool:
    return isinstance(thing, types.FunctionType | type) and thing.__module__ in (
        "__main__",
        "__mp_main__",
    )


def _definitions(namespace: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(name, thing) for name, thing in list(namespace.items()) if _is_definition(thing)]


def _resolve(namespace: Mapping[str, object], qualname: str) -> object:
    head, *rest = qualname.split(".")
    thing = namespace.get(head)
    for name in rest:
        thing = getattr(thing, name, None)
    return thing


def _codes(thing: object) -> Iterator[types.CodeType]:
    """The code objects of a function, or of a class's methods, nested ones too."""
    if isinstance(thing, type):
        for member in vars(thing).values():
            yield from _codes(member)
        return
    thing = getattr(thing, "__wrapped__", None) or getattr(thing, "__func__", thing)
    todo = [getattr(thing, "__code__", None)]
    while todo:
        code = todo.pop()
        if isinstance(code, types.CodeType):
            yield code
            todo.extend(const for const in code.co_consts if isinstance(const, types.CodeType))


def _names_used(thing: object) -> set[str]:
    names = {name for code in _codes(thing) for name in code.co_names}
    if isinstance(thing, type):
        names.update(base.__name__ for base in thing.__bases__)
    return names


def _fingerprint(thing: object) -> bytes:
    digest = hashlib.blake2b(type(thing).__name__.encode(), digest_size=16)
    if isinstance(thing, type):
        digest.update(repr([base.__qualname__ for base in thing.__bases__]).encode())
        digest.update(repr(sorted(vars(thing))).encode())
    for code in _codes(thing):
        constants = [c for c in code.co_consts if isinstance(c, str | bytes | int | float)]
        digest.update(repr((code.co_name, code.co_firstlineno, code.co_names, constants)).encode())
        digest.update(code.co_code)
    return digest.digest()


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
    if type(fn) is types.FunctionType and fn.__module__ == "__main__":
        if held is None:
            raise NeedsMain
        if held.holds(fn):
            target = fn.__qualname__
    try:
        return _dump((target, args, kwargs), held, may_wait=True)
    except NeedsMain:
        raise
    except Exception as error:
        raise _explain_call(fn, args, kwargs, error) from error


def load_call(
    parts: Sequence[memoryview],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function and its arguments. Raises whatever unpickling raises."""
    target, args, kwargs = loads(parts)
    if type(target) is str:
        target = _resolve(vars(_main()), target)
    return target, args, kwargs


def dump_result(result: Any, task: str) -> list[Part]:
    """A task's result as a payload.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message
            says what.
    """
    try:
        return _dump(result, None, may_wait=False)
    except Exception as error:
        found = _culprit(result, "result")
        raise pickle.PicklingError(
            f"the result of task {task} cannot be pickled: {found}"
        ) from error


def dumps(thing: Any) -> list[Part]:
    """Anything else of the caller's or a task's as a payload."""
    return _dump(thing, None, may_wait=False)


def loads(parts: Sequence[memoryview]) -> Any:
    """What a payload holds. Raises whatever unpickling raises."""
    return pickle.loads(parts[0], buffers=parts[1:])


def _dump(thing: Any, held: HeldMain | None, *, may_wait: bool) -> list[Part]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(thing, 5, buffer_callback=buffers.append)
    except Exception:
        pass
    else:
        # In a worker what comes from its __main__ is by reference for the caller.
        if (not may_wait or b"__main__" not in data) and not _by_value_modules():
            if not buffers:
                return [data]
            return _dump_in_band_if_small(thing)
    if may_wait and held is None:
        raise NeedsMain
    buffers.clear()
    return [_dump_by_rule(thing, held, buffers), *buffers]


def _dump_in_band_if_small(thing: Any) -> list[Part]:
    buffers: list[pickle.PickleBuffer] = []
    keep = functools.partial(_keep_in_band, buffers)
    return [pickle.dumps(thing, 5, buffer_callback=keep), *buffers]


def _keep_in_band(buffers: list[pickle.PickleBuffer], buffer: pickle.PickleBuffer) -> bool:
    if memoryview(buffer).nbytes < OUT_OF_BAND:
        return True
    buffers.append(buffer)
    return False


def _by_value_modules() -> bool:
    """Whether the user has told cloudpickle to take some module by value."""
    cloudpickle = sys.modules.get("cloudpickle")
    return bool(cloudpickle and cloudpickle.list_registry_pickle_by_value())


@functools.cache
def _rule_pickler() -> type[pickle.Pickler]:
    # cloudpickle is imported when the first call needs it, and not before.
    import cloudpickle  # type: ignore[import-untyped]

    class RulePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(
            self, file: io.BytesIO, held: HeldMain | None, buffers: list[pickle.PickleBuffer]
        ) -> None:
            super().__init__(
                file, protocol=5, buffer_callback=functools.partial(_keep_in_band, buffers)
            )
            self._held_main = held

        def reducer_override(self, obj: Any) -> Any:
            held = self._held_main
            if held is not None and _is_definition(obj) and held.holds(obj):
                return NotImplemented
            return super().reducer_override(obj)

    return cast(type[pickle.Pickler], RulePickler)


def _dump_by_rule(thing: Any, held: HeldMain | None, buffers: list[pickle.PickleBuffer]) -> bytes:
    file = io.BytesIO()
    pickler = cast(Any, _rule_pickler())(file, held, buffers)
    pickler.dump(thing)
    return file.getvalue()


# --- saying what cannot be pickled -------------------------------------------------------


def task_name(fn: object) -> str:
    """How messages call a task: the qualified name of its function."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    module = getattr(fn, "__module__", None)
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def _explain_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
) -> pickle.PicklingError:
    name = task_name(fn)
    places = [("the function", fn)]
    places += [(f"args[{i}]", arg) for i, arg in enumerate(args)]
    places += [(f"kwargs[{key!r}]", value) for key, value in kwargs.items()]
    for place, thing in places:
        if _why_not(thing):
            return pickle.PicklingError(
                f"task {name} cannot be sent to a worker: {_culprit(thing, place)}"
            )
    return pickle.PicklingError(
        f"task {name} cannot be sent to a worker: {type(error).__name__}: {error}"
    )


def _why_not(thing: Any) -> Exception | None:
    try:
        _dump_by_rule(thing, None, [])
    except Exception as error:
        return error
    return None


def _culprit(thing: Any, place: str) -> str:
    """The innermost part that cannot be pickled, its place, and why."""
    for _ in range(_DEPTH):
        for inner_place, inner in _inside(thing, place):
            if _why_not(inner):
                thing, place = inner, inner_place
                break
        else:
            break
    error = _why_not(thing)
    kind = type(thing).__module__ + "." + type(thing).__qualname__
    return f"{place} is a {kind.removeprefix('builtins.')} ({type(error).__name__}: {error})"


def _inside(thing: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        items: Iterator[tuple[str, Any]] = ((f"{place}[{k!r}]", v) for k, v in thing.items())
    elif isinstance(thing, list | tuple):
        items = ((f"{place}[{i}]", v) for i, v in enumerate(thing))
    elif isinstance(thing, set | frozenset):
        items = ((f"an item of {place}", v) for v in thing)
    elif isinstance(thing, functools.partial):
        items = ((f"{place}.{n}", getattr(thing, n)) for n in ("func", "args", "keywords"))
    elif isinstance(thing, types.FunctionType):
        items = _inside_function(thing, place)
    elif isinstance(thing, types.MethodType):
        items = iter([(f"{place}.__self__", thing.__self__)])
    else:
        items = ((f"{place}.{n}", v) for n, v in getattr(thing, "__dict__", {}).items())
    for _, item in zip(range(_BREADTH), items, strict=False):
        yield item


def _inside_function(fn: types.FunctionType, place: str) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            yield f"{place}'s variable {name!r}", cell.cell_contents
        except ValueError:
            continue
    if fn.__module__ == "__main__" or "<locals>" in fn.__qualname__:
        for name in sorted(_names_used(fn)):
            if name in fn.__globals__:
                yield f"{place}'s global {name!r}", fn.__globals__[name]
