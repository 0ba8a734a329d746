"""A task's exception, brought to the caller as it was.

An exception travels with its traceback, notes, attributes, ``__cause__``,
``__context__``, and, if it is a group, its members. Each of these travels in the same
way. They form a graph, which may share nodes and even have loops (an exception can be the
cause of its own context). So it travels as a list of nodes that refer to each other by
index.

How one exception travels: the first way that works
----------------------------------------------------
1. *pickled*: as pickle does it, if the copy has the same type, args and text.
   Pickle calls the class with ``args``. That goes wrong, often silently, if
   ``__init__`` takes other arguments than it passes on.
2. *rebuilt*: type, args and attributes, put together without ``__init__``.
3. *stand-in*: a RemoteExceptionStandIn, also derived from the nearest importable
   class of the original, with the attributes that can travel. The caller makes one,
   too, if what arrives cannot be unpickled there.

Attributes are those in ``__dict__``, in slots, and those that exceptions written
in C keep in their own fields (``OSError.filename``, ``NameError.name``), some of which
pickle drops. ``AttributeError.obj`` does not travel: it is no part of the error, may be
any object, and pickle drops it as well.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import types
from collections.abc import Callable, Iterator, Sequence

from .._support.named_tuples import NamedTuple
from .._support.wording import counted
from ..errors import RemoteExceptionStandIn
from . import calls, promises
from .blame import describe
from .reducers import may_be_taken_once
from .tracebacks import dump_traceback, load_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .tracebacks import Place

    _Extras = tuple[dict[str, Any], dict[str, Any]]
    """Attributes, and fields; see :func:`_attributes` and :func:`_fields`."""

_MAX_EXCEPTIONS = 10_000
"""Exceptions of one graph that travel; the rest are left out, and a note says so."""


class _Node(NamedTuple):
    """One exception. Pickling and unpickling a node cannot fail: the user's objects are in
    ``core`` and ``extras`` as pickles."""

    way: str
    core: bytes
    """Depends on ``way``: see :func:`_dump_core`, :func:`_load_core`."""
    extras: bytes
    """Two dicts, attributes and fields, which are set last."""
    facts: dict[str, Any]
    """What is known of the exception if all else fails."""
    notes: list[str]
    traceback: list[Place]
    suppress_context: bool
    cause: int | None = None
    context: int | None = None
    members: Sequence[int] = ()


def dump_failure(error: BaseException, skip_frames: int = 0) -> list[calls.Part]:
    """An exception and all that it refers to, as a payload. Never raises, whatever the exception
    is or does.

    Args:
        error: the exception as caught.
        skip_frames: outermost frames of its traceback that belong to the pool.
    """
    try:
        nodes = _dump_graph(error, skip_frames)
    except Exception as reason:
        text = f"a {type(error).__qualname__}, which could not be taken apart: {describe(reason)}"
        nodes = _dump_graph(RuntimeError(text), 0)
    return calls.dumps(nodes)


def _dump_graph(error: BaseException, skip_frames: int) -> list[_Node]:
    nodes: list[_Node] = []
    graph, indices = [error], {id(error): 0}

    def index_of(other: BaseException | None) -> int | None:
        if other is not None and id(other) not in indices and len(graph) < _MAX_EXCEPTIONS:
            indices[id(other)] = len(graph)
            graph.append(other)
        return indices.get(id(other))

    for current in graph:  # The list grows meanwhile, breadth first.
        cause, context = index_of(current.__cause__), index_of(current.__context__)
        members = [index_of(member) for member in _members(current)]
        is_outermost = current is error
        node = _dump_one(current, skip_frames if is_outermost else 0, is_outermost=is_outermost)
        found = [member for member in members if member is not None]
        nodes.append(node._replace(cause=cause, context=context, members=found))
    if len(graph) == _MAX_EXCEPTIONS:
        nodes[0].notes.append(f"Only {_MAX_EXCEPTIONS} of its exceptions were sent here.")
    return nodes


def load_failure(parts: Sequence[memoryview | bytes]) -> BaseException:
    """The exception that :func:`dump_failure` was given, or its stand-in."""
    nodes: list[_Node] = calls.loads(parts)
    made = _make_all(nodes)
    for error, node in zip(made, nodes, strict=True):
        _set(error, "__cause__", None if node.cause is None else made[node.cause])
        _set(error, "__context__", None if node.context is None else made[node.context])
        _set(error, "__suppress_context__", node.suppress_context)
        _set(error, "__traceback__", load_traceback(node.traceback))
        if node.notes:
            _set(error, "__notes__", node.notes)
    return made[0]


def add_note(error: BaseException, note: str) -> None:
    """Add a note, if the exception's class allows it."""
    with contextlib.suppress(Exception):
        notes = getattr(error, "__notes__", [])
        _set(error, "__notes__", [*notes, note])


def _set(error: BaseException, name: str, value: Any) -> None:
    # Not setattr(): a frozen dataclass, for example, would refuse.
    with contextlib.suppress(AttributeError, TypeError):
        object.__setattr__(error, name, value)


def _members(error: BaseException) -> tuple[BaseException, ...]:
    if isinstance(error, BaseExceptionGroup):
        return BaseExceptionGroup.exceptions.__get__(error)  # type: ignore[no-any-return]
    return ()


# --- in the worker ------------------------------------------------------------------------


def _dump_one(error: BaseException, skip_frames: int, *, is_outermost: bool) -> _Node:
    text = _safely(str, error)
    way, core, extras = _dump_core(error, text)
    return _Node(
        way=way,
        core=core,
        extras=extras,
        facts=_facts(error, text, is_outermost=is_outermost),
        notes=_notes(error),
        traceback=_frames(error, skip_frames),
        suppress_context=error.__suppress_context__,
    )


def _frames(error: BaseException, skip_frames: int) -> list[Place]:
    # The modules for this are imported when they are first needed. The import may fail for
    # the reason that the error is about: too many open files, for example.
    try:
        return dump_traceback(error.__traceback__, skip_frames)
    except Exception:
        return []


def _dump_core(error: BaseException, text: str) -> tuple[str, bytes, bytes]:
    """The way that works, and the core and the extras that it makes."""
    reason: BaseException | None = None
    ways: list[tuple[str, Callable[[BaseException, str], tuple[bytes, _Extras]]]]
    ways = [("pickled", _dump_pickled), ("rebuilt", _dump_rebuilt)]
    if isinstance(error, BaseExceptionGroup):
        ways = [("group", _dump_group)]
    if _known_facts(error) is not None:
        ways = []
    for way, dump in ways:
        number = promises.latest()
        try:
            core, extras = dump(error, text)
            return way, core, calls.dump_part_of_failure(extras)
        except BaseException as failed:
            promises.give_up_after(number)
            reason = failed
    core, extras = _dump_stand_in(error, reason)
    return "stand-in", core, calls.dump_part_of_failure(extras)


def _dump_pickled(error: BaseException, text: str) -> tuple[bytes, _Extras]:
    core, copy = _with_copy(error)
    if type(copy) is not type(error) or not _same_args(copy, error) or _safely(str, copy) != text:
        raise pickle.PicklingError("its copy differs from the original")
    return core, ({}, _what_travels(_fields(error, unlike=copy))[0])


def _dump_rebuilt(error: BaseException, _text: str) -> tuple[bytes, _Extras]:
    core, content = _with_copy((type(error), error.args))
    copy = _rebuild(*content)
    if type(copy) is not type(error):
        raise pickle.PicklingError("its copy differs from the original")
    extras = (_attributes(error), _fields(error))
    pickle.loads(calls.dump_part_of_failure(extras))
    return core, extras


def _dump_group(group: BaseException, _text: str) -> tuple[bytes, _Extras]:
    assert isinstance(group, BaseExceptionGroup)
    # The members travel as nodes of their own. In the args None stands for them.
    args = [None if _is_members(arg, group) else (arg,) for arg in group.args]
    core, (kind, message, _) = _with_copy((type(group), group.message, args))
    BaseExceptionGroup.__new__(kind, message, group.exceptions)
    extras = (_attributes(group), _fields(group))
    pickle.loads(calls.dump_part_of_failure(extras))
    return core, extras


def _with_copy(thing: Any) -> tuple[bytes, Any]:
    """A pickle of this, and a copy made through pickle."""
    core = calls.dump_part_of_failure(thing)
    copy = pickle.loads(core)
    # Making the copy may use up a pickle, a descriptor in it for example. The caller needs it.
    return calls.dump_part_of_failure(thing) if may_be_taken_once(core) else core, copy


def _is_members(arg: Any, group: BaseExceptionGroup[BaseException]) -> bool:
    return (
        isinstance(arg, list | tuple)
        and len(arg) == len(group.exceptions)
        and all(map(lambda one, other: one is other, arg, group.exceptions))
    )


def _dump_stand_in(error: BaseException, reason: BaseException | None) -> tuple[bytes, _Extras]:
    attributes, shown = _what_travels(_attributes(error))
    fields, shown_fields = _what_travels(_fields(error))
    args, shown_args = _what_travels(dict(enumerate(error.args)))
    details = {
        "args": tuple({**args, **shown_args}[i] for i in range(len(error.args))),
        "shown": {**shown, **shown_fields},
        "reason": "" if reason is None else describe(reason),
    }
    return calls.dump_part_of_failure(details), (attributes, fields)


def _brief_repr(error: BaseException) -> str:
    """Without the members of a group: each has a text of its own, and a nested group would be
    repeated in that of each group around it."""
    if not isinstance(error, BaseExceptionGroup):
        return repr(error)
    kind, message, count = type(error).__name__, error.message, len(error.exceptions)
    return f"{kind}({message!r}, <{counted(count, 'exception')}>)"


def _facts(error: BaseException, text: str, *, is_outermost: bool) -> dict[str, Any]:
    known = _known_facts(error)
    if known is not None:
        return known
    names = [_name(kind) for kind in type(error).__mro__]
    return {
        "name": names[0],
        "bases": names[:-1],
        "text": text,
        "repr": _safely(repr if is_outermost else _brief_repr, error),
        "message": str(error.message) if isinstance(error, BaseExceptionGroup) else "",
    }


def _known_facts(error: BaseException) -> dict[str, Any] | None:
    """The facts of the original, if this is a stand-in that is sent on."""
    facts: dict[str, Any] | None = getattr(type(error), "_facts", None)
    return facts if isinstance(error, RemoteExceptionStandIn) else None


def _name(kind: type) -> tuple[str, str]:
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return str(module), kind.__qualname__


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", None)
    if not isinstance(notes, list | tuple):
        return []
    return [note if type(note) is str else _safely(str, note) for note in notes]


def _attributes(error: BaseException) -> dict[str, Any]:
    """The content of its ``__dict__``, without the notes."""
    attributes = dict(getattr(error, "__dict__", {}))
    attributes.pop("__notes__", None)
    return attributes


def _fields(error: BaseException, unlike: BaseException | None = None) -> dict[str, Any]:
    """The content of slots and of fields in C. If another exception is given, only what
    differs from that."""
    found = {}
    for name in _field_names(type(error)):
        with contextlib.suppress(Exception):
            value = getattr(error, name)
            if unlike is None or not _same(value, getattr(unlike, name, None)):
                found[name] = value
    return found


def _field_names(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base is BaseException:
            return
        if base is BaseExceptionGroup:
            continue  # Its message and its members travel on their own.
        for name, member in vars(base).items():
            in_c = isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType)
            if in_c and not name.startswith("__") and (base, name) != (AttributeError, "obj"):
                yield name


def _same(one: Any, other: Any) -> bool:
    try:
        return one is other or (type(one) is type(other) and bool(one == other))
    except Exception:
        return False


def _same_args(copy: BaseException, error: BaseException) -> bool:
    # Objects that are equal only to themselves are compared by their pickles.
    try:
        if copy.args == error.args:
            return True
    except Exception:
        pass
    number = promises.latest()
    try:
        return calls.dump_part_of_failure(copy.args) == calls.dump_part_of_failure(error.args)
    finally:
        promises.give_up_after(number)


def _what_travels(things: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, str]]:
    """The values that survive pickling and unpickling, and the repr of the others."""
    kept, shown = {}, {}
    for name, thing in things.items():
        number = promises.latest()
        try:
            pickle.loads(calls.dump_part_of_failure(thing))
        except BaseException:
            promises.give_up_after(number)
            shown[name] = _safely(repr, thing)
        else:
            kept[name] = thing
    return kept, shown


def _safely(convert: Callable[[Any], str], thing: Any) -> str:
    try:
        return str(convert(thing))
    except BaseException as error:
        kind, how = type(thing).__qualname__, type(error).__name__
        return f"<{kind} whose {convert.__name__}() raised {how}>"


# --- in the caller ------------------------------------------------------------------------


def _make_all(nodes: list[_Node]) -> list[BaseException]:
    made: dict[int, BaseException] = {}
    for index in _members_first(nodes):
        members = [made[member] for member in nodes[index].members if member in made]
        made[index] = _make(nodes[index], members)
    return [made[index] for index in range(len(nodes))]


def _members_first(nodes: list[_Node]) -> Iterator[int]:
    """The order in which they can be made: a group needs its members."""
    lacking = [len(set(node.members)) for node in nodes]
    groups_of: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        for member in set(node.members):
            groups_of.setdefault(member, []).append(index)
    ready = [index for index, lack in enumerate(lacking) if not lack]
    for index in ready:  # The list grows meanwhile.
        yield index
        for group in groups_of.get(index, ()):
            lacking[group] -= 1
            if not lacking[group]:
                ready.append(group)
    # Groups that contain themselves. Only a subclass can make one.
    yield from (index for index, lack in enumerate(lacking) if lack)


def _make(node: _Node, members: list[BaseException]) -> BaseException:
    try:
        error = _load_core(node, members)
        attributes, fields = pickle.loads(node.extras)
    except BaseException as reason:
        # The caller's process is not the worker's: a module may be missing here.
        details = {"args": (node.facts["text"],), "shown": {}, "reason": describe(reason)}
        return make_stand_in(node.facts, details, {}, members)
    _set_all(error, attributes, fields)
    return error


def _set_all(error: BaseException, attributes: dict[str, Any], fields: dict[str, Any]) -> None:
    with contextlib.suppress(AttributeError, TypeError):
        object.__getattribute__(error, "__dict__").update(attributes)
    for name, value in fields.items():
        # A field in C that is not set reads as None, which is not the same as None set.
        with contextlib.suppress(Exception):
            if getattr(error, name, fields) is not value:
                _set(error, name, value)


def _load_core(node: _Node, members: list[BaseException]) -> BaseException:
    content: Any = pickle.loads(node.core)
    if node.way == "rebuilt":
        return _rebuild(*content)
    if node.way == "group":
        return _rebuild_group(content, members)
    if node.way == "stand-in":
        return make_stand_in(node.facts, content, {}, members)
    assert isinstance(content, BaseException)
    return content


def _rebuild(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    error: BaseException = _new(kind, *args)
    _set(error, "args", args)
    return error


def _new(kind: type[Any], *args: Any) -> Any:
    # Not the user's own __new__, which may need other arguments.
    base = next(base for base in kind.__mro__ if _has_new_in_c(base))
    return base.__new__(kind, *args)


def _has_new_in_c(kind: type) -> bool:
    return isinstance(vars(kind).get("__new__"), types.BuiltinFunctionType)


def _rebuild_group(content: Any, members: list[BaseException]) -> BaseException:
    kind, message, args = content
    group: BaseException = BaseExceptionGroup.__new__(kind, message, members)
    _set(group, "args", tuple(members if arg is None else arg[0] for arg in args))
    return group


def make_stand_in(
    facts: dict[str, Any],
    details: dict[str, Any],
    attributes: dict[str, Any],
    members: Sequence[BaseException] = (),
) -> BaseException:
    """A stand-in made from what is known of the original. pickle calls this, too, when another
    library sends a stand-in on."""
    error = _new_stand_in(facts, details, members)
    known = {
        "args": details["args"],
        "original_type": ".".join(facts["name"]),
        "original_str": facts["text"],
        "original_repr": facts["repr"],
        "original_attributes": details["shown"],
        "reason": details["reason"],
    }
    for name, value in known.items():
        _set(error, name, value)
    _set_all(error, attributes, {})
    return error


def _new_stand_in(
    facts: dict[str, Any], details: dict[str, Any], members: Sequence[BaseException]
) -> BaseException:
    module, qualname = facts["name"]
    namespace = {
        "__module__": module,
        "__qualname__": qualname,
        "__reduce__": _reduce_stand_in,
        "_facts": facts,
        "_details": details,
    }
    for base in (*map(_imported, facts["bases"]), Exception):
        if base is None or issubclass(base, BaseExceptionGroup) != bool(members):
            continue
        is_own = issubclass(RemoteExceptionStandIn, base)
        bases = (RemoteExceptionStandIn,) if is_own else (RemoteExceptionStandIn, base)
        # This base may be impossible because of its layout or its metaclass. The next may work.
        with contextlib.suppress(Exception):
            kind = type(qualname.rpartition(".")[2], bases, namespace)
            args = (facts["message"], members) if members else ()
            made: RemoteExceptionStandIn = _new(kind, *args)
            return made
    if members:
        # Some members are no Exceptions, so no Exception may hold them. A stand-in is one.
        return BaseExceptionGroup(facts["message"], members)
    return RemoteExceptionStandIn()


def _reduce_stand_in(error: RemoteExceptionStandIn) -> tuple[Any, ...]:
    kind: Any = type(error)
    return make_stand_in, (kind._facts, kind._details, error.__dict__, _members(error))


def _imported(name: tuple[str, str]) -> type[BaseException] | None:
    """The exception class of this name, if this process has one."""
    module, qualname = name
    try:
        thing: Any = importlib.import_module(module)
        for part in qualname.split("."):
            thing = getattr(thing, part)
        return thing if issubclass(thing, BaseException) else None
    except BaseException:
        return None
