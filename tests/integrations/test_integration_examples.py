"""The examples of the integrations, as they stand. Those of the pages run in
test_documents.py."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from inner_pytest import INNER
from waiting import BOUND

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def output_of(tmp_path: Path, example: str, *args: str) -> tuple[str, str]:
    """What an example that ends well writes to its standard output and error."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_survey_sources(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        'def f():\n    """Text."""\n\n\nasync def long():\n    a\n    b\n'
    )
    (tmp_path / "bad.py").write_text("def f(:")
    out, _ = output_of(tmp_path, "survey_sources.py", str(tmp_path), "--compare")
    assert "2 files, 1 of which cannot be parsed; 2 functions, 50% of them documented" in out
    assert "3 lines: long in good.py" in out
    assert out.endswith("The outcomes are the same.\n")


def test_checksum_tree(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    out, _ = output_of(tmp_path, "checksum_tree.py", str(tmp_path), "--verify", "--output", "sums")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (tmp_path / "sums").read_text() == f"{digest}  {tmp_path}/empty\n"
    assert "Verified: same digests" in out


def test_log_from_workers(tmp_path: Path) -> None:
    out, err = output_of(tmp_path, "log_from_workers.py")
    assert out == ""
    assert re.search(r"^INFO PreforkWorker-\d shop: selling book$", err, re.MULTILINE)
    assert "FutureWarning: lamps will not be sold any more" in err
    assert "KeyError: 'dragon'" in err
    assert err.endswith("INFO MainProcess shop: sold for 42 in total\n")


@pytest.mark.parametrize("bar", ["rich", "tqdm"])
def test_progress_bars(tmp_path: Path, bar: str) -> None:
    out, err = output_of(tmp_path, "progress_bars.py", bar)
    assert out.endswith("same\n")
    assert (out + err).count("100%") >= 2


def test_messages(tmp_path: Path) -> None:
    out, err = output_of(tmp_path, "messages.py")
    assert re.search(r"^worker \d+ has found 0\.\d+$", out, re.MULTILINE)
    assert out.endswith("and a message had it: True\n")
    assert err == ""


def test_async_tasks(tmp_path: Path) -> None:
    assert output_of(tmp_path, "async_tasks.py") == ("first: hare\n", "")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_async_pool(tmp_path: Path, loop: str) -> None:
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("needs the extra anyio, uvloop and trio")
    out, err = output_of(tmp_path, "async_pool.py", loop)
    assert out == "found: 120\nread ahead within the limit: True\nlong call cancelled: True\n"
    assert err == ""


def test_shared_pool(tmp_path: Path) -> None:
    out, err = output_of(tmp_path, "shared_pool.py")
    assert out == "['a', 'b', 'c'] [1, 2, 3]\none pool: True 2\n"
    assert err == ""


def test_metrics(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "metrics.py"), "--seconds", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as example:
        assert example.stdout is not None
        address = example.stdout.readline().strip()

        def page() -> str:
            with urllib.request.urlopen(address, timeout=BOUND) as response:
                return str(response.read().decode())

        assert 'prefork_executor_workers_max{executor="sleepers"} 4.0' in page()
        assert example.wait(BOUND) == 0


def test_tracing(tmp_path: Path) -> None:
    out, err = output_of(tmp_path, "tracing.py")
    [order] = re.findall(r"^order (\w+), root span", out, re.MULTILINE)
    parents = re.findall(r"^price of \w+ \w+, child of (\w+)", out, re.MULTILINE)
    assert parents == [order, order]
    assert "total 8\n" in out
    assert err == ""


def test_fixtures(pytester: pytest.Pytester) -> None:
    example = EXAMPLES / "test_fixtures.py"
    pytester.makepyfile(test_example=example.read_text())
    pytester.runpytest_inprocess(*INNER).assert_outcomes(passed=2)
