"""What the caller has asked for: options of an executor, and of a task."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping

from . import contexts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._pool.regulator import Limits
    from .._system.memory import Gauge

    _Initializer = tuple[Callable[..., object], tuple[Any, ...]]


class TaskOptions:
    """Options of one task: the seconds that one run of it may take (None: any number), how
    often it runs again if its worker dies or its time is up, the bytes that it adds to its worker
    at most (None: that is learned), its priority, and the units that it needs of the executor's
    resources."""

    def __init__(
        self,
        timeout: float | None = None,
        retries: int = 0,
        memory: int | None = None,
        priority: int = 0,
        resources: Mapping[str, int] | None = None,
    ) -> None:
        self.timeout = timeout
        self.retries = retries
        self.memory = memory
        self.priority = priority
        self.resources = resources

    def described(self) -> str:
        """The options that differ from the defaults, as a call would give them."""
        changed = (
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if value != vars(DEFAULT_OPTIONS)[name]
        )
        return ", ".join(changed) or "with no options"


DEFAULT_OPTIONS = TaskOptions()


class Settings:
    """What a supervisor and its workers need to know of the executor's arguments. The executor's
    constructor describes most of them.

    A forked supervisor has the object as it is. On the way to a spawned one, the user's objects
    are *sealed*: they travel as bytes, and none of their code runs until they are unsealed in the
    process that needs them.

    Attributes:
        is_forked: whether the supervisor is forked, and so has the caller's ``__main__``.
        context: what starts the supervisor. Only in the caller.
        has_preload: whether there is a ``preload``, sealed or not.
        is_preload_called: whether it is a callable.
        share_main: True, False, or None for "auto".
        cpu_sets: the CPUs that workers run on, by their index; those that are left begin from the
            front again. Empty: the workers run on the CPUs that the caller has.
        nice: how much nicer to other processes workers are than the caller is. None: not at all.
        added: further initializers and their arguments.
        main: how to import the main module, in multiprocessing's terms; empty if it must not
            be imported.
        initializer_modules: the modules that define the initializers.
        sealed: the initializers and the finalizer, and their arguments.
        sealed_preload: a callable ``preload``.
    """

    def __init__(
        self,
        *,
        is_forked: bool,
        context: Any,
        limits: Limits,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        finalizer: Callable[..., object] | None,
        finalargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        max_memory_per_child: int | None,
        max_memory: int | None,
        max_backlog: int | None,
        resources: Mapping[str, int],
        cpu_sets: tuple[frozenset[int], ...],
        nice: int | None,
        preload: Callable[[], object] | tuple[str, ...],
        share_main: bool | None,
    ) -> None:
        self.is_forked = is_forked
        self.context = context
        self.limits = limits
        self.initializer = initializer
        self.initargs = initargs
        self.finalizer = finalizer
        self.finalargs = finalargs
        self.max_tasks_per_child = max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child
        self.max_memory = max_memory
        self.max_backlog = max_backlog
        self.resources = resources
        self.cpu_sets = cpu_sets
        self.nice = nice
        self.preload = preload
        self.has_preload = callable(preload) or bool(preload)
        self.is_preload_called = callable(preload)
        self.share_main = share_main
        self.added: tuple[_Initializer, ...] = ()
        self.main: dict[str, str] = {}
        self.initializer_modules: tuple[str, ...] = ()
        self.sealed = b""
        self.sealed_preload = b""

    def new_gauge(self) -> Gauge | None:
        """What measures the tasks of this worker, if there is a bound for memory."""
        if self.max_memory is None:
            return None
        from .._system.memory import Gauge  # The supervisor has imported it.

        return Gauge()

    def add_initializer(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Have new workers call this as well, before the user's own initializer."""
        self.added += ((fn, args),)

    @property
    def initializers(self) -> Iterator[_Initializer]:
        """What a new worker calls, in this order: the user's own initializer comes last."""
        yield from self.added
        if self.initializer is not None:
            yield self.initializer, self.initargs

    @property
    def users_things(self) -> dict[str, Any]:
        """The objects that may fail to travel to the supervisor, by their names for users."""
        return {
            "initializer": self.initializer,
            **{f"initargs[{i}]": argument for i, argument in enumerate(self.initargs)},
            "finalizer": self.finalizer,
            **{f"finalargs[{i}]": argument for i, argument in enumerate(self.finalargs)},
            "preload": self.preload,
        }

    def unseal_initializers(self) -> None:
        """Raises whatever unpickling the initializers raises."""
        self.__dict__.update(pickle.loads(self.sealed), sealed=b"")

    def unseal_preload(self) -> None:
        """If ``preload`` is sealed. Raises whatever unpickling it raises."""
        if self.sealed_preload:
            self.preload = pickle.loads(self.sealed_preload)
            self.sealed_preload = b""

    def __getstate__(self) -> dict[str, Any]:
        from .._pickling import calls
        from .._pickling.at_start import portable

        functions = [fn for fn, _ in (*self.initializers, (self.finalizer, ())) if fn is not None]
        state = {
            **self.__dict__,
            "initializer": None,
            "initargs": (),
            "finalizer": None,
            "finalargs": (),
            "added": (),
            "context": None,
            "main": calls.how_to_import_main(),
            "initializer_modules": tuple(dict.fromkeys(map(calls.module_name, functions))),
        }
        if functions or self.initargs or self.finalargs:
            theirs = {
                "initializer": portable(self.initializer),
                "initargs": tuple(map(portable, self.initargs)),
                "finalizer": portable(self.finalizer),
                "finalargs": tuple(map(portable, self.finalargs)),
                "added": tuple((portable(fn), args) for fn, args in self.added),
            }
            state["sealed"] = self._seal(theirs)
        if callable(self.preload):
            state["preload"] = ()
            state["sealed_preload"] = self._seal(portable(self.preload))
        return state

    def _seal(self, thing: object) -> bytes:
        return contexts.dumps(self.context, thing)
