"""A joblib backend named ``"prefork"``: joblib's parallel loops, on `PreforkExecutor`.

    import joblib, prefork_executor.integrations.joblib

    with joblib.parallel_config(backend="prefork", n_jobs=-1):
        ...

joblib looks for no entry points, so the name is known once this module is imported.

The life of the pool
--------------------
It is the shared pool of the program (`prefork_executor.shared_executor`), so joblib and others
that use that have one pool. A call names its ``n_jobs`` and options. If the pool has others, it
is replaced, and the old one ends with the last call that uses it. What joblib wants by default is
only asked of a pool for which nobody has named something else. What an earlier call has named
does not hold for later ones. :func:`shutdown` ends the pool.

Each ``Parallel`` gets a backend object of its own, even if many share that of a
``parallel_config``. So when a call fails, or its generator is dropped, only its own
tasks are ended, each with its worker. Other calls on the same executor go on.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from .. import ExecutorView, PreforkExecutor, shared
from ._extras import needed
from ._shared_arguments import SharedArguments

with needed("joblib", "joblib"):
    import joblib
    from joblib.parallel import (
        DEFAULT_MP_CONTEXT,
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
        register_parallel_backend,
    )

__all__ = ["PreforkBackend", "shutdown"]

IDLE_TIMEOUT = 300.0
"""Seconds after which an idle worker leaves by default, as in joblib. Users think between two
calls, and workers may have taken seconds to import what the user needs."""

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(PreforkExecutor).parameters.items()
}
_OPTIONS = _DEFAULTS.keys() - {"max_workers"}
_OF_JOBLIB = {"temp_folder", "verbose", "context"}
"""What joblib passes to every backend beside the user's options. This one does not need it."""


class PreforkBackend(AutoBatchingMixin, ParallelBackendBase):
    """joblib's backend on `PreforkExecutor`. joblib makes it for ``backend="prefork"``.

    Args:
        nesting_level: how deep this is in parallel loops; set by joblib.
        inner_max_num_threads: threads that BLAS and OpenMP may use in a worker. None:
            the number of CPUs divided by that of workers, or what the environment says.
        options: those of :class:`~prefork_executor.PreforkExecutor`, by name, except
            ``max_workers``, which is ``n_jobs``. Four defaults differ:
            ``mp_context="spawn"``, as OpenMP does not survive a fork;
            ``min_spare_workers=0``; ``idle_timeout=300.0``; ``preload="joblib"``.

    Raises:
        TypeError: there is no such option.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        _check(options)
        self._options = options
        self._is_of_one = False
        self._workers: PreforkExecutor | ExecutorView | None = None
        self._lock = threading.Lock()
        self._futures: set[Future[Any]] = set()
        self._is_aborted = False
        self._environment: Mapping[str, str] = {}
        self._sharing: tuple[int | None, str | None] = (None, None)
        self._shared = SharedArguments(None, None)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers ``n_jobs`` means. -1: the CPUs that this process may use.

        Raises:
            ValueError: it is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or n_jobs == 1:
            return 1
        if (obstacle := _obstacle()) is not None:
            warnings.warn(
                f"prefork-backed parallel loops cannot be nested in {obstacle}: setting n_jobs=1",
                stacklevel=3,
            )
            return 1
        return n_jobs if n_jobs > 0 else max(int(joblib.cpu_count()) + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        max_nbytes: int | None = None,
        mmap_mode: str | None = None,
        **options: Any,
    ) -> int:
        """Get ready for the calls of one ``Parallel``. Returns the number of workers.

        Raises:
            FallbackToBackend: joblib's way to ask for another backend. This asks for a
                serial one for one worker, and for a separate one for each ``Parallel``.
            TypeError, ValueError: a bad option.
        """
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if not self._is_of_one:
            raise FallbackToBackend(self._of_its_own())
        options = {name: value for name, value in options.items() if name not in _OF_JOBLIB}
        _check(options)
        self._environment = self._prepare_worker_env(n_jobs=n_jobs)
        self._workers = _pool.take(n_jobs, self._options | options)
        self._sharing = (max_nbytes, mmap_mode)
        self.parallel = parallel
        return n_jobs

    def _of_its_own(self) -> PreforkBackend:
        backend = PreforkBackend(self.nesting_level, self.inner_max_num_threads, **self._options)
        backend._is_of_one = True
        return backend

    def start_call(self) -> None:
        """A call begins. If an earlier one was aborted, that no longer matters."""
        self._is_aborted = False
        self._shared = SharedArguments(*self._sharing)

    def stop_call(self) -> None:
        """The call has ended, and its tasks no longer need their shared arguments."""
        self._shared.close()

    def submit(
        self, func: Any, callback: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Run a batch of tasks in the pool, and call ``callback(future)`` when it is done.

        Raises nothing: joblib may call this in a thread where an exception would be lost,
        and the call would wait for ever. The future gets any error instead.
        """
        future = self._submit(func)
        with self._lock:
            self._futures.add(future)
            is_late = self._is_aborted
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        if is_late:
            self._give_up([future])
        return future

    def _submit(self, func: Any) -> Future[Any]:
        try:
            if self._workers is None:
                raise RuntimeError("this batch is late: its Parallel call has ended")
            # The batch's name in messages.
            func.__module__, func.__qualname__ = _name_of(func.items[0][0])
            func.items = self._shared.share_in(func.items)
            return self._workers.submit(_Batch(self._environment, func))
        except Exception as error:  # noqa: BLE001 - the future gets it, whatever it is
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What a batch has returned. Raises what it raised."""
        error = out.exception()
        if error is None:
            return out.result()
        # joblib removes the traceback before it raises this.
        frames = "".join(traceback.format_tb(error.__traceback__))
        if frames:
            error.add_note(f"\nIn the worker:\n{frames.rstrip()}")
        raise error

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End this ``Parallel``'s tasks. Running tasks end with their workers. Does not wait.

        Args:
            ensure_ready: ignored, as the executor is always left ready.
        """
        with self._lock:
            self._is_aborted = True
            futures = list(self._futures)
        # Without the lock: this calls joblib back, which has locks of its own.
        self._give_up(futures)

    def _give_up(self, futures: list[Future[Any]]) -> None:
        workers = self._workers
        for future in futures:
            if not future.cancel() and workers is not None and not future.done():
                workers.abort(future)

    def terminate(self) -> None:
        """The ``Parallel`` has finished with the workers. They stay for the next one."""
        self._workers = None
        self.reset_batch_stats()


def shutdown(wait: bool = True) -> None:
    """End the shared pool when its work is done: see :func:`prefork_executor.shared.shutdown`.

    The next call starts another. If you do not call this, it ends with the interpreter.

    Args:
        wait: return only when all its processes have ended.
    """
    shared.shutdown(wait)


def _obstacle() -> str | None:
    """Why this process cannot start others. None if it can."""
    if multiprocessing.current_process().daemon:
        return "a daemonic process, which may have no children"
    method = multiprocessing.get_start_method(allow_none=True)
    if method is not None and method not in multiprocessing.get_all_start_methods():
        return f"a worker of {method}, whose start method Python's own cannot hand on"
    return None


def _name_of(function: Any) -> tuple[str | None, str]:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return getattr(function, "__module__", None), name


# --- the pool ----------------------------------------------------------------------------------


class _SharedPool:
    """Asks for the shared pool with what the calls of joblib want of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._named: dict[str, Any] = {}
        """What the latest call has named."""

    def take(self, n_jobs: int, options: Mapping[str, Any]) -> PreforkExecutor | ExecutorView:
        """The executor for a call with these options. The one that it replaces ends when nothing
        refers to it any more and its work is done."""
        of_tasks = {"timeout": options.get("task_timeout"), "retries": options.get("retries", 0)}
        of_pool = {name: options[name] for name in options.keys() - {"task_timeout", "retries"}}
        with self._lock:
            wanted = self._wanted(of_pool)
            pool = shared.shared_executor(**wanted, max_workers=n_jobs).executor
            named = shared.shared_options()
            self._named = {name: named[name] for name in wanted}
        return pool.with_options(**of_tasks) if any(of_tasks.values()) else pool

    def _wanted(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What to name: these options; what joblib wants, unless others have named that; and
        what an earlier call has named, to undo it."""
        named = shared.shared_options()
        earlier = [name for name, value in self._named.items() if named.get(name) is value]
        of_others = named.keys() - set(earlier)
        undone = {name: _DEFAULTS[name] for name in earlier}
        defaults = {name: value for name, value in _of_calls().items() if name not in of_others}
        return {**undone, **defaults, **options}


_pool = _SharedPool()


def _of_calls() -> dict[str, Any]:
    """The defaults of joblib's calls that differ from the executor's."""
    return {
        "mp_context": DEFAULT_MP_CONTEXT or "spawn",
        "min_spare_workers": 0,
        "idle_timeout": IDLE_TIMEOUT,
        "preload": "joblib",
    }


def _check(options: Mapping[str, Any]) -> None:
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise TypeError(
            f'joblib\'s backend "prefork" has no option {", ".join(map(repr, unknown))}; '
            f"there are {', '.join(sorted(_OPTIONS))}"
        )


# --- in the worker -----------------------------------------------------------------------------


class _Batch:
    """A batch of tasks, and the environment that it needs. Others may share its worker, so each
    batch brings its own. The worker enters it before it unpickles the tasks: that may import
    what reads it."""

    def __init__(self, environment: Mapping[str, str], tasks: Any) -> None:
        self._environment = environment
        self._tasks = tasks
        self.__module__, self.__qualname__ = tasks.__module__, tasks.__qualname__

    def __call__(self) -> Any:
        return self._tasks()

    def __reduce__(self) -> tuple[Any, ...]:
        return _tasks_of, (_Environment(self._environment), self._tasks)


class _Environment:
    """Pickles to a call of :func:`_enter`."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __reduce__(self) -> tuple[Any, ...]:
        return _enter, (dict(self._variables),)


def _tasks_of(_: object, tasks: Callable[[], Any]) -> Callable[[], Any]:
    return tasks


_entered: dict[str, str] = {}
"""The environment of the latest batch in this worker."""


def _enter(environment: dict[str, str]) -> None:
    global _entered
    if environment != _entered:
        os.environ.update(environment)
        _limit_threads(environment)
        _entered = environment


def _limit_threads(environment: Mapping[str, str]) -> None:
    """The environment limits libraries that are loaded later. Those that were loaded by the
    supervisor, which imports the user's main module, have to be told."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return  # scikit-learn installs it.
    wanted = {"openmp": "OMP_NUM_THREADS", "blas": "OPENBLAS_NUM_THREADS"}
    counts = {kind: environment.get(name, "").partition(",")[0] for kind, name in wanted.items()}
    threadpool_limits({kind: int(count) for kind, count in counts.items() if count.isdecimal()})


register_parallel_backend("prefork", PreforkBackend)
