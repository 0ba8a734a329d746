"""The rows of comparison.py about workers: how many, for how long, and their ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import comparison_tasks as tasks
import psutil
from comparison_pools import (
    DASK,
    INTERPRETERS,
    JOBLIB,
    LOKY,
    MPIRE,
    OURS,
    PEBBLE,
    STANDARD,
    Cell,
    check,
    feature,
    no,
    yes,
)
from comparison_waiting import PATIENCE, settled, settled_value, succeeds
from fault_stage import alive, eventually, since
from notes import noted
from performance_pools import Pool

PROGRAM = Path(__file__).with_name("comparison_program.py")
START = 18.0
"""Seconds in which a program's tasks have begun, on a machine that has other work."""
WORKERS, ENDS = "workers", "ends"

# --- workers -----------------------------------------------------------------------------------

grows = feature("grows", "starts workers as work comes", WORKERS)
shrinks = feature("shrinks", "ends idle workers", WORKERS)
MOST, LEAST = 4, 2
HELPERS = ("resource_tracker", "semaphore_tracker", "forkserver")


def workers_now(kind: type[Pool]) -> int:
    """Processes that this one has started, without those that help multiprocessing; or
    interpreters but the main one."""
    if kind.name == INTERPRETERS:
        from concurrent import interpreters

        return len(interpreters.list_all()) - 1
    children = psutil.Process().children(recursive=True)
    return sum(alive(child.pid) and not is_helper(child) for child in children)


def is_helper(process: psutil.Process) -> bool:
    """Whether it is one of Python's or loky's own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(name in " ".join(process.cmdline()) for name in HELPERS)
    return True


def counts(pool: Pool, idle: float) -> tuple[int, int, int]:
    """Processes after one task, under load, and after so many idle seconds."""
    pool.submit(tasks.pid)()
    time.sleep(0.3)
    first = workers_now(type(pool))
    pool.many(tasks.nap, [(0.5,)] * 3 * MOST)()
    most = workers_now(type(pool))
    eventually(lambda: workers_now(type(pool)) < most, idle)
    return first, most, workers_now(type(pool))


def growing(kind: type[Pool]) -> Pool:
    """A pool of up to four workers, which leave as soon as its options allow."""
    if kind.name == OURS:
        return kind(MOST, idle_timeout=0.5)
    pool = kind(1 if kind.name == DASK else MOST)
    if kind.name == LOKY:
        import loky

        pool.executor = loky.ProcessPoolExecutor(MOST, timeout=1.0)  # type: ignore[attr-defined]
    elif kind.name == JOBLIB:
        import joblib

        joblib.parallel_config("loky", idle_worker_timeout=1)
    elif kind.name == DASK:
        pool.cluster.adapt(minimum=1, maximum=MOST, interval="200ms")  # type: ignore[attr-defined]
    return pool


@grows.on()
def it_grows(kind: type[Pool]) -> Cell:
    first, most, _ = counts(growing(kind), 0.0)
    asked = {DASK: "`adapt`"}.get(kind.name, "")
    return check(most > first, yes(asked), "all at once")


@grows.on(STANDARD)
def it_grows_but_for_fork(kind: type[Pool]) -> Cell:
    first, most, _ = counts(kind(MOST), 0.0)
    if most > first:
        return yes()
    import multiprocessing

    pool = kind(MOST)
    pool.close()
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("forkserver")
    pool.executor = ProcessPoolExecutor(MOST, context)  # type: ignore[attr-defined]
    pids = {pool.submit(tasks.pid)() for _ in range(5)}
    return check(len(pids) == 1, yes("but not with fork"), "all at once")


@shrinks.on()
def it_shrinks(kind: type[Pool]) -> Cell:
    _, most, last = counts(growing(kind), PATIENCE)
    asked = {
        OURS: "`idle_timeout`",
        LOKY: "`timeout`",
        JOBLIB: "`idle_worker_timeout`",
        DASK: "`adapt`",
    }
    return check(last < most, yes(asked.get(kind.name, "")))


recycling = feature("max_tasks", "a worker is replaced after so many tasks, under fork", WORKERS)


def all_differ(pids: list[int]) -> bool:
    """Whether every task had a process of its own."""
    return len(set(pids)) == len(pids)


@recycling.on(OURS)
def max_tasks_of_ours(kind: type[Pool]) -> Cell:
    pool = kind(max_tasks_per_child=1)
    return check(all_differ([pool.submit(tasks.pid)() for _ in range(4)]), yes())


@recycling.on(STANDARD)
def max_tasks_of_the_standard_library(_: type[Pool]) -> Cell:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    def pool(method: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context(method), max_tasks_per_child=1)

    with contextlib.suppress(ValueError):
        return check(pool("fork"), yes())
    executor = pool("forkserver")
    pids = [executor.submit(tasks.pid).result() for _ in range(3)]
    return no("with forkserver and spawn" if all_differ(pids) else "")


@recycling.on(PEBBLE)
def max_tasks_of_pebble(_: type[Pool]) -> Cell:
    import pebble

    pool = pebble.ProcessPool(2, max_tasks=1)
    pids = [pool.schedule(tasks.pid).result() for _ in range(4)]
    return check(all_differ(pids), yes())


@recycling.on(MPIRE)
def lifespan_of_mpire(kind: type[Pool]) -> Cell:
    pool = kind().pool  # type: ignore[attr-defined]
    pids = pool.map(tasks.nap, [0.1] * 4, worker_lifespan=1, chunk_size=1)
    return check(all_differ(pids), yes("in `map`"))


recycling.lacking("max_?tasks|lifespan")

memory = feature("memory", "a worker that takes too much memory is replaced", WORKERS)
TOO_MUCH = 600
"""MiB. loky's own limit, which cannot be set, is 300 MB more than at first."""


def replaced_after_growing(pool: Pool) -> bool:
    """Whether the process that has kept so much runs no more tasks."""
    pool.submit(tasks.pid)()
    time.sleep(1.2)  # loky looks once a second, at a task's end.
    first = pool.submit(tasks.pid)()
    grown = pool.submit(tasks.hoard, TOO_MUCH)()
    time.sleep(1.2)
    with contextlib.suppress(Exception):
        pool.submit(tasks.pid)()
    assert first
    return eventually(lambda: not alive(grown), 3.0)


@memory.on(OURS)
def max_memory_of_ours(kind: type[Pool]) -> Cell:
    limit = 300 * tasks.MIB
    return check(
        replaced_after_growing(kind(1, max_memory_per_child=limit)),
        yes("after its task"),
    )


@memory.on(LOKY, JOBLIB)
def leaks_seen_by_loky(kind: type[Pool]) -> Cell:
    return check(
        replaced_after_growing(kind(1 if kind.name == LOKY else 2)),
        yes("after its task, beyond 300 MB; cannot be set"),
    )


@memory.on(DASK)
def memory_limit_of_dask(kind: type[Pool]) -> Cell:
    pool = kind(1, memory_limit="400MiB")
    before = pool.submit(tasks.pid)()
    called = settled(pool.submit(tasks.hoard, TOO_MUCH))
    # A worker that is killed for it is started again, and its task with it.
    gone = eventually(lambda: not alive(before), PATIENCE)
    del called
    return check(gone, yes("at once, with its task"))


memory.lacking("memory|rss")

reload = feature("reload", "all workers are replaced without losing a task", WORKERS)


@reload.on(OURS)
def a_reload(kind: type[Pool]) -> Cell:
    pool = kind()
    before = {pool.submit(tasks.nap, 0.2) for _ in range(2)}
    old = {thunk() for thunk in before}
    futures = [pool.submit(tasks.nap, 0.5) for _ in range(8)]
    pool.executor.reload()  # type: ignore[attr-defined]
    kept = all(succeeds(future) for future in futures)
    return check(kept and pool.submit(tasks.pid)() not in old, yes())


@reload.on(LOKY)
def a_new_executor(_: type[Pool]) -> Cell:
    import loky

    executor = loky.get_reusable_executor(2)
    old = executor.submit(tasks.pid).result()
    futures = [executor.submit(tasks.nap, 0.5) for _ in range(8)]
    new = loky.get_reusable_executor(2, reuse=False)
    kept = all(future.done() and not future.exception() for future in futures)
    differs = new.submit(tasks.pid).result() != old
    return check(kept and differs, yes("`get_reusable_executor(reuse=False)`, which waits"))


@reload.on(DASK)
def a_restart(kind: type[Pool]) -> Cell:
    pool = kind()
    futures = [pool.submit(tasks.nap, 1.0) for _ in range(4)]
    time.sleep(0.3)
    pool.client.restart()  # type: ignore[attr-defined]
    return check(all(succeeds(future) for future in futures), yes(), "`restart` loses them")


reload.lacking("reload|restart|recycle")

pins = feature("pins", "pins workers to CPUs", WORKERS)


@pins.on(OURS)
def a_cpu_affinity(_: type[Pool]) -> Cell:
    from prefork_executor import PreforkExecutor

    ids = tasks.cpus()[:1]
    with PreforkExecutor(2, cpu_affinity=ids) as executor:
        return check(executor.submit(tasks.cpus).result() == ids, yes("`cpu_affinity`"))


@pins.on(MPIRE)
def cpu_ids(_: type[Pool]) -> Cell:
    from mpire import WorkerPool

    ids = tasks.cpus()[:1]
    with WorkerPool(2, cpu_ids=ids) as pool:
        return check(pool.apply(tasks.cpus) == ids, yes("`cpu_ids`"))


pins.lacking("cpu_id|affinity|pin_")

nested = feature("nested", "a task may use a pool of the same kind", WORKERS)


@nested.on()
def a_pool_in_a_task(kind: type[Pool]) -> Cell:
    return check(settled_value(kind().submit(tasks.nest, kind.name)) == 42, yes())


@nested.on(JOBLIB)
def a_loop_in_a_task(kind: type[Pool]) -> Cell:
    outer, inner = settled_value(kind().submit(tasks.nest_pids))
    return check(outer not in inner, yes(), "its loop runs in threads of the worker")


@nested.on(MPIRE)
def a_pool_in_a_task_of_mpire(kind: type[Pool]) -> Cell:
    from mpire import WorkerPool

    if settled_value(kind().submit(tasks.nest, kind.name)) == 42:
        return yes()
    pool = WorkerPool(2, daemon=False)
    return check(
        settled_value(lambda: pool.apply(tasks.nest, [kind.name])) == 42, yes("`daemon=False`")
    )


@nested.on(DASK)
def a_client_in_a_task(kind: type[Pool]) -> Cell:
    return check(settled_value(kind().submit(tasks.nest_in_dask)) == 42, yes("`worker_client`"))


ctrl_c = feature("ctrl_c", "Ctrl-C ends a program whose tasks are long, within 2 s", ENDS)
killed = feature("killed", "nothing is left 2 s after the program was SIGKILLed", ENDS)


@contextlib.contextmanager
def program(kind: type[Pool]) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs four long tasks in a pool. Two of them have begun."""
    with Path("stderr").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), kind.name, "notes"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        if not eventually(lambda: len(noted("notes")) >= 2, START):
            raise TimeoutError(Path("stderr").read_text())
        yield process
    finally:
        process.kill()
        process.wait()


@ctrl_c.on()
def an_interrupt(kind: type[Pool]) -> Cell:
    with program(kind) as process:
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        eventually(lambda: process.poll() is not None, PATIENCE)
        seconds = since(began)
        if process.poll() is None:
            return no(f"not within {PATIENCE:g} s")
    lines = len(Path("stderr").read_text(errors="replace").splitlines())
    return check(seconds < 2.0, yes(f"{lines} lines of stderr"), f"after {seconds:.0f} s")


@killed.on()
def a_kill(kind: type[Pool]) -> Cell:
    with program(kind) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        eventually(lambda: not any(alive(child.pid) for child in children), 2.0)
        left = sum(alive(child.pid) for child in children)
    return check(not left, yes(), f"{left} of {len(children)} processes")
