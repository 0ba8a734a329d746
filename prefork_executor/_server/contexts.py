"""Contexts: what starts the supervisor. They come from multiprocessing, or from a package that
is made from it or resembles it: ``multiprocess``, ``billiard``, ``loky``.

Nothing is required of them but ``Process`` and ``get_start_method``. The package itself pickles
what travels to the process, so its locks and queues may be among that.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class ProcessContext(Protocol):
        """An object that can start a process: a context, or a module that has its functions."""

        @property
        def Process(self) -> Any: ...  # noqa: N802

        def get_start_method(self) -> Any: ...

    Context = ProcessContext | BaseContext


_COPIES = ("multiprocess.util",)
"""Modules with state of their own that must be told of a fork and of the end of a process, like
multiprocessing.util. billiard shares that one."""


def find_context(given: Context | str | None) -> Any:
    """The context that ``mp_context`` means.

    Raises:
        TypeError: it cannot start a process.
        ValueError: there is no start method of this name.
    """
    if given is None:
        return multiprocessing.get_context()
    if isinstance(given, str):
        try:
            return multiprocessing.get_context(given)
        except ValueError as error:
            raise ValueError(f"mp_context: {error}") from None
    if not _starts_processes(given):
        raise TypeError(
            "mp_context must be a start method's name, a multiprocessing context, or a context "
            f"of a similar package that can start a process, not {_described(given)}"
        )
    if isinstance(given, types.ModuleType):
        # A module's start method may be set later; that of a context cannot change.
        return getattr(given, "get_context", lambda: given)()
    return given


def _starts_processes(given: object) -> bool:
    needed = ("Process", "get_start_method")
    if isinstance(given, type) or not all(callable(getattr(given, name, None)) for name in needed):
        return False
    with contextlib.suppress(Exception):
        return isinstance(given.get_start_method(), str)  # type: ignore[attr-defined]
    return False


def _described(given: object) -> str:
    if isinstance(given, types.ModuleType):
        return f"the module {given.__name__}"
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def connection_type(context: Any) -> Any:
    """The type of connection that the context's package can pass to a process that it starts. It
    is made from a descriptor. (The package could not pass a socket if gevent has patched the
    program.)

    Raises:
        OSError: no descriptor is left.
    """
    if isinstance(context, BaseContext) or not hasattr(context, "Pipe"):
        return Connection
    ends = context.Pipe(duplex=False)
    for end in ends:
        end.close()
    return type(ends[0])


def dumps(context: Any, thing: object) -> bytes:
    """Pickle an object as the context's package pickles the arguments of a process. Locks and
    queues can only be pickled while the package starts one."""
    reducer = getattr(context, "reducer", None)
    if reducer is None:
        package = type(context).__module__.partition(".")[0]
        reducer = importlib.import_module(f"{package}.reduction")
    return bytes(reducer.ForkingPickler.dumps(thing))


def detach(connection: Any) -> int:
    """Take the descriptor out of such a connection; -1 if it was closed. (Do not use its
    ``close``: in a program that gevent has patched, that would leave the closing to the hub.)"""
    descriptor, connection._handle = connection._handle, None
    return -1 if descriptor is None else int(descriptor)


def _loaded_copies() -> Iterator[Any]:
    for name in _COPIES:
        if (module := sys.modules.get(name)) is not None:
            yield module


def starters_name() -> str:
    """In a process that a context has started: the name of the process that started it. Only
    the context's package knows the name. For the other packages this is a main process."""
    for package in ("multiprocessing", "multiprocess", "billiard"):
        module: Any = sys.modules.get(f"{package}.process")
        name = getattr(module and module.current_process(), "_parent_name", None)
        if name is not None:
            return str(name)
    return "MainProcess"


def tell_copies_of_fork() -> None:
    """In a new worker. For multiprocessing itself, its Process class does this."""
    for util in _loaded_copies():
        util._finalizer_registry.clear()
        util._run_after_forkers()


def tell_copies_of_end() -> None:
    """When a worker leaves: queues write what they hold, for example."""
    for util in _loaded_copies():
        util._exit_function()
