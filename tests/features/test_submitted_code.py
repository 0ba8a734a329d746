"""A task runs the code it was submitted with, whatever becomes of that meanwhile: in the
program, in its script's file, or of the supervisor."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from scripts import run_script

START = """
import os
import signal
import sys
import time
from multiprocessing import active_children

from prefork_executor import PreforkExecutor

def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def block(ex, gate):
    '''Fill the window: what is submitted next waits. The task that runs.'''
    futures = [ex.submit(stay, gate) for _ in range(8)]
    wait_for(futures[0].running)
    return futures[0]

def stay(gate):
    while not os.path.exists(gate):
        time.sleep(0.01)

def kill_supervisor(running):
    '''And wait for the end of the worker that this task runs on: it would go on.'''
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    running.exception()

def go_on(gate):
    open(gate, "w").close()
"""


def run(directory: Path, source: str, *args: str) -> list[str]:
    return run_script(directory, START + textwrap.dedent(source), *args).splitlines()


def test_what_is_redefined_after_submit_is_not_what_a_later_supervisor_s_workers_run(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        def version():
            return "old"

        def f(x):
            return version(), x

        def g(x):
            return "old", x

        class Thing:
            def __init__(self, x):
                self.x = x

            def get(self):
                return version(), self.x

        def get(thing):
            return thing.get()

        def give(x):
            return Thing(x)

        def main():
            import logging
            logging.disable()
            with PreforkExecutor(1, sys.argv[1]) as ex:
                ex.submit(f, 0).result()
                running = block(ex, "gate")
                old = Thing
                made = ex.submit(give, 5)
                futures = [
                    ex.submit(f, 1),
                    ex.submit(g, 2),
                    ex.submit(get, Thing(3)),
                    ex.submit(lambda x: f(x), 4),
                    *[ex.submit(g, "x" * 200_000)],
                ]
                mapped = ex.map(f, [6, 7, 8], chunksize=2)
                exec(
                    "def version(): return 'new'\\n"
                    "def g(x): return 'new', x\\n"
                    "class Thing:\\n    def get(self): return 'new'\\n",
                    globals(),
                )
                kill_supervisor(running)
                go_on("gate")
                print([future.result()[0] for future in futures], list(mapped))
                print(made.result().x, type(made.result()) is old)
                print(ex.submit(f, 9).result(), ex.submit(g, 9).result())

        if __name__ == "__main__":
            main()
    """
    assert run(tmp_path, source, start_method) == [
        "['old', 'old', 'old', 'old', 'old'] [('old', 6), ('old', 7), ('old', 8)]",
        "5 True",
        "('new', 9) ('new', 9)",
    ]


def test_what_is_redefined_before_the_first_supervisor_is_ready_is_not_what_runs(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        def version():
            return "old"

        def f(x):
            return version(), x

        def main():
            with PreforkExecutor(1, sys.argv[1]) as ex:
                first = ex.submit(f, 1)
                exec("def version(): return 'new'", globals())
                print(first.result(), ex.submit(f, 2).result())

        if __name__ == "__main__":
            main()
    """
    assert run(tmp_path, source, start_method) == ["('old', 1) ('new', 2)"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_that_is_edited_meanwhile_is_not_what_a_later_supervisor_s_workers_run(
    tmp_path: Path, method: str
) -> None:
    source = """
        VERSION = "old"

        def f(x):
            return "old", x

        class Thing:
            def get(self):
                return "old"

        def get(thing):
            return thing.get()

        def main():
            import logging
            logging.disable()
            with PreforkExecutor(1, sys.argv[1]) as ex:
                ex.submit(f, 0).result()
                running = block(ex, "gate")
                futures = [ex.submit(f, 1), ex.submit(get, Thing())]
                text = open(__file__).read()
                open(__file__, "w").write(text.replace("old", "new"))
                kill_supervisor(running)
                go_on("gate")
                print([future.result() for future in futures], ex.submit(f, 2).result())

        if __name__ == "__main__":
            main()
    """
    assert run(tmp_path, source, method) == ["[('old', 1), 'old'] ('old', 2)"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_that_imports_an_edited_script_for_itself_runs_nothing_of_it(
    tmp_path: Path, method: str
) -> None:
    source = """
        def f(x):
            return "old", x

        def g(x):
            return "as ever", x

        def uses(x):
            return f(x)

        def main():
            options = dict(share_main=False, max_tasks_per_child=1)
            with PreforkExecutor(1, sys.argv[1], **options) as ex:
                print(ex.submit(f, 0).result())
                text = open(__file__).read()
                open(__file__, "w").write(text.replace('"old", x', '"new", x'))
                ex.reload().result()
                print(ex.submit(g, 1).result())
                for fn in (f, uses, lambda x: f(x)):
                    error = ex.submit(fn, 2).exception()
                    print(type(error).__name__, "script was changed" in str(error))

        if __name__ == "__main__":
            main()
    """
    assert run(tmp_path, source, method) == [
        *("('old', 0)", "('as ever', 1)"),
        *["RuntimeError True"] * 3,
    ]
