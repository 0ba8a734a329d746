"""What a worker does for ``prefork-executor map``: a line in, a line of JSON out.

The workers parse and dump JSON, so that the caller only moves bytes.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

Error = dict[str, str]
"""``type``, ``message`` and ``traceback`` of an exception."""


class Job(NamedTuple):
    """What to do with each line. ``target`` is module:function. ``reads`` says what the function
    gets: the "line" as a str, the "json" in it, or the items of that as arguments ("star")."""

    target: str
    reads: str


def find(target: str) -> Callable[..., Any]:
    """The function that ``module:function`` names. Either part may have dots.

    Raises:
        ValueError: the name has another form.
        ImportError: there is no such module.
        AttributeError: the module has no such function.
        TypeError: it cannot be called.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise ValueError(f"{target!r} does not name a function as package.module:function does")
    found: Any = importlib.import_module(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise AttributeError(f"module {module_name} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{target} is {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


_found = functools.lru_cache(maxsize=8)(find)


def start_worker() -> None:
    """Functions may print. That is not a result, so it goes where messages go."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, _on_interrupt)


_interrupts: list[int] = []
"""Signals of Ctrl-C that this worker has received."""


def _on_interrupt(number: int, _frame: object) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


class Call:
    """What a task runs. Messages and recordings call it by the function's name.

    For each line it returns the result as JSON, or the error that the function raised."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.__module__, _, self.__qualname__ = job.target.partition(":")

    def __call__(self, *lines: bytes) -> list[tuple[bytes, Error | None]]:
        """Called in a worker."""
        fn = _found(self.job.target)
        return [_run_one(fn, self.job, line) for line in lines]


def _run_one(fn: Callable[..., Any], job: Job, line: bytes) -> tuple[bytes, Error | None]:
    try:
        return _dumped(_called(fn, job.reads, line.decode()), job.target), None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _interrupts:
            raise
        # Even SystemExit, or a KeyboardInterrupt that the function raised itself: one line must
        # not end the work on the others.
        return b"", describe(error, skip=2)


def _called(fn: Callable[..., Any], reads: str, text: str) -> Any:
    if reads == "line":
        return fn(text)
    value = json.loads(text)
    if reads == "json":
        return fn(value)
    if isinstance(value, dict):
        return fn(**value)
    if isinstance(value, list):
        return fn(*value)
    raise ValueError(
        f"--star needs a list or an object in each line, not {type(value).__name__}: "
        "use --json for one argument"
    )


def _dumped(result: Any, target: str) -> bytes:
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"what {target} returned is no JSON: {error}. Have it return None, bool, int, float, "
            "str, and lists and dicts of them: str(x) of a date or a path, x.tolist() of an "
            "array, None for nan"
        ) from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can only escape.
        return json.dumps(result).encode()


def describe(error: BaseException, skip: int = 0) -> Error:
    """An exception as text. ``skip``: how many frames at the traceback's beginning are ours."""
    trace = error.__traceback__
    for _ in range(skip):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}
