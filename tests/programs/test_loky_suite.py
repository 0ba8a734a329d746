"""loky's own executor tests: those that ProcessPoolExecutor passes, PreforkExecutor passes.

``PREFORK_EXECUTOR_LOKY`` is the path of loky's repository; without it there is nothing to run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .running import PREFORK, STANDARD

SOURCE = os.environ.get("PREFORK_EXECUTOR_LOKY")
BOUND = 600.0
"""Seconds that one run may take. It takes about one minute."""

NOT_RUN = ("large_data", "sys_exit_at_pickle", "shutdown_and_kill_workers")
"""Takes gigabytes; hang with ProcessPoolExecutor."""

ALL_AT_ONCE = {"test_processes_terminate"}
"""Counts on as many workers as there may be as soon as a task was submitted."""


@pytest.mark.skipif(not SOURCE, reason="PREFORK_EXECUTOR_LOKY does not say where loky's tests are")
@pytest.mark.timeout(2 * BOUND + 100)
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_the_tests_that_one_passes_the_other_passes(start_method: str) -> None:
    expected = passed(STANDARD, start_method)
    assert len(expected) > 20
    assert expected - passed(PREFORK, start_method) <= ALL_AT_ONCE


def passed(pool: str, start_method: str) -> set[str]:
    """The names of loky's tests that a pool passes."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), str(here)]),
        "PROGRAMS_EXECUTOR": pool,
        "PROGRAMS_START_METHOD": start_method,
    }
    chosen = " and ".join(f"not {name}" for name in NOT_RUN)
    plugins = ("cacheprovider", "prefork_executor", "xdist")
    options = ["-c", os.devnull, "--noconftest", "-rA", "--timeout", "60", "-k", chosen]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *options),
            *(f"-pno:{plugin}" for plugin in plugins),
            str(here / "loky_cases.py"),
        ],
        cwd=SOURCE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    return set(re.findall(r"^PASSED .*::(\S+)", done.stdout, re.MULTILINE))
