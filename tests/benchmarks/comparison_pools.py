"""The pools of comparison.py, and what its probes have in common.

The adapters are those of performance_pools.py; joblib, which has no submit, gets one that
is a whole call, and Dask is a cluster of processes on this machine.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from performance_pools import (
    WORKERS,
    InterpreterPool,
    LokyPool,
    MpirePool,
    OurPool,
    PebblePool,
    Pool,
    StandardPool,
    Thunk,
)
from performance_pools import JoblibPool as JoblibMaps

OURS, STANDARD, LOKY = OurPool.name, StandardPool.name, LokyPool.name
INTERPRETERS = InterpreterPool.name
PEBBLE, MPIRE, JOBLIB, DASK = PebblePool.name, MpirePool.name, JoblibMaps.name, "dask"


class JoblibPool(JoblibMaps):
    """joblib.Parallel, a call of it for each task, or for many."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        return self.one(fn, *args)

    def many(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Thunk:
        return lambda: self._parallel(batch_size=1)(self._delayed(fn)(*call) for call in calls)


class DaskPool(Pool):
    """distributed.LocalCluster: processes of one thread each."""

    name = DASK
    module = "distributed"
    entry = "Client"
    distribution = "distributed"

    def __init__(self, workers: int = WORKERS, **options: Any) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            **options,
        )
        self.client = Client(self.cluster)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Thunk:
        result: Thunk = self.client.submit(fn, *args, pure=False).result
        return result

    def mapped(self, fn: Callable[[Any], Any], items: Sequence[Any], chunksize: int) -> Thunk:
        futures = self.client.map(fn, items, pure=False, batch_size=chunksize)
        return lambda: self.client.gather(futures)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


KINDS: dict[str, type[Pool]] = {
    kind.name: kind
    for kind in (
        *(OurPool, StandardPool, InterpreterPool),
        *(LokyPool, PebblePool, MpirePool, JoblibPool, DaskPool),
    )
}


# --- cells -------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """What a probe has found: the answer in a word or a few, what else is to be said in the
    cell, and how it is known, for the figures; of what is not applicable, why."""

    answer: str
    detail: str = ""
    how: str = "run"


class LookAgainError(Exception):
    """A pool has something that the probe does not know of: the probe is out of date."""


def yes(detail: str = "") -> Cell:
    """It can, by means of its own."""
    return Cell("yes", detail)


def by_hand(detail: str) -> Cell:
    """It can, by means that somebody else has or that the user writes."""
    return Cell("by hand", detail)


def no(detail: str = "", how: str = "run") -> Cell:
    """It cannot."""
    return Cell("no", detail, how)


def not_applicable(why: str) -> Cell:
    """The question makes no sense for it."""
    return Cell("n/a", "", why)


def check(condition: object, cell: Cell, otherwise: str = "") -> Cell:
    """The cell if it is so, and no if not."""
    return cell if condition else no(otherwise)


# --- features ----------------------------------------------------------------------------------

Probe = Callable[[type[Pool]], Cell]


@dataclass
class Feature:
    """A row of the table.

    Attributes:
        title: what stands at its left.
        group: the part of the table that it stands in.
        probes: by pool.
    """

    title: str
    group: str
    probes: dict[str, Probe]

    def on(self, *pools: str) -> Callable[[Probe], Probe]:
        """The decorated function is the probe for these pools; without any, for all that
        have none yet."""

        def add(probe: Probe) -> Probe:
            for pool in pools or set(KINDS) - set(self.probes):
                self.probes[pool] = probe
            return probe

        return add

    def lacking(self, pattern: str, detail: str = "") -> None:
        """All pools that have no probe yet are looked through for such a name."""
        self.on()(functools.partial(lacks, pattern=pattern, detail=detail))


FEATURES: dict[str, Feature] = {}


def feature(name: str, title: str, group: str) -> Feature:
    """A new row."""
    FEATURES[name] = Feature(title, group, {})
    return FEATURES[name]


# --- what a pool does not have -----------------------------------------------------------------

PUBLIC: dict[str, tuple[str, ...]] = {
    OURS: (
        *("prefork_executor:PreforkExecutor", "prefork_executor.executor:ExecutorView"),
        "prefork_executor:",
    ),
    STANDARD: ("concurrent.futures:ProcessPoolExecutor",),
    INTERPRETERS: ("concurrent.futures:InterpreterPoolExecutor",),
    LOKY: ("loky:ProcessPoolExecutor", "loky:get_reusable_executor", "loky:"),
    PEBBLE: ("pebble:ProcessPool", "pebble:ProcessFuture", "pebble.concurrent:process", "pebble:"),
    MPIRE: ("mpire:WorkerPool", "mpire.async_result:AsyncResult", "mpire:"),
    JOBLIB: ("joblib:Parallel", "joblib:parallel_config", "joblib:"),
    DASK: ("distributed:Client", "distributed:LocalCluster", "distributed:Future", "distributed:"),
}
"""Where a pool's users would find what it offers."""


def public_names(kind: type[Pool]) -> Iterator[str]:
    """Every public attribute of those, and every parameter of what can be called of them."""
    for place in PUBLIC[kind.name]:
        module, _, name = place.partition(":")
        thing = importlib.import_module(module)
        if not name:
            yield from (public for public in dir(thing) if not public.startswith("_"))
            continue
        thing = getattr(thing, name)
        yield from _parameters(thing)
        for attribute in dir(thing):
            if not attribute.startswith("_"):
                yield attribute
                yield from _parameters(getattr(thing, attribute))


def _parameters(thing: object) -> list[str]:
    try:
        return list(inspect.signature(thing).parameters) if callable(thing) else []
    except (TypeError, ValueError):
        return []


def lacks(kind: type[Pool], pattern: str, detail: str = "") -> Cell:
    """No: none of its public names is like that."""
    if found := sorted({name for name in public_names(kind) if re.search(pattern, name)}):
        raise LookAgainError(f"{kind.name} has {', '.join(found)}")
    return no(detail, f"no method, function or parameter is called like /{pattern}/")


def silent_on(kind: type[Pool], word: str, detail: str = "") -> Cell:
    """No: the word is nowhere in its source."""
    if files := [str(file) for file in sources(kind) if word in text_of(file)]:
        raise LookAgainError(f"{word} in {', '.join(files)}")
    return no(detail, f"{word!r} is nowhere in its source")


def text_of(file: Path) -> str:
    """In lower case."""
    return file.read_text("utf-8", "replace").lower()


def sources(kind: type[Pool]) -> Iterator[Path]:
    """The files of its package, without its tests."""
    spec = importlib.util.find_spec(kind.module)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin)
    yield from [file] if file.name != "__init__.py" else _below(file.parent)


def _below(directory: Path) -> Iterator[Path]:
    for file in directory.rglob("*.py"):
        if "tests" not in file.parts[len(directory.parts) :]:
            yield file
