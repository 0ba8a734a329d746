"""A process that the caller forks has copies of his futures. Those that were done give what they
have; the others never hang: whoever asks or waits for them is told whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import program_text, run_script, search_path

QUIET = ("-W", "ignore::DeprecationWarning")
"""Python warns of forks in programs with threads, as these are."""
BEGIN = """
    import asyncio, concurrent.futures, os, signal, sys, time
    from light_tasks import run_until, square
    from prefork_executor import PreforkExecutor

    def try_all(**calls):
        for name, call in calls.items():
            try:
                print(name, call(), flush=True)
            except Exception as error:
                print(name, type(error).__name__, error, flush=True)

    def fork(work):
        child = os.fork()
        if child == 0:
            signal.alarm(120)    # If it hangs, let the test fail.
            work()
            os._exit(5)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

    if __name__ == "__main__":
        executor = PreforkExecutor(1, sys.argv[1])
        done = executor.submit(square, 5)
        print(done.result())
        running = executor.submit(run_until, "gate", "started")
        while not os.path.exists("started"):
            time.sleep(0.01)
        queued = [executor.submit(square, i) for i in range(50)][-1]
        wait, as_completed = concurrent.futures.wait, concurrent.futures.as_completed
"""
END = """
        open("gate", "w").close()
        print("parent", queued.result())
        running.result()
        executor.shutdown()
"""
UNFINISHED = """
        results = executor.map(square, [1, 2])
        reloaded = executor.reload()
        parent = os.getpid()
        queued.add_done_callback(lambda _: os.getpid() != parent and print("called", flush=True))
        async def wait_in_loop():
            return await asyncio.wrap_future(queued)
        fork(lambda: try_all(
            result=running.result,
            result_of_one_that_waits=lambda: queued.result(600),
            exception=running.exception,
            wait=lambda: wait([done, queued]),
            first_of=lambda: wait([queued], return_when="FIRST_COMPLETED"),
            as_completed=lambda: list(as_completed([queued, done])),
            add_done_callback=lambda: queued.add_done_callback(print),
            map=lambda: next(results),
            reload=reloaded.result,
            asyncio=lambda: asyncio.run(wait_in_loop()),
            once_more=running.result,
        ))
"""
DONE = """
        wait([done], 0)     # It has a condition, as one that was waited for.
        for _ in range(8):
            executor.submit(run_until, "gate", "started")
        cancelled = executor.submit(square, 6)
        print(cancelled.cancel())
        fork(lambda: try_all(
            result=done.result,
            exception=done.exception,
            wait=lambda: len(wait([done, cancelled]).done),
            as_completed=lambda: [f.result() for f in as_completed([done])],
            add_done_callback=lambda: done.add_done_callback(lambda f: print("got", f.result())),
            cancelled=cancelled.cancelled,
        ))
"""
ASKED = """
        fork(lambda: try_all(
            done=queued.done, running=running.running, cancel=queued.cancel,
            cancelled=queued.cancelled, text=lambda: "another process" in repr(queued),
            stats=lambda: len(executor.stats().workers), shutdown=executor.shutdown,
            join=executor.join,
            own=lambda: PreforkExecutor(1, sys.argv[1]).submit(square, 7).result(),
        ))
"""
OF_FORK = """
        def again():
            fork(lambda: try_all(result=queued.result, done=done.result))
        fork(again)
"""


@pytest.fixture(autouse=True)
def _what_tests_share_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", search_path())


def program(middle: str) -> str:
    return BEGIN + middle + END


def test_who_waits_for_a_future_of_the_parents_is_told_whose_it_is(
    tmp_path: Path, start_method: str
) -> None:
    printed = run_script(tmp_path, program(UNFINISHED), start_method, options=QUIET).splitlines()
    assert printed[0] == "25"
    assert printed[-2:] == ["child 5", "parent 2401"]
    told = printed[1:-2]
    assert len(told) == 11
    for line in told:
        _, kind, text = line.split(" ", 2)
        assert kind == "BrokenProcessPool"
        assert "belongs to process" in text
        assert "was forked from it" in text
    assert "light_tasks.run_until" in told[0]


def test_a_future_that_was_done_gives_its_result_in_a_fork(
    tmp_path: Path, start_method: str
) -> None:
    printed = run_script(tmp_path, program(DONE), start_method, options=QUIET).splitlines()
    assert printed == [
        *("25", "True", "result 25", "exception None", "wait 2", "as_completed [25]", "got 25"),
        *("add_done_callback None", "cancelled True", "child 5", "parent 2401"),
    ]


def test_in_a_fork_nobody_polls_a_future_for_ever_and_the_executor_may_be_closed(
    tmp_path: Path, start_method: str
) -> None:
    printed = run_script(tmp_path, program(ASKED), start_method, options=QUIET).splitlines()
    assert printed == [
        *("25", "done True", "running False", "cancel False", "cancelled False", "text True"),
        *("stats 0", "shutdown None", "join True", "own 49", "child 5", "parent 2401"),
    ]


def test_so_it_is_in_a_fork_of_a_fork(tmp_path: Path) -> None:
    printed = run_script(tmp_path, program(OF_FORK), "fork", options=QUIET).splitlines()
    assert "result BrokenProcessPool" in printed[1]
    assert printed[2:] == ["done 25", "child 5", "child 5", "parent 2401"]


TASK = program_text("task_with_a_future")


def test_a_task_that_inherits_a_future_is_told_so_as_well(tmp_path: Path) -> None:
    assert run_script(tmp_path, TASK).split() == 2 * ["BrokenProcessPool"]


CALLBACK = program_text("forking_callback")


def test_a_done_callback_that_forks_leaves_no_second_executor(tmp_path: Path) -> None:
    assert run_script(tmp_path, CALLBACK, options=QUIET) == "1 20\n"
