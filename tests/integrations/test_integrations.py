"""What holds for every integration: public interfaces only, and nothing before its time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import run_python

import prefork_executor

PACKAGE = Path(prefork_executor.__file__).parent
OUTSIDE = sorted([PACKAGE / "pytest_plugin.py", *PACKAGE.glob("integrations/*.py")])
EXTRAS = ("anyio", "pytest", "rich", "tqdm", "prometheus_client", "opentelemetry", "joblib", "dask")


def imported(path: Path) -> Iterator[str]:
    """The modules, and the names in them, that a file of the package imports, in full."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1].relative_to(PACKAGE.parent) if node.level else ""
            module = ".".join([*Path(above).parts, *filter(None, [node.module])])
            yield from (f"{module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.stem)
def test_it_uses_public_names_of_the_package_only(path: Path) -> None:
    found = [name for name in imported(path) if name.startswith("prefork_executor.")]
    assert [name for name in found if name.startswith("prefork_executor._")] == []


@pytest.mark.parametrize("module", ["prefork_executor", "prefork_executor.raw"])
def test_the_package_imports_none_of_it(tmp_path: Path, module: str) -> None:
    code = f"import {module}, sys; print([name for name in {EXTRAS} if name in sys.modules])"
    assert run_python(tmp_path, "-c", code) == "[]\n"


@pytest.mark.parametrize("module", ["logging", "asyncio", "progress"])
def test_what_needs_no_extra_can_be_imported_without(tmp_path: Path, module: str) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        f"import prefork_executor.integrations.{module}"
    )
    assert run_python(tmp_path, "-c", code) == ""


def test_the_plugin_imports_no_extra_but_pytest(tmp_path: Path) -> None:
    code = (
        "import prefork_executor.pytest_plugin, sys\n"
        f"print([name for name in {EXTRAS} if name in sys.modules])"
    )
    assert run_python(tmp_path, "-c", code) == "['pytest']\n"


def test_the_plugin_imports_neither_the_pool_nor_multiprocessing(tmp_path: Path) -> None:
    code = (
        "import pytest, sys; before = set(sys.modules)\n"
        "import prefork_executor.pytest_plugin\n"
        "print(sorted(set(sys.modules) - before))"
    )
    assert run_python(tmp_path, "-c", code) == (
        "['prefork_executor', 'prefork_executor._system', 'prefork_executor._system.platform', "
        "'prefork_executor.pytest_plugin']\n"
    )
