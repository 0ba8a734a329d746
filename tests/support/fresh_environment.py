"""Environments that have what a reader has who installs what a page says, and nothing else.

An environment is a virtual one with links to packages of the environment in which the tests run.
So it is made in a moment, and Python need not compile these packages again.
"""

from __future__ import annotations

import functools
import os
import sysconfig
import venv
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path, PurePath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import prefork_executor

OURS = "prefork-executor"
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHONPATH", "PYTEST"))
}
"""The variables of a reader: none of them says where more packages are."""
FreshPython = Callable[[frozenset[str]], Path]


def lacking(asked: Iterable[str]) -> list[str]:
    """What ``pip install`` would have to fetch for these requirements: it is not installed here."""
    return sorted(name for name, found in _brought_by(asked).items() if found is None)


def _brought_by(asked: Iterable[str]) -> dict[str, Distribution | None]:
    """All that ``pip install`` brings for these requirements, by name. None: not installed here."""
    brought: dict[str, Distribution | None] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    to_see = [Requirement(line) for line in asked]
    while to_see:
        requirement = to_see.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            brought[name] = found = distribution(name)
        except PackageNotFoundError:
            brought[name] = None
            continue
        for needed in map(Requirement, found.requires or ()):
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                to_see.append(needed)
    return brought


def make(folder: Path, asked: Iterable[str]) -> Path:
    """Make an environment with our package and these requirements. Returns its Python."""
    venv.create(folder, symlinks=True)
    where = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", where))
    # Of modules that are single files, what is compiled lies here.
    (site / "__pycache__").symlink_to(Path(sysconfig.get_path("purelib")) / "__pycache__")
    for name, found in _brought_by({OURS, *asked}).items():
        assert found is not None, f"{name} is not installed"
        entries = _entries(list(found.files or ()))
        if name == OURS:
            # It may be installed as a link to its source.
            entries = {entry for entry in entries if entry.suffix == ".dist-info"}
            (site / "prefork_executor").symlink_to(Path(prefork_executor.__file__).parent)
        for entry in entries:
            (site / entry).parent.mkdir(parents=True, exist_ok=True)
            (site / entry).symlink_to(Path(str(found.locate_file(entry))))
        _add_commands(folder / "bin", found)
    return folder / "bin" / "python"


SCRIPT = """#!{python}
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""
"""A command, as pip writes it."""


def _add_commands(folder: Path, found: Distribution) -> None:
    """Add what this distribution has for the command line: functions, and programs as they are."""
    functions = found.entry_points.select(group="console_scripts")
    for point in functions:
        python = folder / "python"
        script = SCRIPT.format(python=python, module=point.module, function=point.attr)
        (folder / point.name).write_text(script)
        (folder / point.name).chmod(0o755)
    for file in found.files or ():
        if file.parts[-2:-1] == ("bin",) and file.name not in functions.names:
            (folder / file.name).symlink_to(Path(str(found.locate_file(file))))


def _entries(files: list[PackagePath]) -> set[PurePath]:
    """What is to be linked for these files of a distribution: each outermost folder that is its
    own, and each other file. A namespace package is a folder of several distributions."""
    packages = {file.parent for file in files if file.name == "__init__.py"}
    entries: set[PurePath] = set()
    for file in files:
        top = file.parts[0]
        if top.endswith(".dist-info"):
            entries.add(PurePath(top))
        elif top not in ("..", "__pycache__"):  # Scripts, and what is linked already.
            entries.add(next((up for up in reversed(file.parents) if up in packages), file))
    return entries


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> FreshPython:
    """Gives the Python of an environment with our package and these requirements."""

    @functools.cache
    def python(asked: frozenset[str]) -> Path:
        return make(tmp_path_factory.mktemp("environment"), asked)

    return python
