"""What the caller has asked for: of an executor, and of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._regulator import Limits

    _Initializer = tuple[Callable[..., object], tuple[Any, ...]]


class Terms:
    """What its caller asked for: seconds that one run of the task may take (None: as
    long as it likes), and runs after the first if its worker dies or time is up."""

    def __init__(self, timeout: float | None = None, retries: int = 0) -> None:
        self.timeout = timeout
        self.retries = retries


NO_TERMS = Terms()


class Settings:
    """What a supervisor and its workers need to know, from the executor's constructor,
    where most of it is described.

    ``tell_main``: whether the supervisor is to say what its ``__main__`` holds,
    which the caller knows if it forked it. ``added``: further initializers and their
    arguments.
    """

    def __init__(
        self,
        *,
        tell_main: bool,
        limits: Limits,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        finalizer: Callable[..., object] | None,
        finalargs: tuple[Any, ...],
        max_tasks_per_child: int | None,
        max_memory_per_child: int | None,
        preload: Callable[[], object] | tuple[str, ...],
    ) -> None:
        self.tell_main = tell_main
        self.limits = limits
        self.initializer = initializer
        self.initargs = initargs
        self.finalizer = finalizer
        self.finalargs = finalargs
        self.max_tasks_per_child = max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child
        self.preload = preload
        self.added: tuple[_Initializer, ...] = ()

    @property
    def initializers(self) -> Iterator[_Initializer]:
        """What a new worker calls, in this order: the user's own has the last word."""
        yield from self.added
        if self.initializer is not None:
            yield self.initializer, self.initargs

    @property
    def users_things(self) -> dict[str, Any]:
        """What may fail to travel to the supervisor, by the names that users know."""
        return {
            "initializer": self.initializer,
            **{f"initargs[{i}]": argument for i, argument in enumerate(self.initargs)},
            "finalizer": self.finalizer,
            **{f"finalargs[{i}]": argument for i, argument in enumerate(self.finalargs)},
            "preload": self.preload,
        }

    def __getstate__(self) -> dict[str, Any]:
        from . import _pickling

        theirs = {
            "initargs": tuple(map(_pickling.portable, self.initargs)),
            "initializer": _pickling.portable(self.initializer),
            "finalargs": tuple(map(_pickling.portable, self.finalargs)),
            "finalizer": _pickling.portable(self.finalizer),
            "preload": _pickling.portable(self.preload),
            "added": tuple((_pickling.portable(fn), args) for fn, args in self.added),
        }
        return {**self.__dict__, **theirs}
