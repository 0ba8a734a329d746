"""What is registered with ``multiprocessing`` and ``copyreg`` travels by it.

``multiprocessing.reduction.register`` says how objects of a class are sent to another
process: a tensor in shared memory as the name of that memory, a socket as its descriptor.
ProcessPoolExecutor pickles with the class that knows these reducers, ForkingPickler, and so
programs rely on them; plain pickle does not know them, and would send a copy without a word.

A few are registered by the standard library itself, for kinds that plain pickle treats
alike, or refuses (then cloudpickle's pickler is asked, which has them all). As long as
there are no others, plain pickle does it, at its full speed. When there are, the pickler
is still the one in C, with a table.

Reducers count from the moment in which they are registered: in the caller's process those
that its program has registered, in a worker those that its own imports have.

One kind of reducer is left out of a task's failure: tblib's for exceptions and tracebacks,
which ``tblib.pickling_support.install()`` registers for every exception class there is
(distributed calls it as it is imported). Each exception would bring along its cause, its
context and its traceback, all of which travel by themselves (`exceptions.py`); and the
frames of such a traceback keep alive what the process that unpickles them has at hand.
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
"""In a plain pickle, the name of a connection's class: it would arrive as the bare number of
a descriptor, another one in the other process."""
_OWN_MODULES = (
    "multiprocessing.reduction",
    "multiprocessing.connection",
    "multiprocessing.managers",
)
"""Where the standard library's own reducers are, for methods, partials and views. Plain
pickle is as good, cloudpickle better; but for sockets and connections."""
_OWN_KINDS = (socket.socket, multiprocessing.connection.Connection)


class _Registered:
    """The reducers that there were at some moment."""

    def __init__(self, forking: Any) -> None:
        self.forking = forking
        self.all: dict[type, Reducer] = dict(forking._extra_reducers)
        others = {kind for kind, reducer in self.all.items() if not _is_own(reducer)}
        self.table = {kind: self.all[kind] for kind in self.all if kind in {*others, *_OWN_KINDS}}
        """Those that go before whatever else would be done."""
        self.is_plain = not others and forking is multiprocessing.reduction.ForkingPickler
        """Whether plain pickle will do."""


def _is_own(reducer: Reducer) -> bool:
    return getattr(reducer, "__module__", None) in _OWN_MODULES


_latest = _Registered(multiprocessing.reduction.ForkingPickler)
_plain: tuple[Any, int] = (None, 0)
"""The class that has the reducers, and how many, if plain pickle will do for them all."""
_merged: tuple[_Registered | None, dict[Any, Any], dict[type, Reducer]] = (None, {}, {})
"""What ``table()`` gave last, and of what it was made: to make it for each pickle takes a
tenth of the time that the pickle of a lambda takes."""
_of_failures: tuple[dict[type, Reducer], dict[type, Reducer]] = ({}, {})
"""What ``table_of_failure()`` gave last, and of which table it was made."""


def _now() -> _Registered:
    global _latest, _plain
    known = _latest
    # What ``context.reducer`` may have put in the place of multiprocessing's own.
    forking = _context.reduction.ForkingPickler  # type: ignore[attr-defined]
    if known.all != forking._extra_reducers or known.forking is not forking:
        known = _latest = _Registered(forking)
    _plain = (forking if known.is_plain else None, len(known.all))
    return known


class _Pickler(pickle.Pickler):
    """Plain pickle's, with a table of its own."""


def dumps(thing: Any, callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    """By plain pickle, and what is registered. Raises what pickling raises."""
    # Every submit comes by: counted, because to compare them all takes five times as long.
    kind, count = _plain
    forking = _context.reduction.ForkingPickler  # type: ignore[attr-defined]
    if forking is kind and len(forking._extra_reducers) == count:
        return pickle.dumps(thing, 5, buffer_callback=callback)
    known = _now()
    if known.is_plain:
        return pickle.dumps(thing, 5, buffer_callback=callback)
    if known.forking is multiprocessing.reduction.ForkingPickler:
        return _dumps_by(table(), thing, callback)
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
    """A part of a task's failure, by plain pickle and what is registered but tblib's. Raises
    what pickling raises."""
    if types.TracebackType not in copyreg.dispatch_table:
        return dumps(thing, None)  # tblib registers that first of all.
    reducers = table_of_failure()
    if _latest.forking is not multiprocessing.reduction.ForkingPickler:
        return dumps(thing, None)
    return _dumps_by(reducers, thing, None)


def table_of_failure() -> dict[type, Reducer]:
    """What ``table()`` has but tblib's; it too is the same object as long as it is the same."""
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
    """The reducers that somebody has registered, by the kind of thing. It is the same object
    as long as they are the same: not to be changed."""
    global _merged
    known = _now()
    registered, copied, merged = _merged
    if registered is not known or copied != copyreg.dispatch_table:
        copied = dict(copyreg.dispatch_table)
        merged = {**copied, **known.table}
        _merged = (known, copied, merged)
    return merged


def override() -> Callable[[pickle.Pickler, Any], Any] | None:
    """``reducer_override`` of the pickler that was put in the place of multiprocessing's, if
    it has one."""
    # What ``table()`` has looked at a moment ago.
    return getattr(_latest.forking, "reducer_override", None)


def may_be_taken_once(pickled: bytes) -> bool:
    """Whether this pickle may hold what can be unpickled only once: a descriptor, say."""
    return not _now().is_plain or pickled.find(b"multiprocessing") >= 0
