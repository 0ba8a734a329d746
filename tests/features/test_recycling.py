"""Workers that make way for new ones: after so many tasks, above so much memory, and all
of them at a reload."""

from __future__ import annotations

import logging
import mmap
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from light_tasks import square, wait_for
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, ReloadFailed
from prefork_executor._system import machine, platform

MEBI = 1024 * 1024
FOREVER = 3600.0
needs_proc = pytest.mark.skipif(
    platform.FALLBACK, reason="only Linux tells how much memory another process has"
)


def pids(executor: PreforkExecutor) -> set[int]:
    return {worker.pid for worker in executor.stats().workers}


hoard: list[mmap.mmap] = []


def keep(size: int) -> int:
    """Make this worker bigger for good, even if it has inherited memory that is free."""
    grown = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, size, mmap.PAGESIZE):
        grown[page] = 1
    hoard.append(grown)
    return os.getpid()


def keep_and_wait(size: int, sign: Path, go: Path) -> int:
    pid = keep(size)
    sign.touch()
    wait_for(go)
    return pid


# --- memory ---------------------------------------------------------------------------------


@pytest.fixture
def limit(start_method: str) -> int:
    """40 MiB above what a worker has that starts so."""
    with PreforkExecutor(1, start_method) as executor:
        return executor.submit(machine.own_memory).result(BOUND) + 40 * MEBI


def test_a_worker_that_has_grown_too_big_is_replaced_after_its_task(
    start_method: str, limit: int
) -> None:
    with PreforkExecutor(1, start_method, max_memory_per_child=limit) as executor:
        small = executor.submit(keep, 1).result(BOUND)
        assert executor.submit(keep, 1).result(BOUND) == small
        assert executor.submit(keep, 80 * MEBI).result(BOUND) == small
        assert executor.submit(keep, 1).result(BOUND) != small
        assert executor.stats().deaths == 0


def test_growing_under_load_loses_no_task(start_method: str, limit: int) -> None:
    with PreforkExecutor(2, start_method, max_memory_per_child=limit) as executor:
        workers = set(executor.map(keep, [15 * MEBI] * 20))
        assert len(workers) > 2


@needs_proc
def test_the_replacement_starts_while_the_big_one_still_works(
    start_method: str, limit: int, tmp_path: Path
) -> None:
    sign, go = tmp_path / "sign", tmp_path / "go"
    with PreforkExecutor(
        2, start_method, min_spare_workers=0, idle_timeout=None, max_memory_per_child=limit
    ) as executor:
        big = executor.submit(keep_and_wait, 80 * MEBI, sign, go)
        eventually(sign.exists)
        # It is the only worker, and another is wanted though nothing waits.
        eventually(lambda: len(pids(executor)) == 2, "the replacement")
        workers = executor.stats().workers
        (replacement,) = {worker.pid for worker in workers if worker.state != "busy"}
        go.touch()
        old = big.result(BOUND)
        eventually(lambda: old not in pids(executor))
        assert old != replacement
        assert replacement in pids(executor)


def test_a_limit_below_what_a_new_worker_has_replaces_each_after_one_task() -> None:
    with PreforkExecutor(2, max_memory_per_child=1) as executor:
        workers = [executor.submit(os.getpid).result(BOUND) for _ in range(5)]
        assert len(set(workers)) == 5
        forks = sum(decision.started for decision in executor.stats().decisions)
        assert forks <= 10, "nobody is replaced who has done nothing"


# --- reload -----------------------------------------------------------------------------------


def test_a_reload_replaces_every_worker(start_method: str) -> None:
    with PreforkExecutor(3, start_method, start_workers=3, idle_timeout=None) as executor:
        executor.submit(square, 2).result(BOUND)
        eventually(lambda: len(pids(executor)) == 3)
        old = pids(executor)
        executor.reload().result(BOUND)
        assert not old & pids(executor)
        assert executor.submit(square, 3).result(BOUND) == 9


def test_a_reload_under_load_loses_no_task(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        for round_ in range(3):
            futures = [executor.submit(square, i) for i in range(500)]
            old = pids(executor)
            executor.reload().result(BOUND)
            assert not old & pids(executor)
            assert [future.result(BOUND) for future in futures] == [i * i for i in range(500)]
            assert executor.stats().deaths == 0, round_


def test_new_workers_serve_before_the_old_ones_leave(tmp_path: Path) -> None:
    with PreforkExecutor(3) as executor:
        (old,) = {executor.submit(os.getpid).result(BOUND)}
        seen: list[set[int]] = []
        reloaded = executor.reload()
        while not reloaded.done():
            seen.append(pids(executor))
        assert seen
        assert all(seen), "there was always a worker"
        first_without = next((pids for pids in seen if old not in pids), None)
        assert first_without is None or first_without, "a new one was there by then"


def test_a_task_that_runs_at_a_reload_is_finished_by_its_old_worker(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with PreforkExecutor(2) as executor:
        future = executor.submit(wait_for, go)
        eventually(lambda: executor.stats().busy)
        reloaded = executor.reload()
        new = executor.submit(os.getpid).result(BOUND)
        assert not reloaded.done()
        go.touch()
        assert future.result(BOUND) != new
        reloaded.result(BOUND)


def test_a_pool_without_spares_is_reloaded_as_well(start_method: str) -> None:
    with PreforkExecutor(2, start_method, min_spare_workers=0) as executor:
        old = executor.submit(os.getpid).result(BOUND)
        executor.reload().result(BOUND)
        assert executor.submit(os.getpid).result(BOUND) != old


def test_a_reload_of_a_pool_that_has_not_started_is_done_at_once() -> None:
    with PreforkExecutor(2) as executor:
        assert executor.reload().result(0) is None


def test_reloads_may_overlap() -> None:
    with PreforkExecutor(2) as executor:
        executor.submit(square, 2).result(BOUND)
        for reloaded in [executor.reload() for _ in range(5)]:
            reloaded.result(BOUND)
        assert executor.submit(square, 3).result(BOUND) == 9


def test_a_reload_after_shutdown_is_refused() -> None:
    with PreforkExecutor(2) as executor:
        executor.submit(square, 2).result(BOUND)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.reload()


def test_a_shutdown_during_a_reload_leaves_no_future_unresolved() -> None:
    executor = PreforkExecutor(2)
    executor.submit(square, 2).result(BOUND)
    reloaded = executor.reload()
    executor.shutdown()
    assert reloaded.done()


def fail_if_told(flag: Path) -> None:
    if flag.exists():
        raise LookupError("the new configuration is wrong")


def die_if_told(flag: Path) -> None:
    if flag.exists():
        os._exit(3)


@pytest.fixture(params=[fail_if_told, die_if_told])
def initializer(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Both ways in which a new generation may fail to start."""
    function: Callable[[Path], None] = request.param
    return function


def test_the_old_workers_stay_if_new_ones_cannot_start(
    start_method: str,
    initializer: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flag = tmp_path / "flag"
    with PreforkExecutor(2, start_method, initializer, (flag,), min_spare_workers=0) as executor:
        old = executor.submit(os.getpid).result(BOUND)
        flag.touch()
        with pytest.raises(ReloadFailed, match=r"the old workers stay: .*initializer"):
            executor.reload().result(BOUND)
        assert {executor.submit(os.getpid).result(BOUND) for _ in range(20)} == {old}
        assert "the reload was given up" in caplog.text
        flag.unlink()
        executor.reload().result(BOUND)
        assert executor.submit(os.getpid).result(BOUND) != old


def test_an_initializer_that_fails_later_leaves_those_that_have_started(
    start_method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "flag"
    caplog.set_level(logging.ERROR, "prefork_executor")
    with PreforkExecutor(3, start_method, fail_if_told, (flag,), min_spare_workers=0) as executor:
        first = executor.submit(os.getpid).result(BOUND)
        flag.touch()

        def has_run_them_and_complained() -> bool:
            assert set(executor.map(slow_pid, range(30))) == {first}
            return "the workers that have started go on" in caplog.text

        eventually(has_run_them_and_complained)
        forks = sum(decision.started for decision in executor.stats().decisions)
        assert forks < 15, "starts that fail are held back"


def slow_pid(_: int) -> int:
    time.sleep(0.02)
    return os.getpid()


# --- preload ----------------------------------------------------------------------------------

loaded: list[int] = []


def load() -> None:
    loaded.append(os.getpid())


def what_is_loaded() -> tuple[list[int], int]:
    return loaded, os.getppid()


def test_preload_is_called_once_in_the_supervisor(start_method: str) -> None:
    with PreforkExecutor(2, start_method, preload=load) as executor:
        for _ in range(3):
            where, supervisor = executor.submit(what_is_loaded).result(BOUND)
            assert where == [supervisor]
            executor.reload().result(BOUND)


def has_module(name: str) -> bool:
    return name in sys.modules


@pytest.mark.parametrize("preload", ["this_is_preloaded", ["this_is_preloaded"]])
def test_modules_can_be_preloaded(
    start_method: str, preload: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "this_is_preloaded.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with PreforkExecutor(2, start_method, preload=preload) as executor:
        assert executor.submit(has_module, "this_is_preloaded").result(BOUND)
    assert not has_module("this_is_preloaded")


def fail() -> None:
    raise LookupError("nothing to load")


@pytest.mark.parametrize(
    ("preload", "what"),
    [(fail, "LookupError: nothing to load"), ("no_such_module", "ModuleNotFoundError: .*no_such")],
)
def test_a_preload_that_fails_breaks_the_pool_and_says_why(
    start_method: str, preload: object, what: str
) -> None:
    with PreforkExecutor(2, start_method, preload=preload) as executor:
        error = executor.submit(square, 2).exception(BOUND)
        assert isinstance(error, BrokenProcessPool)
        with pytest.raises(BrokenProcessPool, match=f"preload failed: {what}"):
            executor.submit(square, 2)


def sleep_for_ever() -> None:
    time.sleep(FOREVER)


def test_a_preload_that_hangs_ends_with_a_kill(start_method: str) -> None:
    executor = PreforkExecutor(2, start_method, preload=sleep_for_ever)
    future = executor.submit(square, 2)
    executor.kill_workers()
    assert isinstance(future.exception(BOUND), BrokenProcessPool)
    executor.submit(square, 2)
    executor.shutdown(wait=False)
    executor.kill_workers()
    assert executor.join(BOUND)
