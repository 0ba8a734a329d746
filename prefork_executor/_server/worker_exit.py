"""What happens in a worker's process after its last task.

A worker was forked and ends by ``os._exit``. If it ended as an interpreter does, it would run
what other processes have registered for their own end. What is the worker's own happens here,
in this order:

1. Threads are joined, daemons excepted.
2. atexit functions run, the last one registered first.
3. Finalizers run that ``weakref.finalize`` has made, ``TemporaryDirectory``'s for one.
4. multiprocessing's finalizers run; children of the worker are joined. The same for packages
   that are copies of it.
5. Logging handlers are flushed and closed.
6. Files are flushed.

Whatever one of them raises, SystemExit included, the others still run. The supervisor kills
a worker that takes longer than ``_pool.leaving.LEAVE_WITHIN`` for all of it. A worker that is
killed does none of it. (The user's ``finalizer`` comes before, see worker.py.)

What belongs to another process
-------------------------------
atexit functions, finalizers and buffers that were there before the fork are copies of somebody
else's. Functions and finalizers never run here. For buffers and logging handlers it
depends on whose they are:

* If the supervisor was forked from the caller, they are the caller's, who will write them. So
  only what was made in this process is flushed. (gc.freeze() tells the two apart: what
  is frozen is not in gc.get_objects().)
* Otherwise they come from an import that stands for the worker's own. Had the worker imported
  for itself, it would have had the same in its buffers. So ``__main__``'s are flushed as well.
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
"""The type of every file object. (io.IOBase, which is abstract, takes longer to ask.)"""
_CLOSED_AT_END = (
    ("gzip", "GzipFile"),
    ("bz2", "BZ2File"),
    ("lzma", "LZMAFile"),
    ("compression.zstd", "ZstdFile"),
    ("zipfile", "ZipFile"),
    ("shelve", "Shelf"),
)
"""Modules and types of what writes its last bytes when it is closed, as it is when an
interpreter ends."""
_CANNOT_TELL_FROZEN = "t" in sys.abiflags
"""Whether gc.get_objects() has what is frozen, too: it does where Python is free-threaded."""


class WorkerExit:
    """Made as the worker begins; from then on what is registered is the worker's own.

    Args:
        is_fork_of_caller: whether what was inherited is the caller's.
    """

    def __init__(self, is_fork_of_caller: bool) -> None:
        self._pid = os.getpid()
        self._is_fork_of_caller = is_fork_of_caller
        atexit._clear()
        # Or weakref would register a function of its own, which runs what was inherited and
        # ends at the first SystemExit.
        _finalize._registered_with_atexit = True
        self._first_finalizer = next(_finalize._index_iter)
        self._inherited_handlers = self._handlers() if is_fork_of_caller else []
        gc.freeze()

    def run(self) -> None:
        """Do all that is to be done at the worker's end. Never raises."""
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
        """False if it raised."""
        try:
            step(*args)
        except BaseException as error:
            self._say(f"{type(error).__name__} in worker {self._pid} as it ended")
            return False
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # What ran has forked, and this is the copy.
        return True

    def _say(self, what: str) -> None:
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{what}:\n{traceback.format_exc()}")

    def _join_threads(self) -> None:
        if not self._attempt(threading._shutdown):  # type: ignore[attr-defined]
            # It calls functions of others first, and one of them has raised.
            for thread in threading.enumerate():
                if not thread.daemon and thread is not threading.current_thread():
                    thread.join()

    def _run_finalizers(self) -> None:
        while finalizers := self._own_finalizers():
            for finalizer in reversed(finalizers):
                self._attempt(finalizer)

    def _own_finalizers(self) -> list[Callable[[], object]]:
        """What weakref.finalize has made here and has not been called, the oldest first."""
        own = [
            (info.index, finalizer)
            for finalizer, info in list(_finalize._registry.items())
            if info.atexit and info.index >= self._first_finalizer
        ]
        return [finalizer for _, finalizer in sorted(own, key=operator.itemgetter(0))]

    def _finalize_multiprocessing(self) -> None:
        # Each call that raises has used up a finalizer.
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
            self._attempt(_flush, file)  # The last bytes of what was closed.

    def _things(self) -> Iterator[Any]:
        """All that may be a file which this worker has to flush."""
        if not self._is_fork_of_caller:
            # Of what was inherited these alone: to look at all that other modules have takes
            # several milliseconds a worker.
            yield from list(vars(sys.modules["__main__"]).values())
        if not (self._is_fork_of_caller and _CANNOT_TELL_FROZEN):
            yield from gc.get_objects()


def _flush(file: Any) -> None:
    with contextlib.suppress(ValueError):  # It is closed, or its buffer was taken from it.
        file.flush()


def _is_any(thing: object, kinds: tuple[type, ...]) -> bool:
    # By its type alone: to ask a proxy for its class may run code of its own.
    return issubclass(type(thing), kinds)


def _loaded(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    for module, name in names:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            yield kind
