"""What happens in a worker's process after its last task.

A worker was forked and ends by ``os._exit``. If it ended like an interpreter, it would run what
other processes have registered for their own end. So the worker's own functions run here, in
this order:

1. Threads are joined, except daemons.
2. atexit functions run, the last one registered first.
3. Finalizers made by ``weakref.finalize`` run, that of ``TemporaryDirectory`` for example.
4. multiprocessing's finalizers run, and children of the worker are joined. The same for
   packages that are copies of multiprocessing.
5. Logging handlers are flushed and closed.
6. Files are flushed.

If one of them raises, even SystemExit, the others still run. If all of this takes longer than
``_pool.leaving.LEAVE_WITHIN``, the supervisor kills the worker. A worker that is killed does none
of it. (The user's ``finalizer`` runs earlier, see worker.py.)

What belongs to another process
-------------------------------
atexit functions, finalizers and buffers that existed before the fork are copies of another
process's. Functions and finalizers never run here. Buffers and logging handlers depend on the
process:

* If the supervisor was forked from the caller, they are the caller's, and the caller will write
  them. So only what was made in this process is flushed. (gc.freeze() tells the two apart:
  gc.get_objects() does not return frozen objects.)
* Otherwise they come from an import that was done for the worker. If the worker had imported
  for itself, it would have the same in its buffers. So those of ``__main__`` are flushed as well.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import gc
import logging
import multiprocessing.util
import operator
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator

from . import contexts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_finalize: Any = weakref.finalize
_mp_util: Any = multiprocessing.util
_FILE: type = _io._IOBase
"""The type of every file object. (Checking for io.IOBase, which is abstract, takes longer.)"""
_CLOSED_AT_END = (
    ("gzip", "GzipFile"),
    ("bz2", "BZ2File"),
    ("lzma", "LZMAFile"),
    ("compression.zstd", "ZstdFile"),
    ("zipfile", "ZipFile"),
    ("shelve", "Shelf"),
)
"""Modules and types of objects that write their last bytes when they are closed, as happens when
an interpreter ends."""
_CANNOT_TELL_FROZEN = "t" in sys.abiflags
"""Whether gc.get_objects() returns frozen objects, too: it does in free-threaded Python."""


class WorkerExit:
    """Made when the worker begins. What is registered from then on is the worker's own.

    Args:
        is_fork_of_caller: whether inherited objects belong to the caller.
    """

    def __init__(self, is_fork_of_caller: bool) -> None:
        self._pid = os.getpid()
        self._is_fork_of_caller = is_fork_of_caller
        atexit._clear()
        # Otherwise weakref would register a function of its own. That one runs inherited
        # finalizers, too, and stops at the first SystemExit.
        _finalize._registered_with_atexit = True
        self._first_finalizer = next(_finalize._index_iter)
        self._inherited_handlers = self._handlers() if is_fork_of_caller else []
        gc.freeze()

    def run(self) -> None:
        """Do all that a worker does at its end. Never raises."""
        steps = (
            self._join_threads,
            atexit._run_exitfuncs,
            self._run_finalizers,
            self._finalize_multiprocessing,
            contexts.tell_copies_of_end,
            self._close_handlers,
            self._flush_files,
        )
        for step in steps:
            self._attempt(step)

    def _attempt(self, step: Callable[..., object], *args: object) -> bool:
        """Returns False if the step raised."""
        try:
            step(*args)
        except BaseException as error:
            self._say(f"{type(error).__name__} in worker {self._pid} as it ended")
            return False
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # The step has forked, and this process is the copy.
        return True

    def _say(self, what: str) -> None:
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{what}:\n{traceback.format_exc()}")

    def _join_threads(self) -> None:
        if not self._attempt(threading._shutdown):  # type: ignore[attr-defined]
            # It first calls functions of other modules, and one of them has raised.
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.current_thread():
                    thread.join()

    def _run_finalizers(self) -> None:
        while finalizers := self._own_finalizers():
            for finalizer in reversed(finalizers):
                self._attempt(finalizer)

    def _own_finalizers(self) -> list[Callable[[], object]]:
        """The finalizers that weakref.finalize has made here and that have not run, the oldest
        first."""
        own = [
            (info.index, finalizer)
            for finalizer, info in list(_finalize._registry.items())
            if info.atexit and info.index >= self._first_finalizer
        ]
        return [finalizer for _, finalizer in sorted(own, key=operator.itemgetter(0))]

    def _finalize_multiprocessing(self) -> None:
        # A call that raises has removed one finalizer.
        while not self._attempt(_mp_util._run_finalizers, 0):
            pass
        self._attempt(_mp_util._exit_function)
        while not self._attempt(_mp_util._run_finalizers):
            pass

    # --- what is still in buffers -----------------------------------------------------------

    @staticmethod
    def _handlers() -> list[Any]:
        """References to logging's handlers, in the order in which they were made."""
        return list(logging._handlerList)  # type: ignore[attr-defined]

    def _close_handlers(self) -> None:
        inherited = set(map(id, self._inherited_handlers))
        for handler in reversed(self._handlers()):
            if id(handler) not in inherited:
                self._attempt(logging.shutdown, [handler])

    def _flush_files(self) -> None:
        closed_at_end = tuple(_loaded(_CLOSED_AT_END))
        found = [thing for thing in self._things() if _is_any(thing, (_FILE, *closed_at_end))]
        files = [thing for thing in found if _is_any(thing, (_FILE,))]
        to_close = [thing for thing in found if _is_any(thing, closed_at_end)]
        for file in files:
            self._attempt(_flush, file)
        for thing in to_close:
            self._attempt(thing.close)
        for file in files if to_close else ():
            self._attempt(_flush, file)  # The last bytes of files that were just closed.

    def _things(self) -> Iterator[Any]:
        """All objects that may be files which this worker has to flush."""
        if not self._is_fork_of_caller:
            # Of inherited objects only these: looking at all that other modules have takes
            # several milliseconds a worker.
            yield from list(vars(sys.modules["__main__"]).values())
        if not (self._is_fork_of_caller and _CANNOT_TELL_FROZEN):
            yield from gc.get_objects()


def _flush(file: Any) -> None:
    with contextlib.suppress(ValueError):  # It is closed, or its buffer was detached.
        file.flush()


def _is_any(thing: object, kinds: tuple[type, ...]) -> bool:
    # Not isinstance(): asking a proxy for its class may run code of its own.
    return issubclass(type(thing), kinds)


def _loaded(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    for module, name in names:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            yield kind
