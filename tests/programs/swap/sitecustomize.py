"""Imported by every Python process of a program that is run, children included, before
anything else: puts PreforkExecutor in the place of ProcessPoolExecutor, as editing the
import would, if it is told to, and counts the tasks.

``PROGRAMS_EXECUTOR``      the class to put in that place, or, if it is Pool, in that of
                           multiprocessing.Pool and of the one of the package multiprocess;
                           empty: none
``PROGRAMS_START_METHOD``  what to make the default; empty: the program's or Python's own
``PROGRAMS_COUNTS``        a directory for the counts, a file for each process with executors
"""

from __future__ import annotations

import atexit
import concurrent.futures
import concurrent.futures.process
import functools
import importlib
import importlib.util
import json
import multiprocessing
import multiprocessing.pool
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from prefork_executor import PreforkExecutor

Standard = concurrent.futures.process.ProcessPoolExecutor
_made: list[weakref.ref[Any]] = []
_ended: list[Any] = []  # Kept, so that they can be asked at the end.
_submitted = 0


def swap() -> None:
    """Put the pool that is to be tried in the place of the standard one."""
    if os.environ["PROGRAMS_START_METHOD"]:
        multiprocessing.set_start_method(os.environ["PROGRAMS_START_METHOD"])
    if os.environ["PROGRAMS_EXECUTOR"] == "PreforkExecutor":
        concurrent.futures.ProcessPoolExecutor = PreforkExecutor  # type: ignore[misc]
        concurrent.futures.process.ProcessPoolExecutor = PreforkExecutor  # type: ignore[misc]
    if os.environ["PROGRAMS_EXECUTOR"] == "Pool":
        swap_pools()


def modules_with_pools() -> list[Any]:
    """multiprocessing, and multiprocess if it is there."""
    modules = [multiprocessing]
    if importlib.util.find_spec("multiprocess"):
        importlib.import_module("multiprocess.pool")
        modules.append(importlib.import_module("multiprocess"))
    return modules


def swap_pools() -> None:
    from prefork_executor import Pool

    def of_context(self: Any, *args: Any, **kwargs: Any) -> Any:
        return Pool(*args, context=self.get_context(), **kwargs)

    for module in modules_with_pools():
        module.Pool = module.pool.Pool = Pool
        module.context.BaseContext.Pool = of_context


def count_pools() -> None:
    """Have Pools count the calls of their methods, by the one who counts tasks."""
    from prefork_executor import Pool

    for module in modules_with_pools():
        original = Originals[module.__name__]
        original.__init__ = _noted(original.__init__)
        for method in METHODS:
            setattr(original, method, _called(getattr(original, method), "original"))
    for method in METHODS:
        setattr(Pool, method, _called(getattr(Pool, method), "prefork"))


METHODS = (
    *("apply", "apply_async", "map", "map_async", "starmap", "starmap_async"),
    *("imap", "imap_unordered"),
)
_calls = {"original": 0, "prefork": 0}
_depth = threading.local()


def _called(method: Any, pool: str) -> Any:
    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_outer = not getattr(_depth, "value", 0)
        _calls[pool] += is_outer  # Not what a method does by another.
        _depth.value = 1
        try:
            return method(self, *args, **kwargs)
        finally:
            _depth.value = int(not is_outer)

    return called


def count() -> None:
    """Have both pools count their tasks."""
    for kind in (Standard, PreforkExecutor):
        kind.__init__ = _noted(kind.__init__)  # type: ignore[misc]
    PreforkExecutor.shutdown = _kept(PreforkExecutor.shutdown)  # type: ignore[method-assign]
    Standard.submit = _counted(Standard.submit)  # type: ignore[method-assign]
    atexit.register(write_counts)  # The first: called after all that programs register.


def _noted(init: Any) -> Any:
    @functools.wraps(init)
    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _made.append(weakref.ref(self))

    return noted


def _kept(shutdown: Any) -> Any:
    @functools.wraps(shutdown)
    def kept(self: Any, *args: Any, **kwargs: Any) -> None:
        if self not in _ended:
            _ended.append(self)
        shutdown(self, *args, **kwargs)

    return kept


def _counted(submit: Any) -> Any:
    @functools.wraps(submit)
    def counted(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        global _submitted
        future = submit(self, *args, **kwargs)
        _submitted += 1
        return future

    return counted


def write_counts() -> None:
    """What this process's executors did; nothing if it had none."""
    if not _made:
        return
    alive = [executor for ref in _made if (executor := ref()) is not None]
    prefork = {id(one): one for one in [*_ended, *alive] if isinstance(one, PreforkExecutor)}
    finished = sum(one.stats().finished for one in prefork.values())
    counts = {
        "executors": len(_made),
        "standard": _submitted or _calls["original"],
        "prefork": finished if not sum(_calls.values()) else _calls["prefork"],
    }
    path = Path(os.environ["PROGRAMS_COUNTS"], f"{os.getpid()}.json")
    path.write_text(json.dumps(counts), encoding="utf-8")


if "PROGRAMS_COUNTS" in os.environ:
    is_about_pools = os.environ["PROGRAMS_EXECUTOR"].endswith("Pool")
    if is_about_pools:
        Originals = {module.__name__: module.pool.Pool for module in modules_with_pools()}
    swap()
    count()
    if is_about_pools:
        count_pools()
