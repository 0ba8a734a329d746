"""Whether forked processes may share what this process holds.

A fork gives the child a copy of memory, and of nothing else. Its descriptors lead to the same
connections and offsets. Threads are gone, with the locks they held. Shared mappings stay shared,
and timers and children belong to the parent. So workers may be forked from a process that has run
the user's code only if that code has left none of these behind.

What counts, and what does not:

* *Threads*: all except those of libraries that are known to survive (`native_threads.py`).
* *Descriptors*: all except the standard streams, devices that have neither an offset nor a
  state, and libraries that C code keeps open to map them (libffi its own). Files that are
  open for reading count: a read moves the offset for all processes.
  File locks need no rule of their own: there is none without a descriptor.
* *Children*, ended ones too: only the parent can wait for them.
* *Writable shared mappings*, and so the semaphores of multiprocessing.
* *Timers*: a child has none of them.
* *Functions for the end* of the process: they would run in one process only.
* *Random generators*: all forked processes would draw the same numbers. Generators that workers
  seed anew do not count (`random_streams.py`), unless they have been seeded or drawn from
  already: then each process would begin with that seed.
* *What only its library knows*: `_UNSEEN` asks.

If none is found, that does not prove that a fork is right. Each of these has been seen to make one
wrong. Where there is no /proc, nothing can be told, and then the answer is no.
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
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping

from .._support.named_tuples import NamedTuple
from .._system.platform import FALLBACK
from . import native_threads, random_streams
from .owners import MAIN_NAMES, Owner, Owners, is_own
from .watching import Watched, watching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Holdings", "Watched", "in_the_way", "watching"]

TELLS = not FALLBACK and os.path.exists("/proc/self/task")
"""Whether this system tells what a process holds."""
_LOOKS = 3
"""How often to look before something counts: garbage is collected before the second look, and a
thread that has just ended may be listed a moment longer."""
_PAUSE = 0.01
"""Seconds between two looks."""
_STANDARD = (0, 1, 2)
_MEMORYLESS = frozenset({"/dev/null", "/dev/zero", "/dev/full"})
"""Devices that behave the same for every reader and writer."""
_RANDOM_DEVICES = frozenset({"/dev/urandom", "/dev/random"})
"""They give each reader different bytes. But a file object over one has bytes in its buffer."""
_FREE_MEMORY_ONLY = frozenset({"numba", "torch"})
"""Libraries whose finalizers, at the end, only free memory of the process."""
_TIMERS = {
    signal.ITIMER_REAL: "ITIMER_REAL, or alarm()",
    signal.ITIMER_VIRTUAL: "ITIMER_VIRTUAL",
    signal.ITIMER_PROF: "ITIMER_PROF",
}


class Holdings(NamedTuple):
    """What this process holds at one moment. Comparable only within the same process."""

    threads: Mapping[int, str]
    """The name of every thread that the kernel knows, by its id in the kernel."""
    descriptors: Mapping[int, tuple[str, int, int]]
    """What each leads to: its path, or what stands for one; its device and inode."""
    children: frozenset[int]
    mappings: Mapping[str, str]
    """The writable shared ones: address, device and inode; and the path."""
    timers: frozenset[str]
    finalizers: frozenset[Any]
    generators: Mapping[int, object]
    """By id. They are kept alive here, so that no other object can get the same id."""
    touched: frozenset[str]
    """Modules whose global random generator has been seeded, or drawn from."""
    owners: Owners
    """What modules hold, to name what was found."""

    @classmethod
    def now(cls) -> Holdings:
        owners, none = Owners(), frozenset[str]()
        if not TELLS:
            return cls({}, {}, frozenset(), {}, none, none, {}, none, owners)
        return cls(
            _threads(),
            _descriptors(),
            _children(),
            _shared_mappings(),
            frozenset(_timers()),
            frozenset(_finalizers()),
            _generators(owners),
            frozenset(random_streams.touched()),
            owners,
        )


def in_the_way(before: Holdings, seen: Watched | None = None) -> list[str]:
    """What this process holds, beyond ``before``, that forked processes must not share. Each
    phrase names one thing. If there is none, they may share all.

    Args:
        before: what this process held before it ran the user's code.
        seen: what `watching` recorded while that code ran.
    """
    if not TELLS:
        return ["this system does not tell what a process holds"]

    def judged() -> list[str]:
        now = Holdings.now()
        return [phrase for judge in _JUDGES for phrase in judge(before, now)]

    found = _still_found(judged)
    return list(dict.fromkeys(found + (seen.phrases if seen is not None else [])))


def _still_found(look: Callable[[], list[str]]) -> list[str]:
    """What is still there at the last look. By then garbage and ending threads are gone."""
    found = look()
    if found:
        gc.collect()
    for _ in range(_LOOKS - 1):
        if not found:
            break
        time.sleep(_PAUSE)
        found = look()
    return found


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
        task = getattr(thread, "native_id", None)  # A main thread made by eventlet has none.
        if task in new:
            del new[task]
            yield _say_thread(thread)
    # A thread without a name of its own has that of the thread that started it.
    inherited = {_read("/proc/self/comm").strip(), *before.threads.values()}
    named = sorted(set(new.values()) - inherited - native_threads.SURVIVING_NAMES)
    if named:
        yield f"threads that a library runs: {', '.join(named)}"
    unnamed = sum(name in inherited for name in new.values())
    if unnamed and unnamed > native_threads.surviving(_libraries()):
        yield f"threads that a library runs (OpenMP, for instance): {unnamed}"


def _say_thread(thread: threading.Thread) -> str:
    target = getattr(thread, "_target", None)  # Gone when the thread has ended.
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
        with contextlib.suppress(OSError):  # The one by which the directory was listed is gone.
            target, status = os.readlink(f"/proc/self/fd/{name}"), os.fstat(int(name))
            found[int(name)] = (target, status.st_dev, status.st_ino)
    return found


def _judge_descriptors(before: Holdings, now: Holdings) -> Iterator[str]:
    for descriptor, target in sorted(now.descriptors.items()):
        path = target[0]
        if descriptor in _STANDARD or before.descriptors.get(descriptor) == target:
            continue
        if path in _MEMORYLESS:
            continue
        holder = now.owners.find(lambda thing: _is_over(thing, descriptor))  # noqa: B023
        if holder is not None or not (path in _RANDOM_DEVICES or path in _libraries()):
            yield _say_descriptor(descriptor, path, holder)


def _say_descriptor(descriptor: int, path: str, holder: Owner | None) -> str:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return f"descriptor {descriptor}"
    kind, where = "file", f", {path}"
    if stat.S_ISSOCK(mode):
        kind, where = "socket", _peer(descriptor)
    elif stat.S_ISFIFO(mode):
        kind, where = "pipe", ""
    elif path.startswith("anon_inode:"):
        kind, where = "descriptor", f", {path}"
    return f"{_named(kind, holder)} (descriptor {descriptor}{where})"


def _named(kind: str, holder: Owner | None) -> str:
    return f"a {kind}" if holder is None else f"the {kind} {holder}"


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


_OVER_DESCRIPTORS: tuple[Any, ...] = (
    *(io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper),
    *(socket.socket, *([select.epoll] if hasattr(select, "epoll") else [])),
)


def _is_over(thing: object, descriptor: int) -> bool:
    """Whether this is Python's object over a descriptor. Calls no methods of subclasses."""
    kind = type(thing)
    for base in _OVER_DESCRIPTORS:
        if issubclass(kind, base):
            with contextlib.suppress(Exception):
                return bool(base.fileno(thing) == descriptor)
    is_connection = kind.__module__ == "multiprocessing.connection"
    return is_connection and _own_attributes(thing).get("_handle") == descriptor


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
    return frozenset(found or {0})  # The kernel may not tell which children there are.


def _judge_children(before: Holdings, now: Holdings) -> Iterator[str]:
    for pid in sorted(now.children - before.children):
        holder = now.owners.find(lambda thing: _own_attributes(thing).get("pid") == pid)  # noqa: B023
        try:
            which = f"{pid}, {_read(f'/proc/{pid}/comm').strip()}"
        except OSError:
            which = str(pid)
        yield f"{_named('child process', holder)} ({which})"


def _shared_mappings() -> dict[str, str]:
    """Only writable ones: read-only mappings are of files, the same for all processes."""
    found = {}
    for line in _maps():
        if "s " not in line:
            continue  # A quick test, since there may be thousands of lines.
        address, access, _, device, inode, *path = line.split(None, 5)
        if access[1] == "w" and access[3] == "s":
            found[f"{address} {device} {inode}"] = path[0] if path else ""
    return found


def _judge_mappings(before: Holdings, now: Holdings) -> Iterator[str]:
    for key in now.mappings.keys() - before.mappings.keys():
        path = now.mappings[key]
        is_lock = "/sem." in path
        type_name = "SemLock" if is_lock else "mmap"
        holder = now.owners.find(lambda thing: type(thing).__name__ == type_name)  # noqa: B023
        yield f"{_named('semaphore' if is_lock else 'shared mapping', holder)} ({path})"


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


def _finalizers() -> Iterator[Any]:
    registry: Mapping[Any, Any] = getattr(weakref.finalize, "_registry", {})
    for finalizer in list(registry):
        if finalizer.alive and finalizer.atexit:
            yield finalizer


def _judge_finalizers(before: Holdings, now: Holdings) -> Iterator[str]:
    for finalizer in now.finalizers - before.finalizers:
        thing, function, *_ = finalizer.peek() or (None, None)
        holder = now.owners.find(lambda other: other is thing)  # noqa: B023
        if thing is None or (holder is not None and not is_own(holder.module)):
            continue  # A library keeps it for its own housekeeping.
        if getattr(function, "__module__", "").partition(".")[0] in _FREE_MEMORY_ONLY:
            continue
        what = f"{type(thing).__name__} {holder or ''}".rstrip()
        name = getattr(function, "__qualname__", repr(function))
        yield f"the {what}, which has something to do at the end of the process ({name})"


# --- random numbers -----------------------------------------------------------------------------


def _generators(owners: Owners) -> dict[int, object]:
    found = {id(thing): thing for thing in owners.instances(_kinds_of_generators())}
    inner = [getattr(thing, "_bit_generator", None) for thing in found.values()]
    for thing in (getattr(random, "_inst", None), *random_streams.renewed(), *inner):
        found.pop(id(thing), None)
    return found


def _kinds_of_generators() -> set[type]:
    kinds = _with_subclasses(random.Random) - _with_subclasses(random.SystemRandom)
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


def _judge_generators(before: Holdings, now: Holdings) -> Iterator[str]:
    for number, thing in now.generators.items():
        if number not in before.generators:
            holder = now.owners.find(lambda other: other is thing)  # noqa: B023
            yield f"{_named('random generator', holder)} ({type(thing).__name__})"
    for module in sorted(now.touched - before.touched):
        yield f"the random generator of {module}, which has been seeded or drawn from"


# --- what only its library knows ----------------------------------------------------------------

_UNSEEN: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "numba.np.ufunc.parallel": (
        lambda module: module._is_initialized,
        "numba's threading layer, which has been started",
    ),
    "torch.cuda": (lambda module: module.is_initialized(), "CUDA, which torch has initialized"),
}
"""Modules, and whether each has begun something that neither threads nor descriptors show."""


def _judge_unseen(_before: Holdings, _now: Holdings) -> Iterator[str]:
    for name, (has_begun, phrase) in _UNSEEN.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        with contextlib.suppress(Exception):  # The library has another version.
            if has_begun(module):
                yield phrase


# --- what the system tells ----------------------------------------------------------------------


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(65536), b"")).decode("utf-8", "replace")


def _maps() -> list[str]:
    return _read("/proc/self/maps").splitlines()


def _libraries() -> set[str]:
    """The files whose code this process may run."""
    return {line.split(None, 5)[5] for line in _maps() if "xp " in line and "/" in line}


_JUDGES = (
    *(_judge_threads, _judge_descriptors, _judge_children, _judge_mappings, _judge_timers),
    *(_judge_finalizers, _judge_generators, _judge_unseen),
)


# --- what preload may not leave -----------------------------------------------------------------


def left_running(before: Holdings) -> list[str]:
    """Of all that, the threads, children, connections and files: no program can mean to share
    them. For ``preload``, whose modules are shared on purpose, generators and others included."""
    if not TELLS:
        own = threading.current_thread()
        return [_say_thread(thread) for thread in threading.enumerate() if thread is not own]

    def judged() -> list[str]:
        now = Holdings.now()
        # A mapping of a file keeps a descriptor, but no process reads by that.
        mapped = {line.split(None, 5)[-1] for line in _maps()}
        kept = {fd: to for fd, to in now.descriptors.items() if to[0] not in mapped}
        now = now._replace(descriptors=kept)
        return [phrase for judge in _RUNNING for phrase in judge(before, now)]

    return list(dict.fromkeys(_still_found(judged)))


_RUNNING = (_judge_threads, _judge_descriptors, _judge_children)
