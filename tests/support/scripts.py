"""Runs programs of their own, for what is about ``__main__``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import waiting

BOUND = 2 * waiting.BOUND
"""Seconds that a program may take before the test fails; it takes about one."""
SUPPORT = Path(__file__).parent
"""Where the modules are that tests share."""


def search_path(*folders: Path) -> str:
    """A ``PYTHONPATH`` by which a program of its own finds what tests share, and the modules
    in these folders."""
    search = [*map(str, folders), str(SUPPORT), os.environ.get("PYTHONPATH")]
    return os.pathsep.join(filter(None, search))


def program_text(name: str) -> str:
    """The program of this name in ``programs``."""
    return (SUPPORT / "programs" / f"{name}.py").read_text(encoding="utf-8")


def run_script(
    directory: Path, source: str, *args: str, options: tuple[str, ...] = (), bound: float = BOUND
) -> str:
    """What a program prints that is run as ``python script.py``."""
    path = directory / "script.py"
    path.write_text(textwrap.dedent(source))
    return run_python(directory, *options, str(path), *args, bound=bound)


def run_python(directory: Path, *args: str, text: str | None = None, bound: float = BOUND) -> str:
    """What Python prints when it is run so, with this text as its standard input.
    It must end well and have nothing to complain of."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=directory,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=bound,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout
