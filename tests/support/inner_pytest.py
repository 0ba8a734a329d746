"""Small suites that an inner pytest runs: the plugin as its users see it."""

from __future__ import annotations

import pytest
from waiting import BOUND

INNER = [
    *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:asyncio"),
    *("--strict-markers", "-W", "error"),
]
"""Arguments of every inner pytest."""
NO_TIME = "0.3"
"""Seconds of the teardown's bound in tests whose tasks never end."""
WITH_NO_TIME = ("-o", f"prefork_teardown_timeout={NO_TIME}")
TASKS = """
    import os, pathlib, signal, time
    import pytest
    from prefork_executor import PreforkExecutor

    def until(condition):
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def hang(name):
        path = pathlib.Path(name)
        path.with_suffix(".tmp").write_text(str(os.getpid()))
        path.with_suffix(".tmp").rename(path)
        time.sleep(3600)

    def hang_and_ignore_sigterm(name):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang(name)

    def leave_running(executor, fn, name):
        executor.submit(fn, name)
        until(pathlib.Path(name).exists)
"""
"""What begins every inner test module. A task that hangs writes its pid to a file."""


class Inner:
    """Makes and runs small suites."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path = pytester.path

    def suite(self, *parts: str) -> None:
        """Write a test module of TASKS and these."""
        # All are indented alike; dedenting is left to pytester.
        self._pytester.makepyfile(test_inner=TASKS + "".join(parts))

    def ini(self, line: str) -> None:
        self._pytester.makeini(f"[pytest]\n{line}\n")

    def run(self, *args: str) -> pytest.RunResult:
        """Run it in this process: cheap."""
        return self._pytester.runpytest_inprocess(*INNER, *args)

    def run_apart(self, *args: str) -> pytest.RunResult:
        """Run it as a process of its own, as its users do."""
        return self._pytester.runpytest_subprocess(*INNER, *args, timeout=BOUND)

    def run_with_no_time(self, *args: str) -> pytest.RunResult:
        """Run it apart, with little patience for tasks that hang."""
        return self.run_apart(*WITH_NO_TIME, *args)

    def pid(self, name: str) -> int:
        """The worker that ran the task ``hang(name)``."""
        return int((self.path / name).read_text())


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Inner:
    # Those of the outer run are not meant for the inner ones.
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return Inner(pytester)


def output(run: pytest.RunResult) -> str:
    return run.stdout.str() + run.stderr.str()
