"""What the package is built like: its rooms, what is long, who imports whom, who writes what.

    python tests/support/structure.py

A *room* is a folder of the package, or a file that lies in none. The package's own ``__init__``
and ``__main__`` are its doors and no rooms: what is imported from ``prefork_executor`` itself, as
users do, is no arrow. Needs grimp, which comes with import-linter.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import grimp

PACKAGE = "prefork_executor"
FOLDER = Path(__file__).parents[2] / PACKAGE
LONG = 600
"""Lines that no file should have."""

OF_OTHERS = {
    "_finalize._registered_with_atexit": "weakref.finalize",
    "func.items": "joblib's BatchedCalls",
    "pickler.dispatch_table": "pickle.Pickler",
    "plugin.idempotent": "distributed.WorkerPlugin",
    "process.daemon": "the process of multiprocessing.current_process()",
    "wrapped.args": "multiprocessing.pool.MaybeEncodingError",
    "connection._handle": "multiprocessing.connection.Connection",
    "process._inheriting": "the process of multiprocessing.current_process()",
    "sockets._accept": "socket.socket",
    "tracker._fd": "multiprocessing.resource_tracker.ResourceTracker",
    "tracker._pid": "multiprocessing.resource_tracker.ResourceTracker",
}
"""Attributes of Python and of other packages that are written, as the code writes them,
and whose they are."""

Arrows = Mapping[str, set[str]]
"""What imports what, itself never among it."""


@dataclasses.dataclass(frozen=True)
class Long:
    """A file, a function or a class, by its length."""

    lines: int
    name: str

    def __str__(self) -> str:
        return f"{self.lines:5}  {self.name}"


@dataclasses.dataclass(frozen=True)
class Write:
    """An attribute that is given a value, or deleted, by other code than its class's."""

    place: str
    target: str

    @property
    def is_of_others(self) -> bool:
        """Whether it is known to be Python's, or another package's."""
        return self.target in OF_OTHERS

    def __str__(self) -> str:
        return f"{self.place}: {self.target}"


# --- files ----------------------------------------------------------------------------------


def sources(folder: Path = FOLDER) -> dict[str, str]:
    """The text of each file, by its path in the package."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py"))
    }


def files_by_room(names: Iterable[str]) -> dict[str, int]:
    """How many files each folder has; those that lie in none together, under "."."""
    rooms = (name.partition("/")[0] if "/" in name else "." for name in names)
    return dict(sorted(collections.Counter(rooms).items()))


def lengths(files: Mapping[str, str]) -> list[Long]:
    """Files by their length, the longest first."""
    return _longest(Long(len(text.splitlines()), name) for name, text in files.items())


def lengths_of(
    files: Mapping[str, str], *kinds: type[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]
) -> list[Long]:
    """Functions or classes by their length, docstrings included, the longest first."""
    return _longest(
        Long((node.end_lineno or node.lineno) - node.lineno + 1, f"{file}: {name}")
        for file, text in files.items()
        for name, node in _definitions(ast.parse(text))
        if isinstance(node, kinds)
    )


def _longest(things: Iterable[Long]) -> list[Long]:
    return sorted(things, key=lambda thing: (-thing.lines, thing.name))


def _definitions(
    node: ast.AST, within: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        name = within
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{within}.{child.name}".lstrip(".")
            yield name, child
        yield from _definitions(child, name)


# --- imports --------------------------------------------------------------------------------


def imports() -> dict[str, set[str]]:
    """Which file imports which, lazily and for types included. Names without the package's."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    doors = {PACKAGE, f"{PACKAGE}.__main__"}
    files = sorted(graph.modules - doors)
    return {
        _short(file): {
            _short(other)
            for other in graph.find_modules_directly_imported_by(file)
            if other not in doors
        }
        for file in files
    }


def _short(module: str) -> str:
    return module.removeprefix(f"{PACKAGE}.")


def room_of(module: str) -> str:
    """The room that a file is in, by its name without the package's."""
    return module.partition(".")[0]


def between_rooms(files: Arrows) -> dict[str, set[str]]:
    """Which room imports from which."""
    rooms: dict[str, set[str]] = {room_of(file): set() for file in files}
    for file, others in files.items():
        rooms[room_of(file)] |= {room_of(other) for other in others} - {room_of(file)}
    return rooms


def within_rooms(files: Arrows) -> dict[str, set[str]]:
    """Which file imports which of its own room."""
    return {
        file: {other for other in others if room_of(other) == room_of(file)}
        for file, others in files.items()
    }


def circles(arrows: Arrows) -> list[list[str]]:
    """Those that import each other, be it by way of others."""
    reached = {start: _reached(start, arrows) for start in arrows}
    found = {
        tuple(sorted(other for other in reached[start] if start in reached.get(other, ())))
        for start in arrows
        if start in reached[start]
    }
    return sorted(map(list, found))


def _reached(start: str, arrows: Arrows) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = arrows.get(ahead.pop(), set()) - found
        found |= new
        ahead.extend(new)
    return found


# --- attributes ------------------------------------------------------------------------------


def writes_from_outside(files: Mapping[str, str]) -> list[Write]:
    """Where an attribute of something is written that is neither ``self`` nor ``cls``.

    A private attribute may be written by code of the class that has it. A public one may also be
    written in the file of that class. Of public ones only those count that a class of these files
    has: others are Python's, or another package's, and made for that."""
    trees = {file: ast.parse(text) for file, text in files.items()}
    owners: dict[str, set[ast.ClassDef]] = {}
    homes: dict[str, set[str]] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for name in _attributes(node):
                    owners.setdefault(name, set()).add(node)
                    homes.setdefault(name, {file}).add(file)
    return [
        Write(f"{file}:{line}", target)
        for file, tree in trees.items()
        for line, target, name, around in _writes(tree, ())
        if not owners.get(name, set()).intersection(around)
        and (_is_private(name) or file not in homes.get(name, {file}))
    ]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_special(name: str) -> bool:
    return name.startswith("__")


def _attributes(kind: ast.ClassDef) -> Iterator[str]:
    """The attributes that a class has by its own code."""
    for node in kind.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        names = ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ()
        for inner in names:
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value  # Of __slots__, say.
    for part in ast.walk(kind):
        if isinstance(part, ast.Attribute) and _is_written(part) and _is_of_self(part.value):
            yield part.attr


def _is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_written(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _writes(
    node: ast.AST, around: tuple[ast.ClassDef, ...]
) -> Iterator[tuple[int, str, str, tuple[ast.ClassDef, ...]]]:
    """Line, target, attribute and the classes around of each write to an attribute."""
    match node:
        case ast.Attribute(value, name) if (
            not _is_special(name) and _is_written(node) and not _is_of_self(value)
        ):
            yield node.lineno, ast.unparse(node), name, around
        case ast.Call(ast.Name("setattr" | "delattr"), [value, ast.Constant(str(name)), *_]) if (
            not _is_special(name) and not _is_of_self(value)
        ):
            yield node.lineno, f"{ast.unparse(value)}.{name}", name, around
    if isinstance(node, ast.ClassDef):
        around = (*around, node)
    for child in ast.iter_child_nodes(node):
        yield from _writes(child, around)


# --- the report -----------------------------------------------------------------------------


def report() -> Iterator[str]:
    """All of it, line by line."""
    files = sources()
    modules = imports()
    rooms = between_rooms(modules)
    functions = lengths_of(files, ast.FunctionDef, ast.AsyncFunctionDef)
    writes = writes_from_outside(files)

    by_room = files_by_room(files)
    yield f"{sum(by_room.values())} files in {len(by_room)} folders"
    yield from (f"{count:5}  {room}" for room, count in by_room.items())
    yield ""
    for what, longest in (
        ("files", lengths(files)),
        ("functions", functions),
        ("classes", lengths_of(files, ast.ClassDef)),
    ):
        yield f"the five longest {what}, in lines"
        yield from map(str, longest[:5])
        yield ""
    too_long = [file for file in lengths(files) if file.lines > LONG]
    yield f"{len(too_long)} files of more than {LONG} lines"
    yield from map(str, too_long)
    yield ""
    yield f"{len(rooms)} rooms, {_number_of(rooms)} import arrows between them"
    yield from (f"       {room} -> {', '.join(sorted(to)) or '-'}" for room, to in rooms.items())
    yield f"{len(modules)} files, {_number_of(modules)} import arrows between them"
    yield ""
    for what, arrows in (("rooms", rooms), ("files", within_rooms(modules))):
        found = circles(arrows)
        yield f"{len(found)} circles of {what}"
        yield from (f"       {' <-> '.join(circle)}" for circle in found)
    yield ""
    ours = [write for write in writes if not write.is_of_others]
    yield f"{len(ours)} writes to attributes from outside their classes"
    yield from (f"       {write}" for write in ours)
    others = [write for write in writes if write.is_of_others]
    yield f"{len(others)} more to those of Python and of other packages"
    yield from (f"       {write} ({OF_OTHERS[write.target]})" for write in others)


def _number_of(arrows: Arrows) -> int:
    return sum(map(len, arrows.values()))


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in report())
