"""Programs that gevent or eventlet has patched: their threads are greenlets.

In such a program ``select``, ``socket``, ``threading``, ``os``, ``signal`` and ``time`` have
other functions. Where the original ones would block, these switch to the *hub*, which runs
other greenlets of the same thread meanwhile. This package deals with it so:

* The pool's own sockets, pipes and waits are never patched ones. A patched socket makes its
  file non-blocking for every process that shares it, and a patched wait in a worker would
  run the hub. So `descriptors.py`, `processes.py` and `signals.py` use the C modules below
  the patched ones (``_socket``, ``posix``, ``_signal``), and take ``poll`` and ``epoll``
  from here.
* The client is a part of the program. Its I/O thread is a greenlet of the hub, as is every
  other thread there, and its locks come from ``threading``. So a greenlet that waits for a
  result lets others run, and callbacks run where such a program expects them. The I/O thread
  waits by :class:`GreenPoller`.
* A forked process has a copy of the hub and of its greenlets, which would go on in both
  processes. Every process of the pool first forgets that hub (:func:`forget_hub`), and gets
  a new one if it needs one.

Neither library is imported here. A program that one of them has patched has loaded it.
"""

from __future__ import annotations

import _thread
import os
import posix
import select
import sys
import types
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_forgotten: list[object] = []
"""Hubs that were forgotten. They must not be collected: that would run them once more."""


def _loaded(name: str) -> Any:
    return sys.modules.get(name)


def threads_are_green() -> bool:
    """Whether a thread that is started now is a greenlet."""
    gevent, eventlet = _loaded("gevent.monkey"), _loaded("eventlet.patcher")
    return bool(
        (gevent is not None and gevent.is_module_patched("threading"))
        or (eventlet is not None and eventlet.is_monkey_patched("thread"))
    )


def system() -> types.ModuleType:
    """``os``, for ``fork`` and ``waitpid``. If another tool has replaced them, a debugger say,
    we call its functions. We do not call those of gevent and eventlet: they are for greenlets."""
    return posix if _may_be_patched() else os


def _may_be_patched() -> bool:
    return _loaded("gevent.monkey") is not None or _loaded("eventlet.patcher") is not None


def _original_select() -> Any:
    if not _may_be_patched():
        return select
    # A newly made module has all that the patches have taken out of the imported one.
    spec: Any = select.__spec__
    made = spec.loader.create_module(spec)
    spec.loader.exec_module(made)
    return made


# Now, because the program may be patched later.
_select = _original_select()
poll: type[select.poll] = _select.poll
if hasattr(_select, "epoll"):
    epoll: type[select.epoll] = _select.epoll


class GreenPoller:
    """A `descriptors.Poller` for one greenlet. Other greenlets run while it waits."""

    def __init__(self) -> None:
        self._watched: list[int] = []

    def register(self, descriptor: int, *, shared: bool = False) -> None:
        self._watched.append(descriptor)

    def unregister(self, descriptor: int) -> None:
        self._watched.remove(descriptor)

    def wait(self, timeout: float | None = None) -> list[int]:
        return select.select(self._watched, (), (), timeout)[0]

    def close(self) -> None:
        self._watched.clear()


def start_thread(function: Callable[[], object]) -> Callable[[], object]:
    """Run it in a thread outside the hub. Returns a function that waits for its end."""
    ended = new_lock()
    ended.acquire()

    def run() -> None:
        try:
            function()
        finally:
            ended.release()

    _original_thread("start_new_thread")(run, ())
    return ended.acquire  # type: ignore[no-any-return]


def new_lock() -> Any:
    """A lock of the interpreter's, where those in ``threading`` are the hub's."""
    return _original_thread("allocate_lock")()


def _original_thread(name: str) -> Any:
    if (gevent := _loaded("gevent.monkey")) is not None:
        return gevent.get_original("_thread", name)
    if (eventlet := _loaded("eventlet.patcher")) is not None:
        return getattr(eventlet.original("_thread"), name)
    return getattr(_thread, name)


def forget_hub() -> None:
    """In a process that was forked off: the greenlets of the process that forked it must not
    go on here."""
    if (gevent := _loaded("gevent._hub_local")) is not None:
        hub = gevent.get_hub_if_exists()
        if hub is not None:
            _forgotten.append((hub, hub.loop))
            # It stops watching; otherwise the next hub would get the same loop.
            hub.loop.destroy()
            gevent.set_hub(None)
            gevent.set_loop(None)
    if (eventlet := _loaded("eventlet.hubs")) is not None:
        hub = getattr(eventlet._threadlocal, "hub", None)
        if hub is not None:
            _forgotten.append(hub)
            del eventlet._threadlocal.hub
