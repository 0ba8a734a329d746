"""One pool for the whole program: :func:`shared_executor`.

Libraries that know nothing of each other should not have a pool each: together they would have
more workers than there are CPUs. So a program has one shared pool, which is made when a library
first needs it.

What is shared, and what is not
-------------------------------
Each call of :func:`shared_executor` returns a `SharedExecutor` of its own. It has no pool. It
submits to the pool that is the shared one at that moment. So its user may keep it for as long as
the program runs. It works on after another user has replaced the pool, and in a fork of the
program.

The user's own are the tasks, what applies to them (``task_timeout``, ``retries``), and the end:
``shutdown`` waits for this user's tasks, and closes this object for new ones. The pool goes on
for the others.

Whose options win
-----------------
An option that no call has named is as for `PreforkExecutor`. A value that a call has named holds
until another call names another value. The pool is replaced only if a call names a value
that the pool does not have. So users who name different options do not disturb each other. Users
who name different values of the same one do: the latest wins.

The number of workers at most cannot be changed in a pool. So a pool of another size is another
pool. The one that is replaced takes no more tasks, finishes those it has, and ends.

Why there are so few locks: ``submit`` only reads which pool is the shared one. It holds on to
that pool until its task has been accepted, and a pool that is held does not end.
"""

from __future__ import annotations

import concurrent.futures
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future

from ._support import exit_hooks
from ._support.arguments import check_iterable, check_seconds
from ._support.locks import leaves_unlocked
from ._support.wording import counted
from .executor import ExecutorView, PreforkExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any, ParamSpec, TypeVar

    from ._client.client import Client
    from ._server.settings import TaskOptions

    M = TypeVar("M")
    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = ["SharedExecutor", "shared_executor", "shared_options", "shutdown"]

OF_TASKS = {"task_timeout": "timeout", "retries": "retries"}
"""Options that apply to the tasks of the one who names them: as they are called here, and by
``with_options``."""
LIMITS = (
    {"max_workers", "min_spare_workers", "max_spare_workers", "start_workers"},
    {"max_memory", "max_memory_per_child"},
)
"""Options that bound each other. If those of a call contradict earlier ones, the latter go."""


def shared_executor(**options: Any) -> SharedExecutor:
    """The executor that all libraries of this program share. Starts nothing before it has a task.

    Each user calls this, and gets an object of its own over the one pool. You may keep it.

    Args:
        options: those of :class:`PreforkExecutor`, by name. The pool is replaced if you name a
            value that it does not have: the old one finishes its tasks. Options that you do not
            name are as others have named them. ``task_timeout`` and ``retries`` apply to your
            own tasks only.

    Raises:
        TypeError: there is no such option, or a value has the wrong type.
        ValueError: a value is out of range, or your options contradict each other.
    """
    return SharedExecutor(options)


def shared_options() -> dict[str, Any]:
    """The options that calls have named for the shared pool, with the values that hold now. Empty
    if there is no pool."""
    return dict(_shared.named)


def shutdown(wait: bool = True) -> None:
    """End the shared pool when its work is done, and forget the options. The next user who
    needs a pool starts another. Without this call the pool ends with the program.

    Args:
        wait: return only when all its processes have ended.
    """
    pool = _shared.release()
    if pool is not None:
        pool.shutdown(wait)


class SharedExecutor(PreforkExecutor):
    """One user's hold on the shared pool. Made by :func:`shared_executor`.

    It is a :class:`PreforkExecutor`, except for what follows from sharing:

    * ``submit`` and the maps use the pool that is the shared one at that moment. In a fork of the
      program that is a pool of its own.
    * :meth:`shutdown` and the end of a ``with`` block concern only the tasks submitted here. The
      pool, and its other users, go on.
    * ``stats``, ``reload``, ``record``, ``kill_workers`` and ``terminate_workers`` concern the
      whole pool, so the other users' tasks as well.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        # Not the base class's: this has no pool.
        self._of_pool, self._of_tasks = _divided(options)
        self._is_closed = False
        self._unfinished: dict[Future[Any], Client] = {}
        """This user's tasks, and the pool of each: there may have been another since."""
        _shared.ask(self._of_pool)

    def __repr__(self) -> str:
        tasks = counted(len(self._unfinished), "unfinished task")
        state = "shut down, " if self._is_closed else ""
        return f"<{type(self).__name__} {state}{tasks} of its own, in {_shared.describe()}>"

    # --- the pool at this moment ------------------------------------------------------------

    @property
    def executor(self) -> PreforkExecutor:
        """The executor that does the work now. If it is replaced, it lives on as long as you keep
        it. This user's ``task_timeout`` and ``retries`` do not apply to it."""
        return _shared.pool(self._of_pool)

    @property
    def _client(self) -> Client:  # type: ignore[override]
        return self.executor._client

    @property
    def _max_workers(self) -> int:  # type: ignore[override]
        return self.executor._max_workers

    @property
    def _task_options(self) -> TaskOptions:  # type: ignore[override]
        return self._for_tasks()._task_options

    def _for_tasks(self) -> PreforkExecutor | ExecutorView:
        pool = self.executor
        return pool.with_options(**self._of_tasks) if self._of_tasks else pool

    # --- this user's tasks --------------------------------------------------------------------

    if not TYPE_CHECKING:  # Type checkers take the signatures of the base class.

        def submit(self, fn, /, *args, **kwargs):
            """See :meth:`PreforkExecutor.submit`."""
            return self._submitted(lambda executor: executor.submit(fn, *args, **kwargs))

    def submit_nowait(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See :meth:`PreforkExecutor.submit_nowait`."""
        return self._submitted(lambda executor: executor.submit_nowait(fn, *args, **kwargs))

    def _submitted(
        self, submit: Callable[[PreforkExecutor | ExecutorView], Future[T]]
    ) -> Future[T]:
        while True:
            self._check_open()
            executor = self._for_tasks()
            try:
                future = submit(executor)
            except RuntimeError:
                if executor._broken or not executor._shutdown_thread:
                    raise
                continue  # Somebody has ended that pool meanwhile.
            self._keep(future, executor._client)
            return future

    def submit_all(self, calls: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
        """Schedule several calls: see :meth:`submit`."""
        if self._has_another_submit():
            return super().submit_all(calls)
        self._check_open()
        executor = self._for_tasks()
        futures = executor.submit_all(calls)
        for future in futures:
            self._keep(future, executor._client)
        return futures

    def _has_another_submit(self) -> bool:
        return "submit" in vars(self) or type(self).submit is not SharedExecutor.submit

    def _submitter(self) -> Callable[[], Callable[..., Future[Any]]]:
        # The pool lives on anyway, so a map may keep this object.
        return lambda: self.submit

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _keep(self, future: Future[Any], client: Client) -> None:
        self._unfinished[future] = client
        future.add_done_callback(self._forget)

    def _forget(self, future: Future[Any]) -> None:
        self._unfinished.pop(future, None)

    def abort(self, future: Future[Any]) -> bool:
        """See :meth:`PreforkExecutor.abort`. The task may be in a pool that has been replaced."""
        client = self._unfinished.get(future) if isinstance(future, Future) else None
        if client is not None:
            return client.abort(future)
        is_done = isinstance(future, Future) and future.done()
        return not is_done and super().abort(future)

    def with_options(self, **options: Any) -> SharedExecutor:  # type: ignore[override]
        """See :meth:`PreforkExecutor.with_options`. The tasks of the view count as this user's."""
        return _SharedView(self, options)

    # --- the end ------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks here. The pool goes on for its other users.

        Args:
            wait: return only when the tasks that were submitted here are done.
            cancel_futures: cancel those of them that have not been sent to a worker.
        """
        self._is_closed = True
        unfinished = list(self._unfinished)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if wait:
            self.join()

    def join(self, timeout: float | None = None) -> bool:
        """Wait, after :meth:`shutdown`, until the tasks that were submitted here are done.

        Args:
            timeout: seconds to wait at most. None: no limit.

        Returns:
            Whether they are. Returns at once if called from a callback in a pool's own thread.

        Raises:
            TypeError, ValueError: ``timeout`` is no time.
            RuntimeError: this was not shut down.
        """
        seconds = check_seconds("timeout", timeout)
        if not self._is_closed:
            raise RuntimeError("call shutdown() before join(): the executor is open")
        unfinished = dict(self._unfinished)
        if threading.current_thread() in {client.thread for client in unfinished.values()}:
            return not unfinished
        return not concurrent.futures.wait(unfinished, seconds).not_done

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> bool | None:
        """Shut down. After Ctrl-C, end this user's tasks first."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            for future in list(self._unfinished):
                self.abort(future)
        self.shutdown()
        return None

    # --- what outlives a pool -----------------------------------------------------------------

    def add_yell_hook(self, kind: type[M], hook: Callable[[int, M], object]) -> None:
        """See :meth:`PreforkExecutor.add_yell_hook`. Later shared pools have the hook, too."""
        super().add_yell_hook(kind, hook)
        _shared.hooks[kind] = hook


class _SharedView(SharedExecutor):
    """A user's hold on the shared pool, for tasks with other options."""

    def __init__(self, user: SharedExecutor, options: Mapping[str, Any]) -> None:
        self._user = user
        self._of_pool = user._of_pool
        self._of_tasks = {**user._of_tasks, **options}
        user.executor.with_options(**self._of_tasks)  # Checks.
        self._unfinished = user._unfinished

    @property
    def _is_closed(self) -> bool:  # type: ignore[override]
        return self._user._is_closed

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down what this is a view of: see :meth:`SharedExecutor.shutdown`."""
        self._user.shutdown(wait, cancel_futures=cancel_futures)


# --- the pool ---------------------------------------------------------------------------------


class _Shared:
    """The pool that the program shares at this moment, and what was asked of it."""

    def __init__(self) -> None:
        # A signal handler may submit as well, in the thread that holds it.
        self._lock = threading.RLock()
        self._pool: PreforkExecutor | None = None
        self._values: dict[str, Any] = {}
        """All options of the pool, with the values they have."""
        self.named: dict[str, Any] = {}
        """Those that a call has named."""
        self.hooks: dict[type, Callable[[int, Any], object]] = {}

    def describe(self) -> str:
        """The pool there is at this moment, in words."""
        return "no pool" if self._pool is None else repr(self._pool)

    def pool(self, options: Mapping[str, Any]) -> PreforkExecutor:
        """The shared pool. If there is none, one with these options."""
        pool = self._pool
        if pool is None or pool._shutdown_thread:
            return self.ask(options)
        return pool

    @leaves_unlocked
    def ask(self, options: Mapping[str, Any]) -> PreforkExecutor:
        """The shared pool, after these options have been asked of it."""
        with self._lock:
            pool = self._pool
            if pool is None or pool._shutdown_thread or pool._broken:
                # What was asked of a broken pool may be what has broken it.
                return self._replace({}, options)
            options = self._checked(options)
            if not self._has(options):
                return self._replace(self.named, options)
            self.named = {**self.named, **options}
            return pool

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """These options, as the pool would have them. Raises if one is bad."""
        is_alike = all(type(self._values[name]) is type(value) for name, value in options.items())
        if is_alike and self._has(options):
            return dict(options)
        return _as_taken(options, PreforkExecutor(**options))

    def _has(self, options: Mapping[str, Any]) -> bool:
        return all(_are_equal(self._values[name], value) for name, value in options.items())

    def _replace(self, before: Mapping[str, Any], options: Mapping[str, Any]) -> PreforkExecutor:
        """Make another pool. The present one ends when it has no task and nobody holds it."""
        PreforkExecutor(**options)  # Starts nothing, but says what is wrong in these alone.
        named = {**before, **options}
        try:
            pool = PreforkExecutor(**named)
        except ValueError:
            older = set().union(*(limits for limits in LIMITS if limits & options.keys()))
            named = {name: v for name, v in named.items() if name in options or name not in older}
            pool = PreforkExecutor(**named)
        for kind, hook in self.hooks.items():
            pool.add_yell_hook(kind, hook)
        self.named = _as_taken(named, pool)
        self._values = _as_taken({**_defaults(), **named}, pool)
        self._pool = pool
        return pool

    @leaves_unlocked
    def release(self) -> PreforkExecutor | None:
        """Stop sharing the pool. Returns it, or None if there was none."""
        with self._lock:
            pool, self._pool, self.named = self._pool, None, {}
            return pool


def _forget_in_fork() -> None:
    """A fork has copies of all this. The pool belongs to the process that was forked."""
    global _shared
    _shared = _Shared()


_shared = _Shared()
exit_hooks.after_fork(_forget_in_fork)


# --- options ----------------------------------------------------------------------------------


@functools.cache
def _defaults() -> dict[str, Any]:
    import inspect  # Here, because it is large.

    parameters = inspect.signature(PreforkExecutor).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the pool, and those of this user's tasks. Raises if there is no such option,
    or one for tasks is bad."""
    known = _defaults()
    if unknown := sorted(options.keys() - known.keys()):
        raise TypeError(
            f"shared_executor() has no option {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(sorted(known))}"
        )
    of_pool = {name: value for name, value in options.items() if name not in OF_TASKS}
    for name in ("initargs", "finalargs"):
        if name in of_pool:
            of_pool[name] = tuple(check_iterable(name, of_pool[name]))
    for name in ("preload", "cpu_affinity"):  # They may be iterators, and are read several times.
        value = of_pool.get(name)
        if isinstance(value, Iterable) and not isinstance(value, str):
            of_pool[name] = tuple(value)
    of_tasks = {name: value for name, value in options.items() if name in OF_TASKS}
    PreforkExecutor(1, **of_tasks)  # Starts nothing, but checks.
    return of_pool, {OF_TASKS[name]: value for name, value in of_tasks.items()}


def _as_taken(options: Mapping[str, Any], pool: PreforkExecutor) -> dict[str, Any]:
    """The options with the values that this executor has made of them. Others would differ,
    although they mean the same."""
    taken = {"max_workers": pool._max_workers, "mp_context": pool._mp_context}
    return {name: taken.get(name, value) for name, value in options.items()}


def _are_equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - an array among the initargs, say; they count as unequal
        return False
