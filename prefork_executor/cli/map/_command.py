"""One call of ``prefork-executor map``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from prefork_executor import PreforkExecutor
from prefork_executor._support.wording import counted
from prefork_executor.cli import _common

from . import _checks, _journal, _lines, _target, _worker
from ._lines import Item, Lines, Output, UnusableError
from ._mapping import HaltedError, Mapping, Rules
from ._progress import Progress, shown
from ._sink import LOG_HEAD, Outputs, Sink

PER_WORKER = 8
"""Tasks on their way at most, for each worker."""
LEAST_TASKS = 64
"""The same, if there are few workers."""
MOST_TASKS = 1024
"""The same, if there are many: each task needs room in the journal."""
AT_ONCE = 500
"""Failed lines that are given to the pool together when they are run again."""


class Command:
    """One call of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path | None = options.output
        self.errors: Path | None = options.errors
        self.resumes = options.resume or options.retry_errors
        self.failed = 0
        self.lines = 0
        self.log_size: int | None = None if self.resumes else 0

    def run(self) -> int:
        """Run it. Returns the exit code. What it raises is told by the caller."""
        options = self.options
        began = time.monotonic()
        job = _checks.job_of(options)
        _checks.check_options(options)
        rules = self._rules()
        _checks.check_function(job)
        executor, journal, tasks = self._executor(job)
        with _opened(options.file) as file, ended_on_error(executor):
            # In this thread, while there is no other: it may fork.
            executor.submit(_worker.find, job).result()
            bar = shown(executor, _size(file), quiet=options.quiet, eta=options.eta)
            with self._recorded(executor), bar as progress:
                engine = functools.partial(Mapping, executor, job, rules, journal, tasks)
                try:
                    self._map(Lines(file), engine, progress)
                except HaltedError:
                    self._sum_up(time.monotonic() - began)
                    raise
        self._sum_up(time.monotonic() - began)
        return 1 if self.failed else 0

    @property
    def goes_on(self) -> str:
        """What to say of --resume after an interruption."""
        return "; --resume goes on" if self.out and not self.options.unordered else ""

    # --- before anything is done --------------------------------------------------------------

    def _rules(self) -> Rules:
        options = self.options
        # Memory is measured, and workers are replaced, by tasks.
        alone = options.max_memory is not None or options.max_tasks_per_child is not None
        return Rules(
            chunksize=options.chunksize or (1 if alone else None),
            timeout=options.timeout,
            retries=options.retries,
            retries_errors=options.retry_on_error,
            is_ordered=not options.unordered,
            halts=_checks.halting(options.halt),
        )

    def _executor(self, job: _target.Job) -> tuple[PreforkExecutor, Any, int]:
        """The executor, the journal's memory, and for how many tasks it has room."""
        options = self.options
        context = multiprocessing.get_context(options.start_method)
        most = options.max_workers or os.cpu_count() or 1
        tasks = min(MOST_TASKS, max(LEAST_TASKS, PER_WORKER * most))
        journal = context.RawArray("B", _journal.size_for(tasks))
        try:
            executor = PreforkExecutor(
                options.max_workers,
                context,
                _worker.start_worker,
                (journal,),
                finalizer=_worker.end_worker,
                max_tasks_per_child=options.max_tasks_per_child,
                max_memory=options.max_memory,
                task_timeout=options.timeout,
                retries=options.retries,
                preload=functools.partial(_target.found, job) if job.is_code else job.module,
            )
        except (TypeError, ValueError) as error:
            raise UnusableError(_checks.in_options(error)) from None
        return executor, journal, tasks

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

    def _map(self, lines: Lines, engine: Any, progress: Progress) -> None:
        size, errors_size = self._go_on(lines, engine, progress) if self.resumes else (0, 0)
        outputs = self._outputs(self.out, size, self.errors, errors_size)
        self._run(engine, lines.batches(), outputs, progress)

    def _outputs(
        self, out: Path | None, size: int, errors: Path | None, errors_size: int
    ) -> Outputs:
        return Outputs(
            Output(1, None, "stdout", owns=False)
            if out is None
            else Output.open(out, f"-o {out}", size),
            None if errors is None else Output.open(errors, f"--errors {errors}", errors_size),
            self._log(),
        )

    def _log(self) -> Output | None:
        path = self.options.joblog
        if path is None:
            return None
        log = Output.open(path, f"--joblog {path}", self.log_size)
        self.log_size = None  # Only its first opening empties it.
        if log.is_empty:
            log.add("\t".join(LOG_HEAD).encode() + b"\n")
        return log

    def _run(
        self, engine: Any, batches: Iterable[list[Item]], outputs: Outputs, progress: Progress
    ) -> None:
        """Run these lines. Leaves whole lines behind, whatever happens."""
        sink = Sink(outputs, progress, self.failed)
        try:
            for result in engine(None if outputs.log is None else sink.log).results(batches, sink):
                sink.add(result)
                self.failed = sink.failed
                self.lines += 1
        except BrokenPipeError:
            raise
        except HaltedError:
            sink.write()
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

    def _go_on(self, lines: Lines, engine: Any, progress: Progress) -> tuple[int, int]:
        """Do what is to be done with the lines that OUT has. Returns the bytes of OUT and of the
        file of errors that stay."""
        assert self.out is not None
        done, size = _lines.whole_lines(self.out)
        self._warn_of_change(progress)
        if self.options.retry_errors and done:
            size = self._retry(lines.first(done), done, engine, progress)
        else:
            self._skip(lines.first(done), done, progress)
        return size, _lines.size_of_errors(self.errors, done)

    def _skip(self, lines: Iterator[Item], done: int, progress: Progress) -> None:
        """Skip the lines whose results OUT has."""
        for item, has_failed in self._known(lines, done):
            self.lines += 1
            self.failed += has_failed
            progress.skip(item.size)

    def _known(self, lines: Iterator[Item], done: int) -> Iterator[tuple[Item, bool]]:
        """The first ``done`` lines, and whether each has failed, according to the files."""
        errors = (error for error, _ in _lines.recorded_errors(self.errors))
        error = next(errors, None)
        number = 0
        for item in lines:
            number = item.number
            has_failed = error is not None and error["line"] == number
            if error is not None and has_failed:
                if error.get("input") != item.line.decode(errors="backslashreplace"):
                    raise UnusableError(
                        f"line {number} of the input differs from the one in {self.errors}, so "
                        f"{self.out} is not the output of this input"
                    )
                error = next(errors, None)
            yield item, has_failed
        if number < done:
            raise UnusableError(
                f"{self.out} has {counted(done, 'line')}, but the input only {number}, "
                f"so {self.out} is not the output of this input"
            )

    def _retry(self, lines: Iterator[Item], done: int, engine: Any, progress: Progress) -> int:
        """Run failed lines again, into new files that replace the old ones at the end. Returns
        the new size of OUT."""
        assert self.out is not None
        assert self.errors is not None
        new_out, new_errors = (
            path.with_name(f"{path.name}.retry") for path in (self.out, self.errors)
        )
        try:
            outputs = self._outputs(new_out, 0, new_errors, 0)
            with self.out.open("rb") as old:
                self._run(engine, _together(self._again(lines, done, old)), outputs, progress)
            size = new_out.stat().st_size
            os.replace(new_out, self.out)
            os.replace(new_errors, self.errors)
        finally:
            new_out.unlink(missing_ok=True)
            new_errors.unlink(missing_ok=True)
        return size

    def _again(self, lines: Iterator[Item], done: int, old: IO[bytes]) -> Iterator[Item]:
        for item, has_failed in self._known(lines, done):
            known = old.readline()
            yield item if has_failed else item._replace(known=known)

    def _warn_of_change(self, progress: Progress) -> None:
        file, out = self.options.file, self.out
        if self.options.quiet or file == "-" or out is None or not out.exists():
            return
        if os.stat(file).st_mtime > out.stat().st_mtime:
            progress.tell(
                f"prefork-executor map: {file} has changed since {out} was written; "
                "this run assumes that lines with results there have not changed"
            )

    def _sum_up(self, seconds: float) -> None:
        if self.options.quiet:
            return
        failed = f", {self.failed:,} failed" if self.failed else ""
        where = f": see {self.errors}" if self.failed and self.errors else ""
        print(
            f"prefork-executor map: {counted(self.lines, 'line')} in {_common.span(seconds)}"
            f"{failed}{where}",
            file=sys.stderr,
        )


def _together(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


@contextlib.contextmanager
def ended_on_error(executor: PreforkExecutor) -> Iterator[None]:
    """On any error, end the pool at once, running tasks included."""
    try:
        yield
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        executor.terminate_workers()
        raise
    finally:
        executor.shutdown()


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
