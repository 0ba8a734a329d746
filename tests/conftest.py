"""The folders of the tests, and the suite's own rule: a test leaves no process, descriptor,
thread or shared memory behind. Checked after every test, whatever it tested, and at the end.

    unit          one part of the package, without a pool
    model         the pool as a model, in every interleaving; the regulator in simulated time
  * executor      submit, map, shutdown, and what a death costs
  * pickling      functions, arguments, results and exceptions that travel
  * interpreter   futures, signal handlers, forks, threads, the interpreter's end
  * raw           raw pools, and how they end
  * cpython       the tests that come with CPython, on our pools
    batches       short tasks that travel together
    features      what else users may ask of an executor, a Pool or a raw pool
    observing     statistics, status, recordings
    processes     what the supervisor and the workers hold, share and leave
    faults        faults from outside, and what a pool makes of them
    load          what much work costs: system calls, memory, requests that are lost
    integrations  other packages; most of it needs the group "integrations"
    cli, plugin   the command; the pytest plugin
    docs          what the pages say, and the programs that they give
    programs      real programs with both pools; needs the group "programs"
    thorough      as unit and model, where it takes longer: larger models, other systems' means
    benchmarks    no tests: measurements
    support       what the tests share, and the tests of the suite itself

Every supported Python runs the folders with a star: only what they test may depend on it. The
newest runs all. Modules in ``support`` are imported by their plain names (``from waiting import
eventually``). A test's file has a name that no other has: workers import it by that name.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import time
from collections.abc import Iterator

import leash
import pytest
from belongings import Belongings
from states_report import check_states, take_states_report
from waiting import BOUND

pytest_plugins = ["pytester"]
# Modules whose assertions are to say what they saw, as those of tests do.
pytest.register_assert_rewrite(
    *("clusters", "injection", "inner_pytest", "pool_model", "raw_programs"),
    *("regulator_simulator", "scripts", "status_programs"),
)

_NEEDS = {
    "integrations/test_integration_anyio.py": "uvloop",
    "integrations/test_integration_anyio_map.py": "uvloop",
    "integrations/test_integration_dask.py": "distributed",
    "integrations/test_integration_examples.py": "distributed",
    "integrations/test_integration_joblib.py": "sklearn",
    "integrations/test_integration_opentelemetry.py": "opentelemetry.sdk",
    "integrations/test_integration_progress.py": "tqdm",
    "integrations/test_integration_prometheus.py": "prometheus_client",
}
"""Tests that need what only the group "integrations" brings. That is large: they are
left out where it is not installed."""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


collect_ignore = [file for file, module in _NEEDS.items() if not _is_installed(module)]


def pytest_configure() -> None:
    leash.leave_pid_1()
    leash.hold()
    hear_signals()
    give_examples_time()
    check_states()


def give_examples_time() -> None:
    """How long one takes is the machine's business."""
    import hypothesis  # Here, because workers import this module to find a test's tasks.

    hypothesis.settings.register_profile("any load", deadline=None)
    hypothesis.settings.load_profile("any load")


def hear_signals() -> None:
    """Undo what whoever started the tests ignores or blocks, as ``nohup`` and a shell's ``&``
    do: it is inherited, and programs that tests start are to be interrupted and hung up."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        # Not the default, which would end the tests with the terminal, in spite of nohup.
        # The programs that they start have the default.
        signal.SIGHUP: lambda *_: None,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGALRM: signal.SIG_DFL,
        signal.SIGCHLD: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
        signal.SIGUSR2: signal.SIG_DFL,
    }
    for number, handler in handlers.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _helpers_of_multiprocessing() -> None:
    """Processes that multiprocessing itself starts once and keeps; they are there
    before the first test, so that no test is blamed for them."""
    multiprocessing.resource_tracker.ensure_running()
    # Workers import the modules of tests, and with them these, which take half a second.
    multiprocessing.set_forkserver_preload(["pytest", "psutil"])
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(_helpers_of_multiprocessing: None) -> Iterator[None]:
    """Fails a test that leaves something behind, and names it."""
    before = Belongings.now()
    yield
    deadline = time.monotonic() + BOUND
    while left := Belongings.now().beyond(before):
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        # Collected only now: for most tests there is nothing to collect, and it costs.
        gc.collect()
        time.sleep(0.01)
    if report := take_states_report():
        pytest.fail(f"a worker changed its state as it may not: {report}")


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def start_method(request: pytest.FixtureRequest) -> str:
    """Every way in which a supervisor can start."""
    return str(request.param)
