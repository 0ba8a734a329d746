"""pytest fixtures for tests that use a `PreforkExecutor`, or a raw pool.

If the package is installed, pytest finds this module. The module uses only the package's
public interface, and nothing in the package imports it.

At a test's end its executors are shut down, waiting tasks are cancelled, and running
ones have ``prefork_teardown_timeout`` seconds to finish. An error at that test's
teardown names the processes that are still alive then. They are killed, so that the next
test starts clean. Every wait here has a bound. The same holds for the processes of a raw
pool.

What workers log reaches the test's loggers, and so ``caplog``. What they print goes where
the test's own output goes, so it reaches ``capfd``.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from . import ExecutorStats, PreforkExecutor, WorkerStats
from .integrations._output import follow_output
from .integrations.logging import forward_logging
from .integrations.running_pool import Left, RunningPool

__all__ = [
    "KILL_TIMEOUT",
    "MAX_WORKERS",
    "TEARDOWN_TIMEOUT",
    "PreforkExecutorFactory",
    "PreforkPoolFactory",
    "prefork_executor",
    "prefork_executor_factory",
    "prefork_pool",
    "prefork_session_executor",
]

MAX_WORKERS = 2
"""Workers of a test's executor, unless the test asks for another number. With two, tasks run
side by side. A test rarely needs more, and with pytest-xdist each of many processes has pools
of its own."""
TEARDOWN_TIMEOUT = 5.0
"""Seconds after a test's end within which its executors must have ended. An idle pool needs a few
milliseconds, so this is plenty on a busy machine. It is less than the ten seconds after
which a pool itself kills a worker that hangs at its exit, so such a worker is named, too."""
KILL_TIMEOUT = 10.0
"""Seconds to wait until killed workers are gone. The kernel needs milliseconds,
unless a worker hangs in a system call that cannot be interrupted."""

_KILLED = "They have been killed, so that they disturb no other test."
_OPTIONS = frozenset(inspect.signature(PreforkExecutor).parameters)


class PreforkExecutorFactory(Protocol):
    """The type of the fixture ``prefork_executor_factory``, for annotations."""

    def __call__(self, **options: Any) -> PreforkExecutor:
        """Make another executor, which ends with the test.

        Args:
            options: those of :class:`~prefork_executor.PreforkExecutor`. They override
                the marker's, and these override the defaults.

        Raises:
            TypeError, ValueError: as PreforkExecutor does.
        """


class PreforkPoolFactory(Protocol):
    """The type of the fixture ``prefork_pool``, for annotations."""

    def __call__(
        self, serve: Callable[..., object], args: Iterable[Any] = (), **options: Any
    ) -> RunningPool:
        """Run another raw pool, which ends with the test.

        Args:
            serve: what each of its children runs, as ``serve(*args)``.
            args: its arguments.
            options: those of :func:`~prefork_executor.raw.pf_init`.

        Raises:
            TypeError, ValueError, OSError: as ``pf_init`` does.
        """


@dataclass(frozen=True)
class _Settings:
    """The command line and the ini file, read and checked."""

    max_workers: int
    teardown_timeout: float


_settings = pytest.StashKey[_Settings]()
_at_work_since = pytest.StashKey[str]()


# --- hooks --------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the command-line option and the ini options."""
    group = parser.getgroup("prefork_executor", "executors of prefork_executor's fixtures")
    group.addoption(
        "--prefork-max-workers",
        metavar="N",
        default=None,
        help="workers of an executor at most (default: the ini option, else "
        f"{MAX_WORKERS}); a marker comes before it",
    )
    parser.addini(
        "prefork_max_workers",
        f"workers of an executor at most, unless the command line says (default: {MAX_WORKERS})",
        default=str(MAX_WORKERS),
    )
    parser.addini(
        "prefork_teardown_timeout",
        "seconds in which a test's executors must have ended after the test "
        f"(default: {TEARDOWN_TIMEOUT:g})",
        default=str(TEARDOWN_TIMEOUT),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and read and check the options.

    Raises:
        pytest.UsageError: an option has a bad value.
    """
    config.addinivalue_line(
        "markers",
        "prefork(**options): options of PreforkExecutor for this test's "
        "prefork_executor and prefork_executor_factory; the closest marker wins, option by option.",
    )
    config.stash[_settings] = _Settings(_max_workers(config), _teardown_timeout(config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Remember the first test after which the session's executor was never without work."""
    executor = getattr(item, "funcargs", {}).get("prefork_session_executor")
    if isinstance(executor, PreforkExecutor):
        stats = executor.stats()
        first = item.config.stash.get(_at_work_since, "") or item.nodeid
        item.config.stash[_at_work_since] = first if stats.waiting or stats.in_flight else ""


def _max_workers(config: pytest.Config) -> int:
    name, text = "--prefork-max-workers", config.getoption("--prefork-max-workers")
    if text is None:
        name, text = "prefork_max_workers", config.getini("prefork_max_workers")
    try:
        workers = int(text)
    except ValueError:
        workers = 0
    if workers < 1:
        raise pytest.UsageError(f"{name} must be a whole number of at least 1, not {text!r}")
    return workers


def _teardown_timeout(config: pytest.Config) -> float:
    name = "prefork_teardown_timeout"
    text = config.getini(name)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # Written so that nan fails, too.
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise pytest.UsageError(f"{name} must be a number of seconds above 0, not {text!r}")
    return seconds


# --- fixtures -----------------------------------------------------------------------------


@pytest.fixture
def prefork_executor(request: pytest.FixtureRequest) -> Iterator[PreforkExecutor]:
    """A PreforkExecutor for this test alone.

    Its options come from the markers ``@pytest.mark.prefork(**options)``. Without a marker,
    ``max_workers`` is ``--prefork-max-workers``, else the ini option
    ``prefork_max_workers``, else 2. It starts no process before its first task.
    """
    options = _defaults(request.config) | _marker_options(request)
    try:
        executor = _made(options)
    except (TypeError, ValueError) as error:
        # From None: the constructor's frames do not help with a marker.
        raise _bad_marker(request, f"{error} (in force: {_listed(options)})") from None
    yield executor
    _end_all([executor], "prefork_executor", request)


@pytest.fixture
def prefork_executor_factory(request: pytest.FixtureRequest) -> Iterator[PreforkExecutorFactory]:
    """Makes executors that all end with this test, the latest first.

    Call it with options of PreforkExecutor. Options that are not given are as for the
    fixture ``prefork_executor``.
    """
    defaults = _defaults(request.config) | _marker_options(request)
    executors: list[PreforkExecutor] = []

    def make(**options: Any) -> PreforkExecutor:
        options = defaults | options
        try:
            executor = _made(options)
        except (TypeError, ValueError) as error:
            error.add_note(f"Options in force: {_listed(options)}")
            raise
        executors.append(executor)
        return executor

    yield make
    _end_all(executors[::-1], "prefork_executor_factory", request)


@pytest.fixture(scope="session")
def prefork_session_executor(request: pytest.FixtureRequest) -> Iterator[PreforkExecutor]:
    """One PreforkExecutor for the whole session. With pytest-xdist, each process has one.

    ``max_workers`` is ``--prefork-max-workers``, else the ini option
    ``prefork_max_workers``, else 2. Markers belong to tests, and do not affect it. If a
    task still runs in it at the session's end, that is an error, which says since
    which test the executor has always had work.
    """
    executor = _made(_defaults(request.config))
    yield executor
    _end_all([executor], "prefork_session_executor", request)


@pytest.fixture
def prefork_pool(request: pytest.FixtureRequest) -> Iterator[PreforkPoolFactory]:
    """Runs raw pf_* pools in child processes of the test. They end with the test, the latest
    first. Call it as ``prefork_pool(serve, args, **options)``, with options of pf_init. It
    returns a :class:`~prefork_executor.integrations.running_pool.RunningPool`, whose
    ``yells`` are what the children have yelled.
    """
    pools: list[RunningPool] = []

    def start(
        serve: Callable[..., object], args: Iterable[Any] = (), **options: Any
    ) -> RunningPool:
        pools.append(RunningPool(serve, args, **options))
        return pools[-1]

    yield start
    _end_pools(pools[::-1], request)


def _made(options: dict[str, Any]) -> PreforkExecutor:
    executor = PreforkExecutor(**options)
    # All records: the test's own loggers, and caplog's level, decide what is kept.
    forward_logging(executor, logging.NOTSET)
    follow_output(executor)
    return executor


# --- options ------------------------------------------------------------------------------


def _defaults(config: pytest.Config) -> dict[str, Any]:
    return {"max_workers": config.stash[_settings].max_workers}


def _marker_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the test's markers say. If two name the same option, the closer one counts."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("prefork"))):
        if marker.args:
            given = ", ".join(map(repr, marker.args))
            raise _bad_marker(request, f"options are given by name, as max_workers=2, not {given}")
        options |= marker.kwargs
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise _bad_marker(request, "; ".join(map(_unknown, unknown)))
    return options


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(_OPTIONS))}"
    return f"PreforkExecutor has no option {name!r}, {hint}"


def _bad_marker(request: pytest.FixtureRequest, what: str) -> BaseException:
    return pytest.fail.Exception(
        f"@pytest.mark.prefork: {what}\nThe markers are those of {request.node.nodeid}.",
        pytrace=False,
    )


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


# --- teardown -----------------------------------------------------------------------------


def _end_all(
    executors: list[PreforkExecutor], fixture: str, request: pytest.FixtureRequest
) -> None:
    """End the executors, in this order and within one time limit for all. What is left of them
    is named and killed, and fails the test."""
    timeout = request.config.stash[_settings].teardown_timeout
    for executor in executors:
        executor.shutdown(wait=False, cancel_futures=True)
    try:
        late = _not_ended(executors, timeout)
    except BaseException:
        # Ctrl-C: otherwise the interpreter's end would wait for the tasks.
        for executor in executors:
            executor.kill_workers()
        raise
    if late:
        alive = [line for executor in late for line in _alive(executor.stats())]
        lines = [*alive, *_kill(late), *_advice(fixture, request.config)]
        what = f"{fixture} did not end within {timeout:g} s; still alive:"
        if not _was_interrupted(request.session):
            pytest.fail("\n".join([what, *lines]), pytrace=False)


def _end_pools(pools: list[RunningPool], request: pytest.FixtureRequest) -> None:
    """End the pools, in this order and within one time limit for all. What is left of them
    fails the test."""
    timeout = request.config.stash[_settings].teardown_timeout
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
    if complaints and not _was_interrupted(request.session):
        pytest.fail("\n".join(complaints), pytrace=False)


def _complaints(what: str, left: Left, timeout: float) -> Iterator[str]:
    if left.processes:
        yield f"{what} did not end within {timeout:g} s; still alive:"
        yield from (f"  {process}" for process in left.processes)
        yield _KILLED
    for path in left.shared_memory:
        yield f"{what} left shared memory behind that no process uses: {path}"


def _was_interrupted(session: pytest.Session) -> bool:
    """Whether Ctrl-C or pytest.exit() cut a test short. Then its running tasks are not the
    test's fault, and pytest has no place to report an error."""
    return session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def _not_ended(executors: list[PreforkExecutor], timeout: float) -> list[PreforkExecutor]:
    """The executors that have not ended after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    return [each for each in executors if not each.join(max(0.0, deadline - time.monotonic()))]


def _alive(stats: ExecutorStats) -> Iterator[str]:
    for worker in stats.workers:
        yield f"  worker {worker.pid}, {_activity(worker)}"
    if not stats.workers:
        yield f"  the supervisor, which has no worker; tasks sent to it: {stats.in_flight}"


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


def _advice(fixture: str, config: pytest.Config) -> Iterator[str]:
    first = config.stash.get(_at_work_since, "")
    if first and fixture == "prefork_session_executor":
        yield f"The executor has not been without work since {first}."
    yield (
        "A test should wait for its futures. If its tasks may run on for longer "
        "than that, set the ini option prefork_teardown_timeout (seconds)."
    )
