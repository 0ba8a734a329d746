"""What has tests of its own holds with the means of other systems, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import BOUND

from prefork_executor._system import platform

WIRE = Path(__file__).parents[1] / "unit" / "test_wire.py"
REAL = "channel or descriptor or arrive or payload or open"
"""Selects the tests that use real sockets and files."""


@pytest.mark.skipif(platform.FALLBACK, reason="this is the fallback")
def test_all_of_this_holds_with_the_means_of_other_systems() -> None:
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", REAL]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(WIRE)],
        env={**os.environ, "PREFORK_EXECUTOR_FALLBACK": "1"},
        capture_output=True,
        text=True,
        timeout=2 * BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stdout
