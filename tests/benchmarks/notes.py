"""How a task says that it has begun: its process id, as a line of a file.

Imports little, because what runs in an interpreter of its own cannot import everything.
"""

from __future__ import annotations

import os
from pathlib import Path

REASON = "the licence server said no"
"""Why an initializer raises. Whoever uses the pool wants to read that."""


def note(path: str) -> None:
    """This process's id as a line of a file, whole, whoever else writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.close(descriptor)


def noted(path: str) -> list[int]:
    """The process ids that were noted."""
    file = Path(path)
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
