"""What is released: the sdist and the wheel, their contents, and what an index shows of them."""

from __future__ import annotations

import email.message
import email.parser
import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_commands import copy_project
from waiting import BOUND

import prefork_executor

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMOKE = """
import os, sys
import prefork_executor
from prefork_executor import Pool, PreforkExecutor, WorkerDied

if __name__ == "__main__":
    assert prefork_executor.__file__.startswith(sys.prefix), prefork_executor.__file__
    with PreforkExecutor(2) as executor:
        assert executor.submit(lambda x: x * x, 7).result() == 49
        assert isinstance(executor.submit(os._exit, 1).exception(), WorkerDied)
        assert sum(executor.map(abs, range(-9, 10))) == 90
    with Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
    print(prefork_executor.__version__)
"""
"""What an installed wheel must do."""

needs_build = pytest.mark.skipif(
    importlib.util.find_spec("build") is None or importlib.util.find_spec("twine") is None,
    reason="needs build and twine, of the group 'docs'",
)


def run(*command: object, cwd: Path = ROOT) -> str:
    """What the command prints. It must end well."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=2 * BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was made of it, as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "project"
    copy_project(source)
    run(sys.executable, "-m", "build", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def sdist(built: Path) -> list[str]:
    """The paths of its files, below the project's root."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8"))


def paths_named_in_the_readme() -> Iterator[str]:
    """Files of the project that README.md links to or has commands for."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    yield from re.findall(r"\]\((?!https?:|#)([^)#\s]+)", readme)
    yield from re.findall(r"\b(?:examples|tests)/[\w/]+\.py", readme)


@needs_build
def test_an_index_takes_both_and_shows_the_description(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()))


@needs_build
def test_the_sdist_has_all_that_the_readme_names(sdist: list[str]) -> None:
    named = set(paths_named_in_the_readme())
    assert len(named) > 25
    assert named - set(sdist) == set()


@needs_build
def test_the_sdist_has_every_file_of_the_package_and_no_leftovers(sdist: list[str]) -> None:
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("prefork_executor/**/*.py")}
    assert package - set(sdist) == set()
    assert {"SECURITY.md", "CITATION.cff", "LICENSE", "CHANGELOG.md"} <= set(sdist)
    assert [name for name in sdist if re.search(r"__pycache__|\.py[co]$|/\.", name)] == []


@needs_build
def test_the_wheel_has_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"prefork_executor", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    package = {str(path.relative_to(ROOT)) for path in ROOT.glob("prefork_executor/**/*.py")}
    assert package - names == set()
    assert "prefork_executor/py.typed" in names


@needs_build
def test_the_description_has_no_link_that_an_index_would_break(
    metadata: email.message.Message,
) -> None:
    description = str(metadata.get_payload())
    assert "A process pool for Python programs" in description
    assert "(docs/tutorial.md)" not in description
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", description) == []


@needs_build
def test_a_user_is_offered_no_extra_that_only_contributors_need(
    metadata: email.message.Message,
) -> None:
    offered = set(metadata.get_all("Provides-Extra") or [])
    assert offered.isdisjoint({"lint", "docs", "integrations", "programs", "comparison"})
    assert {"pytest", "joblib", "dask", "anyio", "top", "trace", "progress"} <= offered


@needs_build
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel)
    (tmp_path / "smoke.py").write_text(SMOKE)
    assert run(python, "smoke.py", cwd=tmp_path).strip() == prefork_executor.__version__


# --- what needs no build --------------------------------------------------------------------------


def test_there_is_a_classifier_for_each_python_that_ci_runs() -> None:
    ci = ROOT / ".ci" / "run"
    if not ci.exists():
        pytest.skip("only a checkout has it")
    (versions,) = re.findall(r'^supported="([\d ]+)"', ci.read_text(), re.MULTILINE)
    found = {name for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert found == {f"Programming Language :: Python :: 3.{minor}" for minor in versions.split()}


def test_citation_and_changelog_have_this_version() -> None:
    version = re.escape(prefork_executor.__version__)
    for file, line in (
        ("CITATION.cff", rf"^version: {version}$"),
        ("CHANGELOG.md", rf"^## {version} "),
    ):
        assert re.search(line, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), file
