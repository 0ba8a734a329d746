"""Pools seen from outside: by any process of the same user on the same machine::

    from prefork_executor import status

    for pool in status.pools():
        print(pool.pid, pool.kind, pool.states, pool.backlog)
    print(status.read(12345).waits.p99)
    with status.watch(12345) as watch:
        while watch.read().backlog:
            time.sleep(1)

A pool is found by its *scoreboard*, a file in memory that its processes hold open. Other
processes can open it under ``/proc/PID/fd``. This module reads it and never writes it. It does
not signal, trace or slow any process of the pool. It reads by ``pread`` instead of mapping the
file. Reading a hole of such a file through a mapping would cost the pool memory. And if another
process cut the file short, the kernel would kill a process that has mapped it.

This needs Linux's ``/proc``. A pool is on the list from its first task on. Watcher and pool must
see each other's process ids. So a pool is not found from another container, for example.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from ._board import decisions
from ._board import reader as reading
from ._board import scoreboard as sb
from ._board.reader import BoardReader
from ._board.scoreboard import Sections, Slot
from ._system import machine
from .errors import NoSuchPool, PoolEnded, SeveralPools, StatusError, UnreadablePool
from .stats import PoolStats, WorkerStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

__all__ = [
    "PoolStatus",
    "Watch",
    "WorkerStatus",
    "pools",
    "read",
    "unreadable",
    "watch",
]

PROC = "/proc"
MAX_SLOTS = 1 << 16
"""A board that claims to have more slots is not believed."""
MAX_PID = 1 << 22
"""Linux has no larger process ids."""
_LINK = re.compile(rf"(/memfd:{sb.FILE_NAME}|.*/{sb.FILE_NAME}[^/]*) \(deleted\)")
_KINDS = {sb.EXECUTOR: "executor", sb.RAW: "raw"}
_TICKS = os.sysconf("SC_CLK_TCK")
_COMMAND_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WorkerStatus(WorkerStats):
    """A worker, as in :class:`~prefork_executor.stats.WorkerStats`, and

    Attributes:
        slot: the index of its place on the board. When it has gone, another worker gets
            this place.
        cpu: seconds of processor time it has used, or None as for ``memory``. Both are
            current.
    """

    slot: int = 0
    cpu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus(PoolStats):
    """A pool at one moment: all that :class:`~prefork_executor.stats.PoolStats` has, and

    Attributes:
        pid: the process that has the pool: the one with the PreforkExecutor, or a raw
            pool's main process.
        supervisor: the process that forks the workers. For raw pools the same as ``pid``.
            None: it has not started yet.
        kind: "executor" or "raw".
        command: the command line of ``pid``, in one line.
        started: when the pool was opened, in seconds since the epoch.
        time: when this was read, in seconds since the epoch.
        min_spare, max_spare, idle_timeout: the pool's options. The last is in seconds; None
            means that no idle worker retires, "auto" that each stays as long as its start
            is worth.
        outstanding: tasks accepted and not yet resolved. 0 for raw pools.
        tasks_done: tasks that the pool's workers have finished so far, past workers
            included.
        generation: how often the pool was told to reload.
        listeners: for raw pools: how many listeners it was given, whose queues are its backlog.
        memory_bound: bytes that all workers may take together; None: any.
        memory_taken: bytes that they took when that was last looked at; 0 without a bound.
        held: tasks that wait for memory.
        memory_ended: runs that were ended because the pool was above its bound.
    """

    pid: int
    supervisor: int | None
    kind: str
    command: str
    started: float
    time: float
    min_spare: int
    max_spare: int
    idle_timeout: float | Literal["auto"] | None
    outstanding: int
    tasks_done: int
    generation: int
    # A narrower type than the base's: each row is a WorkerStatus.
    workers: tuple[WorkerStatus, ...]
    memory_bound: int | None = None
    memory_taken: int = 0
    held: int = 0
    memory_ended: int = 0
    listeners: int = 0


def pools() -> list[PoolStatus]:
    """All pools of this user on this machine, oldest first.

    Raises:
        StatusError: this system has no /proc.
    """
    found = [pool for pool, _ in _survey() if pool is not None]
    return sorted(found, key=lambda pool: pool.started)


def unreadable() -> list[UnreadablePool]:
    """What looks like a pool but cannot be read, and so is not among :func:`pools`, and why.
    Pools of another version of this package are an example."""
    return [error for _, error in _survey() if error is not None]


def read(pid: int) -> PoolStatus:
    """The pool of a process, as it is now.

    Args:
        pid: any process of the pool: the one that has it, its supervisor, a worker.

    Raises:
        NoSuchPool: the process has none, or there is no such process.
        SeveralPools: the process has several, or is a worker of one and has another. Its
            ``choices`` are pids, each of which means one of them.
        UnreadablePool: it belongs to another user, or to another version of this package.
        StatusError: this system has no /proc.
    """
    with watch(pid) as one:
        return one.read()


def watch(pid: int) -> Watch:
    """Watch the pool of a process.

    Args, Raises: as for :func:`read`.
    """
    return Watch(_board_of(pid))


class Watch:
    """An open view of one pool; a context manager. Made by :func:`watch`."""

    def __init__(self, board: _Board) -> None:
        self._board = board

    def read(self) -> PoolStatus:
        """The pool as it is now.

        Raises:
            PoolEnded: it has ended.
        """
        return self._board.status()

    def close(self) -> None:
        """Stop watching. Safe to call again."""
        self._board.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


# --- finding them -------------------------------------------------------------------------


def _survey() -> Iterator[tuple[PoolStatus | None, UnreadablePool | None]]:
    """Each board once, however many processes hold it: its status, or why it cannot be read."""
    seen: set[tuple[int, int]] = set()
    for pid in _own_processes():
        for path, identity in _held_by(pid):
            if identity in seen:
                continue
            seen.add(identity)
            try:
                with contextlib.closing(_Board(path)) as board:
                    yield board.status(), None
            except UnreadablePool as error:
                yield None, error
            except (PoolEnded, OSError):
                continue


def _own_processes() -> list[int]:
    user, found = os.geteuid(), []
    for name in _proc():
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"{PROC}/{name}").st_uid == user:
                    found.append(int(name))
    return sorted(found)


def _proc() -> list[str]:
    try:
        return os.listdir(PROC)
    except OSError as error:
        raise StatusError(
            f"pools are found through {PROC}, which this system does not have: {error}"
        ) from error


def _held_by(pid: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The boards that a process has open: for each, a path to open it, and which file it is."""
    try:
        names = os.listdir(f"{PROC}/{pid}/fd")
    except OSError:
        return
    for name in names:
        path = f"{PROC}/{pid}/fd/{name}"
        with contextlib.suppress(OSError):
            if _LINK.fullmatch(os.readlink(path)):
                found = os.stat(path)
                yield path, (found.st_dev, found.st_ino)


def _board_of(pid: int) -> _Board:
    _check_process(pid)
    boards: dict[tuple[int, int], _Board] = {}
    refused: StatusError | None = None
    for path, identity in _held_by(pid):
        if identity not in boards:
            try:
                boards[identity] = _Board(path)
            except UnreadablePool as error:
                refused = error
            except OSError:
                continue
    chosen = _choose(pid, list(boards.values()))
    for board in boards.values():
        if board is not chosen:
            board.close()
    if chosen is not None:
        return chosen
    if len(boards) > 1:
        raise _several(pid, list(boards.values()))
    raise refused or NoSuchPool(
        f"process {pid} has no pool, or its pool has not had a task yet; "
        "prefork-executor list shows the pools that there are"
    )


def _check_process(pid: int) -> None:
    _proc()
    try:
        owner = os.stat(f"{PROC}/{pid}").st_uid
        os.listdir(f"{PROC}/{pid}/fd")
    except FileNotFoundError:
        raise NoSuchPool(f"there is no process {pid}") from None
    except PermissionError:
        owner = -1
    if owner != os.geteuid():
        raise UnreadablePool(
            f"process {pid} belongs to another user: only the user who runs a pool can watch it"
        )


def _choose(pid: int, boards: Sequence[_Board]) -> _Board | None:
    """The pool that this process id means, if it means a single one."""
    if len(boards) == 1:
        return boards[0]
    return next((board for board in boards if board.stand_in == pid), None)


def _several(pid: int, boards: Sequence[_Board]) -> SeveralPools:
    choices = tuple(sorted(choice for board in boards if (choice := board.stand_in)))
    return SeveralPools(
        f"process {pid} belongs to {len(boards)} pools. Name one by the process id of its "
        f"supervisor: {', '.join(map(str, choices))}",
        choices,
    )


# --- one of them --------------------------------------------------------------------------


class _Board:
    """An open board of another process. Nothing that it says is believed unchecked."""

    def __init__(self, path: str) -> None:
        # Any file may have that name: opening it must have no other effect.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        self._descriptor = os.open(path, flags)
        try:
            self._identity, size = self._checked_file(path)
            header = self._header()
            self._slots = _checked_slots(path, header, size)
        except BaseException:
            self.close()
            raise
        # These never change. If read again, they might differ from what was checked.
        self._client = header[sb.CLIENT]
        self._kind = _KINDS[header[sb.KIND]]

        self.stand_in = self._stand_in(header)
        self._reader = BoardReader(self._bytes, self._slots)
        self._held_as: str | None = None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _checked_file(self, path: str) -> tuple[tuple[int, int], int]:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise UnreadablePool(f"{path} has the name of a scoreboard, but is not this user's")
        return (found.st_dev, found.st_ino), found.st_size

    def _bytes(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def _header(self) -> Sequence[int]:
        return reading.read_header(self._bytes)

    def _stand_in(self, header: Sequence[int]) -> int:
        """The process id that means this pool, and no other pool of the same process."""
        if header[sb.KIND] == sb.EXECUTOR:
            return header[sb.MAIN]
        slots = BoardReader(self._bytes, self._slots).slots(header)
        return slots[0].pid if slots else 0

    def status(self) -> PoolStatus:
        """What the board says now. Raises PoolEnded."""
        self._check_alive()
        header, slots = self._reader.look(self._header)
        now = time.monotonic_ns()
        outstanding = header[sb.OUTSTANDING] + header[sb.HELD]
        backlog = reading.backlog(outstanding, slots) or header[sb.LISTEN_QUEUE]
        return PoolStatus(
            pid=self._client,
            supervisor=header[sb.MAIN] or None,
            kind=self._kind,
            command=_command(self._client),
            started=header[sb.STARTED] / 1e9,
            time=time.time(),
            max_workers=self._slots,
            min_spare=header[sb.MIN_SPARE],
            max_spare=header[sb.MAX_SPARE],
            idle_timeout=sb.unpack_timeout(header[sb.IDLE_TIMEOUT]),
            outstanding=outstanding,
            backlog=backlog,
            max_backlog=max(backlog, header[sb.PEAK_BACKLOG]),
            tasks_done=header[sb.DONE_BEFORE] + sum(slot.done for slot in slots),
            generation=header[sb.GENERATION],
            workers=tuple(_worker(slot, now, self._reader.name_of(slot)) for slot in slots),
            peak_workers=max(header[sb.PEAK], len(slots)),
            seconds_at_max=reading.seconds_at_max(header, now),
            waits=self._reader.waits(header, now),
            decisions=self._reader.decisions(header),
            memory_bound=header[sb.MEMORY_BOUND] or None,
            memory_taken=header[sb.MEMORY_TAKEN],
            held=header[sb.HELD],
            memory_ended=header[sb.MEMORY_ENDED],
            listeners=header[sb.LISTENERS],
            **reading.of_past(header, len(slots)),
        )

    def _check_alive(self) -> None:
        """A pool lives as long as the process that has it holds its board."""
        if self._held_as is None or not self._is_held_as(self._held_as):
            held = (path for path, file in _held_by(self._client) if file == self._identity)
            self._held_as = next(held, None)
        if self._held_as is None:
            raise PoolEnded(f"the pool of process {self._client} has ended")

    def _is_held_as(self, path: str) -> bool:
        try:
            found = os.stat(path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity


def _checked_slots(path: str, header: Sequence[int], size: int) -> int:
    """How many slots the board has. Raises UnreadablePool if we do not know its layout."""
    slots = header[sb.SLOTS]
    if header[sb.MAGIC] != sb.MAGIC_WORD:
        raise UnreadablePool(f"{path} has the name of a scoreboard, but is none, or not yet")
    if header[sb.LAYOUT] != sb.LAYOUT_VERSION:
        raise UnreadablePool(
            f"process {header[sb.CLIENT]} runs another version of prefork_executor: its "
            f"scoreboard has layout {header[sb.LAYOUT]}, and this version reads "
            f"{sb.LAYOUT_VERSION}. Use the command of the environment in which that process runs"
        )
    is_sound = 0 < slots <= MAX_SLOTS and Sections.of(slots).minimum_end <= size
    if not is_sound or header[sb.KIND] not in _KINDS or not 0 < header[sb.CLIENT] <= MAX_PID:
        raise UnreadablePool(f"{path} is not a valid scoreboard")
    return slots


def _worker(slot: Slot, now: int, task: str | None) -> WorkerStatus:
    row = reading.worker_stats(slot, now, task, None)
    return WorkerStatus(
        pid=row.pid,
        state=row.state,
        task=row.task,
        in_state=row.in_state,
        age=row.age,
        tasks_done=row.tasks_done,
        memory=machine.memory_in_proc(slot.pid),
        slot=slot.place,
        cpu=_cpu_seconds(slot.pid),
    )


def _cpu_seconds(pid: int) -> float | None:
    try:
        with open(f"{PROC}/{pid}/stat", "rb", buffering=0) as file:
            # The command's name, in brackets, may contain any characters.
            fields = file.read(1024).rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, ValueError, IndexError):
        return None


def _command(pid: int) -> str:
    try:
        with open(f"{PROC}/{pid}/cmdline", "rb", buffering=0) as file:
            words = file.read(_COMMAND_BYTES).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return decisions.printable(b" ".join(words))
