"""``prefork-executor map package.module:function [FILE]``: calls a function for each line."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any

from prefork_executor import PreforkExecutor

from . import _lines, _map_worker
from ._lines import Output, UnusableError
from ._map_worker import Job
from ._mapping import Item, Mapping, Sink, ended_on_error
from ._progress import Progress, shown

_DESCRIPTION = """
Call a function for each line of FILE, in a pool of processes that grows and shrinks with
the work, and write what it returns as JSON, a line for each line, in order. A line that
fails is null in the output. Its error goes to stderr, or to the file of --errors.
"""
_EPILOG = """
Exit code: 0 if all went well, 1 if lines failed or the pool could not go on, 2 for bad
arguments, 130 after Ctrl-C. After an interruption of any kind, the same command with
--resume goes on where OUT ends.
"""


def add_to(subcommands: Any) -> None:
    """Add the subcommand's parser."""
    parser = subcommands.add_parser(
        "map", help="call a function for each line of a file", description=_DESCRIPTION,
        epilog=_EPILOG,
    )  # fmt: skip
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("function", metavar="package.module:function", help="what to call; found as by python -m")
    add("file", metavar="FILE", nargs="?", default="-", help="the lines; default or -: stdin")
    add("-o", "--output", metavar="OUT", type=Path, help="where to write; default: stdout")
    add("--errors", metavar="FILE", type=Path, help="errors, as JSON lines")
    reads = parser.add_mutually_exclusive_group()
    reads.add_argument(
        "--json", dest="reads", action="store_const", const="json", default="line",
        help="each line is JSON, whose value is the argument; otherwise it is a str",
    )  # fmt: skip
    reads.add_argument(
        "--star", dest="reads", action="store_const", const="star",
        help="each line is a JSON list of arguments, or an object of keyword arguments",
    )  # fmt: skip
    _add_resuming(parser.add_argument_group("after an interruption"))
    _add_pool(parser.add_argument_group("the pool"))
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")


def _add_resuming(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--resume", action="store_true", help="go on where OUT ends")
    add("--retry-errors", action="store_true", help="--resume, but first run failed lines again")
    add("--overwrite", action="store_true", help="replace OUT; otherwise it must not exist")


def _add_pool(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--max-workers", type=int, metavar="N", help="workers at most; default: one a CPU")
    add("--chunksize", type=int, default=1, metavar="N",
        help="lines in one task; a death or a time-out fails them all")  # fmt: skip
    add("--timeout", type=float, metavar="SECONDS", help="how long a task may run")
    add("--retries", type=int, default=0, metavar="N", help="runs after a death or a time-out")
    add("--max-tasks-per-child", type=int, metavar="N", help="tasks until a worker is replaced")
    add("--start-method", choices=("fork", "forkserver", "spawn"), help="default: Python's own")
    add("--record", action="append", default=[], metavar="PATH",
        help="write a timeline: run.json for Perfetto, run.html as a page")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    try:
        return _Command(options).run()
    except UnusableError as error:
        return _fail(2, str(error))
    except BrokenProcessPool as error:
        return _fail(1, str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted" + ("; --resume goes on" if options.output else ""))


def _fail(code: int, message: str) -> int:
    print(f"prefork-executor map: {message}", file=sys.stderr)
    return code


class _Command:
    """One call of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path | None = options.output
        self.errors: Path | None = options.errors
        self.resumes = options.resume or options.retry_errors
        self.failed = 0
        self.lines = 0

    def run(self) -> int:
        options = self.options
        self._check()
        _check_function(options.function)
        executor = self._executor()
        mapping = Mapping(
            executor, Job(options.function, options.reads), options.chunksize, executor._max_workers
        )
        with _opened(options.file) as file, ended_on_error(executor):
            # In this thread, while there is no other: it may fork.
            executor.submit(_map_worker.find, options.function).result()
            with self._recorded(executor), shown(executor, _size(file), quiet=options.quiet) as bar:
                self._map(_lines.numbered(file), mapping, bar)
        if not options.quiet and (self.failed or sys.stderr.isatty()):
            self._sum_up()
        return 1 if self.failed else 0

    # --- before anything is done --------------------------------------------------------------

    def _check(self) -> None:
        options, out = self.options, self.out
        if options.chunksize < 1:
            raise UnusableError(f"--chunksize must be at least 1, not {options.chunksize}")
        if options.overwrite and self.resumes:
            raise UnusableError("--overwrite and --resume contradict each other")
        if self.resumes and out is None:
            raise UnusableError("--resume goes on where OUT ends: it needs -o OUT")
        if options.retry_errors and self.errors is None:
            raise UnusableError("--retry-errors needs the file that --errors has written")
        self._check_different()
        for path in (out, self.errors):
            if path is not None and not path.parent.is_dir():
                raise UnusableError(f"there is no directory {path.parent} for {path}")
            if path is not None and path.is_dir():
                raise UnusableError(f"{path} is a directory")
        if self.resumes and out is not None and out.exists() and not _lines.is_regular(out):
            raise UnusableError(f"{out} is no regular file, so --resume cannot go on with it")
        if not self.resumes and not options.overwrite:
            self._check_new()

    def _check_different(self) -> None:
        paths = [self.options.file, self.out, self.errors, *self.options.record]
        files = [_lines.identity(path) for path in paths if path not in (None, "-")]
        kept = [file for file in files if file is not None]
        if len(set(kept)) < len(kept):
            raise UnusableError("FILE, -o, --errors and --record must be different files")

    def _check_new(self) -> None:
        for path in (self.out, self.errors):
            if path is not None and _lines.is_regular(path) and path.stat().st_size:
                raise UnusableError(
                    f"{path} exists: --resume goes on where it ends, --overwrite replaces it"
                )

    def _executor(self) -> PreforkExecutor:
        options = self.options
        try:
            return PreforkExecutor(
                options.max_workers,
                options.start_method,
                _map_worker.start_worker,
                max_tasks_per_child=options.max_tasks_per_child,
                task_timeout=options.timeout,
                retries=options.retries,
                preload=options.function.partition(":")[0],
            )
        except (TypeError, ValueError) as error:
            raise UnusableError(str(error)) from None

    @contextlib.contextmanager
    def _recorded(self, executor: PreforkExecutor) -> Iterator[None]:
        if not self.options.record:
            yield
            return
        try:
            recording = executor.record(*self.options.record)
        except (ValueError, OSError) as error:
            raise UnusableError(f"--record: {error}") from None
        with recording:
            yield

    # --- the work ---------------------------------------------------------------------------

    def _map(
        self, lines: Iterator[tuple[int, bytes, int]], mapping: Mapping, bar: Progress
    ) -> None:
        done = size = errors_size = 0
        if self.resumes and self.out is not None:
            done, size = _lines.whole_lines(self.out)
            self._warn_of_change(bar)
        if self.options.retry_errors and done:
            size = self._retry(_first(lines, done), done, mapping, bar)
        else:
            self._skip(lines, done, bar)
        if self.resumes:
            errors_size = _lines.size_of_errors(self.errors, done)
        sink = self._sink(self.out, size, self.errors, errors_size, bar)
        self._run(mapping, (Item(*line) for line in lines), sink, bar)

    def _sink(
        self, out: Path | None, size: int, errors: Path | None, errors_size: int, bar: Progress
    ) -> Sink:
        output = Output(1, None, owns=False) if out is None else Output.open(out, size)
        errors_output = None if errors is None else Output.open(errors, errors_size)
        return Sink(output, errors_output, bar.tell)

    def _run(self, mapping: Mapping, items: Iterator[Item], sink: Sink, bar: Progress) -> None:
        """Run these items into the sink. Leaves whole lines behind, whatever happens."""
        before = self.failed
        try:
            for result in mapping.results(items, sink):
                sink.add(result)
                self.failed = before + sink.failed
                self.lines += 1
                bar.advance(result.item.size, self.failed)
        except BrokenPipeError:
            raise
        except BaseException:
            if self.out is not None:
                sink.write()
            raise
        else:
            sink.write()
            sink.sync()
        finally:
            sink.close()

    # --- after an interruption -----------------------------------------------------------------

    def _skip(self, lines: Iterator[tuple[int, bytes, int]], done: int, bar: Progress) -> None:
        """Skip the lines whose results OUT has."""
        for item, _ in self._known(_first(lines, done), done):
            self.lines += 1
            bar.advance(item.size, self.failed)

    def _known(
        self, lines: Iterator[tuple[int, bytes, int]], done: int
    ) -> Iterator[tuple[Item, bool]]:
        """The first ``done`` lines, and whether each has failed, according to the files."""
        errors = (error for error, _ in _lines.recorded_errors(self.errors))
        error = next(errors, None)
        number = 0
        for number, line, size in lines:
            has_failed = error is not None and error["line"] == number
            if error is not None and has_failed:
                if error.get("input") != line.decode(errors="backslashreplace"):
                    raise UnusableError(
                        f"line {number} of the input is not the one in {self.errors}: "
                        f"{self.out} is not the output of this input"
                    )
                self.failed += 1
                error = next(errors, None)
            yield Item(number, line, size), has_failed
        if number < done:
            raise UnusableError(
                f"{self.out} has {done} lines, the input only {number}: "
                "it is not the output of this input"
            )

    def _retry(
        self, lines: Iterator[tuple[int, bytes, int]], done: int, mapping: Mapping, bar: Progress
    ) -> int:
        """Run failed lines again, into new files that replace the old ones at the end."""
        assert self.out is not None
        assert self.errors is not None
        new_out, new_errors = (
            path.with_name(f"{path.name}.retry") for path in (self.out, self.errors)
        )
        try:
            sink = self._sink(new_out, 0, new_errors, 0, bar)
            with self.out.open("rb") as old:
                self._run(mapping, self._again(lines, done, old), sink, bar)
            self.failed = sink.failed
            size = new_out.stat().st_size
            os.replace(new_out, self.out)
            os.replace(new_errors, self.errors)
        finally:
            new_out.unlink(missing_ok=True)
            new_errors.unlink(missing_ok=True)
        return size

    def _again(
        self, lines: Iterator[tuple[int, bytes, int]], done: int, old: IO[bytes]
    ) -> Iterator[Item]:
        for item, has_failed in self._known(lines, done):
            known = old.readline()
            yield item if has_failed else item._replace(known=known)

    def _warn_of_change(self, bar: Progress) -> None:
        file, out = self.options.file, self.out
        if self.options.quiet or file == "-" or out is None or not out.exists():
            return
        if os.stat(file).st_mtime > out.stat().st_mtime:
            bar.tell(
                f"prefork-executor map: {file} has changed since {out} was written; "
                "lines that have results there are taken to be unchanged"
            )

    def _sum_up(self) -> None:
        failed = f", {self.failed:,} failed" if self.failed else ""
        where = f": see {self.errors}" if self.failed and self.errors else ""
        print(f"prefork-executor map: {self.lines:,} lines{failed}{where}", file=sys.stderr)


def _first(lines: Iterator[tuple[int, bytes, int]], count: int) -> Iterator[tuple[int, bytes, int]]:
    """The first ``count`` lines. Reads not one more."""
    for _ in range(count):
        line = next(lines, None)
        if line is None:
            return
        yield line


def _check_function(target: str) -> None:
    # As python -m does. Workers and their supervisor get this path, too.
    sys.path.insert(0, os.getcwd())
    find: Callable[[str], object] = _map_worker.find
    try:
        with contextlib.redirect_stdout(sys.stderr):
            find(target)
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableError(str(error)) from None
    except ImportError as error:
        module = target.partition(":")[0]
        raise UnusableError(f"module {module} cannot be imported: {error}") from None


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    if file == "-":
        # Not sys.stdin: a thread that waits in it would still hold its lock at the end.
        with open(0, "rb", closefd=False) as stdin:
            yield stdin
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below, after what may fail here
    except OSError as error:
        raise UnusableError(f"{file} cannot be read: {error.strerror}") from None
    with opened:
        yield opened


def _size(file: IO[bytes]) -> int | None:
    """The size of a regular file in bytes. None if it is not regular."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None
