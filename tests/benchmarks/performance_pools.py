"""One face for the pools that performance.py measures, and a thin adapter for each.

Only what a pool's own documentation offers is called. What can be prepared is prepared
outside of what is timed: the methods return what is still to be called.
"""

from __future__ import annotations

import abc
import functools
import importlib
import importlib.metadata
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from bare_socketpair import Link

WORKERS = 2
OURS = "PreforkExecutor"
FIXED = "PreforkExecutor, fixed size"
ONE_BY_ONE = "PreforkExecutor, one task a message"
OURS_BY_FORKSERVER = "PreforkExecutor (forkserver)"
OURS_BY_SPAWN = "PreforkExecutor (spawn)"
STANDARD = "ProcessPoolExecutor"
FORKSERVER = "ProcessPoolExecutor (forkserver)"
SPAWN = "ProcessPoolExecutor (spawn)"
INTERPRETERS = "InterpreterPoolExecutor"
OLD = "multiprocessing.Pool"
BARE = "bare socketpair"
POOL = "Pool"
BILLIARD = "billiard.Pool"

Thunk = Callable[[], Any]
"""All that is timed is a call of it."""


class UnsupportedError(Exception):
    """The pool has no such thing; the message says what it lacks."""


class Pool(abc.ABC):
    """A pool of so many processes, with its own defaults otherwise.

    ``options`` are for a PreforkExecutor alone; the others have no such thing.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    entry: ClassVar[str]
    """What its users import, and from where."""
    distribution: ClassVar[str | None] = None
    """None: it comes with Python."""

    @abc.abstractmethod
    def __init__(self, workers: int = WORKERS, **options: Any) -> None: ...

    @abc.abstractmethod
    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        """Schedule a call now. What waits for its result."""

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        """A call, and its result."""
        return lambda: self.submit(fn, *args)()

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        """Submit every call as a task of its own, then collect all results, in order."""
        return lambda: [get() for get in [self.submit(fn, *call) for call in calls]]

    @abc.abstractmethod
    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        """Map; collect all results, in order."""

    def listed(self, fn: Callable[[Any], Any], items: Sequence[Any], size: int | None) -> Thunk:
        """What ``Pool.map`` is there, in chunks of this size, or of one of its own."""
        raise UnsupportedError("is no Pool")

    def unordered(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        """Map; collect all results, as they come."""
        raise UnsupportedError("is no Pool")

    @abc.abstractmethod
    def close(self) -> None:
        """End the pool."""

    def live(self) -> int | None:
        """Workers now. None: their number does not change."""
        return None

    @classmethod
    def load(cls) -> None:
        """Import what a program needs of it: some packages import that only when it is named."""
        getattr(importlib.import_module(cls.module), cls.entry)

    @classmethod
    def version(cls) -> str:
        """The version measured."""
        if cls.distribution is None:
            return f"Python {platform.python_version()}"
        try:
            return importlib.metadata.version(cls.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"


class ExecutorPool(Pool):
    """What all that implement concurrent.futures.Executor have in common."""

    executor: Any

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        result: Thunk = self.executor.submit(fn, *args).result
        return result

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return lambda: self.executor.submit(fn, *args).result()

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        submit = self.executor.submit
        return lambda: [future.result() for future in [submit(fn, *call) for call in calls]]

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: list(self.executor.map(fn, items, chunksize=chunksize))

    def close(self) -> None:
        self.executor.shutdown()


class OurPool(ExecutorPool):
    """prefork_executor.PreforkExecutor."""

    name = OURS
    module = "prefork_executor"
    entry = "PreforkExecutor"
    distribution = "prefork-executor"
    start_method = "fork"

    def __init__(self, workers: int = WORKERS, **options: Any) -> None:
        from prefork_executor import PreforkExecutor

        self.executor = PreforkExecutor(workers, self.start_method, **options)

    def live(self) -> int:
        return len(self.executor.stats().workers)


class FixedPool(OurPool):
    """The same, of which no worker ever retires."""

    name = FIXED

    def __init__(self, workers: int = WORKERS, **options: Any) -> None:
        super().__init__(workers, **{**options, "min_spare_workers": workers})


class OneByOnePool(OurPool):
    """The same, without messages of several tasks."""

    name = ONE_BY_ONE

    def __init__(self, workers: int = WORKERS, **options: Any) -> None:
        from prefork_executor._client import batches

        batches.MAX_TASKS = 1
        super().__init__(workers, **options)


class OurForkserverPool(OurPool):
    """The same, with Python's default from 3.14 on."""

    name = OURS_BY_FORKSERVER
    start_method = "forkserver"


class OurSpawnPool(OurPool):
    """The same, with a supervisor that begins as a new interpreter."""

    name = OURS_BY_SPAWN
    start_method = "spawn"


class StandardPool(ExecutorPool):
    """concurrent.futures.ProcessPoolExecutor."""

    name = STANDARD
    module = "concurrent.futures.process"
    entry = "ProcessPoolExecutor"
    start_method = "fork"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        from concurrent.futures import ProcessPoolExecutor

        context = multiprocessing.get_context(self.start_method)
        self.executor = ProcessPoolExecutor(workers, context)


class ForkserverPool(StandardPool):
    """The same, with what is the default from Python 3.14 on."""

    name = FORKSERVER
    start_method = "forkserver"


class SpawnPool(StandardPool):
    """The same, each worker a new interpreter."""

    name = SPAWN
    start_method = "spawn"


class InterpreterPool(ExecutorPool):
    """concurrent.futures.InterpreterPoolExecutor: interpreters in threads of one process."""

    name = INTERPRETERS
    module = "concurrent.futures.interpreter"
    entry = "InterpreterPoolExecutor"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        from concurrent.futures import InterpreterPoolExecutor

        # A new interpreter has not what this one's sys.path was given meanwhile.
        search = f"import sys; sys.path[:] = {sys.path!r}"
        self.executor = InterpreterPoolExecutor(workers, initializer=exec, initargs=(search,))


class OldPool(Pool):
    """multiprocessing.Pool."""

    name = OLD
    module = "multiprocessing.pool"
    entry = "Pool"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return self.pool.apply_async(fn, args).get

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return lambda: self.pool.apply(fn, args)

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        apply_async = self.pool.apply_async
        return lambda: [result.get() for result in [apply_async(fn, call) for call in calls]]

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: list(self.pool.imap(fn, items, chunksize))

    def listed(self, fn: Callable[[Any], Any], items: Sequence[Any], size: int | None) -> Thunk:
        return lambda: self.pool.map(fn, items, size)

    def unordered(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: list(self.pool.imap_unordered(fn, items, chunksize))

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class PreforkPool(OldPool):
    """prefork_executor.Pool."""

    name = POOL
    module = "prefork_executor.pool"
    distribution = "prefork-executor"

    def __init__(self, workers: int = WORKERS, **options: Any) -> None:
        from prefork_executor import Pool

        self.pool = Pool(workers, context="fork", **options)


class BilliardPool(OldPool):
    """billiard.Pool, which Celery uses."""

    name = BILLIARD
    module = "billiard"
    distribution = "billiard"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        import billiard

        self.pool = billiard.Pool(workers)


class LokyPool(ExecutorPool):
    """loky: what get_reusable_executor hands out, without the one for all that it keeps."""

    name = "loky"
    module = "loky"
    entry = "ProcessPoolExecutor"
    distribution = "loky"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        import loky

        self.executor = loky.ProcessPoolExecutor(workers)


class PebblePool(Pool):
    """pebble.ProcessPool."""

    name = "pebble"
    module = "pebble"
    entry = "ProcessPool"
    distribution = "pebble"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        import pebble

        self.pool = pebble.ProcessPool(workers, context=multiprocessing.get_context("fork"))

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        result: Thunk = self.pool.schedule(fn, args=args).result
        return result

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: list(self.pool.map(fn, items, chunksize=chunksize).result())

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class MpirePool(Pool):
    """mpire.WorkerPool."""

    name = "mpire"
    module = "mpire"
    entry = "WorkerPool"
    distribution = "mpire"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        from mpire import WorkerPool

        self.pool = WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        result: Thunk = self.pool.apply_async(fn, args).get
        return result

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return lambda: self.pool.apply(fn, args)

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: self.pool.map(fn, items, chunk_size=chunksize)

    def listed(self, fn: Callable[[Any], Any], items: Sequence[Any], size: int | None) -> Thunk:
        return lambda: self.pool.map(fn, items, chunk_size=size)

    def unordered(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        return lambda: list(self.pool.imap_unordered(fn, items, chunk_size=chunksize))

    def close(self) -> None:
        self.pool.terminate()


class DeadpoolPool(ExecutorPool):
    """deadpool.Deadpool, which starts its workers by forkserver."""

    name = "deadpool"
    module = "deadpool"
    entry = "Deadpool"
    distribution = "deadpool-executor"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        from deadpool import Deadpool

        self.executor = Deadpool(max_workers=workers)

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        if chunksize > 1:
            raise UnsupportedError("has no chunks")
        return super().mapped(fn, items, chunksize)


class JoblibPool(Pool):
    """joblib.Parallel, over its default backend, which is loky. It maps and no more."""

    name = "joblib"
    module = "joblib"
    entry = "Parallel"
    distribution = "joblib"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        from joblib import Parallel, delayed

        self._parallel = functools.partial(Parallel, n_jobs=workers)
        self._delayed = delayed

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        raise UnsupportedError("has no submit")

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        call = self._delayed(fn)(*args)
        return lambda: self._parallel()([call])[0]

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        raise UnsupportedError("has no submit")

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        delayed = self._delayed(fn)
        return lambda: self._parallel(batch_size=chunksize)(delayed(item) for item in items)

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)


class BareSocketpair(Pool):
    """No pool at all: the same pickles over and back between two processes. The limit of
    what any pool could do that sends each task by itself."""

    name = BARE
    module = "socket"
    entry = "socketpair"

    def __init__(self, workers: int = WORKERS, **_: Any) -> None:
        self._links: dict[Any, Link] = {}

    def _link(self, key: object, call: tuple[Any, ...]) -> Link:
        """The calls of one function are taken for alike."""
        if key not in self._links:
            self._links[key] = Link(call)
        return self._links[key]

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        raise UnsupportedError("is no pool")

    def one(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return self._link(fn, (fn, args, {})).exchange

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        link = self._link(fn, (fn, calls[0], {}))
        return lambda: link.exchange_many(len(calls))

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        if chunksize == 1:
            return self.many(fn, [(item,) for item in items])
        chunk = [(item,) for item in items[:chunksize]]
        link = self._link((fn, chunksize), (_each, (fn, chunk), {}))
        return lambda: link.exchange_many(-(-len(items) // chunksize))

    def close(self) -> None:
        # The latest first: its process holds the ends of those before it.
        for link in reversed(self._links.values()):
            link.close()


def _each(fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [fn(*call) for call in calls]


HAS_INTERPRETERS = sys.version_info >= (3, 14)

POOLS: dict[str, type[Pool]] = {
    pool.name: pool
    for pool in (
        *(OurPool, StandardPool, ForkserverPool),
        *([InterpreterPool] if HAS_INTERPRETERS else []),
        *(OldPool, LokyPool, PebblePool, MpirePool, PreforkPool, BilliardPool),
        *(DeadpoolPool, JoblibPool, BareSocketpair, FixedPool, OneByOnePool),
        *(OurForkserverPool, OurSpawnPool, SpawnPool),
    )
}
NO_PEERS = (OURS, POOL, FIXED, ONE_BY_ONE, BARE, OURS_BY_FORKSERVER, OURS_BY_SPAWN)
"""These are not what we measure ourselves against."""
_FOR_SOME = (FIXED, ONE_BY_ONE, POOL, BILLIARD, OURS_BY_FORKSERVER, OURS_BY_SPAWN, SPAWN)
GENERAL = tuple(name for name in POOLS if name not in _FOR_SOME)
