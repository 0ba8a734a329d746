"""What objects and errors say of themselves: state, size, and what to do."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from scripts import run_script
from waiting import BOUND

import prefork_executor
from prefork_executor import (
    BacklogFull,
    ExecutorStats,
    Pool,
    PreforkExecutor,
    SharedExecutor,
    errors,
    shared,
    shared_executor,
)
from prefork_executor._support import faults

# --- repr ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(executor: PreforkExecutor) -> Iterator[None]:
    """Keep the executor's I/O thread in a callback."""
    reached, release = threading.Event(), threading.Event()

    def callback(_: Future[int]) -> None:
        reached.set()
        release.wait(BOUND)

    executor.submit(abs, -1).add_done_callback(callback)
    try:
        assert reached.wait(BOUND)
        yield
    finally:
        release.set()


def test_the_repr_of_an_executor_follows_its_life() -> None:
    executor = PreforkExecutor(1)
    assert "PreforkExecutor" in repr(executor)
    assert "not started, 1 worker at most" in repr(executor)
    executor.submit(abs, -1).result()
    assert "running, 1 of at most 1 worker>" in repr(executor)
    executor.shutdown()
    assert "shut down" in repr(executor)


def test_the_repr_of_an_executor_counts_its_tasks() -> None:
    with PreforkExecutor(2) as executor:
        awaited = Future[int]()
        with held(executor):
            executor.submit(abs, awaited)
            assert "1 task waiting" in repr(executor)
            executor.submit(abs, -1)
            assert re.search("1 task sent|2 tasks waiting", repr(executor))
        awaited.set_result(1)


def test_the_repr_of_a_broken_executor_says_why() -> None:
    with PreforkExecutor(1, initializer=math.sqrt, initargs=(-1,)) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(abs, -1).result(BOUND)
        assert "broken: " in repr(executor)


def test_the_repr_of_a_forks_copy_says_that_it_is_one() -> None:
    with PreforkExecutor(1, mp_context="fork") as executor:
        executor.submit(abs, -1).result()
        child = os.fork()
        if not child:
            os._exit("of another process" not in repr(executor))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_repr_of_a_view_has_its_options_and_its_executor() -> None:
    with PreforkExecutor(1) as executor:
        view = executor.with_options(timeout=3, retries=2)
        assert repr(view) == f"<ExecutorView timeout=3.0, retries=2 of {executor!r}>"


def test_the_repr_of_a_pool_has_state_size_and_executor() -> None:
    with Pool(2) as pool:
        assert "state=RUN pool_size=2 of <PreforkExecutor" in repr(pool)
    assert "state=TERMINATE" in repr(pool)


def test_the_repr_of_a_shared_executor_starts_no_pool() -> None:
    executor = shared_executor(max_workers=1)
    assert "0 unfinished tasks of its own, in <PreforkExecutor" in repr(executor)
    shared.shutdown()
    assert "in no pool" in repr(executor)
    executor.shutdown()
    assert "<SharedExecutor shut down" in repr(executor)


def test_the_repr_of_a_future_has_its_task() -> None:
    with PreforkExecutor(1) as executor:
        with held(executor):
            future = executor.submit(math.sqrt, 4)
            assert re.search("state=(pending|running) task=math.sqrt", repr(future))
        assert future.result() == 2
        assert "state=finished returned float" in repr(future)


# --- names --------------------------------------------------------------------------------------


def test_dir_shows_the_names_that_are_imported_late() -> None:
    program = "import prefork_executor as p; assert set(p.__all__) <= set(dir(p))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=BOUND)


def test_dir_shows_nothing_that_is_not_there() -> None:
    assert all(hasattr(prefork_executor, name) for name in dir(prefork_executor))
    assert {SharedExecutor.__name__, ExecutorStats.__name__} <= set(dir(prefork_executor))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", errors.__all__)
def test_the_description_of_each_exception_says_what_to_do(name: str) -> None:
    assert "What to do: " in (getattr(errors, name).__doc__ or "")


def test_the_list_of_exceptions_is_complete() -> None:
    made_here = {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and thing.__module__ == errors.__name__
    }
    assert made_here == set(errors.__all__)
    assert BacklogFull.__name__ in errors.__all__


@pytest.mark.parametrize(
    ("injected", "is_called_a_bug"), [(MemoryError, False), (OSError, False), (KeyError, True)]
)
def test_a_lack_of_memory_or_descriptors_is_not_called_a_bug_of_the_pool(
    injected: type[Exception], is_called_a_bug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_kind: int) -> None:
        raise injected("injected")

    with faults.injected("client.heeds", fail), PreforkExecutor(1) as executor:
        error = executor.submit(abs, -1).exception(BOUND)
    assert isinstance(error, BrokenProcessPool)
    assert f"I/O thread failed: {injected.__name__}" in str(error)
    assert ("a bug in the pool" in str(error)) == is_called_a_bug
    assert isinstance(error.__cause__, injected)
    assert "I/O thread failed" in caplog.text


def test_a_log_handler_of_the_program_that_raises_harms_no_pool(
    tmp_path: Path, start_method: str
) -> None:
    source = f"""
        import logging, os, psutil
        from prefork_executor import PreforkExecutor, yell

        class Unreachable(logging.Handler):
            def emit(self, record):
                raise ConnectionError("the log server does not answer")

        logging.getLogger().addHandler(Unreachable())
        logging.raiseExceptions = False  # Nothing of this is printed.

        def fail(*_):
            raise ValueError("no luck")

        if __name__ == "__main__":
            with PreforkExecutor(2, {start_method!r}, on_yell=fail) as executor:
                print(executor.submit(yell, 1).result(), executor.submit(abs, -1).result())
                future = executor.submit(abs, -2)
                future.add_done_callback(fail)
                print(future.result(), executor.submit(abs, -3).result())
                worker = psutil.Process(executor.submit(os.getpid).result())
                worker.parent().kill()
                worker.wait()
                print(list(executor.map(abs, range(4))))
            with PreforkExecutor(2, {start_method!r}, initializer=fail) as executor:
                print(executor.submit(abs, -1).exception())
    """
    told = run_script(tmp_path, source).splitlines()
    assert told[:3] == ["None 1", "2 3", "[0, 1, 2, 3]"]
    assert re.fullmatch(r"the initializer failed in worker \d+: ValueError: no luck", told[3])
