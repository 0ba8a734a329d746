"""`PreforkExecutor`: concurrent.futures.Executor over a self-regulating prefork pool."""

from __future__ import annotations

import enum
import os
import signal
import types
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from ._client.process_pool import ProcessPool
from ._server import contexts
from ._server.settings import Settings, TaskOptions
from ._support.arguments import (
    brief,
    check_callable,
    check_count,
    check_function,
    check_int,
    check_iterable,
    check_order,
    check_seconds,
    time_limit,
)
from ._system import machine
from .maps import Maps, cancel_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from ._client.client import Client
    from ._pool.regulator import Limits
    from ._server.contexts import Context
    from .recording import Recording
    from .stats import ExecutorStats

    T = TypeVar("T")
    M = TypeVar("M")

__all__ = ["ExecutorView", "PreforkExecutor"]

MAX_WORKERS = 4096
"""Workers at most. Beyond this number, the default limits of every system interfere."""
_INTERRUPTED = "the program was interrupted"
_ENDED_BY = "the workers were ended at the caller's request: {}_workers() was called"


class _Keep(enum.Enum):
    """Marks an option that was not given."""

    KEEP = enum.auto()


class _Submitter(Maps, ProcessPool):  # type: ignore[misc, override]
    """What an executor and its views share: ``submit`` and the maps, with task options."""

    _client: Client
    _task_options: TaskOptions

    def _owner(self) -> PreforkExecutor:
        """The executor itself."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``. Never blocks.

        The call is pickled before this returns, except for large buffers that
        pickle takes out of band, NumPy arrays of over 32 KiB above all: those are
        copied when the task is sent.

        Returns:
            The call's future. Its exception is what the call raised, with its remote
            traceback; ``pickle.PicklingError``, if the call or its result cannot be pickled;
            :class:`~prefork_executor.WorkerDied`, if its worker died while it held this task;
            or :class:`~prefork_executor.TaskTimeout`, if it ran for too long.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError: the executor was shut down, or the interpreter is ending.
            BrokenProcessPool: the pool cannot go on; the message says why.
            pickle.PicklingError: the first task starts the pool, and ``initializer``,
                ``initargs`` or ``preload`` cannot travel to it.
        """
        check_function("fn", fn)
        return self._client.submit(fn, args, kwargs, self._task_options)

    def submit_all(self, calls: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
        if self._has_another_submit():
            return super().submit_all(calls)
        futures: list[Future[Any]] = []
        try:
            self._client.submit_all(calls, self._task_options, futures)
        except BaseException:
            cancel_all(futures)
            raise
        return futures

    def _has_another_submit(self) -> bool:
        """Whether a subclass or the program has replaced this ``submit``, as progress bars do
        to be told of every task. Then the maps submit by the replacement."""
        return "submit" in vars(self) or type(self).submit is not _Submitter.submit

    def _submitter(self) -> Callable[[], Callable[..., Future[Any]] | None]:
        if self._has_another_submit():
            submitter = weakref.ref(self)
            return lambda: getattr(submitter(), "submit", None)
        client, options, owner = self._client, self._task_options, weakref.ref(self._owner())

        def submit(fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
            return client.submit(fn, args, {}, options)

        return lambda: None if owner() is None else submit

    def abort(self, future: Future[Any]) -> bool:
        """End a task, whether it runs or waits. Does not wait for its end.

        A task that has not begun never will. A running task is ended with its worker: by
        SIGTERM, and if it has not ended after three seconds, by SIGKILL. When it has ended,
        its future gets :class:`~prefork_executor.TaskAborted`, unless its result came first.
        It is not retried. No other task is affected.

        Args:
            future: what :meth:`submit` of the executor or of one of its views has returned.

        Returns:
            Whether there was something to abort. False if the task had already ended.

        Raises:
            TypeError: ``future`` is no future.
            ValueError: it belongs to another executor.
        """
        return self._client.abort(future)

    def add_yell_hook(self, kind: type[M], hook: Callable[[int, M], object]) -> None:
        """Send yells of exactly this type to a hook of their own, and not to ``on_yell``. For
        libraries that send messages of their own beside the user's.

        Args:
            kind: the type, without its subclasses. A later hook for it replaces this one.
            hook: called as ``hook(pid, data)``, as ``on_yell`` is.

        Raises:
            TypeError: ``kind`` is no class, or ``hook`` cannot be called.
        """
        if not isinstance(kind, type):
            raise TypeError(f"kind must be a class, not {type(kind).__name__}")
        check_function("hook", hook)
        self._client.add_yell_hook(kind, hook)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> bool | None:
        """Shut down, and wait until all tasks are done. After Ctrl-C, end the tasks instead: a
        user who interrupts a program does not want to wait for them."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._client.end(_INTERRUPTED)
        return super().__exit__(kind, error, traceback)

    def with_options(
        self,
        *,
        timeout: float | _Keep | None = _Keep.KEEP,
        retries: int | _Keep = _Keep.KEEP,
    ) -> ExecutorView:
        """The same pool, for tasks with other options.

        Args:
            timeout: seconds that a task may run, from when it begins in a worker.
                Then it is ended, as by :meth:`PreforkExecutor.abort`, and its future
                gets :class:`~prefork_executor.TaskTimeout`. None: no limit.
            retries: how often a task is run again after its worker has died or its
                time was up. Earlier runs may then have done part of its work.

        Returns:
            A view with the same ``submit``, ``map`` and ``starmap``. Options that are not
            given are as here.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
        """
        kept = self._task_options
        options = _make_options(
            "timeout",
            kept.timeout if timeout is _Keep.KEEP else timeout,
            kept.retries if retries is _Keep.KEEP else retries,
        )
        return ExecutorView(self._owner(), options)


class ExecutorView(_Submitter):
    """A :class:`PreforkExecutor` for tasks with options of their own. Made by
    :meth:`PreforkExecutor.with_options`. Any number may be in use at a time."""

    def __init__(self, executor: PreforkExecutor, options: TaskOptions) -> None:
        self._executor = executor
        self._client = executor._client
        self._max_workers = executor._max_workers
        self._task_options = options

    def _owner(self) -> PreforkExecutor:
        return self._executor

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down the executor itself: see :meth:`PreforkExecutor.shutdown`."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


class PreforkExecutor(_Submitter):
    """Runs calls in a pool of processes that grows and shrinks with the work.

    A drop-in for ProcessPoolExecutor. The pool starts small, grows when tasks
    wait, keeps ``min_spare_workers`` idle workers ready if there is room, and
    lets idle workers leave. A worker's death costs only the task it held.

    The first task starts a supervisor process, by ``mp_context``. The supervisor
    forks all workers, so the caller's process may have threads. Before that,
    nothing is started.

    Args:
        max_workers: workers at most, including those that are leaving. None: as many as
            the CPUs that this process may use (affinity and cgroup quota), at least 1.
        mp_context: how the supervisor starts: ``"fork"``, ``"forkserver"``,
            ``"spawn"``, a multiprocessing context, or one of a similar package
            (``multiprocess``, ``billiard``, ``loky``). None: Python's default.
        initializer: called as ``initializer(*initargs)`` in every new worker.
            If it raises, the pool is broken, and reports the error.
        initargs: its arguments. They may contain locks and queues of the context.
        finalizer: called as ``finalizer(*finalargs)`` in every worker that leaves in order,
            before its atexit functions: because it was idle, was recycled or reloaded, or the
            executor was shut down. Not called in a worker that is killed or whose
            initializer failed. What it raises is logged. See docs/limits.md.
        finalargs: its arguments, as ``initargs``.
        max_tasks_per_child: tasks after which a worker is replaced, under every
            start method. None: never.
        min_spare_workers: idle workers kept ready if there is room.
        max_spare_workers: idle workers above this retire at once. None: as many
            as ``max_workers``.
        start_workers: workers started with the pool. None: ``min_spare_workers``.
        idle_timeout: seconds after which an idle worker above ``min_spare_workers``
            retires. None: never.
        max_memory_per_child: bytes of resident memory, shared pages included, above
            which a worker is replaced after the task it holds. None: no limit.
        task_timeout: seconds that a task may run before it is ended; see
            :meth:`with_options`. None: no limit.
        retries: how often a task is run again after its worker has died or its time
            was up; see :meth:`with_options`.
        preload: module names to import, or a callable to call, once, before workers are
            forked, so that all of them share its memory. If it leaves something behind that
            cannot be shared (a thread, a connection, an open file), the pool is broken.
        share_main: under spawn and forkserver, whether workers share one import of the main
            module. ``"auto"``: they do if it leaves nothing behind that cannot be shared;
            if not, :meth:`stats` says why. True: always. False: never.
        on_yell: called as ``on_yell(pid, data)`` in a thread of the caller's
            process for what tasks send by :func:`prefork_executor.yell`, in
            order, before the task's own result. What it raises is logged.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a number out of range, or limits that contradict each other.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Context | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        finalizer: Callable[..., object] | None = None,
        finalargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        min_spare_workers: int = 1,
        max_spare_workers: int | None = None,
        start_workers: int | None = None,
        idle_timeout: float | None = 10.0,
        max_memory_per_child: int | None = None,
        task_timeout: float | None = None,
        retries: int = 0,
        preload: str | Iterable[str] | Callable[[], object] | None = None,
        share_main: bool | str = "auto",
        on_yell: Callable[[int, Any], object] | None = None,
    ) -> None:
        # Not with this module: many programs import it and start no pool.
        from ._client.client import Client

        limits = _limits(
            max_workers, min_spare_workers, max_spare_workers, start_workers, idle_timeout
        )
        context = contexts.find_context(mp_context)
        check_callable("initializer", initializer)
        check_callable("finalizer", finalizer)
        check_callable("on_yell", on_yell)
        if max_tasks_per_child is not None:
            check_count("max_tasks_per_child", max_tasks_per_child, minimum=1, takes_bool=True)
        if max_memory_per_child is not None:
            check_count("max_memory_per_child", max_memory_per_child, minimum=1)
        self._task_options = _make_options("task_timeout", task_timeout, retries)
        settings = Settings(
            is_forked=context.get_start_method() == "fork",
            context=context,
            limits=limits,
            initializer=initializer,
            initargs=tuple(check_iterable("initargs", initargs)),
            finalizer=finalizer,
            finalargs=tuple(check_iterable("finalargs", finalargs)),
            max_tasks_per_child=max_tasks_per_child,
            max_memory_per_child=max_memory_per_child,
            preload=_preload(preload),
            share_main=_share_main(share_main),
        )
        self._client = Client(context, settings, on_yell)
        # dask and others read this attribute of any executor that uses processes.
        self._max_workers = limits.max_workers
        finalizer = weakref.finalize(self, self._client.abandon)
        # For the interpreter's end, the client has a better hook.
        finalizer.atexit = False

    def _owner(self) -> PreforkExecutor:
        return self

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, finish those there are, and end every process.

        Args:
            wait: return only when all of that is done.
            cancel_futures: cancel the tasks that have not been sent to a worker.
        """
        self._client.shutdown(wait=wait, cancel=cancel_futures)

    def start(self) -> None:
        """Start the pool now, instead of with the first task. Does not wait for its workers.

        Raises:
            What the first ``submit`` would.
        """
        self._client.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait, after :meth:`shutdown`, until every process of the pool has ended.

        Args:
            timeout: seconds to wait at most. None: no limit.

        Returns:
            Whether they have. Returns at once if called from a callback in the
            executor's own thread.

        Raises:
            TypeError, ValueError: ``timeout`` is no time.
            RuntimeError: the executor was not shut down.
        """
        return self._client.join(check_seconds("timeout", timeout))

    def terminate_workers(self) -> None:
        """End every worker by SIGTERM. Does not wait.

        Tasks not yet sent to a worker are cancelled. The futures of all others get
        BrokenProcessPool at once, even if their workers survive the signal. They are
        not retried. A worker that does not end gets SIGKILL ten seconds later.

        As in Python 3.14, but the executor can still be used: new workers take what
        is submitted after this.
        """
        self._client.end_workers(signal.SIGTERM, _ENDED_BY.format("terminate"))

    def kill_workers(self) -> None:
        """End every worker by SIGKILL. Does not wait.

        As :meth:`terminate_workers`, but no worker can clean up or go on.
        """
        self._client.end_workers(signal.SIGKILL, _ENDED_BY.format("kill"))

    def reload(self) -> Future[None]:
        """Replace every worker, new ones first, and lose no task. Does not wait.

        As many new workers start as ``max_workers`` has room for, at least one. When they
        serve, the old ones leave, each after the task it holds. If a new one cannot
        start, the old ones that have not left stay. With ``max_workers=1`` the old one has to
        make room first, so none stays. What ``preload`` has loaded is not loaded again.

        Returns:
            A future that is done when the last old worker has ended, or gets
            :class:`~prefork_executor.ReloadFailed`.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenProcessPool: the pool cannot go on.
        """
        return self._client.reload()

    def add_initializer(self, fn: Callable[..., object], /, *args: Any) -> None:
        """Have every new worker call ``fn(*args)``, before the ``initializer`` that the
        constructor was given. For libraries that need a setup of their own.

        Args:
            fn: if it raises, the pool is broken, as by ``initializer``.
            args: as ``initargs``, but without locks and queues: pickle has to send them.

        Raises:
            TypeError: ``fn`` cannot be called.
            RuntimeError: the executor has had its first task, or was shut down.
        """
        check_function("fn", fn)
        self._client.add_initializer(fn, args)

    def record(self, *paths: str | os.PathLike[str], max_tasks: int = 100_000) -> Recording:
        """Record what happens from now on: workers, tasks, decisions.

        Use the recording in a ``with`` statement, or close it. Otherwise it is closed when
        the executor has shut down. Closing writes the files.

        Args:
            paths: files to write. ``.json`` gives a trace in the Chrome trace format,
                which Perfetto opens. ``.html`` gives a page with the pool's size against its
                backlog. Existing files are replaced.
            max_tasks: tasks to keep, a few hundred bytes each. If there are more, the files
                have the first ones and say how many are missing. All are counted.

        Raises:
            TypeError, ValueError: no path, a path with another suffix, or a bad number.
            OSError: a path at which no file can be written.
            RuntimeError: the executor is already being recorded, or was shut down.
            BrokenProcessPool: the pool cannot go on.
        """
        # Here, because few programs record, and it imports what makes pages.
        from . import recording

        return recording.start(self._client, paths, max_tasks, self._max_workers)

    def stats(self) -> ExecutorStats:
        """A frozen snapshot of the pool: workers by state and one by one, backlog, waits, how
        tasks have ended, the latest decisions. You may call it ten times a second at full
        load. After :meth:`shutdown` it tells of the past. docs/status.md lists the fields."""
        return self._client.stats()


# --- arguments -----------------------------------------------------------------------------


def _limits(
    max_workers: int | None,
    min_spare: int,
    max_spare: int | None,
    start: int | None,
    idle_timeout: float | None,
) -> Limits:
    from ._pool.regulator import Limits

    if max_workers is None:
        max_workers = machine.available_cpus()
    _check_max_workers(max_workers)
    max_workers = int(max_workers)
    check_count("min_spare_workers", min_spare, minimum=0)
    if max_spare is None:
        max_spare = max_workers
    check_count("max_spare_workers", max_spare, minimum=0)
    if start is None:
        start = min(min_spare, max_workers)
    check_count("start_workers", start, minimum=0)
    check_order("min_spare_workers", min_spare, "max_workers", max_workers)
    check_order("min_spare_workers", min_spare, "max_spare_workers", max_spare)
    check_order("start_workers", start, "max_workers", max_workers)
    check_order("max_spare_workers", max_spare, "max_workers", max_workers)
    return Limits(
        max_workers=max_workers,
        min_spare=int(min_spare),
        max_spare=int(max_spare),
        start_workers=int(start),
        idle_timeout=_idle_timeout(idle_timeout),
    )


def _check_max_workers(max_workers: int) -> None:
    check_int("max_workers", max_workers, takes_bool=True)
    if max_workers <= 0:
        # The standard library's message, which programs may look for.
        raise ValueError("max_workers must be greater than 0")
    if max_workers > MAX_WORKERS:
        raise ValueError(f"max_workers must be at most {MAX_WORKERS}, not {brief(max_workers)}")


def _idle_timeout(value: float | None) -> float | None:
    seconds = check_seconds("idle_timeout", value)
    if seconds is not None and seconds < 0:
        raise ValueError(f"idle_timeout must be at least 0 seconds, not {seconds:g}")
    return seconds


def _make_options(timeout_name: str, timeout: float | None, retries: int) -> TaskOptions:
    timeout = time_limit(timeout_name, timeout)
    check_count("retries", retries, minimum=0)
    return TaskOptions(timeout, int(retries))


def _share_main(share_main: bool | str) -> bool | None:
    if isinstance(share_main, bool):
        return share_main
    if not isinstance(share_main, str):
        kind = type(share_main).__name__
        raise TypeError(f'share_main must be "auto", True or False, not {kind}')
    if share_main != "auto":
        raise ValueError(f'share_main must be "auto", True or False, not {share_main!r}')
    return None


def _preload(value: object) -> Callable[[], object] | tuple[str, ...]:
    if value is None:
        return ()
    if callable(value):
        return value
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise TypeError(f"preload must be module names or a callable, not {type(value).__name__}")
    names = tuple(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must hold module names, not {type(name).__name__}")
        if not name or name.startswith("."):
            raise ValueError(f"preload must hold absolute module names, not {name!r}")
    return names
