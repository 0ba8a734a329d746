"""Whether what a process holds may be shared by those that are forked from it.

A fork gives the child a copy of memory, and nothing else of its own: descriptors lead to the
same connections and offsets, threads are gone with the locks they held, mappings that are shared
stay shared, timers and children are the parent's. So a process that has run the user's code may
be what workers are forked from only if it holds none of that beyond what it held before.

What counts, and what does not:

* *Threads*: all but those of libraries that are known to survive (`_native_threads.py`).
* *Descriptors*: all but the standard streams and devices that have neither an offset nor a
  memory. Files that are open for reading count: who reads moves the offset for all.
  Locks of files need no rule of their own, for there is none without a descriptor.
* *Children*, ended ones too: nobody but the parent can wait for them.
* *Shared mappings* that can be written to, and with them semaphores of multiprocessing.
* *Timers*: a child has none of them.
* *Functions for the end* of the process: they would run in one process only.
* *Random generators*: all who are forked would draw the same numbers.
* *What only its library knows*: `_UNSEEN` asks.

No answer here is a proof that a fork is right; each is a reason that has been seen to make one
wrong. Where there is no /proc nothing can be told, and that is in the way.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import select
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping

from . import _native_threads
from ._owners import MAIN_NAMES, owner
from ._posix import FALLBACK
from ._tuples import NamedTuple
from ._watching import Watched, watching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Holdings", "Watched", "in_the_way", "watching"]

TELLS = not FALLBACK and os.path.exists("/proc/self/task")
"""Whether this system tells what a process holds."""
_LOOKS = 5
"""How often to look before something is in the way: garbage is collected before the second look,
and a thread that has just ended may be listed for a moment more."""
_PAUSE = 0.01
"""Seconds between two looks."""
_NAMED = 8
"""Things of one kind whose owner is looked for; each costs some milliseconds."""
_STANDARD = (0, 1, 2)
_MEMORYLESS = frozenset({"/dev/null", "/dev/zero", "/dev/full"})
"""Devices that are the same for whoever reads or writes, whatever others do."""
_RANDOM_DEVICES = frozenset({"/dev/urandom", "/dev/random"})
"""They give everybody other bytes. But a file object over one has some in its buffer."""
_TIMERS = {
    signal.ITIMER_REAL: "ITIMER_REAL, or alarm()",
    signal.ITIMER_VIRTUAL: "ITIMER_VIRTUAL",
    signal.ITIMER_PROF: "ITIMER_PROF",
}


class Holdings(NamedTuple):
    """What this process holds at one moment. Only to be compared in the same process."""

    threads: Mapping[int, str]
    """Every thread that the kernel knows, by its id there: its name."""
    descriptors: Mapping[int, tuple[str, int, int]]
    """What each leads to: its path, or what stands for one; device and inode."""
    children: frozenset[int]
    mappings: Mapping[str, str]
    """Writable shared ones: address, device and inode; and the path."""
    timers: frozenset[str]
    finalizers: frozenset[object]
    generators: Mapping[int, object]
    """By id. They are kept alive here, so that no other can get the same."""
    random_state: object

    @classmethod
    def now(cls) -> Holdings:
        if not TELLS:
            return cls({}, {}, frozenset(), {}, frozenset(), frozenset(), {}, None)
        return cls(
            _threads(),
            _descriptors(),
            _children(),
            _shared_mappings(),
            frozenset(_timers()),
            frozenset(_finalizers()),
            _generators(),
            random.getstate(),
        )


def in_the_way(before: Holdings, seen: Watched | None = None) -> list[str]:
    """What this process holds, beyond ``before``, that those who are forked from it must not
    share. Each is a phrase that names it; none: it may be shared.

    Args:
        before: what this process held before it ran the user's code.
        seen: what `watching` recorded meanwhile.
    """
    if not TELLS:
        return ["this system does not tell what a process holds"]
    noted = list(seen.phrases) if seen is not None else []
    for look in range(_LOOKS):
        now = Holdings.now()
        found = [phrase for judge in _JUDGES for phrase in judge(before, now)]
        if not found:
            break
        if look == 0:
            gc.collect()
        time.sleep(_PAUSE)
    return list(dict.fromkeys(found + noted))


# --- threads ------------------------------------------------------------------------------------


def _threads() -> dict[int, str]:
    names = {}
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            names[int(task)] = _read(f"/proc/self/task/{task}/comm").strip()
    return names


def _judge_threads(before: Holdings, now: Holdings) -> Iterator[str]:
    new = {task: name for task, name in now.threads.items() if task not in before.threads}
    for thread in threading.enumerate():
        if thread.native_id in new:
            del new[thread.native_id]
            yield _say_thread(thread)
    own = _read("/proc/self/comm").strip()
    named = sorted(name for name in new.values() if name != own)
    named = [name for name in named if name not in _native_threads.SURVIVING_NAMES]
    unnamed = sum(name == own for name in new.values())
    if unnamed:
        unnamed -= _native_threads.surviving(_libraries())
    if named:
        yield f"threads that a library runs: {', '.join(named)}"
    if unnamed > 0:
        yield f"threads without a name that a library runs (OpenMP's, for instance): {unnamed}"


def _say_thread(thread: threading.Thread) -> str:
    target = getattr(thread, "_target", None)  # Gone when it has ended.
    name = getattr(target, "__qualname__", None)
    if name is None:
        return f"the thread {thread.name!r}"
    module = getattr(target, "__module__", "")
    return f"the thread {thread.name!r}, which runs {name} of {_main_name(module)}"


def _main_name(module: str) -> str:
    return MAIN_NAMES[0] if module in MAIN_NAMES else module


# --- descriptors --------------------------------------------------------------------------------


def _descriptors() -> dict[int, tuple[str, int, int]]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # The one that listed the directory is gone.
            target, status = os.readlink(f"/proc/self/fd/{name}"), os.fstat(int(name))
            found[int(name)] = (target, status.st_dev, status.st_ino)
    return found


def _judge_descriptors(before: Holdings, now: Holdings) -> Iterator[str]:
    count = 0
    for descriptor, target in sorted(now.descriptors.items()):
        if descriptor in _STANDARD or before.descriptors.get(descriptor) == target:
            continue
        path = target[0]
        if path in _MEMORYLESS:
            continue
        count += 1
        holder = _holder(descriptor) if count <= _NAMED else None
        if path in _RANDOM_DEVICES and holder is None:
            continue
        yield _say_descriptor(descriptor, path, holder)


def _say_descriptor(descriptor: int, path: str, holder: str | None) -> str:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return f"descriptor {descriptor}"
    if stat.S_ISSOCK(mode):
        kind, where = "socket", _peer(descriptor)
    elif stat.S_ISFIFO(mode):
        kind, where = "pipe", ""
    elif path.startswith("anon_inode:"):
        kind, where = path.removeprefix("anon_inode:").strip("[]"), ""
    else:
        kind, where = "file", f", {path}"
    named = f"the {kind} {holder}" if holder else f"a {kind}"
    return f"{named} (descriptor {descriptor}{where})"


def _peer(descriptor: int) -> str:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        try:
            return f", to {_address(copy.getpeername())}"
        except OSError:
            address = _address(copy.getsockname())
            return f", at {address}" if address else ""
    return ""


def _address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    return str(address or "")


_HAVE_DESCRIPTORS: tuple[Any, ...] = (io.FileIO, socket.socket, *(
    [select.epoll] if hasattr(select, "epoll") else []
))  # fmt: skip


def _holder(descriptor: int) -> str | None:
    def is_it(thing: object) -> bool:
        kind = type(thing)
        for base in _HAVE_DESCRIPTORS:
            if issubclass(kind, base):
                with contextlib.suppress(ValueError):
                    return bool(base.fileno(thing) == descriptor)
        return kind.__module__ == "multiprocessing.connection" and (
            _own_attributes(thing).get("_handle") == descriptor
        )

    return owner(is_it)


def _own_attributes(thing: object) -> Mapping[str, Any]:
    try:
        own = object.__getattribute__(thing, "__dict__")
    except Exception:
        return {}
    return own if isinstance(own, dict) else {}


# --- children, mappings, timers -----------------------------------------------------------------


def _children() -> frozenset[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found.update(map(int, _read(f"/proc/self/task/{task}/children").split()))
    return frozenset(found or {0})  # A kernel may keep who they are to itself.


def _judge_children(before: Holdings, now: Holdings) -> Iterator[str]:
    for pid in sorted(now.children - before.children):
        holder = owner(lambda thing, pid=pid: _own_attributes(thing).get("pid") == pid)  # type: ignore[misc]
        named = f"the child process {holder}" if holder else "a child process"
        try:
            yield f"{named} ({pid}, {_read(f'/proc/{pid}/comm').strip()})"
        except OSError:
            yield named


def _shared_mappings() -> dict[str, str]:
    """Of the writable ones: those that can only be read are files', the same for all."""
    found = {}
    for line in _maps():
        address, access, _, device, inode, *path = line.split(None, 5)
        if access[1] == "w" and access[3] == "s":
            found[f"{address} {device} {inode}"] = path[0] if path else ""
    return found


def _judge_mappings(before: Holdings, now: Holdings) -> Iterator[str]:
    new = [path for key, path in now.mappings.items() if key not in before.mappings]
    for path in sorted(set(new)):
        is_lock = "/sem." in path
        kind = "SemLock" if is_lock else "mmap"
        holder = owner(lambda thing, kind=kind: type(thing).__name__ == kind)  # type: ignore[misc]
        what = "semaphore" if is_lock else "shared mapping"
        yield f"the {what} {holder} ({path})" if holder else f"a {what} ({path})"


def _timers() -> Iterator[str]:
    for timer, name in _TIMERS.items():
        if signal.getitimer(timer) != (0.0, 0.0):
            yield name
    with contextlib.suppress(OSError):
        for line in _read("/proc/self/timers").splitlines():
            if line.startswith("ID:"):
                yield f"timer_create(), {line}"


def _judge_timers(before: Holdings, now: Holdings) -> Iterator[str]:
    for name in sorted(now.timers - before.timers):
        yield f"an interval timer ({name})"


# --- what runs at the end -----------------------------------------------------------------------


def _finalizers() -> Iterator[object]:
    registry: Mapping[Any, Any] = getattr(weakref.finalize, "_registry", {})
    for finalizer in list(registry):
        if finalizer.alive and finalizer.atexit:
            yield finalizer


def _judge_finalizers(before: Holdings, now: Holdings) -> Iterator[str]:
    for finalizer in now.finalizers - before.finalizers:
        peeked = finalizer.peek()  # type: ignore[attr-defined]
        if peeked is None:
            continue
        thing, function = peeked[0], peeked[1]
        holder = owner(lambda it, thing=thing: it is thing)  # type: ignore[misc]
        what = holder or f"a {type(thing).__name__}"
        name = getattr(function, "__qualname__", repr(function))
        yield f"{what}, with something to do at the end of the process (weakref.finalize: {name})"


# --- random numbers -----------------------------------------------------------------------------


def _generators() -> dict[int, object]:
    kinds = _kinds_of_generators()
    found = {id(thing): thing for thing in gc.get_objects() if type(thing) in kinds}
    for thing in list(found.values()):
        # Names of temporary files: it looks at the process id, and begins anew after a fork.
        if type(thing).__module__ == "tempfile":
            found.pop(id(getattr(thing, "_rng", None)), None)
            del found[id(thing)]
    for thing in _global_generators():
        found.pop(id(thing), None)
    return found


def _kinds_of_generators() -> set[type]:
    kinds = _with_subclasses(random.Random) - _with_subclasses(random.SystemRandom)
    kinds.add(tempfile._RandomNameSequence)  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy.random")
    for name in ("Generator", "RandomState", "BitGenerator"):
        kind = getattr(numpy, name, None)
        if isinstance(kind, type):
            kinds |= _with_subclasses(kind)
    return kinds


def _with_subclasses(kind: type) -> set[type]:
    found, todo = set(), [kind]
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo.extend(kind.__subclasses__())
    return found


def _global_generators() -> Iterator[object]:
    """Those that the workers seed anew."""
    yield getattr(random, "_inst", None)
    state = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    yield state
    yield getattr(state, "_bit_generator", None)


def _judge_generators(before: Holdings, now: Holdings) -> Iterator[str]:
    for number, thing in now.generators.items():
        if number not in before.generators:
            holder = owner(lambda it, thing=thing: it is thing)  # type: ignore[misc]
            kind = type(thing).__name__
            yield f"the random generator {holder}" if holder else f"a random generator ({kind})"
    if now.random_state != before.random_state:
        yield "the generator of the module random, which has been seeded or drawn from"


# --- what only its library knows ----------------------------------------------------------------

_UNSEEN: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "numba.np.ufunc.parallel": (
        lambda module: module._is_initialized,
        "numba's threading layer, which has been started",
    ),
    "torch.cuda": (lambda module: module.is_initialized(), "CUDA, which torch has initialized"),
}
"""A module, and whether it has begun something that neither threads nor descriptors show."""


def _judge_unseen(_before: Holdings, _now: Holdings) -> Iterator[str]:
    for name, (has_begun, phrase) in _UNSEEN.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        with contextlib.suppress(Exception):  # Another version of the library.
            if has_begun(module):
                yield phrase


# --- what the system tells ----------------------------------------------------------------------


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(65536), b"")).decode("utf-8", "replace")


def _maps() -> list[str]:
    return _read("/proc/self/maps").splitlines()


def _libraries() -> set[str]:
    return {line.split(None, 5)[5] for line in _maps() if ".so" in line and line.count("/") > 0}


_JUDGES = (
    *(_judge_threads, _judge_descriptors, _judge_children, _judge_mappings, _judge_timers),
    *(_judge_finalizers, _judge_generators, _judge_unseen),
)
