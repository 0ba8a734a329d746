"""Where the results of ``prefork-executor map`` go, and what is logged of each line's run."""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from ._lines import Output
from ._mapping import Pause, Result, Run
from ._progress import Progress
from ._worker import Error

WRITE_EVERY = 0.1
"""Seconds after which a result is written, if nothing prevents it."""
MAX_PENDING = 1 << 20
"""Bytes of results that wait to be written together, at most."""
MAX_TOLD = 20
"""Failures that are told on stderr, at most."""
TOLD_OF_ONE = 500
"""Characters that are told of a failure, at most."""
LOG_HEAD = (
    *("Seq", "Worker", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal"),
    "Outcome",
)
"""The columns of the log: those of GNU parallel's, but for the second and the last."""


class Outputs(NamedTuple):
    """The files: results, errors as JSON lines, and the log."""

    results: Output
    errors: Output | None
    log: Output | None


class Sink(Pause):
    """Takes results, and writes many at once.

    Args:
        progress: is told each failure if there is no file of errors.
        failed: how many lines have failed before.
    """

    def __init__(self, outputs: Outputs, progress: Progress, failed: int = 0) -> None:
        self._outputs = outputs
        self._progress = progress
        self._size = 0
        self._written_at = time.monotonic()
        self._told = 0
        self.failed = failed

    def log(self, result: Result) -> None:
        """A line has ended. Its result comes when it is its turn."""
        if self._outputs.log is not None and result.run is not None:
            row = _row(result, result.run)
            self._outputs.log.add(row)
            self._size += len(row)

    def add(self, result: Result) -> None:
        """Take a result. If it is time, write."""
        if result.error is not None:
            self._note(result, result.error)
        self._outputs.results.add(result.line)
        self._size += len(result.line)
        self._progress.advance(result.item.size, self.failed)
        if self._size > MAX_PENDING:
            self.write()
        else:
            self.do()

    def _note(self, result: Result, error: Error) -> None:
        self.failed += 1
        if self._outputs.errors is None:
            self._tell(result, error)
            return
        text = result.item.line.decode(errors="backslashreplace")
        record = json.dumps({"line": result.item.number, "input": text, **error}) + "\n"
        self._outputs.errors.add(record.encode())
        self._size += len(record)

    def _tell(self, result: Result, error: Error) -> None:
        self._told += 1
        if self._told <= MAX_TOLD:
            self._progress.tell(f"line {result.item.number}: {_summary(error)}")
        elif self._told == MAX_TOLD + 1:
            self._progress.tell(
                "prefork-executor map: no more failures are printed here; "
                "--errors FILE keeps all of them"
            )

    def due_in(self) -> float | None:
        """Seconds until the next write, or the next word on the progress, is due."""
        times = [self._progress.due_in()]
        if any(output.is_pending for output in (self._outputs.results, *self._others())):
            times.append(max(0.0, self._written_at + WRITE_EVERY - time.monotonic()))
        return min((due for due in times if due is not None), default=None)

    def do(self) -> None:
        """Write, if results have waited long enough, and show the progress if that is due."""
        if time.monotonic() - self._written_at >= WRITE_EVERY:
            self.write()
        self._progress.do()

    def write(self) -> None:
        """Write all results. Errors come first, and go to the disk at once; see _lines.py."""
        if (errors := self._outputs.errors) is not None and errors.is_pending:
            errors.write()
            errors.sync()
        self._outputs.results.write()
        if self._outputs.log is not None:
            self._outputs.log.write()
        self._size = 0
        self._written_at = time.monotonic()

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        self._outputs.results.sync()

    def _others(self) -> list[Output]:
        return [output for output in self._outputs[1:] if output is not None]

    def close(self) -> None:
        """Close the files."""
        for output in (self._outputs.results, *self._others()):
            output.close()


def _row(result: Result, run: Run) -> bytes:
    error = result.error
    outcome = "ok" if error is None else _summary(error)
    columns = (
        *(result.item.number, run.pid, f"{run.began:.3f}", f"{run.seconds:.3f}"),
        *(result.item.size, len(result.line), run.exit_value, run.signal, outcome),
    )
    return ("\t".join(map(str, columns)) + "\n").encode(errors="backslashreplace")


def _summary(error: Error) -> str:
    """The error in one line, which is not too long."""
    text = f"{error['type']}: {error['message']}" if error["message"] else error["type"]
    text = text[:TOLD_OF_ONE] + "..." if len(text) > TOLD_OF_ONE else text
    return " ".join(text.split())
