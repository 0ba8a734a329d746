"""Imported by every Python process of a program that is run, children included, before
anything else: puts PreforkExecutor in the place of ProcessPoolExecutor, as editing the
import would, if it is told to, and counts the tasks.

``PROGRAMS_EXECUTOR``      the class to put in that place; empty: none
``PROGRAMS_START_METHOD``  what to make the default; empty: the program's or Python's own
``PROGRAMS_COUNTS``        a directory for the counts, a file for each process with executors
"""

from __future__ import annotations

import atexit
import concurrent.futures
import concurrent.futures.process
import functools
import json
import multiprocessing
import os
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
    counts = {
        "executors": len(_made),
        "standard": _submitted,
        "prefork": sum(one.stats().finished for one in prefork.values()),
    }
    path = Path(os.environ["PROGRAMS_COUNTS"], f"{os.getpid()}.json")
    path.write_text(json.dumps(counts), encoding="utf-8")


if "PROGRAMS_COUNTS" in os.environ:
    swap()
    count()
