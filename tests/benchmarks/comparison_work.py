"""The rows of comparison.py about the control of work: deaths, limits, order."""

from __future__ import annotations

import inspect
import multiprocessing
import operator
import signal
import time
from collections.abc import Callable, Iterator
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
    check,
    feature,
    lacks,
    no,
    yes,
)
from comparison_waiting import begun, ended_alone, has_ended, settled, succeeds
from notes import noted
from performance_pools import Pool

CONTROL = "control of work"

# --- deaths ------------------------------------------------------------------------------------

death = feature("death", "a worker's death costs only the task that it held", CONTROL)


@death.on(OURS, STANDARD, LOKY, PEBBLE, MPIRE, DASK)
def a_death_among_others(kind: type[Pool]) -> Cell:
    pool = kind()
    pool.submit(tasks.pid)()
    others = [pool.submit(tasks.nap, 0.1) for _ in range(4)]
    victim = pool.submit(tasks.kill_self, "killed")
    others += [pool.submit(tasks.nap, 0.1) for _ in range(4)]
    if not settled(victim).done():
        return no("its own future hangs")
    lost = sum(not succeeds(other) for other in others)
    times = len(noted("killed"))
    try:
        usable = succeeds(pool.submit(tasks.nap, 0.0))
    except Exception:
        usable = False
    if not usable:
        return no("the pool is broken")
    again = f"the task is run {times} times" if times > 1 else ""
    return check(not lost, yes(again), "other tasks are lost, the pool goes on")


@death.on(JOBLIB)
def a_death_in_a_call(kind: type[Pool]) -> Cell:
    from joblib import Parallel, delayed

    calls = [delayed(tasks.nap)(0.1) for _ in range(4)]
    calls[2:2] = [delayed(tasks.kill_self)("killed")]
    whole = succeeds(lambda: Parallel(2, batch_size=1)(calls))
    after = succeeds(kind().one(tasks.nap, 0.0))
    return check(whole, yes(), f"the whole call fails, the next {'works' if after else 'too'}")


@death.on(INTERPRETERS)
def a_death_of_all(kind: type[Pool]) -> Cell:
    """Its workers are threads, so this plays in a program of its own."""
    context = multiprocessing.get_context("spawn")
    program = context.Process(target=run_what_dies, args=(kind,))
    program.start()
    program.join()
    dies = program.exitcode == -signal.SIGKILL
    return check(not dies, yes(), "the whole program dies")


def run_what_dies(kind: type[Pool]) -> None:
    """A program with a task that is killed."""
    kind().submit(tasks.kill_self, "killed")()


# --- limits ------------------------------------------------------------------------------------

limit = feature("limit", "a time limit ends only the task that exceeds it", CONTROL)


@limit.on(OURS)
def a_limit_of_ours(kind: type[Pool]) -> Cell:
    executor = kind().executor  # type: ignore[attr-defined]
    executor.with_options(timeout=0.5).submit(tasks.beat, "beat")
    begun("beat")
    others = [executor.submit(tasks.nap, 2.0).result]
    return ended_alone("beat", [*others, lambda: executor.submit(tasks.pid).result()])


@limit.on(PEBBLE)
def a_limit_of_pebble(kind: type[Pool]) -> Cell:
    pool = kind().pool  # type: ignore[attr-defined]
    pool.schedule(tasks.beat, args=["beat"], timeout=0.5)
    begun("beat")
    others = [pool.schedule(tasks.nap, args=[2.0]).result]
    return ended_alone("beat", [*others, lambda: pool.schedule(tasks.pid).result()])


@limit.on(MPIRE)
def a_limit_of_mpire(kind: type[Pool]) -> Cell:
    pool = kind().pool  # type: ignore[attr-defined]
    pool.apply_async(tasks.beat, ["beat"], task_timeout=0.5)
    begun("beat")
    others = [pool.apply_async(tasks.nap, [2.0]).get]
    return ended_alone("beat", [*others, lambda: pool.apply(tasks.pid)])


@limit.on(STANDARD, INTERPRETERS, LOKY)
def a_limit_of_map(kind: type[Pool]) -> Cell:
    """The one limit they have is for the results."""
    executor = kind().executor  # type: ignore[attr-defined]
    list(executor.map(tasks.nap, [0.2] * 4))
    assert isinstance(
        settled(lambda: list(executor.map(tasks.beat, ["beat"], timeout=0.5))).exception(),
        TimeoutError,
    )
    return ended_alone("beat", [])


@limit.on(JOBLIB)
def a_limit_of_joblib(kind: type[Pool]) -> Cell:
    from joblib import Parallel, delayed

    Parallel(2)(delayed(tasks.nap)(0.2) for _ in range(4))
    calls = [delayed(tasks.beat)("beat"), delayed(tasks.nap)(0.1)]
    whole = settled(lambda: Parallel(2, timeout=1.0)(calls))
    assert whole.exception() is not None
    return no("it ends, and with it the whole call") if has_ended("beat") else no("it runs on")


@limit.on(DASK)
def a_limit_of_dask(kind: type[Pool]) -> Cell:
    future = kind().client.submit(tasks.beat, "beat")  # type: ignore[attr-defined]
    begun("beat")
    assert settled(lambda: future.result(timeout=0.5)).exception() is not None
    return ended_alone("beat", [])


abort = feature("abort", "a single running task can be ended", CONTROL)


@abort.on(OURS)
def an_abort_of_ours(kind: type[Pool]) -> Cell:
    executor = kind().executor  # type: ignore[attr-defined]
    future = executor.submit(tasks.beat, "beat")
    begun("beat")
    others = [executor.submit(tasks.nap, 1.0).result]
    executor.abort(future)
    return ended_alone("beat", others)


@abort.on(STANDARD, INTERPRETERS, LOKY, PEBBLE, DASK)
def a_cancel(kind: type[Pool]) -> Cell:
    pool = kind()
    thunk: Any = pool.submit(tasks.beat, "beat")
    begun("beat")
    others = [pool.submit(tasks.nap, 1.0)]
    thunk.__self__.cancel()
    return ended_alone("beat", others)


@abort.on(MPIRE)
def no_cancel(kind: type[Pool]) -> Cell:
    found = lacks(kind, "cancel|abort|revoke|kill")
    pool = kind().pool  # type: ignore[attr-defined]
    pool.apply_async(tasks.beat, ["beat"])
    begun("beat")
    pool.terminate()
    return found._replace(detail="only all of them" if has_ended("beat") else "")


@abort.on(JOBLIB)
def a_generator_that_is_closed(kind: type[Pool]) -> Cell:
    from joblib import Parallel, delayed

    calls = [delayed(tasks.nap)(0.0), delayed(tasks.beat)("beat")]
    results = Parallel(2, return_as="generator")(calls)
    next(results)
    begun("beat")
    results.close()
    return no("only a whole call, by its generator" if has_ended("beat") else "")


retries = feature("retries", "a task is run again after its worker's death, if asked for", CONTROL)


@retries.on(OURS)
def a_retry_of_ours(kind: type[Pool]) -> Cell:
    executor = kind().executor  # type: ignore[attr-defined]
    again = executor.with_options(retries=1).submit(tasks.die_once, "died")
    return check(succeeds(again.result), yes())


@retries.on(DASK)
def a_retry_of_dask(kind: type[Pool]) -> Cell:
    pool = kind()
    asked = succeeds(pool.submit(tasks.die_once, "died"))
    return check(asked, yes("even unasked, 3 times"))


retries.lacking("retr(y|ies)|attempt")

priority = feature("priority", "tasks have priorities", CONTROL)


@priority.on(OURS)
def a_priority_of_ours(kind: type[Pool]) -> Cell:
    executor = kind(1).executor  # type: ignore[attr-defined]
    futures = [executor.submit(tasks.wait_for, "go")]
    futures += [
        executor.with_options(priority=priority).submit(tasks.note_then, "order", priority)
        for priority in (-1, 1, -2, 2)
    ]
    time.sleep(0.5)
    Path("go").touch()
    for future in futures:
        future.result()
    return check(Path("order").read_text().split() == ["2", "1", "-1", "-2"], yes("`priority`"))


@priority.on(DASK)
def a_priority(kind: type[Pool]) -> Cell:
    client = kind(1).client  # type: ignore[attr-defined]
    first = client.submit(tasks.wait_for, "go")
    # The first of a kind are sent to the worker ahead, whatever comes after them.
    ahead = [client.submit(tasks.note_then, "order", n, priority=9) for n in range(90, 94)]
    time.sleep(0.5)
    others = [
        client.submit(tasks.note_then, "order", priority, priority=priority)
        for priority in (-1, 1, -2, 2)
    ]
    time.sleep(1.0)  # Until they have reached the worker.
    Path("go").touch()
    client.gather([first, *ahead, *others])
    return check(Path("order").read_text().split()[-4:] == ["2", "1", "-1", "-2"], yes())


priority.lacking("priorit")

chains = feature("chains", "a future may be an argument of another task", CONTROL)


@chains.on(JOBLIB)
def no_futures(kind: type[Pool]) -> Cell:
    return lacks(kind, "future|submit")


@chains.on()
def a_future_as_argument(kind: type[Pool]) -> Cell:
    pool = kind()
    thunk: Any = pool.submit(tasks.double, 20)
    return check(succeeds(lambda: pool.submit(tasks.add, thunk.__self__, 2)()), yes())


units = feature("units", "a task waits for a free GPU, and is told which it has", CONTROL)


@units.on(OURS)
def a_unit_of_ours(_: type[Pool]) -> Cell:
    from prefork_executor import PreforkExecutor, held_resources

    with PreforkExecutor(2, resources={"gpu": 1}) as executor:
        view = executor.with_options(resources={"gpu": 1})
        held = {view.submit(held_resources).result()["gpu"] for _ in range(4)}
    return check(held == {(0,)}, yes("`resources`"))


@units.on(DASK)
def a_unit_of_dask(kind: type[Pool]) -> Cell:
    pool = kind()
    signature = inspect.signature(pool.client.submit)  # type: ignore[attr-defined]
    return (
        no("a worker's `resources`, but not which") if "resources" in signature.parameters else no()
    )


units.lacking("gpu|resources$")

backlog = feature("backlog", "`submit` waits while too many tasks wait", CONTROL)


@backlog.on(OURS)
def a_backlog_of_ours(_: type[Pool]) -> Cell:
    from prefork_executor import PreforkExecutor

    with PreforkExecutor(1, max_backlog=5) as executor:
        most = 0
        for _ in range(50):
            executor.submit(tasks.nap, 0.01)
            most = max(most, executor.stats().backlog)
    return check(most <= 6, yes("`max_backlog`"))


backlog.lacking("backlog|max_pending|queue_size")

buffer = feature("buffersize", "map reads only a bounded number of inputs ahead", CONTROL)
ITEMS, LEAST_LEFT = 2000, 1000


def reads_ahead(take: Callable[[Iterator[int]], Iterator[Any]]) -> bool:
    """Whether most of the items are read though one result is taken."""
    items = iter(range(ITEMS))
    results = take(number for number in items)
    next(results)
    time.sleep(1.5)
    return operator.length_hint(items) < LEAST_LEFT


@buffer.on(OURS)
@buffer.on(STANDARD, INTERPRETERS)
def a_buffersize(kind: type[Pool]) -> Cell:
    executor = kind().executor  # type: ignore[attr-defined]
    if "buffersize" not in inspect.signature(executor.map).parameters:
        everything = reads_ahead(lambda items: executor.map(tasks.double, items))
        assert everything
        return lacks(kind, "buffer", "all is read at once")
    ahead = reads_ahead(lambda items: executor.map(tasks.double, items, buffersize=4))
    return check(not ahead, yes("`buffersize`"))


@buffer.on(LOKY)
def a_map_of_loky(kind: type[Pool]) -> Cell:
    executor = kind().executor  # type: ignore[attr-defined]
    ahead = reads_ahead(lambda items: executor.map(tasks.double, items))
    return check(not ahead, yes(), "all is read at once")


@buffer.on(PEBBLE)
def a_map_of_pebble(kind: type[Pool]) -> Cell:
    pool = kind().pool  # type: ignore[attr-defined]
    ahead = reads_ahead(lambda items: pool.map(tasks.double, items).result())
    return check(not ahead, yes(), "all is read at once")


@buffer.on(MPIRE)
def an_imap_of_mpire(kind: type[Pool]) -> Cell:
    pool = kind().pool  # type: ignore[attr-defined]
    ahead = reads_ahead(
        lambda items: pool.imap(
            tasks.double, items, iterable_len=ITEMS, max_tasks_active=4, chunk_size=1
        )
    )
    return check(
        not ahead,
        yes("`max_tasks_active` of `imap`"),
        "`max_tasks_active` bounds what runs, not results",
    )


@buffer.on(JOBLIB)
def a_generator_of_joblib(kind: type[Pool]) -> Cell:
    from joblib import Parallel, delayed

    parallel = Parallel(2, return_as="generator", pre_dispatch=4, batch_size=1)
    ahead = reads_ahead(lambda items: parallel(map(delayed(tasks.double), items)))
    return check(not ahead, yes(), "`pre_dispatch` bounds what runs, not results")


@buffer.on(DASK)
def a_map_of_dask(kind: type[Pool]) -> Cell:
    client = kind().client  # type: ignore[attr-defined]
    refused = settled(lambda: client.map(tasks.double, iter(range(4)))).exception()
    if isinstance(refused, TypeError):
        return no("takes no iterator")
    ahead = reads_ahead(lambda items: iter(client.map(tasks.double, items)))
    return check(not ahead, yes(), "all is read at once")
