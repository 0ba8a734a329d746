"""What `PreforkExecutor.record` returns: a timeline of a pool's run, which it writes to files."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterable
from pathlib import Path

from ._client.client import Client
from ._client.recorder import Recorder
from ._support.arguments import check_count
from ._support.logs import logger
from ._timeline.chrome_trace import trace
from ._timeline.html_page import page
from ._timeline.model import Timeline

__all__ = ["Recording"]


_WRITERS: dict[str, Callable[[Timeline], Iterable[str]]] = {".json": trace, ".html": page}
"""For each suffix, a function that makes the file's text in pieces."""


class Recording:
    """Notes what an executor does until it is closed. Closing writes the files.

    Made by :meth:`prefork_executor.PreforkExecutor.record`. Closed by :meth:`close`, by
    the end of a ``with`` block, or by the executor when it has shut down.
    """

    def __init__(self, recorder: Recorder, paths: list[Path], detach: Callable[[], None]) -> None:
        self._recorder = recorder
        self._paths = paths
        self._detach = detach
        self._process = os.getpid()
        # A signal handler may call close() within close().
        self._lock = threading.RLock()
        self._is_closed = False
        recorder.call_on_shutdown(self._close_quietly)

    def close(self) -> None:
        """Stop recording and write the files, each in one step, so that there is never half a
        file. A second call does nothing, and neither does a call in a forked process.

        Raises:
            OSError: a file cannot be written. The others have been written.
        """
        if os.getpid() != self._process:
            return  # A thread that does not exist here may hold the lock.
        # Without our lock: this takes the client's, whose holder a handler may have interrupted.
        self._detach()
        with self._lock:
            if self._is_closed or not self._recorder.has_ended:
                return
            self._is_closed = True
            self._write()

    def _write(self) -> None:
        timeline = self._recorder.timeline(sys.modules["prefork_executor"].__version__)
        errors = []
        for path in self._paths:
            try:
                _write(path, _WRITERS[path.suffix](timeline))
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _close_quietly(self) -> None:
        """In the executor's own thread, where no code could catch an error."""
        try:
            self.close()
        except Exception:  # noqa: BLE001 - it is logged
            logger.exception("a recording could not be written")

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()


def start(
    client: Client, paths: tuple[str | os.PathLike[str], ...], max_tasks: int, max_workers: int
) -> Recording:
    """See PreforkExecutor.record."""
    check_count("max_tasks", max_tasks, minimum=1)
    if not paths:
        raise TypeError('record() needs a path, such as "run.json" or "run.html"')
    checked = [_checked(f"paths[{i}]", path) for i, path in enumerate(paths)]
    recorder = Recorder(max_tasks, max_workers)
    recording = Recording(recorder, checked, functools.partial(client.end_record, recorder))
    client.record(recorder)
    return recording


def _checked(name: str, path: str | os.PathLike[str]) -> Path:
    try:
        file = Path(path).absolute()
    except TypeError as error:
        raise TypeError(f"{name} must be a path, not {type(path).__name__}") from error
    if file.suffix not in _WRITERS:
        known = " or ".join(_WRITERS)
        raise ValueError(f"{name} must end in {known}, which says what to write, not {file.name!r}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{name}: there is no directory {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"{name}: no file can be written in {file.parent}")
    if file.is_dir():
        raise IsADirectoryError(f"{name}: {file} is a directory")
    return file


def _write(path: Path, pieces: Iterable[str]) -> None:
    """Write all or nothing: a reader sees either the old file or the new one."""
    with tempfile.NamedTemporaryFile(
        "w",
        encoding="utf-8",
        errors="backslashreplace",  # A function's name may contain half a surrogate pair.
        prefix=f".{path.name}.",
        dir=path.parent,
        delete=False,
    ) as file:
        try:
            file.writelines(pieces)
            file.flush()
            os.chmod(file.name, _usual_mode(path))
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _usual_mode(path: Path) -> int:
    """The permissions of the file, or those that a new file would get."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    # The only call that returns it also sets it, for all threads. Linux tells it here as well.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return 0o077
