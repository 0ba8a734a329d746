"""``prefork-executor trace``: what every busy worker is doing now, by its Python stack.

py-spy reads the stacks from outside, without stopping a worker. It is not part of this
package: ``pip install 'prefork-executor[trace]'``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefork_executor.cli import _common
from prefork_executor.errors import StatusError
from prefork_executor.status import WorkerStatus

PATIENCE = 20.0
"""Seconds that py-spy may take for one worker. It takes less than one."""
AT_ONCE = 4
"""Workers to look at simultaneously."""
TRIES = 3
"""Attempts to read a stack. One that changes while it is read cannot always be read."""
_CALLERS = (
    ("_outcome", "prefork_executor/_server/worker.py"),
    ("_run_and_exit", "prefork_executor/_raw/main_process.py"),
)
"""The functions that call a task, and a raw child's code."""


def add_to(subcommands: Any) -> None:
    """Add the parser."""
    parser = subcommands.add_parser(
        "trace",
        help="what every busy worker is doing now",
        description="What every busy worker is doing now, by its Python stack. py-spy reads the "
        "stacks from outside, without stopping a worker: pip install 'prefork-executor[trace]'.",
    )
    _common.add_pid(parser)
    parser.add_argument(
        "--full", action="store_true", help="show the whole stacks, with the frames below the task"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the stacks. The exit code is 1 if none of them could be read."""
    with _common.chosen(options.pid) as watch:
        pool = watch.read()
    busy = [worker for worker in pool.workers if worker.state == "busy"]
    if not busy:
        print(f"no worker is busy; workers: {len(pool.workers)}")
        return 0
    py_spy = _py_spy()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        looks = threads.map(lambda worker: _look(py_spy, worker.pid), busy)
        read = [_show(worker, look, options.full) for worker, look in zip(busy, looks, strict=True)]
    return 0 if any(read) else 1


def _py_spy() -> str:
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise StatusError(
            "trace reads the stacks with py-spy, which is not installed: "
            "pip install 'prefork-executor[trace]'"
        )
    return found


def _look(py_spy: str, pid: int) -> list[dict[str, Any]] | str:
    """A process's threads, as py-spy reports them, or why it does not."""
    why = ""
    for _ in range(TRIES):
        try:
            done = subprocess.run(
                [py_spy, "dump", "--nonblocking", "--json", "--pid", str(pid)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"py-spy could not be run: {error}"
        if done.returncode == 0:
            return _threads(done.stdout)
        why = done.stderr.strip()
        if _is_forbidden(why):
            return (
                "the system does not permit it. Run this command as root, or allow a user's "
                "processes to look at each other: sysctl kernel.yama.ptrace_scope=0"
            )
    return why.splitlines()[0] if why else "py-spy failed and did not say why"


def _threads(printed: str) -> list[dict[str, Any]] | str:
    try:
        threads: list[dict[str, Any]] = json.loads(printed)
    except ValueError as error:
        return f"the output of py-spy cannot be read: {error}"
    return threads


def _is_forbidden(complaint: str) -> bool:
    return "permission" in complaint.lower() or "not permitted" in complaint.lower()


def _show(worker: WorkerStatus, look: list[dict[str, Any]] | str, is_full: bool) -> bool:
    what = f" with {worker.task}" if worker.task else ""
    print(f"worker {worker.pid}, busy for {_common.span(worker.in_state)}{what}:")
    if isinstance(look, str):
        print(f"  cannot be shown: {look}")
        return False
    for thread in look:
        for line in _frames(thread, is_full):
            print(line)
    return True


def _frames(thread: dict[str, Any], is_full: bool) -> Iterator[str]:
    """The frames, innermost first, down to the one that called the task."""
    if not thread["frames"]:
        return
    name = thread.get("thread_name") or thread["thread_id"]
    yield f"  thread {name}" + ("" if thread.get("active") else ", waiting")
    for frame in thread["frames"]:
        if not is_full and _is_caller(frame):
            return
        yield f"    {frame['name']} ({frame['filename']}:{frame['line']})"


def _is_caller(frame: dict[str, Any]) -> bool:
    return any(
        frame["name"].rpartition(".")[2] == name and frame["filename"].endswith(file)
        for name, file in _CALLERS
    )
