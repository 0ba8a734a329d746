"""``prefork-executor map``, as tests call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import search_path
from waiting import BOUND


class Command:
    """The command, in a directory of its own, from which lines_to_map is found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.environment = {**os.environ, "PYTHONPATH": search_path(), "CALLS": str(self.calls)}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefork_executor", "map", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, start_new_session=True, **options
        )

    def run(self, *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
        """Its exit code, and what it wrote to stdout and to stderr."""
        with self.start(*arguments, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(given, timeout=BOUND)
        return process.returncode, out.decode(), err.decode()

    def write(self, name: str, *lines: object) -> Path:
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]
