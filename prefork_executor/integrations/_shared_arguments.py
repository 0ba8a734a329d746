"""Large arguments that many tasks of one call have in common, stored once.

``Parallel()(delayed(fit)(X, i) for i in ...)`` gives the same ``X`` to every task. If each task
carried it, it would be copied for each of them, and would be in memory as often as there are tasks
under way.

So when an object is met as an argument for the second time, it is pickled with its large buffers
out of band (pickle protocol 5: arrays, data frames, sparse matrices). The buffers go into a memfd.
From then on only a note of where that is travels, and a worker maps it. An argument that is met
only once is sent as it is: it would gain nothing. But if workers are to see shared arguments
read-only, an array is made read-only there the first time, too: otherwise the first task could
write to it, and the others could not.

Workers find the memfd as ``/proc/PID/fd/N``. It has no name, so nothing is left of it when the
call ends, or when the process ends in any way.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Iterable
from typing import Any

ALIGNMENT = 64
"""Bytes: a cache line. NumPy and similar libraries prefer their data to begin at one."""
_ACCESS = {
    "r": mmap.ACCESS_READ,
    "c": mmap.ACCESS_COPY,
    "r+": mmap.ACCESS_WRITE,
    "w+": mmap.ACCESS_WRITE,
}
_IS_POSSIBLE = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


class SharedArguments:
    """The shared arguments of one call.

    Args:
        minimum: bytes of buffers from which on an argument is shared. None: never.
        mode: as joblib's ``mmap_mode``: "r" read-only, "c" each task's own copy,
            "r+" and "w+" writable by all. None: nothing is shared.
    """

    def __init__(self, minimum: int | None, mode: str | None) -> None:
        self._minimum = minimum if mode in _ACCESS and _IS_POSSIBLE else None
        self._access = _ACCESS.get(mode or "", mmap.ACCESS_READ)
        # By id, as most cannot be hashed. The weak references do not keep arguments alive.
        self._met: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._known: dict[int, tuple[Any, _Shared | None]] = {}

    def share_in(self, items: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """joblib's tasks, ``(function, args, kwargs)``, with shared arguments replaced."""
        if self._minimum is None:
            return list(items)
        share = self._share
        return [
            (fn, tuple(map(share, args)), {name: share(value) for name, value in kwargs.items()})
            for fn, args, kwargs in items
        ]

    def _share(self, argument: Any) -> Any:
        key = id(argument)
        if key not in self._known:
            if self._met.get(key) is not argument:
                # There are no weak references to numbers, strings and lists.
                with contextlib.suppress(TypeError):
                    self._met[key] = argument
                return _Frozen(argument) if self._would_freeze(argument) else argument
            self._known[key] = (argument, _lay_down(argument, self._minimum or 0, self._access))
        return self._known[key][1] or argument

    def _would_freeze(self, argument: Any) -> bool:
        """Whether it is an array that workers would see read-only if it were shared."""
        size, flags = getattr(argument, "nbytes", None), getattr(argument, "flags", None)
        if self._access != mmap.ACCESS_READ or not isinstance(size, int):
            return False
        has_objects = getattr(getattr(argument, "dtype", None), "hasobject", True)
        is_writable = getattr(flags, "writeable", False)
        return size >= (self._minimum or 0) and bool(is_writable) and not has_objects

    def close(self) -> None:
        """The call has ended: share no more. What workers have mapped lives until they
        release it."""
        self._minimum = None
        self._known.clear()


class _Shared:
    """Replaces an argument on the way, and unpickles as that argument."""

    def __init__(self, descriptor: int, access: int, pickled: bytes, sizes: list[int]) -> None:
        # Closed when nothing refers to this any more: a task may still be on the way.
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._access = access
        self._pickled = pickled
        self._sizes = sizes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        return _pick_up, (path, self._access, self._pickled, self._sizes)


class _Frozen:
    """Replaces an array on the way. It unpickles as that array, read-only."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _freeze, (self._array,)


def _freeze(array: Any) -> Any:
    """In a worker."""
    array.flags.writeable = False
    return array


def _lay_down(argument: Any, minimum: int, access: int) -> _Shared | None:
    """The argument in a memfd. None if it is too small, or cannot be pickled this way."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        pickled = pickle.dumps(argument, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
    except Exception:  # noqa: BLE001 - pickling the task will raise it again
        return None
    # Definitions of __main__ differ between processes. The executor handles that.
    if sum(view.nbytes for view in views) < minimum or b"__main__" in pickled:
        return None
    descriptor = os.memfd_create("prefork-arguments", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        for view in views:
            file.write(view)
            file.write(bytes(-view.nbytes % ALIGNMENT))
    return _Shared(descriptor, access, pickled, [view.nbytes for view in views])


def _pick_up(path: str, access: int, pickled: bytes, sizes: list[int]) -> Any:
    """In a worker: the argument, over the memfd itself."""
    descriptor = os.open(path, os.O_RDWR if access == mmap.ACCESS_WRITE else os.O_RDONLY)
    try:
        memory = memoryview(mmap.mmap(descriptor, 0, access=access))
    finally:
        os.close(descriptor)
    views, begin = [], 0
    for size in sizes:
        views.append(memory[begin : begin + size])
        begin += size + -size % ALIGNMENT
    return pickle.loads(pickled, buffers=views)
