"""Contexts: what starts the supervisor. multiprocessing's own, and those of packages that
have been made from it or for its like: ``multiprocess``, ``billiard``, ``loky``.

All have ``Process`` and ``get_start_method``, and that is all that is asked of them. What
travels to the process is pickled by the package's own means, so its locks and queues may.
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
        """What can start a process: a context, or a module that has its functions."""

        @property
        def Process(self) -> Any: ...  # noqa: N802

        def get_start_method(self) -> Any: ...

    Context = ProcessContext | BaseContext


_COPIES = ("multiprocess.util",)
"""What has state of its own that must be told of a fork, and of the end of a process, as
multiprocessing.util has. billiard shares that one."""


def find_context(given: Context | str | None) -> Any:
    """The context that is meant by ``mp_context``.

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
            "mp_context must be a start method's name or a multiprocessing context, or one "
            f"of a package like it that can start a process, not {_described(given)}"
        )
    if isinstance(given, types.ModuleType):
        # Its start method may be set anew; that of a context stays.
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
    """The type of what the context's package can give to a process that it starts, made
    from a descriptor. (A socket it could not, if the program is patched by gevent.)

    Raises:
        OSError: no descriptor.
    """
    if isinstance(context, BaseContext) or not hasattr(context, "Pipe"):
        return Connection
    ends = context.Pipe(duplex=False)
    for end in ends:
        end.close()
    return type(ends[0])


def dumps(context: Any, thing: object) -> bytes:
    """Pickle a thing as the context's package pickles the arguments of a process. Only while
    that starts one may there be locks and queues in it."""
    reducer = getattr(context, "reducer", None)
    if reducer is None:
        package = type(context).__module__.partition(".")[0]
        reducer = importlib.import_module(f"{package}.reduction")
    return bytes(reducer.ForkingPickler.dumps(thing))


def detach(connection: Any) -> int:
    """The descriptor of such a connection, which owns it no more; -1 if it was closed. (In a
    program that gevent has patched its ``close`` would leave that to the hub.)"""
    descriptor, connection._handle = connection._handle, None
    return -1 if descriptor is None else int(descriptor)


def _loaded_copies() -> Iterator[Any]:
    for name in _COPIES:
        if (module := sys.modules.get(name)) is not None:
            yield module


def starters_name() -> str:
    """In a process that a context has started: the name of the one that has done so. The
    package whose context it was knows it; for the others this is a main process."""
    for package in ("multiprocessing", "multiprocess", "billiard"):
        module: Any = sys.modules.get(f"{package}.process")
        name = getattr(module and module.current_process(), "_parent_name", None)
        if name is not None:
            return str(name)
    return "MainProcess"


def tell_copies_of_fork() -> None:
    """In a new worker. For multiprocessing itself its Process does so."""
    for util in _loaded_copies():
        util._finalizer_registry.clear()
        util._run_after_forkers()


def tell_copies_of_end() -> None:
    """As a worker leaves: queues write what they hold, and so on."""
    for util in _loaded_copies():
        util._exit_function()
