"""The rows of comparison.py about what a pool is used with."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comparison_tasks as tasks
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
    DaskPool,
    LookAgainError,
    by_hand,
    check,
    feature,
    lacks,
    no,
    not_applicable,
    silent_on,
    yes,
)
from comparison_waiting import begun, has_ended, settled, settled_value
from performance_pools import Pool

WITH = "with other tools"


def given(call: Callable[[], Any]) -> Any:
    """What it returns; None if it fails."""
    with contextlib.suppress(Exception):
        return call()
    return None


# --- pytest ------------------------------------------------------------------------------------

fixtures = feature("pytest", "pytest fixtures", WITH)
TEST = """
def test_a_sum(prefork_executor):
    assert prefork_executor.submit(sum, [20, 22]).result() == 42
"""


@fixtures.on(OURS)
def a_test_with_a_fixture(_: type[Pool]) -> Cell:
    Path("test_it.py").write_text(TEST)
    return check(passes("test_it.py"), yes())


def passes(file: str) -> bool:
    """Whether pytest passes it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    return subprocess.run(command, check=False, timeout=25).returncode == 0


@fixtures.on(DASK)
def the_fixtures_of_dasks_own_tests(_: type[Pool]) -> Cell:
    test = TEST.replace("prefork_executor", "client")
    names = "cleanup, client, cluster_fixture, loop, loop_in_thread"
    Path("test_it.py").write_text(f"from distributed.utils_test import {names}\n{test}")
    return check(passes("test_it.py"), yes("`distributed.utils_test`, to be imported"))


@fixtures.on()
def no_plugin(kind: type[Pool]) -> Cell:
    """Whether its distribution declares a plugin."""
    plugins = importlib.metadata.entry_points(group="pytest11")
    mine = [plugin for plugin in plugins if plugin.dist and plugin.dist.name == kind.distribution]
    if mine:
        return yes()
    return no(how="its distribution has no entry point in the group pytest11")


# --- asyncio -----------------------------------------------------------------------------------

awaited = feature("asyncio", "`loop.run_in_executor`", WITH)
cancelled = feature(
    "cancel", "a running task ends when the coroutine that awaits it is cancelled", WITH
)


def awaitable(kind: type[Pool], pool: Any, fn: Callable[..., Any], *args: Any) -> Any:
    """How a call in it is awaited."""
    if kind.name in (OURS, STANDARD, INTERPRETERS, LOKY):
        return asyncio.get_running_loop().run_in_executor(pool.executor, fn, *args)
    if kind.name == PEBBLE:
        return asyncio.wrap_future(pool.pool.schedule(fn, args=args))
    if kind.name == DASK:
        executor = pool.client.get_executor(pure=False)
        return asyncio.get_running_loop().run_in_executor(executor, fn, *args)
    return asyncio.to_thread(pool.one(fn, *args))


AWAITED = {
    PEBBLE: by_hand("`asyncio.wrap_future(pool.schedule(...))`"),
    MPIRE: by_hand("`asyncio.to_thread`"),
    JOBLIB: by_hand("`asyncio.to_thread`"),
    DASK: yes("`client.get_executor()`, or a client that is awaited"),
}


@awaited.on()
def it_is_awaited(kind: type[Pool]) -> Cell:
    pool = kind()

    async def main() -> Any:
        return await awaitable(kind, pool, tasks.double, 21)

    return check(asyncio.run(main()) == 42, AWAITED.get(kind.name, yes()))


async def cancel(running: Any) -> None:
    """Let it begin, and cancel what awaits it."""
    task = asyncio.ensure_future(running)
    await asyncio.to_thread(begun, "beat")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def ends_when_cancelled(start: Callable[[], Any], cell: Cell) -> Cell:
    """In a loop whose end waits for no thread."""

    async def main() -> Cell:
        await cancel(start())
        return check(await asyncio.to_thread(has_ended, "beat"), cell, "it runs on")

    loop = asyncio.new_event_loop()
    return loop.run_until_complete(main())


@cancelled.on(OURS)
def cancelled_with_ours(kind: type[Pool]) -> Cell:
    from prefork_executor.integrations.asyncio import run

    executor = kind().executor  # type: ignore[attr-defined]
    return ends_when_cancelled(
        lambda: run(executor, tasks.beat, "beat", abort_on_cancel=True), yes("`abort_on_cancel`")
    )


@cancelled.on()
def cancelled_with_others(kind: type[Pool]) -> Cell:
    pool = kind()
    return ends_when_cancelled(lambda: awaitable(kind, pool, tasks.beat, "beat"), yes())


# --- joblib, Dask ------------------------------------------------------------------------------

backend = feature("joblib", "a joblib backend", WITH)


def runs_as_backend(name: str) -> bool:
    """Whether joblib runs tasks in other processes by it."""
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend=name, n_jobs=2):
        pids = Parallel()(delayed(tasks.nap)(0.1) for _ in range(4))
    return os.getpid() not in pids


@backend.on(OURS)
def our_backend(_: type[Pool]) -> Cell:
    importlib.import_module("prefork_executor.integrations.joblib")
    return check(runs_as_backend("prefork"), yes())


@backend.on(LOKY)
def the_default_backend(_: type[Pool]) -> Cell:
    return check(runs_as_backend("loky"), yes("the default"))


@backend.on(DASK)
def dasks_backend(kind: type[Pool]) -> Cell:
    pool = kind()
    return check(pool and runs_as_backend("dask"), yes())


@backend.on(JOBLIB)
def joblib_itself(_: type[Pool]) -> Cell:
    return not_applicable("It is joblib itself.")


backend.on()(lambda kind: silent_on(kind, "joblib"))

dask_pool = feature("dask_pool", "runs Dask's graphs: `dask.config.set(scheduler=pool)`", WITH)


@dask_pool.on(DASK)
def dask_itself(kind: type[Pool]) -> Cell:
    import dask

    kind()
    return check(dask.delayed(tasks.pid)().compute() != os.getpid(), yes("itself"))


@dask_pool.on()
def a_graph(kind: type[Pool]) -> Cell:
    import dask

    pool = kind()
    own = getattr(pool, "executor", None) or getattr(pool, "pool", None) or pool
    found = settled_value(lambda: dask.delayed(tasks.pid)().compute(scheduler=own))
    return check(found not in (None, os.getpid()), yes())


@dask_pool.on(INTERPRETERS)
def a_graph_of_interpreters(kind: type[Pool]) -> Cell:
    import dask

    executor = kind().executor  # type: ignore[attr-defined]
    found = settled_value(lambda: dask.delayed(tasks.place)().compute(scheduler=executor))
    return check(found not in (None, tasks.place()), yes())


dask_worker = feature("dask_worker", "runs the tasks of a Dask worker, as its `executor`", WITH)


@dask_worker.on(DASK)
def dask_in_dask(_: type[Pool]) -> Cell:
    return not_applicable("It is Dask itself.")


@dask_worker.on(JOBLIB)
def joblib_in_dask(kind: type[Pool]) -> Cell:
    return lacks(kind, "submit")


@dask_worker.on(INTERPRETERS)
def in_a_worker_in_interpreters(kind: type[Pool]) -> Cell:
    found = settled(kind().submit(importlib.import_module, "distributed")).exception()
    if found is None:
        raise LookAgainError("distributed can be imported there")
    return no("Dask cannot be imported there")


@dask_worker.on()
def in_a_worker(kind: type[Pool]) -> Cell:
    import dask
    from distributed import WorkerPlugin

    class Plugin(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            pool: Any = kind()
            worker.executors["pool"] = getattr(pool, "executor", None) or pool.pool

    def runs() -> bool:
        cluster: Any = DaskPool(1)
        plugin: Any = Plugin()
        if kind.name == OURS:
            from prefork_executor.integrations.dask import PreforkPlugin

            plugin = PreforkPlugin("pool")
        cluster.client.register_plugin(plugin)
        workers = set(cluster.client.run(os.getpid).values())
        with dask.annotate(executor="pool"):
            future = cluster.client.submit(tasks.nap, 0.1, pure=False)
        found = settled_value(future.result)
        cluster.close()
        return found is not None and found not in workers

    if given(runs):
        return yes("`PreforkPlugin`" if kind.name == OURS else "")
    with dask.config.set({"distributed.worker.daemon": False}):
        return check(given(runs), yes("with `distributed.worker.daemon: false`"))


many = feature("cluster", "the same interface over many machines", WITH)


@many.on(OURS)
def connected(_: type[Pool]) -> Cell:
    from prefork_executor.integrations.dask import connect

    pool = DaskPool(1)
    with connect(pool.cluster) as executor:
        return check(executor.submit(tasks.double, 21).result() == 42, yes("`connect`, over Dask"))


@many.on(JOBLIB)
def joblib_over_dask(_: type[Pool]) -> Cell:
    pool = DaskPool()
    return check(pool and runs_as_backend("dask"), yes('`backend="dask"`'))


@many.on(DASK)
def dask_over_dask(kind: type[Pool]) -> Cell:
    address = kind().cluster.scheduler_address  # type: ignore[attr-defined]
    from distributed import Client

    return check(Client(address).submit(tasks.double, 21).result() == 42, yes())


many.lacking("cluster|scheduler|address|remote")
