"""Reducers that are registered with ``multiprocessing`` and ``copyreg``.

``multiprocessing.reduction.register`` says how objects of a class are sent to another
process: a tensor in shared memory as the name of that memory, a socket as its descriptor.
ProcessPoolExecutor pickles with ForkingPickler, the class that knows these reducers, so
programs rely on them. Plain pickle does not know them, and would silently send a copy.

The standard library registers a few itself. They are for types that plain pickle treats
alike, or refuses (then cloudpickle's pickler is used, which has them all). If there are no
others, plain pickle is used, at its full speed. If there are, the pickler is still the one in
C, with a table.

Reducers count as soon as they are registered: in the caller's process those that its program
has registered, in a worker those that its own imports have.

One kind of reducer is not used for a task's failure: tblib's for exceptions and tracebacks.
``tblib.pickling_support.install()``, which distributed calls when it is imported, registers them
for every exception class. Each exception would bring its cause, context and traceback, all of
which we send separately (`exceptions.py`). And the frames of such a traceback would keep alive
what the unpickling process has in its own frames.
"""

from __future__ import annotations

import copyreg
import functools
import io
import multiprocessing.connection
import multiprocessing.context as _context
import multiprocessing.reduction
import pickle
import socket
import types
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Reducer = Callable[[Any], Any]

OF_CONNECTIONS = b"multiprocessing.connection"
"""The name of a connection's class in a plain pickle. Such a connection would arrive as the mere
number of a descriptor, which means another one in the other process."""
_OWN_MODULES = (
    "multiprocessing.reduction",
    "multiprocessing.connection",
    "multiprocessing.managers",
)
"""Where the standard library's own reducers are, for methods, partials and views. Plain pickle
does as well, and cloudpickle better, except for sockets and connections."""
_OWN_KINDS = (socket.socket, multiprocessing.connection.Connection)


class _Registered:
    """The reducers that were registered at one moment."""

    def __init__(self, forking: Any) -> None:
        self.forking = forking
        self.all: dict[type, Reducer] = dict(forking._extra_reducers)
        others = {kind for kind, reducer in self.all.items() if not _is_own(reducer)}
        self.table = {kind: self.all[kind] for kind in self.all if kind in {*others, *_OWN_KINDS}}
        """The reducers that precede all others."""
        self.is_plain = not others and forking is multiprocessing.reduction.ForkingPickler
        """Whether plain pickle is enough."""


def _is_own(reducer: Reducer) -> bool:
    return getattr(reducer, "__module__", None) in _OWN_MODULES


_latest = _Registered(multiprocessing.reduction.ForkingPickler)
_plain: tuple[Any, int] = (None, 0)
"""The class that has the reducers, and their number, if plain pickle is enough for all."""
_merged: tuple[_Registered | None, dict[Any, Any], dict[type, Reducer]] = (None, {}, {})
"""The last result of ``table()``, and what it was made from. Making it for each pickle takes a
tenth of the time that pickling a lambda takes."""
_of_failures: tuple[dict[type, Reducer], dict[type, Reducer]] = ({}, {})
"""The last result of ``table_of_failure()``, and the table it was made from."""


def _now() -> _Registered:
    global _latest, _plain
    known = _latest
    # ``context.reducer`` may have replaced multiprocessing's own.
    forking = _context.reduction.ForkingPickler  # type: ignore[attr-defined]
    if known.all != forking._extra_reducers or known.forking is not forking:
        known = _latest = _Registered(forking)
    _plain = (forking if known.is_plain else None, len(known.all))
    return known


class _Pickler(pickle.Pickler):
    """Plain pickle's, but it can have a table."""


def pickler_is_replaced() -> bool:
    """Whether ``context.reducer`` has replaced multiprocessing's pickler."""
    forking = _context.reduction.ForkingPickler  # type: ignore[attr-defined]
    return forking is not multiprocessing.reduction.ForkingPickler


def dumps(thing: Any, callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    """A plain pickle with the registered reducers. Raises what pickling raises."""
    # Every submit passes here. Counting takes a fifth of the time of comparing them all.
    kind, count = _plain
    forking = _context.reduction.ForkingPickler  # type: ignore[attr-defined]
    if forking is kind and len(forking._extra_reducers) == count:
        return pickle.dumps(thing, 5, buffer_callback=callback)
    known = _now()
    if known.is_plain:
        return pickle.dumps(thing, 5, buffer_callback=callback)
    if known.forking is multiprocessing.reduction.ForkingPickler:
        return _dumps_by(_table_of(known), thing, callback)
    file = io.BytesIO()
    known.forking(file, 5, True, callback).dump(thing)
    return file.getvalue()


def _dumps_by(reducers: dict[type, Reducer], thing: Any, callback: Any) -> bytes:
    file = io.BytesIO()
    pickler: Any = _Pickler(file, 5, buffer_callback=callback)
    pickler.dispatch_table = reducers
    pickler.dump(thing)
    return file.getvalue()


def dumps_of_failure(thing: Any) -> bytes:
    """A part of a task's failure, by plain pickle and all registered reducers except tblib's.
    Raises what pickling raises."""
    if types.TracebackType not in copyreg.dispatch_table:
        return dumps(thing, None)  # tblib registers this type first.
    reducers = table_of_failure()
    if _latest.forking is not multiprocessing.reduction.ForkingPickler:
        return dumps(thing, None)
    return _dumps_by(reducers, thing, None)


def table_of_failure() -> dict[type, Reducer]:
    """``table()`` without tblib's reducers. The same object while its content is the same."""
    global _of_failures
    registered = table()
    if _of_failures[0] is not registered:
        kept = {kind: reduce for kind, reduce in registered.items() if not _is_tblib(reduce)}
        _of_failures = registered, kept if len(kept) < len(registered) else registered
    return _of_failures[1]


def _is_tblib(reducer: Reducer) -> bool:
    function = reducer.func if isinstance(reducer, functools.partial) else reducer
    return getattr(function, "__module__", None) == "tblib.pickling_support"


def table() -> dict[type, Reducer]:
    """The registered reducers, by type. It is the same object while they are the same. Do not
    change it."""
    return _table_of(_now())


def _table_of(known: _Registered) -> dict[type, Reducer]:
    global _merged
    registered, copied, merged = _merged
    if registered is not known or copied != copyreg.dispatch_table:
        copied = dict(copyreg.dispatch_table)
        merged = {**copied, **known.table}
        _merged = (known, copied, merged)
    return merged


def override() -> Callable[[pickle.Pickler, Any], Any] | None:
    """The ``reducer_override`` of the pickler that has replaced multiprocessing's, if there is
    one."""
    # ``table()`` has just updated this.
    return getattr(_latest.forking, "reducer_override", None)


def may_be_taken_once(pickled: bytes) -> bool:
    """Whether this pickle may hold something that can be unpickled only once, as a descriptor."""
    return not _now().is_plain or pickled.find(b"multiprocessing") >= 0
