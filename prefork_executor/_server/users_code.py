"""What a pool runs of the user's code before there are tasks, step by step.

1. ``preload``, if it names modules: they are imported.
2. Under spawn and forkserver, the caller's main module is imported as multiprocessing
   imports it, under the name ``__mp_main__``, and so are the modules of the initializers.
3. ``preload``, if it is a callable: it is called.
4. The initializers and their arguments are unpickled.

Each worker always does the last step itself. Each other step runs once, in a process from which
workers are forked, if they may share what it leaves there (see `template.py`). If not, each
worker runs that step as well. A worker knows which steps are left, because it is a copy of the
process in which the others have run.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing.process
import signal
from collections.abc import Callable, Iterator, Mapping

from .._system import platform, signals
from . import end_signals
from .settings import Settings

PRELOAD, MAIN, UNSEAL, INITIALIZER = range(4)
PHRASES = (
    "preload failed",
    "the main module could not be imported",
    "initializer or initargs could not be unpickled",
    "the initializer failed",
)
"""What messages say if a step fails, by its number."""


def failure_phrase(number: int) -> str:
    """The phrase for a number that came in a message."""
    return PHRASES[number] if number < len(PHRASES) else "the start failed"


class Step:
    """One of the steps above: its number, the function that does it, and a function that runs
    before it. Whatever ``prepare`` leaves behind, the caller wants to be shared."""

    def __init__(
        self, number: int, run: Callable[[], None], prepare: Callable[[], None] | None = None
    ) -> None:
        self.number = number
        self.run = run
        self.prepare = prepare


class UserCode:
    """The steps, and which of them this process and its forks still have to run.

    Attributes:
        left: the steps that are left, in order.
        stages: those to try for all workers at once. The steps of a stage run in one
            process. What an earlier stage has loaded is shared in any case.
        has_main: whether the main module, or those of the initializers, must be imported.
        why_not: why main is not in a stage, if it is imported at all.
        is_told: whether the caller knows what the imported main module holds.
        handlers: the signal handlers that the steps have installed, for workers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.is_told = False
        self.handlers: dict[int, signals.Handler] = {}
        preload = [Step(PRELOAD, self._preload, settings.unseal_preload)]
        preload = preload if settings.has_preload else []
        named, called = ([], preload) if settings.is_preload_called else (preload, [])
        self.has_main = bool(settings.main or any(settings.initializer_modules))
        main = [Step(MAIN, self._import_main)] if self.has_main else []
        unseal = [Step(UNSEAL, settings.unseal_initializers)] if settings.sealed else []
        self.left = [*named, *main, *called, *unseal]
        self.why_not = self._why_not() if main else ""
        stages = [named] if self.why_not else [named, [*main, *called]]
        self.stages = [stage for stage in stages if stage]

    def runs_in_workers(self, why: str) -> None:
        """There is no stage for main, for this reason: each worker imports it."""
        self.why_not = why

    def caller_is_told(self) -> None:
        """The caller knows by now what the imported main module holds."""
        self.is_told = True

    def _why_not(self) -> str:
        if self._settings.share_main is None:
            return "this system does not tell what a process holds" if platform.FALLBACK else ""
        return "" if self._settings.share_main else "share_main is False"

    def run(self, step: Step) -> None:
        """Run one of the steps that are left."""
        if step.prepare is not None:
            step.prepare()
        step.run()
        self.left.remove(step)

    @contextlib.contextmanager
    def keeping_handlers(self) -> Iterator[None]:
        """Signal handlers that are installed in this block are meant for workers, as if each had
        run the block itself. They are removed from this process. A handler set by an at-fork
        function stays: that function sets another in each worker."""
        before = _handlers()
        try:
            yield
        finally:
            kept = _handlers().items()
            self.handlers |= {number: new for number, new in kept if new != before.get(number)}
            signals.forget_handlers()

    def _preload(self) -> None:
        preload = self._settings.preload
        if callable(preload):
            preload()
        else:
            for name in preload:
                importlib.import_module(name)

    def _import_main(self) -> None:
        process = multiprocessing.process.current_process()
        # While this is set, the process can start no other. A script that starts one whenever
        # it is imported gets multiprocessing's explanation, instead of a pool within a pool.
        process._inheriting = True  # type: ignore[attr-defined]
        try:
            _import_as_multiprocessing_does(self._settings.main)
        finally:
            del process._inheriting  # type: ignore[attr-defined]
        for name in filter(None, self._settings.initializer_modules):
            # If this fails, unpickling the initializer, which needs the module, reports it.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _handlers() -> dict[int, signals.Handler]:
    return {
        number: handler
        for number in signals.ALL_SIGNALS
        if callable(handler := signal.getsignal(number))
        and handler is not signal.default_int_handler
        and not end_signals.is_own(handler)
    }


def _import_as_multiprocessing_does(main: Mapping[str, str]) -> None:
    from multiprocessing import spawn  # It is slow, and a forked supervisor does not need it.

    if "init_main_from_name" in main:
        spawn._fixup_main_from_name(main["init_main_from_name"])  # type: ignore[attr-defined]
    elif "init_main_from_path" in main:
        spawn._fixup_main_from_path(main["init_main_from_path"])  # type: ignore[attr-defined]
