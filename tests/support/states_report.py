"""Whether workers change their states as the table says, in every process that tests start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

STATES_REPORT = Path(tempfile.gettempdir(), f"prefork-executor-states-{os.getpid()}")
"""Where it is noted if a worker comes into a state in a way that there is not."""


def check_states() -> None:
    """From now on, in this process and in those that it starts."""
    from prefork_executor._board import worker_states

    worker_states.check_from_now_on(str(STATES_REPORT))


def take_states_report() -> str:
    """What has been noted since this was last asked."""
    if not STATES_REPORT.exists():
        return ""
    report = STATES_REPORT.read_text(encoding="utf-8")
    STATES_REPORT.unlink()
    return report
