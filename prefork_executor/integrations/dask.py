"""From one machine to many, by Dask.

On one machine, Dask's collections run in a `PreforkExecutor` without this module:
``dask.config.set(scheduler=executor)``. Once this module is imported, Dask knows the program's
shared pool by name: ``dask.config.set(scheduler="prefork")``.

On a cluster, :class:`PreforkPlugin` has Dask's workers run their tasks in process pools.
:func:`connect` gives an executor over the cluster, with the interface of PreforkExecutor
and its promises:

* every future is resolved, whatever is lost: a worker's process, a node, the scheduler;
* a task runs at most once, unless its caller asked for retries;
* a task that has not begun is not lost because of other tasks.

The threads
-----------
Any thread may call ``submit``. Outcomes are handled in the thread of the Dask client's event
loop. That thread resolves the futures, so a callback must not block.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import pickle
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, ParamSpec, TypeVar

from .. import PreforkExecutor, TaskAborted, WorkerDied, shared_executor
from ..maps import Maps
from ._carried import CarriedCall, CarriedError
from ._extras import needed

with needed("dask", "dask", "distributed"):
    import dask
    from dask.base import named_schedulers, tokenize
    from dask.local import get_async
    from distributed import Client, KilledWorker
    from distributed import Future as DaskFuture

    from ._dask_nodes import (
        MARK,
        THREADS,
        Gate,
        NotAgain,
        PreforkPlugin,
        dask_setup,
        end_carried,
        run_carried,
    )

__all__ = ["DaskExecutor", "NodeDied", "PreforkPlugin", "connect", "dask_setup"]

P = ParamSpec("P")
T = TypeVar("T")

PING_INTERVAL = 1.0
"""Seconds between two checks whether the scheduler is there. A scheduler that closes in order
tells its clients, and they then wait for it to return. Nothing else would end that wait."""
PING_PATIENCE = 60.0
"""Seconds to wait for an answer. A scheduler may be busy for long, but hardly that long."""


def _get(graph: Any, keys: Any, num_workers: int | None = None, **options: Any) -> Any:
    """Dask's scheduler named "prefork": compute these keys in the shared pool, with as many tasks
    at a time as there may be workers, or ``num_workers``."""
    executor = shared_executor().executor
    return get_async(executor.submit, num_workers or executor._max_workers, graph, keys, **options)


named_schedulers.update(prefork=_get)


class NodeDied(WorkerDied):
    """The Dask worker that held this task is lost, and the task had begun there.

    Only the tasks that ran there are affected; the cluster goes on. Its ``__cause__`` is Dask's
    KilledWorker, or says that the task's result was lost.

    Attributes:
        address: the Dask worker's address, or empty if it is not known.
        pid, exitcode, signal: 0, None and None: they are not known.
    """

    def __init__(self, address: str, task: str) -> None:
        super().__init__(0, task=task)
        self.args = (address, task)
        self.address = address

    def __str__(self) -> str:
        return (
            f"Dask worker {self.address or '(unknown)'} was lost while it held task {self.task}; "
            "only tasks that ran there are affected, the cluster goes on"
        )


def connect(
    cluster: Any, *, task_timeout: float | None = None, retries: int = 0, **options: Any
) -> DaskExecutor:
    """An executor over a Dask cluster. Use it as a context manager, or shut it down.

    Args:
        cluster: the scheduler's address (``"tcp://host:8786"``), a cluster object, or a
            ``distributed.Client``, which stays open at the end.
        task_timeout: seconds that a task may run before it is ended. None: no limit.
        retries: how often a task is run again after its worker or its node has died or
            its time was up.
        options: those of :class:`~prefork_executor.PreforkExecutor`, by name, for the pools
            on the nodes. ``max_workers`` applies to each Dask worker; its default is the
            worker's number of threads. Executors with the same options share the
            pools, which live as long as Dask's workers.

    Returns:
        The executor. The same prefork_executor must be installed on every node.

    Raises:
        TypeError, ValueError: a bad argument.
        OSError: there is no scheduler at that address.
    """
    PreforkExecutor(1, task_timeout=task_timeout, retries=retries)  # Starts nothing, but checks.
    if "resources" in options:
        raise TypeError("resources are Dask's own on a cluster: start its workers with them")
    if "max_backlog" in options:
        raise TypeError("max_backlog works on one machine only: Dask's scheduler accepts all tasks")
    if isinstance(cluster, Client) and cluster.asynchronous:
        raise TypeError("cluster must not be an asynchronous Client")
    options = {"preload": CarriedCall.__module__} | options
    plugin = PreforkPlugin(f"prefork-{tokenize(options)}", **options)
    plugin.idempotent = True
    is_own = not isinstance(cluster, Client)
    client = _OwnClient(cluster, set_as_default=False) if is_own else cluster
    try:
        client.register_plugin(Gate())
        client.register_plugin(plugin)
        tasks = _Cluster(client, is_own, plugin.executor)
        return DaskExecutor(tasks, _TaskOptions(task_timeout, retries))
    except BaseException:
        if is_own:
            client.close()
        raise


class _OwnClient(Client):
    """A Client that leaves no thread behind if it cannot connect. Dask's does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            self._loop_runner.stop()
            raise


class _TaskOptions(NamedTuple):
    timeout: float | None
    retries: int
    memory: int | None = None
    priority: int = 0
    resources: dict[str, float] | None = None


class DaskExecutor(Maps, Executor):  # type: ignore[misc]
    """Runs calls on a Dask cluster, each in a process of its node's pool. Made by
    :func:`connect` and :meth:`with_options`. A scheduler costs each task about a
    millisecond, so a map should bundle short calls by ``chunksize``."""

    def __init__(self, cluster: _Cluster, options: _TaskOptions) -> None:
        self._cluster = cluster
        self._task_options = options

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._cluster.describe()}>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` somewhere on the cluster. Does not wait.

        Returns:
            The call's future. It stays pending until it is done. If it is cancelled while
            the task runs, the task runs to its end, in vain. Its exception is what the call
            raised, with its remote traceback; ``pickle.PicklingError``;
            :class:`~prefork_executor.WorkerDied`, if the process that ran it died;
            :class:`NodeDied`, if its node was lost;
            :class:`~prefork_executor.TaskTimeout`, if it ran for too long;
            or BrokenProcessPool, if the scheduler was lost.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError: the executor was shut down.
            BrokenProcessPool: the scheduler was lost.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        if any(issubclass(type(arg), Future) for arg in (*args, *kwargs.values())):
            raise TypeError(
                "a task of a cluster takes no future as an argument: wait for its result, or let "
                "Dask's own graphs pass it on"
            )
        return self._cluster.submit(fn, args, kwargs, self._task_options)

    def _submitter(self) -> Callable[[], Callable[..., Future[Any]]]:
        return lambda: self.submit

    @property
    def _max_workers(self) -> int:
        # Programs read this attribute of any executor. Here it is the number of threads of the
        # Dask workers, since each thread runs one task.
        return self._cluster.threads()

    def with_options(self, **options: Any) -> DaskExecutor:
        """The same cluster, for tasks with other options.

        Args:
            options: ``timeout``: seconds that a task may run, from when it begins in a
                worker; None: no limit. ``retries``: how often it is run again after its
                worker or node has died or its time was up. ``memory``: bytes that it adds to
                its worker at most, where the pools have ``max_memory``. ``priority``: Dask's, the
                highest first. ``resources``: what it needs of Dask's resources, which the Dask
                workers were started with, for example ``{"gpu": 1}``; the task is not told which.

        Returns:
            An executor with the same cluster. Options that are not given are as here.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
        """
        own = {name: value for name, value in options.items() if name != "resources"}
        _local().with_options(**own)
        if options.get("resources") is not None:
            own["resources"] = _dask_resources(options["resources"])
        elif "resources" in options:
            own["resources"] = None
        return DaskExecutor(self._cluster, self._task_options._replace(**own))

    def abort(self, future: Future[Any]) -> bool:
        """End a task, whether it runs or waits. Does not wait for its end.

        As :meth:`PreforkExecutor.abort <prefork_executor.PreforkExecutor.abort>`: a
        running task is ended with its process, and its future gets
        :class:`~prefork_executor.TaskAborted`.

        Args:
            future: what :meth:`submit` has returned.

        Returns:
            Whether there was something to abort. False if the task had already ended.

        Raises:
            TypeError: ``future`` is no future.
            ValueError: it belongs to another executor.
        """
        return self._cluster.abort(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, finish those there are, and leave the cluster.

        The cluster goes on, and so do the pools of its nodes.

        Args:
            wait: return only when all of that is done.
            cancel_futures: cancel all tasks. Running tasks run to their end, in vain.
        """
        self._cluster.shutdown(wait, cancel_futures)


def _dask_resources(resources: Any) -> dict[str, float]:
    """What a task needs of Dask's resources, checked. Dask counts them in floats."""
    is_mapping = isinstance(resources, Mapping)
    PreforkExecutor(1, resources=dict.fromkeys(resources, 1) if is_mapping else resources)
    for name, count in resources.items():
        if not isinstance(count, int | float) or isinstance(count, bool):
            kind = type(count).__name__
            raise TypeError(f"resources[{name!r}] must be a number, not {kind}")
        if not count > 0:
            raise ValueError(f"resources[{name!r}] must be above 0, not {count:g}")
    return dict(resources)


def _local() -> PreforkExecutor:
    """An executor that only checks arguments. Starts nothing."""
    return PreforkExecutor(1)


# --- the cluster --------------------------------------------------------------------------------


class _TaskFuture(Future[Any]):
    """A task's future, and what is known of the task."""

    def __init__(self, cluster: _Cluster, key: str, name: str) -> None:
        super().__init__()
        self.cluster = cluster
        self.key = key
        self.name = name
        self.is_aborted = False


class _Cluster:
    """What an executor and those derived from it share: the client and the tasks."""

    def __init__(self, client: Client, is_own: bool, executor: str) -> None:
        self._client = client
        self._is_own = is_own
        self._executor = executor
        self._address = client.scheduler.address
        self._lock = threading.Lock()
        self._tasks: dict[_TaskFuture, DaskFuture[bytes]] = {}
        self._is_shut = False
        self._broken: str | None = None
        client.sync(self._begin_to_look_after)

    def describe(self) -> str:
        """State and size, for the executors' repr."""
        state = f"broken: {self._broken}" if self._broken else "shut down" if self._is_shut else ""
        state = state or f"unfinished tasks: {len(self._tasks)}"
        return f"on the cluster at {self._address}, {state}"

    async def _begin_to_look_after(self) -> None:
        self._watch = asyncio.create_task(self._look_after())

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: _TaskOptions,
    ) -> Future[Any]:
        """See DaskExecutor.submit."""
        try:
            call = CarriedCall(fn, args, kwargs)
        except pickle.PicklingError as error:
            self._check_open()
            failed: Future[Any] = Future()
            failed.set_exception(error.with_traceback(None))
            return failed
        future = _TaskFuture(self, f"{call.name}-{uuid.uuid4().hex}", call.name)
        with self._lock:
            self._check_open()
            task = self._tasks[future] = self._send(call, future.key, options)
        future.add_done_callback(self._on_done)
        self._client.loop.add_callback(self._follow, future, task)
        return future

    def _send(self, call: CarriedCall, key: str, options: _TaskOptions) -> DaskFuture[bytes]:
        with dask.annotate(**{"executor": THREADS, MARK: True}):
            return self._client.submit(
                *(run_carried, call, key, self._executor),
                *(options.timeout, options.retries, options.memory),
                key=key,
                pure=False,
                priority=options.priority,
                resources=options.resources,
            )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise BrokenProcessPool(self._broken)
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._client.status in ("closing", "closed"):
            raise BrokenProcessPool("the Dask client was closed")

    def threads(self) -> int:
        """How many threads the cluster's workers have, at least 1."""
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def abort(self, future: Future[Any]) -> bool:
        """See DaskExecutor.abort."""
        if not isinstance(future, Future):
            raise TypeError(f"future must be a Future, not {type(future).__name__}")
        if not isinstance(future, _TaskFuture) or future.cluster is not self:
            raise ValueError("future must be one that this executor's submit() has returned")
        with self._lock:
            task = self._tasks.get(future)
            future.is_aborted = task is not None
        if task is not None:
            self._client.loop.add_callback(self._abort, future, task)
        return task is not None

    def shutdown(self, wait: bool, cancel: bool) -> None:
        """See DaskExecutor.shutdown."""
        with self._lock:
            futures = list(self._tasks)
            if not self._is_shut:
                self._is_shut = True
                self._closer = threading.Thread(target=self._close, args=(futures,))
                self._closer.start()
        if cancel:
            for future in futures:
                future.cancel()
        # The loop's own thread must not wait here: it has to do what this would wait for.
        if wait and not self._client.asynchronous:
            self._closer.join()

    def _close(self, futures: list[_TaskFuture]) -> None:
        concurrent.futures.wait(futures)
        self._client.loop.add_callback(self._watch.cancel)
        if self._is_own:
            self._client.close()

    # --- in the loop's thread ---------------------------------------------------------------

    async def _follow(self, future: _TaskFuture, task: DaskFuture[bytes]) -> None:
        """Wait for a task's outcome, and tell its future."""
        try:
            result = _load(await task)
        except CarriedError as error:
            self._fail(future, error.restored())
        except KilledWorker as killed:
            died = NodeDied(killed.last_worker.address, future.name)
            died.__cause__ = killed
            self._fail(future, died)
        except NotAgain as lost:
            died = NodeDied("", future.name)
            died.__cause__ = lost
            self._fail(future, died)
        except (CancelledError, asyncio.CancelledError) as error:
            self._on_cancelled(future, error)
        except Exception as error:  # noqa: BLE001 - or the future would never be resolved
            self._fail(future, error)
        else:
            if self._claim(future) and future.set_running_or_notify_cancel():
                future.set_result(result)

    def _on_cancelled(self, future: _TaskFuture, error: BaseException) -> None:
        """Dask cancels a task when it is asked to, and when it loses the scheduler."""
        if getattr(error, "reason", "") == "scheduler-connection-lost":
            self._break("the connection is closed")
        elif not (future.is_aborted or future.cancelled()):
            self._fail(future, BrokenProcessPool(f"Dask has dropped task {future.name}: {error}"))

    def _claim(self, future: _TaskFuture) -> bool:
        """Whether the future has no outcome yet. If so, the caller must now set it."""
        with self._lock:
            return self._tasks.pop(future, None) is not None

    def _fail(self, future: _TaskFuture, error: BaseException) -> None:
        if self._claim(future) and future.set_running_or_notify_cancel():
            future.set_exception(error)

    async def _abort(self, future: _TaskFuture, task: DaskFuture[bytes]) -> None:
        """First make sure that the task cannot begin. Then end it wherever it has begun."""
        with contextlib.suppress(Exception):  # A worker out of reach has lost the task anyway.
            await self._client.cancel([task])
            await self._client.run(end_carried, [future.key], self._executor, on_error="ignore")
        self._fail(future, TaskAborted(future.name))

    async def _look_after(self) -> None:
        """Break when the scheduler is gone. Dask tells its futures only if it ends badly."""
        while (lost := await self._loss()) is None:
            await asyncio.sleep(PING_INTERVAL)
        self._break(lost)

    async def _loss(self) -> str | None:
        """What has happened to the scheduler. None if it is there."""
        client = self._client
        if client.status != "running" or client.scheduler_comm.closed():
            return "the connection is closed"
        try:
            await asyncio.wait_for(client.scheduler.echo(), PING_PATIENCE)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from answering
            return f"it does not answer: {type(error).__name__}: {error}"
        return None

    def _break(self, what: str) -> None:
        with self._lock:
            if self._broken is None:
                self._broken = f"the Dask scheduler {self._address} was lost: {what}"
            futures = list(self._tasks)
        for future in futures:
            self._fail(future, BrokenProcessPool(self._broken))

    # --- in the thread that cancels a future ----------------------------------------------------

    def _on_done(self, future: Future[Any]) -> None:
        assert isinstance(future, _TaskFuture)
        if not future.cancelled():
            return
        with self._lock:
            task = self._tasks.pop(future, None)
        if task is not None:
            # Wakes the threads that wait for the future.
            future.set_running_or_notify_cancel()
            self._client.loop.add_callback(self._client.cancel, [task])


def _load(pickled: bytes) -> Any:
    try:
        return pickle.loads(pickled)
    except Exception as error:
        raise pickle.PicklingError(f"the result cannot be unpickled here: {error}") from error
