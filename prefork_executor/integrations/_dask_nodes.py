"""What runs in the processes of a Dask cluster: its workers and its scheduler.

A Dask worker runs tasks in threads of its own process. So a task that crashes takes all the
others along, and nothing can end one that hangs. :class:`PreforkPlugin` gives each worker a
`PreforkExecutor` for its tasks.

For Dask, the tasks of ``connect()`` are calls of :func:`run_carried`. It asks the scheduler
whether the task may begin, makes the call in its node's pool, and waits for it there.
"""

from __future__ import annotations

import collections
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import dask
from dask.utils import key_split
from distributed import Scheduler, SchedulerPlugin, Worker, WorkerPlugin, get_worker
from distributed.utils import sync

from .. import PreforkExecutor, TaskAborted
from ._carried import CarriedCall, CarriedError

T = TypeVar("T")

THREADS = "threads"
"""The name by which tasks find Dask's own executor: ``dask.annotate``."""
MARK = "prefork_executor"
"""The annotation of tasks that ask before they begin."""
_NEVER = -(10**9)
"""A count of workers' deaths so low that Dask never finds that a task had too many."""
_MAX_UNWANTED = 10_000
"""Keys to remember of tasks that must be ended but have not begun here."""


# --- a pool in each worker ------------------------------------------------------------------


class NodePool(Executor):
    """A PreforkExecutor for the tasks of one Dask worker.

    Args:
        pool: where the tasks run.
    """

    def __init__(self, pool: PreforkExecutor) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._running: dict[str, Future[bytes]] = {}
        self._unwanted: collections.deque[str] = collections.deque(maxlen=_MAX_UNWANTED)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As Dask calls it: ``fn`` is Dask's own, and the task is the first argument."""
        key = getattr(args[0] if args else None, "key", None)
        name = "" if key is None else str(key_split(key))
        return self.pool.submit(_Contained(fn, name), *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See PreforkExecutor.shutdown."""
        self.pool.shutdown(wait, cancel_futures=cancel_futures)

    def run(
        self, call: CarriedCall, key: str, timeout: float | None, retries: int, memory: int | None
    ) -> bytes:
        """Make the call in the pool and wait for its result.

        Raises:
            CarriedError: the call raised, its worker died, its time was up, or it was aborted.
        """
        try:
            self._check_wanted(key, call)
            view = self.pool.with_options(timeout=timeout, retries=retries, memory=memory)
            future = view.submit(call)
            with self._lock:
                self._running[key] = future
                is_unwanted = key in self._unwanted
            if is_unwanted:
                self.pool.abort(future)
            return future.result()
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            raise CarriedError.of(error) from None
        finally:
            with self._lock:
                self._running.pop(key, None)

    def _check_wanted(self, key: str, call: CarriedCall) -> None:
        with self._lock:
            if key in self._unwanted:
                raise TaskAborted(call.name)

    def end(self, key: str) -> None:
        """End this task if it runs here. If it does not run yet, end it when it begins."""
        with self._lock:
            future = self._running.get(key)
            if future is None:
                self._unwanted.append(key)
        if future is not None:
            self.pool.abort(future)


class _Contained:
    """Dask's function for a task, in a process that may end without harm. An exception that asks
    for the end of the process must not reach Dask's own process, which would obey."""

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self._fn = fn
        self.__module__, self.__qualname__ = "", name or type(self).__qualname__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._fn(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"the task raised {error!r}") from error


class PreforkPlugin(WorkerPlugin):
    """Has each Dask worker run its tasks in processes of a PreforkExecutor.

    ``client.register_plugin(PreforkPlugin())``. A task that dies then fails with
    :class:`~prefork_executor.WorkerDied`, and the Dask worker, its data and its other tasks are
    unharmed. As in any process pool, tasks cannot reach their Dask worker (``get_worker``,
    ``worker_client``, ``secede``). Tasks that need it run in the Dask worker's threads with
    ``dask.annotate(executor="threads")``.

    Args:
        executor: the pool's name among the worker's executors. With "default" all tasks run
            in it. With any other name, those under ``dask.annotate(executor=name)``.
        options: those of :class:`~prefork_executor.PreforkExecutor`, by name. Three
            defaults differ: ``max_workers`` is the worker's number of threads,
            ``mp_context="spawn"``, and ``preload="distributed.worker"``.

    Raises:
        TypeError, ValueError: as PreforkExecutor does.
    """

    def __init__(self, executor: str = "default", **options: Any) -> None:
        # Starts nothing, but checks the options. How many workers a node will have is not known,
        # so this assumes the maximum.
        PreforkExecutor(**{"max_workers": 4096} | options)
        self.name = f"prefork_executor-{executor}"
        self.executor = executor
        self._options = options

    def setup(self, worker: Worker) -> None:
        """Dask calls this in each worker, present and future."""
        # Dask starts its workers as daemons, which may have no children. Dask needs that flag
        # only in their parent, so that the workers end with it. The parent has its own copy.
        process = multiprocessing.current_process()
        if process.daemon:
            process.daemon = False
        defaults = {
            "max_workers": worker.state.nthreads,
            "mp_context": "spawn",
            "preload": "distributed.worker",
        }
        executors = worker.executors
        executors.setdefault(THREADS, executors["default"])
        executors[self.executor] = NodePool(PreforkExecutor(**defaults | self._options))

    def teardown(self, worker: Worker) -> None:
        """Dask calls this when the worker closes, or the plugin is removed."""
        pool = worker.executors.pop(self.executor)
        if self.executor == "default":
            worker.executors["default"] = worker.executors[THREADS]
        pool.pool.kill_workers()
        pool.shutdown(wait=False)


async def dask_setup(server: Any) -> None:
    """For ``dask worker --preload prefork_executor.integrations.dask``: tasks run in a pool. Its
    options are those under ``prefork-executor`` in Dask's configuration."""
    if isinstance(server, Worker):
        configured = dask.config.get("prefork-executor", {})
        options = {name.replace("-", "_"): value for name, value in configured.items()}
        await server.plugin_add(plugin=PreforkPlugin(**options), catch_errors=False)


# --- at most once ---------------------------------------------------------------------------


class Gate(SchedulerPlugin):
    """Lets a task begin as often as its caller has allowed, and no more.

    Dask runs a task again when a worker that it was given to is lost, even if it had begun, and
    when its result is lost before it was fetched. So the tasks of ``connect()`` ask here before
    they begin. A task that has not begun is given to other workers, however many are lost. A
    task that has begun for the last time allowed is lost with its worker.
    """

    name = "prefork_executor"
    idempotent = True

    def __init__(self) -> None:
        self._begun: dict[Any, int] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Dask calls this once."""
        self._scheduler = scheduler
        scheduler.handlers["prefork_begin"] = self.begin

    def update_graph(self, scheduler: Scheduler, *, annotations: Any, **_: Any) -> None:
        """Dask calls this when tasks come in."""
        for key in annotations.get(MARK, ()):
            scheduler.tasks[key].suspicious = _NEVER

    async def begin(self, key: str, retries: int) -> bool:
        """Whether this task may begin now. Workers call this."""
        task = self._scheduler.tasks.get(key)
        begun = self._begun.get(key, 0)
        if task is None or begun > retries:
            return False
        self._begun[key] = begun + 1
        # For Dask, either the next death of a worker is one too many, or no number is.
        task.suspicious = self._scheduler.allowed_failures if begun == retries else _NEVER
        return True

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Dask calls this for every transition of every task."""
        if finish == "forgotten":
            self._begun.pop(key, None)


class NotAgain(Exception):  # noqa: N818 - it says what is the matter
    """The task has begun as often as it may, and its result is lost."""


def run_carried(
    call: CarriedCall,
    key: str,
    executor: str,
    timeout: float | None,
    retries: int,
    memory: int | None,
) -> bytes:
    """In a thread of a Dask worker: make the call in that worker's pool.

    Raises:
        NotAgain: the task may not begin.
        CarriedError: what :meth:`NodePool.run` raises.
    """
    worker = get_worker()
    if not sync(worker.loop, worker.scheduler.prefork_begin, key=key, retries=retries):
        raise NotAgain(key)
    pool = worker.executors[executor]
    assert isinstance(pool, NodePool)
    return pool.run(call, key, timeout, retries, memory)


def end_carried(keys: list[str], executor: str, dask_worker: Worker) -> None:
    """In a Dask worker: end those of these tasks that run here."""
    pool = dask_worker.executors[executor]
    assert isinstance(pool, NodePool)
    for key in keys:
        pool.end(key)
