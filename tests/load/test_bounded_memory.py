"""What tasks cost of the caller's memory: as much as are there at a time, however many
there are in all; and no more than ProcessPoolExecutor takes for the same tasks.

Each program is a process of its own, so that it measures nothing but its pool. With
PREFORK_EXECUTOR_LONG=1 they are given fifty and ten times as many tasks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scripts import BOUND, program_text, run_script

LONG = os.environ.get("PREFORK_EXECUTOR_LONG") == "1"
MAPPED = 1_000_000 if LONG else 20_000
SUBMITTED = 100_000 if LONG else 10_000
BUFFERSIZE = 100
LONGEST = 1800.0 if LONG else BOUND
pytestmark = pytest.mark.timeout(2 * LONGEST)


def measured(directory: Path, program: str, *args: object) -> dict[str, Any]:
    """What a program prints of itself, as JSON."""
    found: dict[str, Any] = json.loads(
        run_script(directory, program, *map(str, args), bound=LONGEST)
    )
    return found


MAP = program_text("memory_of_map")


def test_a_map_with_a_buffersize_holds_no_more_tasks_the_longer_it_is(tmp_path: Path) -> None:
    short = measured(tmp_path, MAP, MAPPED // 4, BUFFERSIZE)
    long = measured(tmp_path, MAP, MAPPED, BUFFERSIZE)
    for found in (short, long):
        # A task and its future for each result that is to come, and those on their way.
        assert BUFFERSIZE <= found["most"] <= 3 * BUFFERSIZE, found
        assert found["left"] <= 2, "all but the last, which a finished thread may hold"
    assert long["peak"] <= 1.5 * short["peak"], (short, long)


SUBMIT = program_text("memory_of_submit")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
@pytest.mark.parametrize("measure", ["traced", "resident"])
def test_a_task_that_waits_takes_no_more_than_under_the_process_pool_executor(
    tmp_path: Path, measure: str
) -> None:
    ours = measured(tmp_path, SUBMIT, "ours", measure, SUBMITTED)["each"]
    theirs = measured(tmp_path, SUBMIT, "theirs", measure, SUBMITTED)["each"]
    assert ours <= theirs, f"{ours:.0f} bytes a task, where theirs takes {theirs:.0f}"


ENDS = program_text("memory_after_ends")


def test_nothing_is_kept_of_a_task_however_it_has_ended(tmp_path: Path) -> None:
    found = measured(tmp_path, ENDS)
    assert found["most"] >= 1500
    assert found["left"] == 0
    assert found["kinds"] == [
        *("CallPicklingError", "LookupError", "NoneType", "TaskAborted", "TypeError")
    ]
