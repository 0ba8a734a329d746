"""A bridge to a library that is not installed says which extra installs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from waiting import BOUND

BRIDGES = [
    ("joblib", "joblib", "joblib"),
    ("dask", "dask", "dask"),
    ("dask", "distributed", "dask"),
    ("prometheus", "prometheus_client", "prometheus"),
    ("opentelemetry", "opentelemetry", "opentelemetry"),
    ("anyio", "anyio", "anyio"),
]


def last_line_of_importing(bridge: str, missing: str) -> str:
    """What Python says last if the package is missing."""
    hide = f"import sys; sys.modules[{missing!r}] = None; import prefork_executor.integrations."
    done = subprocess.run(
        [sys.executable, "-c", hide + bridge],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("bridge", "missing", "extra"), BRIDGES)
def test_a_bridge_names_the_extra_that_it_needs(bridge: str, missing: str, extra: str) -> None:
    if missing == "distributed":
        pytest.importorskip("dask")
    said = last_line_of_importing(bridge, missing)
    assert said.startswith(f"ModuleNotFoundError: {missing} is not installed")
    assert f"pip install 'prefork-executor[{extra}]'" in said


def test_what_a_library_itself_lacks_is_not_taken_for_the_library() -> None:
    pytest.importorskip("distributed")
    said = last_line_of_importing("dask", "tornado")
    assert "tornado" in said
    assert "prefork-executor[" not in said
