"""Tasks that do something to descriptors which their worker has inherited and are not theirs.

Each runs in a program of its own: what that has opened is inherited, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts import program_text, run_script

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"), reason="tasks find descriptors in /proc"
)

PROGRAM = program_text("meddling_tasks")


def printed(directory: Path, meddle: str, start_method: str) -> list[str]:
    """What came of the task, of the one that ran beside it, whether all that waited had its
    right result and ran once; deaths, and whether forks add up."""
    return run_script(directory, PROGRAM, meddle, start_method).splitlines()


@pytest.mark.parametrize("meddle", ["cut_short", "lengthen", "write_over", "scribble", "read"])
def test_a_task_that_writes_to_all_it_has_inherited_or_reads_it_costs_nobody_anything(
    meddle: str, tmp_path: Path
) -> None:
    assert printed(tmp_path, meddle, "fork") == ["None", "done", "True", "20", "True", "0 True"]


def test_a_task_that_shuts_down_the_channels_costs_what_runs_and_no_more(
    start_method: str, tmp_path: Path
) -> None:
    """Nobody can say any more how that has ended."""
    meddling, running, *rest = printed(tmp_path, "shut_down", start_method)
    assert rest == ["True", "20", "True", "2 True"]
    for lost in (meddling, running):
        assert lost.startswith("WorkerDied: ")
        assert "a task has shut down the pool's channels" in lost
