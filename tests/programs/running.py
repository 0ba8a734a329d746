"""Runs a program with one pool or the other, and says what it did."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
BOUND = 280.0
"""Seconds that a program may take; the longest takes about ten on a machine that is free."""
LEAVING = 30.0
"""Seconds that its processes may take to leave after it. It takes them less than two, but
on a busy machine a program's end is seen late."""

STANDARD, PREFORK = "ProcessPoolExecutor", "PreforkExecutor"
ORIGINAL, POOL = "multiprocessing.Pool", "Pool"
OWN = "its own"
"""A start method: the one that the program itself asks for."""

QUIET = {
    "COLUMNS": "100",
    "DO_NOT_TRACK": "1",
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "",  # So that a worker writes a line as a whole.
    "TERM": "dumb",
}
"""What every program finds in its environment."""

IMPORT = "from concurrent.futures import ProcessPoolExecutor\n"
EDITED = "from prefork_executor import PreforkExecutor as ProcessPoolExecutor\n"


@dataclass(frozen=True)
class Program:
    """A program that is run with both pools.

    Attributes:
        name: the package that is tried.
        does: what it does with the pool, in a sentence.
        needs: what must be importable.
        argv: what Python is called with. Empty: the script of this name. If a script
            imports ProcessPoolExecutor itself, it hands an executor to the library: then
            its import is edited, and the library keeps the standard class to ask for.
            Otherwise the class is replaced everywhere.
        prepare: makes its files in the directory that it is started in.
        environment: what it finds in its environment besides.
        start_methods: those that it is run with.
        exitcode: how it ends.
        light: whether it is run when nobody asks for the whole.
        noise: what differs from run to run, as regular expressions.
        ordered: whether the order of its lines tells anything.
        same_count: whether both pools get the same number of tasks.
        below: the first Python on which the program itself does not work yet.
        pools: what it is run with: the standard one, and ours. Of Pools, calls of their
            methods are counted for tasks.
        fails: why it cannot do the same with PreforkExecutor; empty if it can.
    """

    name: str
    does: str
    needs: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    start_methods: tuple[str, ...] = ("fork", "forkserver", "spawn")
    exitcode: int = 0
    light: bool = True
    noise: tuple[str, ...] = ()
    ordered: bool = False
    same_count: bool = True
    below: tuple[int, int] = (4, 0)
    pools: tuple[str, str] = (STANDARD, PREFORK)
    fails: str = ""

    @property
    def script(self) -> Path:
        """Where its script is, if it has one."""
        return HERE / "scripts" / f"{self.name}.py"


@dataclass(frozen=True)
class Outcome:
    """What a program did, without what differs from run to run.

    Attributes:
        exitcode: as ``subprocess`` has it.
        stdout, stderr: what it printed.
        files: digests of what it made or changed in its directory, by path.
        temporary: how many files it left in the directory for temporary files.
        executors: how many executors it made.
        tasks: how many tasks ran in the pool that is tried; of all others, ``strays``.
        processes: what it left running, by command line.
        seconds: how long it took.
    """

    exitcode: int
    stdout: list[str]
    stderr: list[str]
    files: dict[str, str]
    temporary: int
    executors: int
    tasks: int
    strays: int
    processes: list[str]
    seconds: float


def run(program: Program, pool: str, start_method: str, directory: Path) -> Outcome:
    """Run a program with a pool in a directory of its own, which must be empty.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``BOUND``.
    """
    with tempfile.TemporaryDirectory() as temporary:  # Short, as a socket's path must be.
        return _run_in(program, pool, start_method, directory, Path(temporary))


def _run_in(
    program: Program, pool: str, start_method: str, directory: Path, temporary: Path
) -> Outcome:
    work, counts, home = (directory / name for name in ("work", "counts", "home"))
    for made in (work, counts, home):
        made.mkdir(parents=True)
    if program.prepare is not None:
        program.prepare(work)
    argv, swapped = _command(program, pool, work)
    for path in work.rglob("*"):
        os.utime(path, (0, 0))  # Compiled modules tell the age of their source.
    before = digests(work)
    token = uuid.uuid4().hex
    environment = {
        **_quiet(os.environ),
        **program.environment,
        "PYTHONPATH": str(HERE / "swap"),
        "TMPDIR": str(temporary),
        "HOME": str(home),
        "PROGRAMS_EXECUTOR": swapped,
        "PROGRAMS_START_METHOD": "" if start_method == OWN else start_method,
        "PROGRAMS_COUNTS": str(counts),
        "PROGRAMS_RUN": token,
    }
    began = time.monotonic()
    exitcode, stdout, stderr = _run([sys.executable, *argv], work, environment)
    seconds = time.monotonic() - began
    left = _left_by(token)
    made = _counted(counts)
    clean = _Cleaner((directory, temporary), program)
    ours, others = ("prefork", "standard")[:: 1 if pool in (PREFORK, POOL) else -1]
    return Outcome(
        exitcode=exitcode,
        stdout=clean(stdout),
        stderr=clean(stderr),
        files={path: told for path, told in digests(work).items() if before.get(path) != told},
        temporary=sum(1 for path in temporary.rglob("*") if path.is_file()),
        executors=made["executors"],
        tasks=made[ours],
        strays=made[others],
        processes=left,
        seconds=seconds,
    )


def _command(program: Program, pool: str, work: Path) -> tuple[list[str], str]:
    """What to call Python with, and what to put in the place of ProcessPoolExecutor."""
    if program.argv:
        return list(program.argv), "" if pool == STANDARD else pool
    source = program.script.read_text(encoding="utf-8")
    swapped = "" if pool == STANDARD or IMPORT in source else pool
    if pool == PREFORK:
        source = source.replace(IMPORT, EDITED)
    # Not by its own name, which is that of the package.
    (work / "program.py").write_text(source, encoding="utf-8")
    return ["program.py"], swapped


def _quiet(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with as little as possible that could differ or be asked for."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PYTEST_")}
    return {**kept, **QUIET}


def _run(argv: list[str], work: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    with subprocess.Popen(
        argv,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=BOUND)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, stdout, stderr


def _left_by(token: str) -> list[str]:
    """The processes that a run has left, as soon as there are none, or after a while.
    They are ended."""
    deadline = time.monotonic() + LEAVING
    while left := list(_processes_of(token)):
        if time.monotonic() > deadline:
            return [_ended(process) for process in left]
        time.sleep(0.02)
    return []


def _processes_of(token: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("PROGRAMS_RUN") == token:
                yield process


def _ended(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
        process.kill()
        return command
    return "one that ended just then"


def _counted(directory: Path) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for path in directory.iterdir():
        counts.update(json.loads(path.read_text(encoding="utf-8")))
    return counts


def digests(directory: Path) -> dict[str, str]:
    """What the files under a directory hold, by path."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


class _Cleaner:
    """Takes from what a program printed what differs from run to run."""

    def __init__(self, directories: tuple[Path, ...], program: Program) -> None:
        self._directories = directories
        self._noise = [re.compile(pattern) for pattern in program.noise]
        self._ordered = program.ordered

    def __call__(self, text: str) -> list[str]:
        lines = [self._line(line) for line in text.splitlines()]
        lines = [line for line in lines if line]
        return lines if self._ordered else sorted(lines)

    def _line(self, line: str) -> str:
        for directory in self._directories:
            line = line.replace(str(directory), "<here>")
        for pattern in self._noise:
            line = pattern.sub("~", line)
        return line.rstrip()
