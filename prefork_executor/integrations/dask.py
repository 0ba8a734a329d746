"""From one machine to many, by Dask.

On one machine, Dask's collections in a `PreforkExecutor`, which needs nothing of this
module: ``dask.config.set(scheduler=executor)``.

On a cluster, :class:`PreforkPlugin` has Dask's workers run their tasks in pools of
processes, and :func:`connect` gives an executor over the cluster, with the interface of
PreforkExecutor and its promises:

* every future is resolved, whatever is lost: a worker's process, a node, the scheduler;
* a task runs at most once, unless its caller asked for retries;
* one that has not begun is not lost to what becomes of others.

The threads
-----------
``submit`` may be called in any thread. What becomes of tasks is dealt with in the thread
of the Dask client's event loop, where futures are resolved, so a callback must not block.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import pickle
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, TypeVar

import dask
from dask.base import tokenize
from distributed import Client, KilledWorker
from distributed import Future as DaskFuture

from .. import PreforkExecutor, TaskAborted, WorkerDied
from ..maps import Maps
from ._carried import CarriedCall, CarriedError
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

T = TypeVar("T")

PING_INTERVAL = 1.0
"""Seconds between two looks whether the scheduler is there. A scheduler that closes in
good order tells its clients, which then wait for it; nothing else would end that."""
PING_PATIENCE = 60.0
"""Seconds for an answer: a scheduler may be busy for long, but hardly for that long."""


class NodeDied(WorkerDied):
    """The Dask worker that held this task is lost, and the task had begun there.

    Only the tasks that ran there are affected; the cluster goes on. Its cause is Dask's
    KilledWorker, or says that the task's result was lost.

    Attributes:
        address: the Dask worker's address; empty if it is not known.
        pid, exitcode, signal: 0, None and None: nobody tells.
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
        task_timeout: seconds that a task may run before it is ended. None: as long as
            it likes.
        retries: how often a task is run again after its worker or its node has died or
            its time was up.
        options: of the pools on the nodes, those of
            :class:`~prefork_executor.PreforkExecutor` by name. ``max_workers`` is for
            each Dask worker; by default, its threads. What uses the same options shares
            the pools, which last as long as Dask's workers.

    Returns:
        The executor. On every node prefork_executor must be installed as it is here.

    Raises:
        TypeError, ValueError: a bad argument.
        OSError: there is no scheduler at that address.
    """
    PreforkExecutor(1, task_timeout=task_timeout, retries=retries)  # Starts nothing; checks them.
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
    """Leaves no thread behind if it cannot connect, as Dask's own does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            self._loop_runner.stop()
            raise


class _TaskOptions(NamedTuple):
    timeout: float | None
    retries: int


class DaskExecutor(Maps, Executor):
    """Runs calls on a Dask cluster, each in a process of its node's pool. Made by
    :func:`connect` and :meth:`with_options`. Through a scheduler a task costs about a
    millisecond, so in maps short ones should be many, by ``chunksize``."""

    def __init__(self, cluster: _Cluster, options: _TaskOptions) -> None:
        self._cluster = cluster
        self._task_options = options

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)`` somewhere on the cluster. Does not wait.

        Returns:
            The call's future. It stays pending until it is done; cancelled, a task that
            runs is let run, in vain. Its exception is what the call raised, with its
            remote traceback; or ``pickle.PicklingError``;
            :class:`~prefork_executor.WorkerDied`, if the process that ran it died, and
            :class:`NodeDied`, if its node was lost;
            :class:`~prefork_executor.TaskTimeout`, if it ran for too long;
            BrokenProcessPool, if the scheduler was lost.

        Raises:
            TypeError: ``fn`` is not callable.
            RuntimeError: the executor was shut down.
            BrokenProcessPool: the scheduler was lost.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        return self._cluster.submit(fn, args, kwargs, self._task_options)

    def _submitter(self) -> Callable[[], Callable[..., Future[Any]]]:
        return lambda: self.submit

    @property
    def _max_workers(self) -> int:
        # By this name programs read it off any executor: the threads of the Dask workers,
        # of which each runs one task.
        return self._cluster.threads()

    def with_options(self, **options: Any) -> DaskExecutor:
        """The same cluster, for tasks with other options.

        Args:
            options: ``timeout``: seconds that a task may run, from its beginning in a
                worker on; None: as long as it likes. ``retries``: how often it is run
                again after its worker or node has died or its time was up.

        Returns:
            An executor with the same cluster. What is not given is as here.

        Raises:
            TypeError, ValueError: at this call, for a bad argument.
        """
        _local().with_options(**options)
        return DaskExecutor(self._cluster, self._task_options._replace(**options))

    def abort(self, future: Future[Any]) -> bool:
        """End a task, whether it runs or waits. Does not wait for its end.

        As :meth:`PreforkExecutor.abort <prefork_executor.PreforkExecutor.abort>`: one
        that runs is ended with its process, and its future gets
        :class:`~prefork_executor.TaskAborted`.

        Args:
            future: what :meth:`submit` has returned.

        Returns:
            Whether there was something to abort: False if the task had ended before.

        Raises:
            TypeError: ``future`` is no future.
            ValueError: it is not of this executor.
        """
        return self._cluster.abort(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, finish those there are, leave the cluster.

        The cluster goes on, and so do the pools of its nodes.

        Args:
            wait: return only when all that is done.
            cancel_futures: cancel all tasks; those that run are let run, in vain.
        """
        self._cluster.shutdown(wait, cancel_futures)


def _local() -> PreforkExecutor:
    """Knows what arguments are good. Starts nothing."""
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
    """What an executor and those it was derived from share: the client, the tasks."""

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
                run_carried, call, key, self._executor, *options, key=key, pure=False
            )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise BrokenProcessPool(self._broken)
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._client.status in ("closing", "closed"):
            raise BrokenProcessPool("the Dask client was closed")

    def threads(self) -> int:
        """How many there are in the cluster's workers, at least 1."""
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
        # In the loop's thread, which is to do what this would wait for, it cannot.
        if wait and not self._client.asynchronous:
            self._closer.join()

    def _close(self, futures: list[_TaskFuture]) -> None:
        concurrent.futures.wait(futures)
        self._client.loop.add_callback(self._watch.cancel)
        if self._is_own:
            self._client.close()

    # --- in the loop's thread ---------------------------------------------------------------

    async def _follow(self, future: _TaskFuture, task: DaskFuture[bytes]) -> None:
        """Wait for what comes of a task, and tell its future."""
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
        except Exception as error:  # noqa: BLE001 - or nobody would ever tell the future
            self._fail(future, error)
        else:
            if self._claim(future) and future.set_running_or_notify_cancel():
                future.set_result(result)

    def _on_cancelled(self, future: _TaskFuture, error: BaseException) -> None:
        """Dask does so when it is asked to, and when it loses the scheduler."""
        if getattr(error, "reason", "") == "scheduler-connection-lost":
            self._break("the connection is closed")
        elif not (future.is_aborted or future.cancelled()):
            self._fail(future, BrokenProcessPool(f"Dask has dropped task {future.name}: {error}"))

    def _claim(self, future: _TaskFuture) -> bool:
        """Whether it is still to be told what came of its task; the caller must do so."""
        with self._lock:
            return self._tasks.pop(future, None) is not None

    def _fail(self, future: _TaskFuture, error: BaseException) -> None:
        if self._claim(future) and future.set_running_or_notify_cancel():
            future.set_exception(error)

    async def _abort(self, future: _TaskFuture, task: DaskFuture[bytes]) -> None:
        """First it must not begin any more; then it can be ended wherever it has."""
        with contextlib.suppress(Exception):  # Who cannot be reached has lost it anyway.
            await self._client.cancel([task])
            await self._client.run(end_carried, [future.key], self._executor, on_error="ignore")
        self._fail(future, TaskAborted(future.name))

    async def _look_after(self) -> None:
        """Break when the scheduler is gone. Dask tells its futures only if it ends badly."""
        while (lost := await self._loss()) is None:
            await asyncio.sleep(PING_INTERVAL)
        self._break(lost)

    async def _loss(self) -> str | None:
        """What has become of the scheduler; None if it is there."""
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

    # --- in the thread of who cancels -----------------------------------------------------------

    def _on_done(self, future: Future[Any]) -> None:
        assert isinstance(future, _TaskFuture)
        if not future.cancelled():
            return
        with self._lock:
            task = self._tasks.pop(future, None)
        if task is not None:
            # For those who wait for it, who are told only so.
            future.set_running_or_notify_cancel()
            self._client.loop.add_callback(self._client.cancel, [task])


def _load(pickled: bytes) -> Any:
    try:
        return pickle.loads(pickled)
    except Exception as error:
        raise pickle.PicklingError(f"the result cannot be unpickled here: {error}") from error
