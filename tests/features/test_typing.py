"""What type checkers say of programs that use the package. They are in the group "lint"."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import BOUND

PROGRAM = Path(__file__).parents[1] / "support" / "typed" / "calls.py"


def lines_that_are_wrong() -> list[int]:
    lines = PROGRAM.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith("# WRONG")]


def told_by(*command: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command, str(PROGRAM)],
        cwd=directory,  # Not that of the package, whose settings are for its own code.
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout


def needs(checker: str) -> pytest.MarkDecorator:
    missing = [name for name in (checker, "anyio") if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_there_are_many_wrong_calls() -> None:
    assert len(lines_that_are_wrong()) > 30


@needs("mypy")
def test_mypy_reports_wrong_arguments_and_nothing_else(tmp_path: Path) -> None:
    told = told_by("mypy", "--strict", "--no-error-summary", directory=tmp_path)
    found = re.findall(r"calls\.py:(\d+): error: ", told)
    assert sorted({int(number) for number in found}) == lines_that_are_wrong(), told


@needs("pyright")
def test_pyright_reports_wrong_arguments_and_nothing_else(tmp_path: Path) -> None:
    told = json.loads(
        told_by("pyright", "--outputjson", "--pythonpath", sys.executable, directory=tmp_path)
    )
    found = {
        (entry["range"]["start"]["line"] + 1, entry["message"])
        for entry in told["generalDiagnostics"]
        if entry["severity"] == "error"
    }
    assert sorted({number for number, _ in found}) == lines_that_are_wrong(), sorted(found)
