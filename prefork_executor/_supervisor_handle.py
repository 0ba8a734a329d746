"""The client's hold on its supervisor process: start it, ask it to end, see it end.

The control socket is the hold. Its end of file, at either side, says that the
other side is gone, and is what makes a supervisor kill its workers and go.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from typing import Any

from . import _pickling, _posix, _wire
from ._supervisor import supervise
from ._worker import Settings
from .errors import describe_end


@contextlib.contextmanager
def _no_false_file() -> Iterator[None]:
    """Where ``__main__`` names a file that is none, hide the name, or multiprocessing
    would have a spawned supervisor import it. Without it that imports nothing, and
    what ``__main__`` has travels by value."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or _pickling.main_is_importable():
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = file


class SupervisorHandle:
    """One supervisor process, not yet started.

    It exists before the process does, so that a forked supervisor's copy of it
    is known and can be closed there.
    """

    def __init__(self) -> None:
        self.control, self._theirs = _posix.stream_pair()
        self._process: Any = None
        self._starter: int | None = None

    def start(
        self,
        context: BaseContext,
        settings: Settings,
        give_channels: Callable[[socket.socket], None],
    ) -> None:
        """Start the process and give it its ends of the channels. Raises what
        starting a multiprocessing.Process raises."""
        self._starter = threading.get_ident()
        try:
            process: Any = context.Process(  # type: ignore[attr-defined]
                target=supervise,
                args=(self._theirs, settings, os.getpid()),
                name="PreforkSupervisor",
                daemon=False,
            )
            with _no_false_file():
                process.start()
        finally:
            self._theirs.close()
            self._starter = None
        self._process = process
        give_channels(self.control)

    @property
    def pid(self) -> int | None:
        """Its process id; None before it is started and after it was closed."""
        return None if self._process is None else self._process.pid

    def ask_to_end(self) -> None:
        """Retire every worker, then end. If it ends already, that is as good."""
        with contextlib.suppress(OSError):
            self.control.send(_wire.pack(_wire.Kind.SHUTDOWN))

    def ask_to_end_now(self, signal: int) -> None:
        """End every worker now, by this signal, then end."""
        with contextlib.suppress(OSError):
            self.control.send(_wire.pack(_wire.Kind.END_NOW, signal))

    def make_it_kill(self) -> None:
        """Kill every worker, whatever it does, and end."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_WR)

    def wait(self) -> str:
        """Wait for its end; say how it ended, as a verb phrase."""
        self._process.join()
        exitcode = self._process.exitcode
        if exitcode is None:
            return "ended, and another part of this process took its exit status"
        return describe_end(exitcode, None) if exitcode >= 0 else describe_end(None, -exitcode)

    def close(self) -> None:
        """Let go of the process. One that runs still kills its workers and ends."""
        self.control.close()
        if self._process is not None:
            self._process.join()
            if self._process.exitcode is None:
                # The caller's process waits for all its children, and was first.
                # multiprocessing takes such a process for alive, for ever.
                self._process._popen.returncode = 0
            self._process.close()
            self._process = None

    def disown(self) -> None:
        """In a forked copy of the client: close its end; and the supervisor's, unless
        this copy is the new supervisor, forked by the thread that is starting it."""
        self.control.close()
        if self._starter != threading.get_ident():
            self._theirs.close()
