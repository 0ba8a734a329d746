"""The suite's own rule: a test leaves no process, descriptor, thread or shared
memory behind. Checked after every test, whatever it tested, and at the end."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import sys
import time
from collections.abc import Callable, Iterator

import leash
import pytest
from belongings import Belongings

pytest_plugins = ["pytester"]
# Modules whose assertions are to say what they saw, as those of tests do.
pytest.register_assert_rewrite(
    *("clusters", "injection", "inner_pytest", "pool_model", "raw_programs"),
    *("regulator_simulator", "scripts", "status_programs"),
)

_NEEDS = {
    "test_integration_dask.py": "distributed",
    "test_integration_examples.py": "distributed",
    "test_integration_joblib.py": "sklearn",
    "test_integration_opentelemetry.py": "opentelemetry.sdk",
    "test_integration_progress.py": "tqdm",
    "test_integration_prometheus.py": "prometheus_client",
}
"""Tests that need what only the extra "integrations" brings. That is large: they are
left out where it is not installed."""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


_SAME_ON_EVERY_PYTHON = (
    *("test_cli_map.py", "test_cli_status.py", "test_cli_top.py", "test_comparison.py"),
    *("test_documents.py", "test_recording.py", "test_recording_page.py", "test_regulator.py"),
    *("test_regulator_simulation.py", "test_status.py"),
)
"""Tests of pages, commands, views and arithmetic: the newest supported Python is enough."""

collect_ignore = [file for file, module in _NEEDS.items() if not _is_installed(module)]
if sys.version_info < (3, 13):
    collect_ignore += _SAME_ON_EVERY_PYTHON

BOUND = 180.0
"""Seconds that anything awaited may take before the test fails: far beyond what it takes
on a machine with twenty times as much to do as it has processors. Nothing waits for a
fixed time."""


def pytest_configure() -> None:
    leash.leave_pid_1()
    leash.hold()
    hear_signals()
    give_examples_time()


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


def eventually(condition: Callable[[], object], what: str = "", bound: float = BOUND) -> None:
    """Wait until ``condition()`` is true; fail after ``bound`` seconds."""
    deadline = time.monotonic() + bound
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not come true in {bound:g} s: {what or condition}")
        time.sleep(0.005)


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


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def start_method(request: pytest.FixtureRequest) -> str:
    """Every way in which a supervisor can start."""
    return str(request.param)
