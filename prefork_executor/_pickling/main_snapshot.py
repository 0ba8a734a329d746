"""What the workers' ``__main__`` holds, and so what may travel to them as a name.

For modules other than ``__main__`` a reference is right whenever pickle can make
one. For ``__main__`` it depends on how the supervisor was started:

* forked: its ``__main__`` is the caller's as it was at that moment;
* spawned, or from a fork server: it has imported ``__main__`` anew from the script, without
  the code under ``if __name__ == "__main__"``. For a notebook or an interactive session
  its ``__main__`` is empty. It sends fingerprints of its definitions. A definition that has
  the same fingerprint here counts as the same.

A *definition* is a function or class of ``__main__``, or an object that wraps one
(``functools.lru_cache``). The workers hold a definition if it was in their
``__main__`` when they began, and every definition that its code can name,
directly or not, is still what it was then. A class is what it was if its methods
are. If a function is redefined after the pool has started, the workers no longer hold it,
nor anything that calls it.

Data is not compared. A global table of a gigabyte does not travel, and a worker sees it as it
was when the supervisor started, as with ProcessPoolExecutor. The same is true of definitions that
code finds by other means than their names in ``__main__`` (in a table, by ``globals()[...]``).

What holds for one supervisor's workers need not hold for the next's. So a payload travels with
the MainSnapshot that it was made for, which keeps the objects that were meant, and
`calls.dump_for` compares. Workers that each import main for themselves may differ from one another
as well, if the script is edited meanwhile. For them a definition is called by its name and
a digest of the fingerprints of all that it uses, and each worker compares.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.process import ORIGINAL_DIR  # type: ignore[attr-defined]

from .._support.handlers import let_through
from .._support.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAIN_NAMES = ("__main__", "__mp_main__")
"""The name of ``__main__``, and its name where multiprocessing has imported it anew. Either
name finds it in either process."""
_WRAPPERS = (classmethod, staticmethod)
_FIXED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, type(None))
"""Types of objects to which a name is rarely bound twice. Checking whether the name still means
the same object costs less than checking what it means now."""


class _Conditions(NamedTuple):
    """The conditions under which a judgement holds."""

    same: list[tuple[Mapping[str, object], str, object]]
    """In this namespace this name means this very object."""
    sizes: list[tuple[Mapping[str, object], int]]
    """This class has this many attributes."""
    data: list[str]
    """In ``__main__`` this name means no definition."""

    def still_hold(self) -> bool:
        for namespace, size in self.sizes:
            if len(namespace) != size:
                return False
        if self.data:
            now = vars(main_module())
            return not any(is_definition(now.get(name)) for name in self.data)
        return True


class MainSnapshot:
    """The definitions that the workers' ``__main__`` holds, as the caller's objects.

    Attributes:
        is_known: whether the workers have reported this. If not, it is what this process had
            when the supervisor was started.
        is_common: whether the workers have it from one process. If not, each has imported main
            for itself, and the script may have changed between two imports.
    """

    def __init__(
        self,
        by_name: Mapping[str, object],
        fingerprints: Mapping[str, bytes] | None = None,
        *,
        is_known: bool = True,
    ) -> None:
        self._by_name = dict(by_name)
        self.is_known = is_known
        self.is_common = fingerprints is None
        self._used: dict[int, list[object]] = {}
        self._fingerprints = fingerprints or {}
        self._marks: dict[int, str] = {}
        # By id, because a metaclass may make its classes unhashable. _by_name keeps the
        # objects alive, so no other object can get the same id.
        self._conditions: dict[int, _Conditions] = {}
        self._methods: dict[int, dict[str, object]] = {}
        for thing in self._by_name.values():
            for kind in _classes_in(thing):
                self._methods[id(kind)] = dict(_methods(kind))

    @classmethod
    def forked(cls) -> MainSnapshot:
        """For a supervisor forked now."""
        return cls(dict(_definitions()))

    @classmethod
    def expected(cls) -> MainSnapshot:
        """For the time until the workers report what they hold."""
        return cls(dict(_definitions()), is_known=False)

    @classmethod
    def imported(cls, fingerprints: Mapping[str, bytes], *, is_common: bool = True) -> MainSnapshot:
        """For workers that have reported what they hold: one of them has, or the process from
        which they are forked."""
        by_name = {
            name: thing
            for name, thing in _definitions()
            if fingerprints.get(name) == _fingerprint(thing)
        }
        return cls(by_name, None if is_common else fingerprints)

    def definition(self, name: str) -> object:
        """The definition of this name, or None."""
        return self._by_name.get(name)

    def used_by(self, thing: Any) -> list[object]:
        """All definitions that this one needs, itself included."""
        used = self._used.get(id(thing))
        if used is None:
            name: str = thing.__qualname__
            if resolve(self._by_name, name) is not thing:
                return [thing]
            names = _used_definitions(name, self._by_name)
            used = self._used[id(thing)] = [self._by_name[name] for name in names]
        return used

    def name_for(self, thing: Any) -> str:
        """How to call a definition that the workers hold: by its name. If each has imported main
        for itself, a digest follows, by which :func:`find_definition` checks it."""
        if self.is_common:
            return str(thing.__qualname__)
        mark = self._marks.get(id(thing))
        if mark is None:
            names = sorted(_used_definitions(thing.__qualname__, self._by_name))
            mark = "\0".join([thing.__qualname__, _digest(names, self._fingerprints), *names])
            if resolve(self._by_name, thing.__qualname__) is thing:
                self._marks[id(thing)] = mark
        return mark

    def holds(self, thing: Any) -> bool:
        """Whether the workers have this very definition, and all that it uses."""
        conditions = self._conditions.get(id(thing))
        if conditions is None:
            return resolve(self._by_name, thing.__qualname__) is thing and self._judge(thing)
        # Every submit passes here, so this is written out. A call and all() would double its cost.
        same, sizes, data = conditions
        for namespace, name, expected in same:
            if namespace.get(name) is not expected:
                return self._judge(thing)
        return not (sizes or data) or conditions.still_hold() or self._judge(thing)

    def _judge(self, thing: Any) -> bool:
        conditions = _Conditions([], [], [])
        todo, seen = [thing.__qualname__.partition(".")[0]], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if not self._is_as_it_was(name, conditions):
                return False
            if name in self._by_name:
                todo.extend(_names_used(self._by_name[name]))
        if resolve(self._by_name, thing.__qualname__) is thing:
            self._conditions[id(thing)] = conditions
        return True

    def _is_as_it_was(self, name: str, conditions: _Conditions) -> bool:
        """Whether this name means now what the workers take it to mean. Adds the conditions
        under which that stays so."""
        now = vars(main_module())
        thing = now.get(name)
        if name in self._by_name:
            if thing is not self._by_name[name]:
                return False
            conditions.same.append((now, name, thing))
            return all(self._has_its_methods(kind, conditions) for kind in _classes_in(thing))
        if is_definition(thing):
            return False
        if issubclass(type(thing), _FIXED):
            conditions.same.append((now, name, thing))
        else:
            conditions.data.append(name)
        return True

    def _has_its_methods(self, kind: type, conditions: _Conditions) -> bool:
        then, now = self._methods.get(id(kind), {}), dict(_methods(kind))
        if now.keys() != then.keys() or any(now[name] is not then[name] for name in then):
            return False
        namespace = vars(kind)
        conditions.same.extend((namespace, name, method) for name, method in then.items())
        conditions.sizes.append((namespace, len(namespace)))
        return True


def main_module() -> types.ModuleType:
    return sys.modules["__main__"]


def is_here(thing: Any) -> bool:
    """Whether this process's ``__main__`` has this definition under its name."""
    return is_definition(thing) and resolve(vars(main_module()), thing.__qualname__) is thing


def is_definition(thing: object) -> bool:
    # type() instead of isinstance(): it does not load what a proxy stands for.
    kind = type(thing)
    if kind is types.FunctionType or issubclass(kind, type):
        return getattr(thing, "__module__", None) in MAIN_NAMES
    own = _own_attributes(thing)
    return own.keys() >= {"__wrapped__", "__qualname__"} and own.get("__module__") in MAIN_NAMES


def resolve(namespace: Mapping[str, object], qualname: str) -> object:
    """What a dotted name means in a namespace, or None."""
    if "." not in qualname:
        return namespace.get(qualname)
    head, *rest = qualname.split(".")
    thing = namespace.get(head)
    for name in rest:
        thing = getattr(thing, name, None)
    return thing


def find_definition(called: str) -> Any:
    """The definition that :meth:`MainSnapshot.name_for` calls so.

    Raises:
        AttributeError: this process's ``__main__`` has no definition of this name.
        RuntimeError: its definition is not the one that is meant.
    """
    name, *mark = called.split("\0")
    thing = resolve(vars(main_module()), name)
    if thing is None:
        raise AttributeError(f"the worker's __main__ has no {name!r}")
    if mark and _digest(mark[1:], _introduced) != mark[0]:
        raise RuntimeError(
            f"{name!r} of __main__, or what it uses, differs in this worker from what it was when "
            "the task was submitted: the script was changed after the pool began"
        )
    return thing


_introduced: dict[str, bytes] = {}
"""What :func:`introduce_main` returned."""


def _used_definitions(name: str, definitions: Mapping[str, object]) -> set[str]:
    """The names of the definitions that one needs, directly or not, itself included."""
    todo, seen = [name.partition(".")[0]], set()
    while todo:
        name = todo.pop()
        if name in definitions and name not in seen:
            seen.add(name)
            todo.extend(_names_used(definitions[name]))
    return seen


def _digest(names: Iterable[str], fingerprints: Mapping[str, bytes]) -> str:
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(fingerprints.get(name, bytes(16)))
    return digest.hexdigest()


def introduce_main() -> dict[str, bytes]:
    """The fingerprints of what this process's newly imported ``__main__`` holds, for the caller
    to compare. Its definitions get the right name of their module, so that the caller finds them
    by it: its own ``__mp_main__`` may be gone."""
    definitions = _definitions()
    for part in (part for _, thing in definitions for part in (thing, *_classes_in(thing))):
        with contextlib.suppress(AttributeError, TypeError):
            part.__module__ = "__main__"
    _introduced.update({name: _fingerprint(thing) for name, thing in definitions})
    return dict(_introduced)


def main_is_importable() -> bool:
    """Whether multiprocessing will import ``__main__`` anew in processes that it spawns. It
    tries if there is the name of a file. For a program that is read from standard input the
    name is ``<stdin>``. It does not import the ``__main__.py`` of a package, a directory or a zip
    archive, nor the script ``ipython``, because these often have no main guard."""
    main = main_module()
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).rpartition(".")[2] != "__main__"
    file = getattr(main, "__file__", None)
    if file is None or os.path.splitext(os.path.basename(file))[0] == "ipython":
        return False
    return os.path.exists(os.path.join(ORIGINAL_DIR or "", file))


def how_to_import_main() -> dict[str, str]:
    """What multiprocessing would tell a spawned process of ``__main__``. Empty if that process
    must not import it. Then what ``__main__`` has travels by value.

    Raises:
        RuntimeError: this process is itself importing a main module, and may start none yet.
    """
    if not main_is_importable():
        return {}
    import multiprocessing.spawn  # Only programs that spawn need it.

    told = multiprocessing.spawn.get_preparation_data("")
    return {key: value for key, value in told.items() if key.startswith("init_main")}


def _definitions() -> list[tuple[str, Any]]:
    namespace = vars(main_module())
    return [(name, thing) for name, thing in list(namespace.items()) if is_definition(thing)]


# --- what a definition consists of ----------------------------------------------------------


def _own_attributes(thing: object) -> Mapping[str, Any]:
    try:
        own = object.__getattribute__(thing, "__dict__")
    except Exception as error:
        let_through(error)
        return {}
    return own if isinstance(own, dict) else {}


def _classes_in(thing: object) -> Iterator[type]:
    """The class itself, the classes inside it, and its bases in ``__main__``."""
    todo, seen = [thing], set()
    while todo:
        kind = todo.pop()
        if issubclass(type(kind), type) and is_definition(kind) and id(kind) not in seen:
            assert isinstance(kind, type)
            seen.add(id(kind))
            yield kind
            todo.extend(kind.__bases__)
            todo.extend(vars(kind).values())


def _methods(kind: type) -> Iterator[tuple[str, object]]:
    """The attributes of a class that have code: methods, properties, classes."""
    for name, member in list(vars(kind).items()):
        if is_definition(member) or any(True for _ in _wrapped(member)):
            yield name, member


def _wrapped(thing: object) -> Iterator[object]:
    """The functions that an object wraps."""
    if isinstance(thing, _WRAPPERS):
        yield thing.__func__
    elif isinstance(thing, property):
        yield from (part for part in (thing.fget, thing.fset, thing.fdel) if part is not None)
    elif isinstance(thing, functools.cached_property | functools.partialmethod):
        yield thing.func
    elif "__wrapped__" in _own_attributes(thing):
        yield _own_attributes(thing)["__wrapped__"]


def _functions(thing: object) -> Iterator[types.FunctionType]:
    """The functions of ``__main__`` that make up a definition: itself or its methods, what these
    wrap, and what their closures hold."""
    todo: list[object] = [thing]
    seen = set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for kind in _classes_in(thing):
            todo.extend(member for _, member in _methods(kind))
        todo.extend(_wrapped(thing))
        if isinstance(thing, types.FunctionType):
            yield thing
            todo.extend(part for part in _closure(thing) if is_definition(part))


def _closure(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # A variable that has no value yet.


def _names_used(thing: object) -> set[str]:
    """The names in ``__main__`` that a definition's code can mean."""
    from .code_objects import global_names  # Only what may have changed needs it.

    now = vars(main_module())
    return {
        name
        for function in _functions(thing)
        if function.__globals__ is now
        for name in global_names(function.__code__)
    }


# --- fingerprints ---------------------------------------------------------------------------


def _fingerprint(thing: object) -> bytes:
    import hashlib  # Only a supervisor that was not forked needs these.

    from .code_objects import codes

    digest = hashlib.blake2b(type(thing).__name__.encode(), digest_size=16)
    for kind in _classes_in(thing):
        bases = [base.__qualname__ for base in kind.__bases__]
        # Python adds and removes names that begin with two underscores.
        names = sorted(name for name in vars(kind) if not name.startswith("__"))
        digest.update(repr((kind.__qualname__, bases, names)).encode())
    for function in _functions(thing):
        digest.update(function.__qualname__.encode())
        for code in codes(function.__code__):
            digest.update(repr(_outline(code)).encode())
            digest.update(code.co_code)
    return digest.digest()


def _outline(code: types.CodeType) -> tuple[object, ...]:
    constants = [_constant(constant) for constant in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return code.co_name, code.co_firstlineno, code.co_flags, names, constants


def _constant(thing: object) -> str:
    """Text that is the same in every process for the same constant. Data gives only its type."""
    if thing is None or isinstance(thing, str | bytes | int | float | complex):
        return repr(thing)
    if isinstance(thing, tuple):
        return f"({','.join(map(_constant, thing))})"
    if isinstance(thing, frozenset):
        return f"{{{','.join(sorted(map(_constant, thing)))}}}"
    return type(thing).__name__
