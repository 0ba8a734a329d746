"""What the fixtures of the pytest plugin do: make executors, read markers, end what is left.

The plugin imports this when a test uses one of its fixtures. pytest loads the plugin in every run
where the package is installed, so the plugin itself imports nothing that takes time.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from .. import ExecutorStats, PreforkExecutor, WorkerStats
from ._output import follow_output
from .logging import forward_logging
from .running_pool import Left, RunningPool

KILL_TIMEOUT = 10.0
"""Seconds to wait until killed workers are gone. The kernel needs milliseconds,
unless a worker hangs in a system call that cannot be interrupted."""

_KILLED = "They have been killed, so that they disturb no other test."
_OPTIONS = frozenset(inspect.signature(PreforkExecutor).parameters)


@dataclass(frozen=True)
class Patience:
    """Seconds that the end of a fixture waits.

    Attributes:
        tasks: until the tasks, or a raw pool's processes, must have ended.
        leaving: beyond that, until workers that have no task must have left.
    """

    tasks: float
    leaving: float


def made(options: dict[str, Any]) -> PreforkExecutor:
    """An executor whose workers log and print where the test does.

    Raises:
        TypeError, ValueError: as PreforkExecutor does.
    """
    executor = PreforkExecutor(**options)
    # All records: the test's own loggers, and caplog's level, decide what is kept.
    forward_logging(executor, logging.NOTSET)
    follow_output(executor)
    return executor


# --- markers ------------------------------------------------------------------------------


def marker_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the test's markers say. If two name the same option, the closer one counts."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("prefork"))):
        if marker.args:
            given = ", ".join(map(repr, marker.args))
            raise bad_marker(request, f"options are given by name, as max_workers=2, not {given}")
        options |= marker.kwargs
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise bad_marker(request, "; ".join(map(_unknown, unknown)))
    return options


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(_OPTIONS))}"
    return f"PreforkExecutor has no option {name!r}, {hint}"


def bad_marker(request: pytest.FixtureRequest, what: str) -> BaseException:
    """What pytest raises at the setup of a test with such a marker."""
    return pytest.fail.Exception(
        f"@pytest.mark.prefork: {what}\nThe markers are those of {request.node.nodeid}.",
        pytrace=False,
    )


def listed(options: dict[str, Any]) -> str:
    """The options as a call would give them."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


# --- the end of executors -----------------------------------------------------------------


def end_all(
    executors: list[PreforkExecutor],
    fixture: str,
    patience: Patience,
    session: pytest.Session,
    remark: str = "",
) -> None:
    """End the executors, in this order and within one time limit for all. What is left of them
    is named and killed, and fails the test. ``remark`` is a line for that error."""
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    try:
        late = _not_ended(executors, patience.tasks)
        is_busy = any(map(_has_tasks, late))
        if not is_busy:
            late = _not_ended(late, patience.leaving)
    except BaseException:
        # Ctrl-C: otherwise the interpreter's end would wait for the tasks.
        for executor in executors:
            executor.kill_workers()
        raise
    if late:
        what = _busy(fixture, patience) if is_busy else _leaving(fixture, patience)
        advice = [remark, _ADVICE_ON_TASKS] if is_busy else [_ADVICE_ON_LEAVING]
        alive = [line for executor in late for line in _alive(executor.stats())]
        lines = [what, *alive, *_kill(late), *filter(None, advice)]
        if not _was_interrupted(session):
            pytest.fail("\n".join(lines), pytrace=False)


_ADVICE_ON_TASKS = (
    "A test should wait for its futures. If its tasks may run on for longer "
    "than that, set the ini option prefork_teardown_timeout (seconds)."
)
_ADVICE_ON_LEAVING = (
    "All tasks had ended. Look at what workers do when they leave: atexit functions, the "
    "executor's finalizer, threads. If they may take longer, set the ini option "
    "prefork_leave_timeout (seconds)."
)


def _busy(fixture: str, patience: Patience) -> str:
    return f"{fixture} did not end within {patience.tasks:g} s; still alive:"


def _leaving(fixture: str, patience: Patience) -> str:
    seconds = patience.tasks + patience.leaving
    return f"{fixture}: workers without a task did not leave within {seconds:g} s; still alive:"


def _has_tasks(executor: PreforkExecutor) -> bool:
    stats = executor.stats()
    return bool(stats.waiting or stats.in_flight)


def _not_ended(executors: list[PreforkExecutor], timeout: float) -> list[PreforkExecutor]:
    """The executors that have not ended after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    return [each for each in executors if not each.join(max(0.0, deadline - time.monotonic()))]


def _alive(stats: ExecutorStats) -> Iterator[str]:
    for worker in stats.workers:
        yield f"  worker {worker.pid}, {_activity(worker)}"
    if not stats.workers:
        yield f"  no worker, but the pool has not ended; tasks in flight: {stats.in_flight}"


def _activity(worker: WorkerStats) -> str:
    task = f" with task {worker.task}" if worker.task else ""
    return f"{worker.state} for {worker.in_state:.1f} s{task}"


def _kill(executors: list[PreforkExecutor]) -> Iterator[str]:
    """Kill what is left of the executors, and say whether that worked."""
    for executor in executors:
        executor.kill_workers()
    stuck = _not_ended(executors, KILL_TIMEOUT)
    if not stuck:
        yield _KILLED
        return
    yield f"They have been killed, but after {KILL_TIMEOUT:g} s these are still there:"
    for executor in stuck:
        yield from _alive(executor.stats())


def _was_interrupted(session: pytest.Session) -> bool:
    """Whether Ctrl-C or pytest.exit() cut a test short. Then its running tasks are not the
    test's fault, and pytest has no place to report an error."""
    return session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


# --- the end of raw pools -----------------------------------------------------------------


def end_pools(pools: list[RunningPool], patience: Patience, session: pytest.Session) -> None:
    """End the pools, in this order and within one time limit for all. What is left of them
    fails the test."""
    timeout = patience.tasks
    deadline = time.monotonic() + timeout
    complaints: list[str] = []
    for pool in pools:
        pool.terminate()
    try:
        for pool in pools:
            left = pool.end(max(0.0, deadline - time.monotonic()))
            complaints += _complaints(f"prefork_pool (main process {pool.pid})", left, timeout)
    except BaseException:
        for pool in pools:  # Ctrl-C: end those that are left.
            pool.end(0)
        raise
    if complaints and not _was_interrupted(session):
        pytest.fail("\n".join(complaints), pytrace=False)


def _complaints(what: str, left: Left, timeout: float) -> Iterator[str]:
    if left.processes:
        yield f"{what} did not end within {timeout:g} s; still alive:"
        yield from (f"  {process}" for process in left.processes)
        yield _KILLED
    for path in left.shared_memory:
        yield f"{what} left shared memory behind that no process uses: {path}"
