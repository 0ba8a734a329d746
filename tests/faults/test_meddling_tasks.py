"""Tasks that do something to descriptors which their worker has inherited and are not theirs.

Each runs in a program of its own: what that has opened is inherited, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scripts import run_script

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/fd"), reason="tasks find descriptors in /proc"
)

PROGRAM = """
    import logging, multiprocessing.resource_tracker, os, socket, sys, time
    from prefork_executor import PreforkExecutor, WorkerDied

    def cut_short(descriptor):
        os.ftruncate(descriptor, 0)

    def lengthen(descriptor):
        os.ftruncate(descriptor, 1 << 40)

    def write_over(descriptor):
        os.pwrite(descriptor, os.urandom(4096), 0)

    def scribble(descriptor):
        os.set_blocking(descriptor, False)
        for _ in range(20):
            os.write(descriptor, os.urandom(100))

    def read(descriptor):
        os.set_blocking(descriptor, False)
        while os.read(descriptor, 65536):
            pass

    def shut_down(descriptor):
        with socket.socket(fileno=os.dup(descriptor)) as end:
            end.shutdown(socket.SHUT_RDWR)

    def meddle(name):
        # multiprocessing's own, not the pool's: it prints what it cannot read.
        spared = multiprocessing.resource_tracker._resource_tracker._fd
        for descriptor in range(3, 100):
            if descriptor == spared:
                continue
            try:
                globals()[name](descriptor)
            except OSError:
                pass

    def wait(started, gate):
        open(started, "a").close()
        while not os.path.exists(gate):
            time.sleep(0.01)
        return "done"

    def note(number):
        with open("ran", "a") as file:
            file.write(f"{number}\\n")
        return number

    def told(future):
        error = future.exception(120)
        return future.result() if error is None else f"{type(error).__name__}: {error}"

    def main(name, method):
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        logging.getLogger("prefork_executor").setLevel(logging.CRITICAL)
        with PreforkExecutor(2, method, min_spare_workers=2) as executor:
            executor.submit(note, 0).result()
            running = executor.submit(wait, "started", "gate")
            while not os.path.exists("started"):
                time.sleep(0.01)
            meddling = executor.submit(meddle, name)
            queued = [executor.submit(note, n) for n in range(1, 20)]
            print(told(meddling))
            open("gate", "w").close()
            print(told(running))
            print([told(future) for future in queued] == list(range(1, 20)))
            print(told(executor.submit(note, 20)))
            print(sorted(map(int, open("ran"))) == list(range(21)))
            stats = executor.stats()
            ended = stats.retirements + stats.deaths + stats.other_deaths
            print(stats.deaths, stats.forks == len(stats.workers) + ended)

    if __name__ == "__main__":
        main(*sys.argv[1:])
"""


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
