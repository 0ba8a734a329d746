"""The shell blocks of the pages, as commands to run.

A block is run as it stands, by bash, where a reader would run it: in a folder that has the
project's files if the page speaks of "a clone" above the block, and is empty otherwise. What the
page tells the reader to install above the block, or in it, is installed; nothing else is. So
the block's own ``pip install`` and ``python3 -m venv .venv`` find their work done.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fresh_environment import ENVIRONMENT, OURS, FreshPython
from packaging.requirements import Requirement
from page_examples import above, pip_arguments

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?P<kind>[^\n`]+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
GROUP = re.compile(r"--group (\w+)")
WORK_DONE = """
set -euo pipefail
pip() { :; }
.venv/bin/pip() { test -d .venv; }
python3() { test "$*" = "-m venv .venv"; }
"""
"""What bash runs before a block."""


@dataclass(frozen=True)
class Block:
    """A block of a page that is no Python.

    Attributes:
        page: the page's file.
        line: where the block begins.
        kind: what the page says that it is: "sh", "text", "yaml", ...
        source: its lines.
        read: what a reader has read who comes to its end.
    """

    page: Path
    line: int
    kind: str
    source: str
    read: str

    @property
    def name(self) -> str:
        """For the reports of pytest."""
        return f"{self.page.name}:{self.line}"

    @property
    def installs(self) -> frozenset[str]:
        """The requirements that the page names above it or in it, pip itself left out. ``.[test]``
        is our extra. Of a group (``--group lint``) nothing is installed: no block needs it."""
        words = pip_arguments(GROUP.sub("", self.read))
        asked = {re.sub(r"^\.", OURS, word) for word in words if word[0] != "-"}
        return frozenset(line for line in asked if Requirement(line).name != "pip")

    @property
    def groups(self) -> set[str]:
        """The dependency groups that the page names above it or in it."""
        return set(GROUP.findall(self.read))


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a page that says what it is, in order."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        begin, end = found.span("code")
        yield Block(
            page=page,
            line=text.count("\n", 0, begin),
            kind=found["kind"],
            source=found["code"],
            read=above(text[:end]),
        )


def prepare(block: Block, folder: Path, fresh_python: FreshPython) -> dict[str, str]:
    """Make the folder in which a reader runs the block. Returns the environment variables."""
    if re.search(r"\ba clone\b", block.read):
        copy_project(folder)
    folder.mkdir(exist_ok=True)
    commands = fresh_python(block.installs).parent
    if "python3 -m venv .venv" in block.read:
        (folder / ".venv").symlink_to(commands.parent)
    return {**ENVIRONMENT, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}


def copy_project(folder: Path) -> None:
    """Copy the project's files, without what builds and runs have left there."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored)
    shutil.copy(ROOT / ".gitignore", folder)
