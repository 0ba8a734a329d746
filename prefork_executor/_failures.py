"""A task's exception, brought to the caller as it was.

An exception travels with its traceback (real frames, by tblib), notes,
attributes, ``__cause__``, ``__context__``, and, if it is a group, its members,
each of them in the same manner. They form a graph that may share and even loop
(an exception can be its own context's cause), so it travels as a list of nodes
that point to each other by index.

How one exception travels, the first way that works
----------------------------------------------------
1. *pickled*: as pickle would have it, if its copy is the same in type, args and
   text. Pickle calls the class with ``args``, which goes wrong, often silently,
   where ``__init__`` takes anything else than it passes on.
2. *rebuilt*: type, args and attributes, put together without ``__init__``.
3. *stand-in*: a RemoteExceptionStandIn, also derived from the nearest class of
   the original that can be imported, with the attributes that can travel.

tblib is used for the tracebacks alone and is never installed into copyreg:
what pickle does elsewhere in the caller's process is not ours to change.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _pickling
from .errors import RemoteExceptionStandIn

_MOST_FRAMES = 200
"""Frames of one traceback that travel; of a longer one the two ends."""
_MOST_EXCEPTIONS = 100
"""Exceptions of one graph that travel; the rest are left out."""


@dataclass(slots=True)
class _Node:
    """One exception. ``core`` is a payload's single part, by ``way``."""

    way: str
    core: bytes
    traceback: list[dict[str, Any]]
    suppress_context: bool
    cause: int | None = None
    context: int | None = None
    members: list[int] = field(default_factory=list)


def dump_failure(error: BaseException, skip_frames: int = 0) -> list[_pickling.Part]:
    """An exception and all that hangs on it, as a payload.

    Args:
        error: the exception as caught.
        skip_frames: outermost frames of its traceback that are the pool's own.
    """
    nodes: list[_Node] = []
    _add(error, nodes, {}, skip_frames)
    return _pickling.dumps(nodes)


def load_failure(parts: Sequence[memoryview]) -> BaseException:
    """The exception that :func:`dump_failure` was given, or its stand-in."""
    nodes: list[_Node] = _pickling.loads(parts)
    made: dict[int, BaseException] = {}
    for index in reversed(range(len(nodes))):
        _make(index, nodes, made)
    for index, node in enumerate(nodes):
        error = made[index]
        error.__cause__ = None if node.cause is None else made[node.cause]
        error.__context__ = None if node.context is None else made[node.context]
        error.__suppress_context__ = node.suppress_context
        error.__traceback__ = _load_traceback(node.traceback)
    return made[0]


# --- in the worker ------------------------------------------------------------------------


def _add(
    error: BaseException, nodes: list[_Node], seen: dict[int, int], skip_frames: int = 0
) -> int | None:
    if id(error) in seen:
        return seen[id(error)]
    if len(nodes) >= _MOST_EXCEPTIONS:
        return None
    index = seen[id(error)] = len(nodes)
    way, core = _dump_core(error)
    traceback = _dump_traceback(error.__traceback__, skip_frames)
    node = _Node(way, core, traceback, error.__suppress_context__)
    nodes.append(node)
    if error.__cause__ is not None:
        node.cause = _add(error.__cause__, nodes, seen)
    if error.__context__ is not None:
        node.context = _add(error.__context__, nodes, seen)
    if isinstance(error, BaseExceptionGroup):
        members = [_add(member, nodes, seen) for member in error.exceptions]
        node.members = [member for member in members if member is not None]
    return index


def _dump_core(error: BaseException) -> tuple[str, bytes]:
    if isinstance(error, BaseExceptionGroup):
        return _dump_group(error)
    try:
        core = _one_part(error)
        copy = pickle.loads(core)
        if type(copy) is type(error) and copy.args == error.args and str(copy) == str(error):
            return "pickled", core
    except BaseException:
        pass
    try:
        core = _one_part((type(error), error.args, _attributes(error)))
        copy = _rebuild(*pickle.loads(core))
        if type(copy) is type(error) and str(copy) == str(error):
            return "rebuilt", core
    except BaseException as reason:
        return "stand-in", _dump_stand_in(error, reason)
    return "stand-in", _dump_stand_in(error, None)


def _dump_group(error: BaseExceptionGroup[BaseException]) -> tuple[str, bytes]:
    core = (type(error), error.message, _attributes(error))
    try:
        return "group", _one_part(core)
    except Exception:
        plain = ExceptionGroup if isinstance(error, Exception) else BaseExceptionGroup
        notes = {"__notes__": list(getattr(error, "__notes__", []))}
        return "group", _one_part((plain, error.message, notes))


def _attributes(error: BaseException) -> dict[str, Any]:
    return dict(getattr(error, "__dict__", {}))


def _one_part(thing: Any) -> bytes:
    """Pickled in one piece, big buffers too: exceptions are not for arrays."""
    parts = _pickling.dumps(thing)
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    return pickle.dumps(thing, 5)


def _dump_stand_in(error: BaseException, reason: BaseException | None) -> bytes:
    kind = type(error)
    kept, shown = {}, {}
    for name, value in _attributes(error).items():
        try:
            pickle.loads(_one_part(value))
        except BaseException:
            shown[name] = _safely(repr, value)
        else:
            kept[name] = value
    why = "its copy differs from it" if reason is None else f"{type(reason).__name__}: {reason}"
    details = {
        "module": kind.__module__,
        "qualname": kind.__qualname__,
        "text": _safely(str, error),
        "repr": _safely(repr, error),
        "kept": kept,
        "shown": shown,
        "reason": why,
        "bases": [base for base in kind.__mro__ if _importable(base)],
    }
    return _one_part(details)


def _importable(kind: type) -> bool:
    try:
        return pickle.loads(pickle.dumps(kind)) is kind and kind is not object
    except Exception:
        return False


def _safely(convert: Any, thing: Any) -> str:
    try:
        return str(convert(thing))
    except BaseException as error:
        kind, how = type(thing).__qualname__, type(error).__name__
        return f"<{kind} whose {convert.__name__}() raised {how}>"


def _dump_traceback(
    traceback: types.TracebackType | None, skip_frames: int
) -> list[dict[str, Any]]:
    from tblib import Traceback

    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    frames = frames[min(skip_frames, len(frames) - 1) :] if frames else []
    if len(frames) > _MOST_FRAMES:
        frames = frames[: _MOST_FRAMES // 2] + frames[-_MOST_FRAMES // 2 :]
    # One by one: tblib's own chain nests, and pickling would recurse into it.
    return [
        Traceback(types.TracebackType(None, tb.tb_frame, tb.tb_lasti, tb.tb_lineno)).as_dict()
        for tb in frames
    ]


# --- in the caller ------------------------------------------------------------------------


def _make(index: int, nodes: list[_Node], made: dict[int, BaseException]) -> BaseException:
    if index in made:
        return made[index]
    node = nodes[index]
    if node.way == "group":
        members = [_make(member, nodes, made) for member in node.members if member > index]
        made[index] = _make_group(node, members)
    else:
        made[index] = _make_one(node)
    return made[index]


def _make_one(node: _Node) -> BaseException:
    content = pickle.loads(node.core)
    if node.way == "pickled":
        assert isinstance(content, BaseException)
        return content
    if node.way == "rebuilt":
        return _rebuild(*content)
    return make_stand_in(content)


def _make_group(node: _Node, members: list[BaseException]) -> BaseException:
    kind, message, attributes = pickle.loads(node.core)
    if not members:
        return RuntimeError(message)
    try:
        group: BaseException = BaseExceptionGroup.__new__(kind, message, members)
    except TypeError:
        group = BaseExceptionGroup(message, members)
    group.__dict__.update(attributes)
    return group


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


def make_stand_in(details: dict[str, Any]) -> RemoteExceptionStandIn:
    """A stand-in from what is known of the original. Called by pickle too, when
    a stand-in travels on."""
    for base in details["bases"]:
        namespace = {
            "__module__": details["module"],
            "__qualname__": details["qualname"],
            "__reduce__": lambda self: (make_stand_in, (details,)),
            "__repr__": lambda self: self.original_repr,
        }
        name = details["qualname"].rpartition(".")[2]
        bases = (
            (RemoteExceptionStandIn,)
            if issubclass(RemoteExceptionStandIn, base)
            else (RemoteExceptionStandIn, base)
        )
        try:
            kind: Any = type(name, bases, namespace)
            error: RemoteExceptionStandIn = kind.__new__(kind)
        except TypeError:
            continue
        break
    else:
        error = RemoteExceptionStandIn()
    error.__dict__.update(details["kept"])
    error.original_type = f"{details['module']}.{details['qualname']}"
    error.original_str = details["text"]
    error.original_repr = details["repr"]
    error.original_attributes = details["shown"]
    error.reason = details["reason"]
    return error


def _load_traceback(frames: list[dict[str, Any]]) -> types.TracebackType | None:
    from tblib import Traceback

    result: types.TracebackType | None = None
    for frame in reversed(frames):
        made = Traceback.from_dict(frame).as_traceback()
        # No instruction: tblib's frames have its own columns, and the carets
        # under the source line would be drawn by them.
        result = types.TracebackType(result, made.tb_frame, -1, made.tb_lineno)
    return result
