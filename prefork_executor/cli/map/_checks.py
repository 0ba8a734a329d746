"""What ``prefork-executor map`` checks before the first line: the options, the files, and the
function."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _lines, _target
from ._lines import UnusableError
from ._target import Job

HALT_FROM = 20
"""Lines that must have ended before a percentage of them says anything."""
OPTIONS = {
    "max_workers": "--max-workers",
    "max_tasks_per_child": "--max-tasks-per-child",
    "max_memory": "--max-memory",
    "task_timeout": "--timeout",
    "retries": "--retries",
}
"""The executor's names for options of the command."""


def check_options(options: argparse.Namespace) -> None:
    """See whether the options fit together.

    Raises:
        UnusableError: they do not. The message names them.
    """
    if options.chunksize is not None and options.chunksize < 1:
        raise UnusableError(f"--chunksize must be at least 1, not {options.chunksize}")
    if options.retry_on_error and not options.retries:
        raise UnusableError("--retry-on-error needs --retries N, which says how often")
    _check_resuming(options)
    _check_files(options)


def _check_resuming(options: argparse.Namespace) -> None:
    resumes = options.resume or options.retry_errors
    if options.overwrite and resumes:
        raise UnusableError("--overwrite and --resume contradict each other")
    if resumes and options.output is None:
        raise UnusableError("--resume goes on where OUT ends: it needs -o OUT")
    if resumes and options.unordered:
        raise UnusableError("--unordered cannot be resumed: OUT does not say which lines it has")
    if options.retry_errors and options.errors is None:
        raise UnusableError("--retry-errors needs the file that --errors has written")


# --- files --------------------------------------------------------------------------------------


def _check_files(options: argparse.Namespace) -> None:
    out = options.output
    resumes = options.resume or options.retry_errors
    paths = (out, options.errors, options.joblog)
    if options.file == "-" and 0 in options.closed:
        raise UnusableError("standard input is closed: give FILE")
    if out is None and 1 in options.closed:
        raise UnusableError("standard output is closed: give -o OUT")
    _check_different([options.file, *paths, *options.record])
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise UnusableError(f"there is no directory {path.parent} for {path}")
        if path is not None and path.is_dir():
            raise UnusableError(f"{path} is a directory")
    if resumes and out.exists() and not _lines.is_regular(out):
        raise UnusableError(f"{out} is not a regular file, so --resume cannot go on with it")
    if not resumes and not options.overwrite:
        _check_new(paths)


def _check_different(paths: list[str | Path | None]) -> None:
    files = [_lines.identity(path) for path in paths if path is not None and path != "-"]
    kept = [file for file in files if file is not None]
    if len(set(kept)) < len(kept):
        raise UnusableError("FILE, -o, --errors, --joblog and --record must be different files")


def _check_new(paths: tuple[Path | None, ...]) -> None:
    for path in paths:
        if path is not None and _lines.is_regular(path) and path.stat().st_size:
            raise UnusableError(
                f"{path} exists: --resume goes on where it ends, --overwrite replaces it"
            )


# --- the function ---------------------------------------------------------------------------------


def job_of(options: argparse.Namespace) -> Job:
    """What to do with each line.

    Raises:
        UnusableError: the options do not say that.
    """
    if (options.code is None) is (options.function is None):
        raise UnusableError("give either package.module:function or -c CODE, and not both")
    constants = json.dumps(_constants(options))
    if options.code is not None:
        return Job(options.code, True, options.reads, constants)
    return Job(options.function, False, options.reads, constants)


def _constants(options: argparse.Namespace) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for option, texts in (("--arg", options.arg), ("--arg-json", options.arg_json)):
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                raise UnusableError(f"{option} must be NAME=VALUE, not {text}")
            if name in named:
                raise UnusableError(f"{option} {name} is given twice")
            named[name] = value if option == "--arg" else _json_of(name, value)
    return named


def _json_of(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"--arg-json {name} is not JSON: {error}; --arg takes a str") from None


def check_function(job: Job) -> None:
    """Find the function, in this process.

    Raises:
        UnusableError: there is none, or it cannot work.
    """
    # As python -m does. Workers and their supervisor get this path, too.
    sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _target.check(job)
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableError(str(error)) from None
    except ImportError as error:
        raise UnusableError(f"module {job.module} cannot be imported: {error}") from None


# --- rules and words ------------------------------------------------------------------------------


def halting(text: str | None) -> Callable[[int, int], bool]:
    """The rule of --halt, for :class:`Rules`.

    Raises:
        UnusableError: it is none.
    """
    if text is None:
        return lambda _failed, _ended: False
    found = re.fullmatch(r"([0-9]+)(%?)", text)
    most = int(found[1]) if found else 0
    if found is None or most < 1 or (found[2] and most > 100):
        raise UnusableError(
            f"--halt must be a number of failed lines (3), or a percentage (10%), not {text}"
        )
    if found[2]:
        return lambda failed, ended: ended >= HALT_FROM and failed * 100 >= most * ended
    return lambda failed, _ended: failed >= most


def in_options(error: Exception) -> str:
    """What the executor says of a bad argument, with the options that the user has given."""
    names = "|".join(OPTIONS)
    return re.sub(rf"\b({names})\b", lambda name: OPTIONS[name[1]], str(error))
