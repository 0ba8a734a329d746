"""What docs/migrating.md says of both pools, with both: same, better, different."""

from __future__ import annotations

import copyreg
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
from light_tasks import wait_for
from scripts import run_python, run_script
from waiting import eventually

from prefork_executor import PreforkExecutor, WorkerDied

FORK = multiprocessing.get_context("fork")
BOTH = pytest.mark.parametrize("kind", [ProcessPoolExecutor, PreforkExecutor])
Kind = Callable[..., Executor]
changed = False


class TwoArgumentsError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def double(x: Any) -> Any:
    return 2 * x


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise KeyError("no such thing")


def fail_with_two() -> None:
    raise TwoArgumentsError(1, 2)


def change() -> bool:
    global changed
    before, changed = changed, True
    return before


def handler_of_usr1() -> bool:
    return signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def error_of(kind: Kind, fn: Callable[..., Any], *args: Any, **options: Any) -> BaseException:
    with kind(1, **{"mp_context": FORK, **options}) as executor:
        error = executor.submit(fn, *args).exception()
        assert error is not None
        return error


# --- the same ----------------------------------------------------------------------------------


@BOTH
def test_bad_numbers_and_a_submit_after_shutdown_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        kind(0)
    executor = kind(1)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(double, [1], chunksize=0)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 1)


@BOTH
def test_what_a_worker_changes_in_a_module_is_its_own(kind: Kind) -> None:
    with kind(1, mp_context=FORK) as executor:
        assert [executor.submit(change).result() for _ in range(2)] == [False, True]
    assert not changed


@BOTH
def test_sys_exit_is_an_exception_as_any(kind: Kind) -> None:
    assert isinstance(error_of(kind, sys.exit, 3), SystemExit)


@BOTH
def test_a_script_without_a_guard_breaks_the_pool_if_it_is_imported(
    kind: Kind, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(program(kind, "spawn"))
    with pytest.raises(AssertionError, match="BrokenProcessPool"):
        run_python(tmp_path, "script.py")


def program(kind: Any, start_method: str) -> str:
    return f"""
import multiprocessing
from {kind.__module__} import {kind.__name__}
def double(x):
    return 2 * x
executor = {kind.__name__}(1, multiprocessing.get_context("{start_method}"))
print(executor.submit(double, 2).result())
"""


# --- better ------------------------------------------------------------------------------------


def test_a_death_breaks_their_pool_and_costs_ours_one_task() -> None:
    assert type(error_of(ProcessPoolExecutor, die)) is BrokenProcessPool
    with ProcessPoolExecutor(1, FORK) as theirs:
        theirs.submit(die).exception()
        with pytest.raises(BrokenProcessPool):
            theirs.submit(double, 1).result()
    with PreforkExecutor(1, FORK) as ours:
        assert isinstance(ours.submit(die).exception(), WorkerDied)
        assert ours.submit(double, 1).result() == 2


def test_theirs_forks_all_at_once_and_ours_one() -> None:
    before = len(children())
    with ProcessPoolExecutor(4, FORK) as theirs:
        theirs.submit(double, 1).result()
        assert len(children()) == before + 4
    with PreforkExecutor(4, FORK, min_spare_workers=0) as ours:
        ours.submit(double, 1).result()
        assert len(ours.stats().workers) == 1


def children() -> list[psutil.Process]:
    return psutil.Process().children()


def test_only_ours_says_what_the_initializer_raised() -> None:
    theirs = error_of(ProcessPoolExecutor, double, 1, initializer=fail)
    assert "no such thing" not in str(theirs)
    ours = error_of(PreforkExecutor, double, 1, initializer=fail)
    assert isinstance(ours, BrokenProcessPool)
    assert "no such thing" in str(ours)
    assert isinstance(ours.__cause__, KeyError)


def test_only_ours_has_the_workers_frames() -> None:
    def last_frame(error: BaseException) -> str:
        return traceback.extract_tb(error.__traceback__)[-1].name

    for kind, expected in ((ProcessPoolExecutor, "__get_result"), (PreforkExecutor, "fail")):
        with kind(1, mp_context=FORK) as executor, pytest.raises(KeyError) as caught:
            executor.submit(fail).result()
        assert last_frame(caught.value) == expected


def test_an_exception_of_two_arguments_breaks_their_pool_and_arrives_from_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # distributed, if other tests have imported it, has a reducer for every exception there is.
    monkeypatch.delitem(copyreg.dispatch_table, TwoArgumentsError, raising=False)
    assert type(error_of(ProcessPoolExecutor, fail_with_two)) is BrokenProcessPool
    assert type(error_of(PreforkExecutor, fail_with_two)) is TwoArgumentsError


def test_only_ours_takes_lambdas() -> None:
    theirs = error_of(ProcessPoolExecutor, lambda: 1)
    assert isinstance(theirs, (AttributeError, pickle.PicklingError))
    with PreforkExecutor(1, FORK) as ours:
        assert ours.submit(lambda: 1).result() == 1


def test_only_ours_takes_functions_that_were_typed_in_if_nothing_is_forked(
    tmp_path: Path,
) -> None:
    with pytest.raises(AssertionError, match="BrokenProcessPool"):
        run_python(tmp_path, text=program(ProcessPoolExecutor, "spawn"))
    assert run_python(tmp_path, text=program(PreforkExecutor, "spawn")) == "4\n"


def test_only_ours_says_where_the_lock_was() -> None:
    assert isinstance(error_of(ProcessPoolExecutor, double, threading.Lock()), TypeError)
    ours = error_of(PreforkExecutor, double, threading.Lock())
    assert isinstance(ours, pickle.PicklingError)
    assert "args[0] is a _thread.lock" in str(ours)


def test_only_ours_replaces_workers_that_were_forked_and_takes_a_start_methods_name() -> None:
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        ProcessPoolExecutor(1, FORK, max_tasks_per_child=1)
    with pytest.raises(AttributeError):
        ProcessPoolExecutor(1, "fork")  # type: ignore[arg-type]
    with PreforkExecutor(1, "fork", max_tasks_per_child=1) as ours:
        assert len({ours.submit(os.getpid).result() for _ in range(3)}) == 3


def test_ours_is_usable_after_its_workers_were_killed(tmp_path: Path) -> None:
    with PreforkExecutor(1, FORK) as ours:
        future = ours.submit(wait_for, str(tmp_path / "never"))
        eventually(lambda: ours.stats().busy == 1)
        ours.kill_workers()
        assert type(future.exception()) is BrokenProcessPool
        assert ours.submit(double, 1).result() == 2


# --- different ---------------------------------------------------------------------------------


def test_ours_pickles_a_call_at_once_and_theirs_when_it_is_sent(tmp_path: Path) -> None:
    for kind, expected in ((ProcessPoolExecutor, [1, 2, 1, 2]), (PreforkExecutor, [1, 1])):
        go = tmp_path / f"{kind.__name__} may go"
        with kind(1, mp_context=FORK) as executor:
            # So many that the last is not sent before the first are done.
            blockers = [executor.submit(wait_for, str(go)) for _ in range(8)]
            things = [1]
            future = executor.submit(double, things)
            things.append(2)
            go.touch()
            assert future.result() == expected
            assert not any(blocker.exception() for blocker in blockers)


@BOTH
def test_a_few_tasks_are_sent_ahead_and_cannot_be_cancelled(kind: Kind, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with kind(2, mp_context=FORK) as executor:
        futures = [executor.submit(wait_for, str(go)) for _ in range(20)]
        eventually(lambda: sum(one.running() for one in futures) >= 3)
        sent = [one for one in futures if not one.cancel()]
        go.touch()
        # Two that run and three that are to be next, at most.
        assert 3 <= len(sent) <= 5
        assert not any(one.exception() for one in sent)


def test_handlers_are_inherited_by_their_workers_and_not_by_ours() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        for kind, is_default in ((ProcessPoolExecutor, False), (PreforkExecutor, True)):
            with kind(1, mp_context=FORK) as executor:
                assert executor.submit(handler_of_usr1).result() is is_default
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_only_ours_ends_what_runs_when_the_with_block_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), PreforkExecutor(1, FORK) as ours:  # noqa: PT012
        future = ours.submit(wait_for, str(tmp_path / "never"))
        eventually(lambda: ours.stats().busy == 1)
        raise KeyboardInterrupt
    assert future.exception() is not None


def test_the_pool_is_one_childs_and_its_workers_are_that_ones(tmp_path: Path) -> None:
    source = """
        import os
        from prefork_executor import PreforkExecutor
        if __name__ == "__main__":
            with PreforkExecutor(1) as executor:
                print(executor.submit(os.getppid).result() == os.getpid())
        """
    assert run_script(tmp_path, source) == "False\n"
