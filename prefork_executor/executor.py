"""`PreforkExecutor`: concurrent.futures.Executor over a self-regulating prefork pool."""

from __future__ import annotations

import enum
import os
import signal
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from ._client.process_pool import ProcessPool
from ._server import contexts
from ._server.settings import Settings, TaskOptions
from ._support.arguments import (
    check_callable,
    check_count,
    check_function,
    check_iterable,
    check_order,
    check_seconds,
    has_future,
)
from .maps import Maps, cancel_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, ParamSpec, TypeVar, overload

    from ._client.backpressure import RoomCall
    from ._client.client import Client
    from ._server.contexts import Context
    from .recording import Recording
    from .stats import ExecutorStats

    P = ParamSpec("P")
    A = TypeVar("A")
    B = TypeVar("B")
    C = TypeVar("C")
    T = TypeVar("T")
    M = TypeVar("M")

__all__ = ["ExecutorView", "PreforkExecutor"]

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

    if TYPE_CHECKING:  # Up to three positional arguments may be futures of what is taken.

        @overload
        def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
        @overload
        def submit(self, fn: Callable[[A], T], one: A | Future[A], /) -> Future[T]: ...
        @overload
        def submit(
            self, fn: Callable[[A, B], T], one: A | Future[A], two: B | Future[B], /
        ) -> Future[T]: ...
        @overload
        def submit(
            self,
            fn: Callable[[A, B, C], T],
            one: A | Future[A],
            two: B | Future[B],
            three: C | Future[C],
            /,
        ) -> Future[T]: ...

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``. Does not wait, unless as many tasks wait as
        ``max_backlog`` allows.

        The call is pickled before this returns, except for large buffers that
        pickle takes out of band, NumPy arrays of over 32 KiB above all: those are
        copied when the task is sent.

        If a future is among the arguments, the call begins when that future is done, with its
        result. If that future fails, or is cancelled, so does the call's, and the call never
        begins. It is then pickled when all futures are done.

        Returns:
            The call's future. Its exception is what the call raised, with its remote
            traceback; ``pickle.PicklingError``, if the call or its result cannot be pickled;
            :class:`~prefork_executor.WorkerDied`, if its worker died while it held this task;
            :class:`~prefork_executor.TaskTimeout`, if it ran for too long; or
            :class:`~prefork_executor.TaskMemoryExceeded`, if it took more than ``max_memory``
            by itself.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError: the executor was shut down, or the interpreter is ending.
            BrokenProcessPool: the pool cannot go on; the message says why.
            pickle.PicklingError: the first task starts the pool, and ``initializer``,
                ``initargs`` or ``preload`` cannot travel to it.
        """
        check_function("fn", fn)
        if has_future(args, kwargs):
            return self._client.submit_after(fn, args, kwargs, self._task_options)
        return self._client.submit(fn, args, kwargs, self._task_options)

    def submit_nowait(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As :meth:`submit`, but never waits.

        Raises:
            BacklogFull: as many tasks wait as ``max_backlog`` allows. The call is not accepted.
            TypeError, RuntimeError, BrokenProcessPool, pickle.PicklingError: as :meth:`submit`.
        """
        check_function("fn", fn)
        if has_future(args, kwargs):
            return self._client.submit_after(fn, args, kwargs, self._task_options)
        return self._client.submit(fn, args, kwargs, self._task_options, waits=False)

    def _call_when_room(self, tell: Callable[[], bool]) -> RoomCall | None:
        """For bridges to event loops, after a BacklogFull. None: try again at once."""
        return self._client.call_when_room(tell)

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
        memory: int | _Keep | None = _Keep.KEEP,
        priority: int | _Keep = _Keep.KEEP,
        resources: Mapping[str, int] | _Keep | None = _Keep.KEEP,
    ) -> ExecutorView:
        """The same pool, for tasks with other options.

        Args:
            timeout: seconds that a task may run, from when it begins in a worker.
                Then it is ended, as by :meth:`PreforkExecutor.abort`, and its future
                gets :class:`~prefork_executor.TaskTimeout`. None: no limit.
            retries: how often a task is run again after its worker has died or its
                time was up. Earlier runs may then have done part of its work.
            memory: bytes that a task adds to its worker at most, where the executor has
                ``max_memory``: it begins only when so much is free. None: what its
                function's tasks have added so far.
            priority: of the tasks that wait, those with the highest priority begin first. 0 is
                that of all others. One in ten tasks that begin is the one that has waited
                longest, so nothing starves. See docs/priorities.md.
            resources: how many units a task needs of what the executor has, for example
                ``{"gpu": 1}``. It begins when they are free, and
                :func:`~prefork_executor.held_resources` says which units are its own. See
                docs/places.md. None: no unit.

        Returns:
            A view with the same ``submit``, ``map`` and ``starmap``. Options that are not
            given are as here.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
        """
        from ._client.options import task_options

        kept = self._task_options
        options = task_options(
            self._client.settings,
            kept.timeout if timeout is _Keep.KEEP else timeout,
            kept.retries if retries is _Keep.KEEP else retries,
            kept.memory if memory is _Keep.KEEP else memory,
            kept.priority if priority is _Keep.KEEP else priority,
            kept.resources if resources is _Keep.KEEP else resources,
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

    def __repr__(self) -> str:
        return f"<ExecutorView {self._task_options.described()} of {self._executor!r}>"

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
            retires. None: never. ``"auto"``: after as long as its start and its work are
            worth, from half a second to ten minutes; see docs/regulation.md.
        max_memory_per_child: bytes of resident memory, shared pages included, above
            which a worker is replaced after the task it holds. None: no limit.
        max_memory: bytes that all workers together may take, or as a float the part of what
            the machine or the control group has. A task begins when what its function's tasks
            have taken so far is free, and one always runs. If more is taken all the same,
            nothing begins, and if that does not help, the task that began last is ended and
            run again, if ``retries`` allows for it. See docs/memory.md. None: no limit.
        max_backlog: how many tasks may wait for a worker. ``submit`` then waits until there is
            room for one more, except in callbacks and signal handlers, which the pool would
            have to wait for. None: no limit, and ``submit`` never waits.
        resources: how many units there are of what tasks need, for example ``{"gpu": 2}``; see
            :meth:`with_options`.
        cpu_affinity: the CPUs that workers run on. ``"spread"``: each on one CPU, in turn. Or a
            list of CPUs and of sets of CPUs: a worker takes the one with its
            :func:`~prefork_executor.worker_index`, and from the front again if there are more
            workers. None: all run where the caller may.
        nice: how much nicer workers are to other processes than the caller is, from 0 to 19. None
            is 0.
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
        idle_timeout: float | Literal["auto"] | None = "auto",
        max_memory_per_child: int | None = None,
        max_memory: int | float | None = None,
        max_backlog: int | None = None,
        resources: Mapping[str, int] | None = None,
        cpu_affinity: Literal["spread"] | Iterable[int | Iterable[int]] | None = None,
        nice: int | None = None,
        task_timeout: float | None = None,
        retries: int = 0,
        preload: str | Iterable[str] | Callable[[], object] | None = None,
        share_main: bool | str = "auto",
        on_yell: Callable[[int, Any], object] | None = None,
    ) -> None:
        # Not with this module: many programs import it and start no pool.
        from ._client import options
        from ._client.client import Client

        limits = options.pool_limits(
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
        bound = options.memory_bound(max_memory)
        if bound is not None and max_memory_per_child is not None:
            check_order("max_memory_per_child", max_memory_per_child, "max_memory", bound)
        self._task_options = options.task_options(
            None, task_timeout, retries, timeout_name="task_timeout"
        )
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
            max_memory=bound,
            max_backlog=options.check_backlog(max_backlog),
            resources=options.executor_resources(resources),
            cpu_sets=options.cpu_sets(cpu_affinity),
            nice=options.check_nice(nice),
            preload=options.check_preload(preload),
            share_main=options.check_share_main(share_main),
        )
        self._client = Client(context, settings, on_yell)
        # dask and others read this attribute of any executor that uses processes.
        self._max_workers = limits.max_workers
        finalizer = weakref.finalize(self, self._client.abandon)
        # For the interpreter's end, the client has a better hook.
        finalizer.atexit = False

    def _owner(self) -> PreforkExecutor:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} {self._client.describe()}>"

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
