"""pytest fixtures for tests that use a `PreforkExecutor`, or a raw pool.

If the package is installed, pytest imports this module in every run. So it imports nothing
that takes time before a test uses a fixture. It uses only the package's public interface, and
nothing in the package imports it.

At a test's end its executors are shut down, waiting tasks are cancelled, and running
ones have ``prefork_teardown_timeout`` seconds to finish. An error at that test's
teardown names the processes that are still alive then. They are killed, so that the next
test starts clean. Workers that have no task are given longer to leave. Every wait here has a
bound. The same holds for the processes of a raw pool.

What workers log reaches the test's loggers, and so ``caplog``. What they print goes where
the test's own output goes, so it reaches ``capfd``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from . import PreforkExecutor
    from .integrations._pytest_executors import Patience
    from .integrations.running_pool import RunningPool

__all__ = [
    "LEAVE_TIMEOUT",
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
"""Seconds after a test's end within which the tasks of its executors must have ended. An idle pool
ends in a few milliseconds, so this is plenty on a busy machine."""
LEAVE_TIMEOUT = 60.0
"""Seconds beyond that in which workers that have no task must have left. What they do then is not
the test's: they write coverage data, run atexit functions, or the machine is slow. The pool itself
kills a worker that hangs at its exit after ten seconds."""


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


class _Settings(NamedTuple):
    """The command line and the ini file, read and checked."""

    max_workers: int
    teardown_timeout: float
    leave_timeout: float


_settings = pytest.StashKey[_Settings]()
_at_work_since = pytest.StashKey[str]()
_of_session = pytest.StashKey["PreforkExecutor"]()


# --- hooks --------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the command-line option and the ini options."""
    group = parser.getgroup("prefork_executor", "executors of prefork_executor's fixtures")
    group.addoption(
        "--prefork-max-workers",
        metavar="N",
        default=None,
        help="workers of an executor at most (default: the ini option, else "
        f"{MAX_WORKERS}); a marker overrides it",
    )
    parser.addini(
        "prefork_max_workers",
        f"workers of an executor at most, unless the command line says (default: {MAX_WORKERS})",
        default=str(MAX_WORKERS),
    )
    parser.addini(
        "prefork_teardown_timeout",
        "seconds in which the tasks of a test's executors must have ended after the test "
        f"(default: {TEARDOWN_TIMEOUT:g})",
        default=str(TEARDOWN_TIMEOUT),
    )
    parser.addini(
        "prefork_leave_timeout",
        "further seconds in which workers that have no task must have left "
        f"(default: {LEAVE_TIMEOUT:g})",
        default=str(LEAVE_TIMEOUT),
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
    config.stash[_settings] = _Settings(
        _max_workers(config),
        _seconds(config, "prefork_teardown_timeout"),
        _seconds(config, "prefork_leave_timeout"),
    )
    if config.pluginmanager.has_plugin("pytester"):
        # A test may run pytest in this process, and in the end pytester forgets the modules that
        # were imported meanwhile. The next such run would have parts of the pool twice.
        from .integrations import _pytest_executors, running_pool  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Remember the first of the tests in a row at whose ends the session's executor had work."""
    executor = item.config.stash.get(_of_session, None)
    if executor is not None:
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


def _seconds(config: pytest.Config, name: str) -> float:
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
    from .integrations import _pytest_executors as executors

    options = _defaults(request.config) | executors.marker_options(request)
    try:
        executor = executors.made(options)
    except (TypeError, ValueError) as error:
        # From None: the constructor's frames do not help with a marker.
        what = f"{error} (in force: {executors.listed(options)})"
        raise executors.bad_marker(request, what) from None
    yield executor
    executors.end_all([executor], "prefork_executor", _patience(request), request.session)


@pytest.fixture
def prefork_executor_factory(request: pytest.FixtureRequest) -> Iterator[PreforkExecutorFactory]:
    """Makes executors that all end with this test, the latest first.

    Call it with options of PreforkExecutor. Options that are not given are as for the
    fixture ``prefork_executor``.
    """
    from .integrations import _pytest_executors as executors

    defaults = _defaults(request.config) | executors.marker_options(request)
    made: list[PreforkExecutor] = []

    def make(**options: Any) -> PreforkExecutor:
        options = defaults | options
        try:
            executor = executors.made(options)
        except (TypeError, ValueError) as error:
            error.add_note(f"Options in force: {executors.listed(options)}")
            raise
        made.append(executor)
        return executor

    yield make
    fixture = "prefork_executor_factory"
    executors.end_all(made[::-1], fixture, _patience(request), request.session)


@pytest.fixture(scope="session")
def prefork_session_executor(request: pytest.FixtureRequest) -> Iterator[PreforkExecutor]:
    """One PreforkExecutor for the whole session. With pytest-xdist, each process has one.

    ``max_workers`` is ``--prefork-max-workers``, else the ini option
    ``prefork_max_workers``, else 2. Markers belong to tests, and do not affect it. If a
    task still runs in it at the session's end, that is an error, which says since
    which test the executor has had work at the end of every test.
    """
    from .integrations import _pytest_executors as executors

    stash = request.config.stash
    executor = stash[_of_session] = executors.made(_defaults(request.config))
    yield executor
    first = stash.get(_at_work_since, "")
    remark = f"It had work at the end of every test since {first}." if first else ""
    fixture = "prefork_session_executor"
    executors.end_all([executor], fixture, _patience(request), request.session, remark)


@pytest.fixture
def prefork_pool(request: pytest.FixtureRequest) -> Iterator[PreforkPoolFactory]:
    """Runs raw pf_* pools in child processes of the test. They end with the test, the latest
    first. Call it as ``prefork_pool(serve, args, **options)``, with options of pf_init. It
    returns a :class:`~prefork_executor.integrations.running_pool.RunningPool`, whose
    ``yells`` are what the children have yelled.
    """
    from .integrations import _pytest_executors as executors
    from .integrations.running_pool import RunningPool

    pools: list[RunningPool] = []

    def start(
        serve: Callable[..., object], args: Iterable[Any] = (), **options: Any
    ) -> RunningPool:
        pools.append(RunningPool(serve, args, **options))
        return pools[-1]

    yield start
    executors.end_pools(pools[::-1], _patience(request), request.session)


def _defaults(config: pytest.Config) -> dict[str, Any]:
    return {"max_workers": config.stash[_settings].max_workers}


def _patience(request: pytest.FixtureRequest) -> Patience:
    from .integrations._pytest_executors import Patience

    settings = request.config.stash[_settings]
    return Patience(settings.teardown_timeout, settings.leave_timeout)
