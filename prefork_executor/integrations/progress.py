"""Progress bars over a map, by rich or tqdm. Tasks may also advance them.

    for result in progress_map(executor, fn, items):
        ...

Without this module: ``rich.progress.track(executor.map(fn, items))`` finds the total,
``tqdm(executor.map(fn, items), total=len(items))`` has to be told.
"""

from __future__ import annotations

import importlib
import itertools
import operator
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from prefork_executor import ExecutorView, PreforkExecutor, yell

from ._wrapped import Wrapped

__all__ = ["Advance", "Bar", "advance", "progress_map", "progress_starmap"]

T = TypeVar("T")


@runtime_checkable
class Bar(Protocol):
    """What a bar must be able to do. Every tqdm can."""

    def update(self, n: float, /) -> object:
        """Advance by ``n``."""

    def close(self) -> object:
        """End the bar."""


@dataclass(frozen=True)
class Advance:
    """What :func:`advance` yells.

    Attributes:
        bar: the number of the bar.
        n: by how much it advances.
    """

    bar: int
    n: float


def progress_map(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    bar: str | Bar = "rich",
    total: float | None = None,
    description: str = "",
    self_advancing: bool = False,
    **options: Any,
) -> Iterator[T]:
    """``executor.map`` with a progress bar. The bar ends when the results or the iterator do.

    Args:
        executor: an executor, or a view of one. For a ``Pool``, its ``executor``.
        fn, iterables: as for its ``map``.
        bar: "rich", "tqdm", or a bar of your own, which is closed at the end.
        total: what the bar counts up to. None: the number of items, if the iterables
            can tell it.
        description: the text before the bar.
        self_advancing: the tasks advance the bar, by :func:`advance`, in units of your
            own. Otherwise each result advances it by 1 when it is taken.
        options: those of ``map``: ``timeout``, ``chunksize``, ``buffersize``, ``ordered``.

    Raises:
        TypeError, ValueError: at this call, for a bad argument.
        ImportError: rich or tqdm is not installed.
    """

    def start(fn: Callable[..., T]) -> Iterator[T]:
        return executor.map(fn, *iterables, **options)

    return _with_bar(executor, fn, start, _maker(bar), total, description, self_advancing)


def progress_starmap(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    iterable: Iterable[Iterable[Any]],
    *,
    bar: str | Bar = "rich",
    total: float | None = None,
    description: str = "",
    self_advancing: bool = False,
    **options: Any,
) -> Iterator[T]:
    """``executor.starmap`` with a progress bar. The other arguments are those of
    :func:`progress_map`."""

    def start(fn: Callable[..., T]) -> Iterator[T]:
        return executor.starmap(fn, iterable, **options)

    return _with_bar(executor, fn, start, _maker(bar), total, description, self_advancing)


def _with_bar(
    executor: PreforkExecutor | ExecutorView,
    fn: Callable[..., T],
    start: Callable[[Callable[..., T]], Iterator[T]],
    make: Callable[[str, float | None], Bar],
    total: float | None,
    description: str,
    self_advancing: bool,
) -> Iterator[T]:
    reports = _Reports()
    if self_advancing:
        executor.add_yell_hook(Advance, _on_advance)
        fn = _SelfAdvancing(fn, reports.number)
    results = start(fn)
    if total is None and not self_advancing:
        total = _length(results)
    # After the map has started the pool: bars have threads, and a fork must find none.
    shown = _shown(results, make(description, total), 0 if self_advancing else 1, reports)
    next(shown)
    return shown


def advance(n: float = 1) -> None:
    """Inside a task: advance the bar of the :func:`progress_map` that runs it. No effect
    elsewhere, so that the function also works without a bar.

    Each call is a message, and takes a few microseconds: do not call it for every byte.

    Args:
        n: by how much, in the units of the bar's total.
    """
    if _running is not None:
        yell(Advance(_running, n))


# --- in a worker ----------------------------------------------------------------------------

_running: int | None = None
"""The number of the bar that the running task advances."""


class _SelfAdvancing(Wrapped):
    """A task's function that advances a bar."""

    def __init__(self, fn: Callable[..., Any], bar: int) -> None:
        super().__init__(fn)
        self.bar = bar

    def __call__(self, *args: Any) -> Any:
        global _running
        _running = self.bar
        try:
            return self.fn(*args)
        finally:
            _running = None


# --- in the caller's process ------------------------------------------------------------------

_numbers = itertools.count(1)
_reports: weakref.WeakValueDictionary[int, _Reports] = weakref.WeakValueDictionary()
"""Those of the maps under way, by the numbers of their bars."""


class _Reports:
    """What the tasks of one map report. Kept until there is a bar to show it."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self._lock = threading.Lock()
        self._n: float = 0
        self._bar: Bar | None = None
        _reports[self.number] = self

    def take(self, n: float) -> None:
        """Take a report."""
        with self._lock:
            if self._bar is None:
                self._n += n
            else:
                self._bar.update(n)

    def show_on(self, bar: Bar | None) -> None:
        """Show what was kept, and what comes, on this bar. None: on no bar."""
        with self._lock:
            self._bar = bar
            if bar is not None:
                bar.update(self._n)


def _on_advance(_pid: int, message: Advance) -> None:
    reports = _reports.get(message.bar)
    if reports is not None:
        reports.take(message.n)


def _shown(results: Iterator[Any], bar: Bar, each: float, reports: _Reports) -> Iterator[Any]:
    """The results, each of which advances the bar by ``each``. The first value is none. It is
    taken at once, so that the bar is closed whatever happens to the iterator."""
    try:
        reports.show_on(bar)
        yield None
        for result in results:
            bar.update(each)
            yield result
    finally:
        reports.show_on(None)  # The executor's thread may be about to pass one on.
        bar.close()


def _length(results: Iterator[Any]) -> int | None:
    length = operator.length_hint(results, -1)
    return None if length < 0 else length


# --- bars -------------------------------------------------------------------------------------


def _maker(bar: str | Bar) -> Callable[[str, float | None], Bar]:
    """A function that makes the bar from its description and its total."""
    if isinstance(bar, Bar):
        return lambda _description, _total: bar
    if not isinstance(bar, str):
        raise TypeError(f"bar must be 'rich', 'tqdm', or a bar, not {type(bar).__name__}")
    if bar not in _MAKERS:
        raise ValueError(f"bar must be 'rich', 'tqdm', or a bar, not {bar!r}")
    try:
        importlib.import_module(bar)
    except ImportError as error:
        needed = f"bar={bar!r} needs {bar}: pip install 'prefork-executor[progress]'"
        raise ImportError(needed) from error
    return _MAKERS[bar]


class _RichBar:
    """A rich.progress.Progress with one bar."""

    def __init__(self, description: str, total: float | None) -> None:
        from rich.progress import Progress

        self._progress = Progress()
        self._task = self._progress.add_task(description, total=total)
        self._progress.start()

    def update(self, n: float, /) -> None:
        """Advance by ``n``."""
        self._progress.advance(self._task, n)

    def close(self) -> None:
        """Stop, and leave the bar as it stands."""
        self._progress.stop()


def _tqdm_bar(description: str, total: float | None) -> Bar:
    from tqdm.auto import tqdm

    made: Bar = tqdm(total=total, desc=description or None)
    return made


_MAKERS: dict[str, Callable[[str, float | None], Bar]] = {"rich": _RichBar, "tqdm": _tqdm_bar}
