"""The rows of comparison.py about what a running task, and the pool, tell."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import multiprocessing
import operator
import os
from collections.abc import Callable
from logging.handlers import QueueListener
from typing import Any

import comparison_tasks as tasks
from comparison_pools import (
    DASK,
    INTERPRETERS,
    JOBLIB,
    MPIRE,
    OURS,
    PEBBLE,
    STANDARD,
    Cell,
    by_hand,
    check,
    feature,
    silent_on,
    yes,
)
from comparison_waiting import fetch, settled_value
from fault_stage import eventually
from performance_pools import Pool

TOLD = "what a running task tells"
MANAGER = "a `multiprocessing.Manager` queue"

# --- what a running task tells -----------------------------------------------------------------

bar = feature("bar", "a progress bar that knows the total", TOLD)
COUNT = 8


def shows_all(show: Callable[[], Any]) -> bool:
    """Whether a bar on stderr or stdout came to all of so many."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        show()
    return f"{COUNT}/{COUNT}" in shown.getvalue() or "100%" in shown.getvalue()


@bar.on(OURS)
def our_bar(kind: type[Pool]) -> Cell:
    from prefork_executor.integrations.progress import progress_map

    executor = kind().executor  # type: ignore[attr-defined]
    assert operator.length_hint(executor.map(tasks.double, range(COUNT))) == COUNT
    return check(
        shows_all(lambda: list(progress_map(executor, tasks.double, range(COUNT), bar="tqdm"))),
        yes("`progress_map`, by tqdm or rich"),
    )


@bar.on(STANDARD)
def a_process_map(_: type[Pool]) -> Cell:
    from tqdm.contrib.concurrent import process_map

    shown = shows_all(lambda: process_map(tasks.double, range(COUNT), max_workers=2))
    return check(shown, yes("`tqdm.contrib.concurrent.process_map`"))


@bar.on(MPIRE)
def a_bar_of_mpire(kind: type[Pool]) -> Cell:
    pool: Any = kind()
    shown = shows_all(lambda: pool.pool.map(tasks.double, range(COUNT), progress_bar=True))
    return check(shown, yes("`progress_bar=True`"))


@bar.on(DASK)
def a_bar_of_dask(kind: type[Pool]) -> Cell:
    from distributed import progress

    client = kind().client  # type: ignore[attr-defined]
    futures = client.map(tasks.nap, [0.05] * COUNT, pure=False)
    shown = shows_all(lambda: (progress(futures, notebook=False), client.gather(futures)))
    return check(shown, yes("`progress`"))


@bar.on()
def a_bar_with_a_total(kind: type[Pool]) -> Cell:
    """tqdm around what gives the results one by one, with the total that its user knows."""
    from tqdm import tqdm

    pool: Any = kind()
    results: Any
    if kind.name == JOBLIB:
        from joblib import Parallel, delayed

        results = Parallel(2, return_as="generator")(delayed(tasks.double)(i) for i in range(COUNT))
    elif kind.name == PEBBLE:
        results = pool.pool.map(tasks.double, range(COUNT)).result()
    else:
        results = pool.executor.map(tasks.double, range(COUNT))
    assert operator.length_hint(results) == 0
    shown = shows_all(lambda: list(tqdm(results, total=COUNT)))
    return check(shown, by_hand("`tqdm(..., total=n)`"))


def new_queue(kind: type[Pool]) -> Any:
    """One that the standard library has for such workers."""
    if kind.name != INTERPRETERS:
        return multiprocessing.Manager().Queue()
    from concurrent import interpreters

    return interpreters.create_queue()


def carries_a_queue(kind: type[Pool]) -> list[Any] | None:
    """What a task has put into a manager's queue by the time its result is there."""
    messages = new_queue(kind)
    pool = kind()
    if settled_value(lambda: pool.submit(tasks.put_five, messages)()) != "done":
        return None
    return [messages.get_nowait() for _ in range(messages.qsize())]


advancing = feature("advance", "a task advances the bar while it runs", TOLD)


@advancing.on(OURS)
def advanced(kind: type[Pool]) -> Cell:
    from tqdm import tqdm

    from prefork_executor.integrations.progress import progress_map

    executor = kind().executor  # type: ignore[attr-defined]
    shown = tqdm(total=5, file=io.StringIO())
    calls = progress_map(executor, advance_by_five, [0], bar=shown, self_advancing=True)
    list(calls)
    return check(shown.n == 5, yes("`advance`"))


def advance_by_five(_: int) -> int:
    """One item's task."""
    return tasks.advance_five()


@advancing.on()
def advanced_by_hand(kind: type[Pool]) -> Cell:
    return check(carries_a_queue(kind) == [0, 1, 2, 3, 4], by_hand(means(kind)))


def means(kind: type[Pool]) -> str:
    """What queue that is."""
    return "`interpreters.create_queue`" if kind.name == INTERPRETERS else MANAGER


messages = feature("yell", "messages of a running task, in order, before its result", TOLD)


@messages.on(OURS)
def yelled(_: type[Pool]) -> Cell:
    from prefork_executor import PreforkExecutor

    heard: list[Any] = []
    with PreforkExecutor(2, on_yell=lambda _, data: heard.append(data)) as executor:
        executor.submit(tasks.yell_five).result()
        return check(heard == [0, 1, 2, 3, 4], yes("`yell`"))


@messages.on()
def put_by_hand(kind: type[Pool]) -> Cell:
    return check(carries_a_queue(kind) == [0, 1, 2, 3, 4], by_hand(means(kind)))


@messages.on(DASK)
def a_queue_of_dask(kind: type[Pool]) -> Cell:
    from distributed import Queue

    pool: Any = kind()
    queue = Queue("messages", client=pool.client)
    pool.submit(tasks.put_five, queue)()
    return check(queue.get(batch=True) == [0, 1, 2, 3, 4], yes("`distributed.Queue`"))


logs = feature("logging", "what workers log reaches the caller's loggers", TOLD)


class Heard(logging.Handler):
    """Keeps the processes whose records came."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: list[int | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.pids.append(record.process)


def heard_from(run: Callable[[], int], kind: type[Pool]) -> bool:
    """Whether a record of the process that it names comes. An interpreter has no process of
    its own, but loggers."""
    heard = Heard()
    logging.getLogger(tasks.LOGGER).addHandler(heard)
    pid = run()
    is_elsewhere = pid != os.getpid() or kind.name == INTERPRETERS
    return is_elsewhere and eventually(lambda: pid in heard.pids, 3.0)


@logs.on(OURS)
def forwarded(kind: type[Pool]) -> Cell:
    from prefork_executor.integrations.logging import forward_logging

    pool: Any = kind()
    forward_logging(pool.executor)
    return check(heard_from(lambda: pool.submit(tasks.log)(), kind), yes("`forward_logging`"))


@logs.on(DASK)
def forwarded_by_dask(kind: type[Pool]) -> Cell:
    pool: Any = kind()
    pool.client.forward_logging(tasks.LOGGER)
    came = heard_from(lambda: pool.submit(tasks.log)(), kind)
    return check(came, yes("`client.forward_logging`"))


@logs.on()
def forwarded_by_hand(kind: type[Pool]) -> Cell:
    """As Python's logging cookbook has it: a QueueHandler there, a QueueListener here."""
    queue = new_queue(kind)
    here = logging.getLogger(tasks.LOGGER)

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            here.handle(record)

    class Listener(QueueListener):
        def dequeue(self, block: bool) -> Any:
            return self.queue.get()  # That of interpreters has no `block`.

    Listener(queue, Here()).start()
    came = heard_from(lambda: log_with_initializer(kind, queue), kind)
    return check(came, by_hand("`QueueHandler` in an initializer"))


def log_with_initializer(kind: type[Pool], queue: Any) -> int:
    """A task that logs, in a worker that was told where to."""
    options: dict[str, Any] = {"initializer": tasks.log_to, "initargs": (queue,)}
    result: int
    if kind.name == PEBBLE:
        import pebble

        result = pebble.ProcessPool(2, **options).schedule(tasks.log).result()
    elif kind.name == MPIRE:
        import functools

        pool: Any = kind()
        result = pool.pool.apply(tasks.log, worker_init=functools.partial(tasks.log_to, queue))
    elif kind.name == JOBLIB:
        import joblib

        with joblib.parallel_config("loky", **options):
            result = kind().one(tasks.log)()
    else:
        executor = getattr(importlib.import_module(kind.module), kind.entry)(2, **options)
        result = executor.submit(tasks.log).result()
    return result


metrics = feature("prometheus", "Prometheus metrics of the pool", TOLD)


@metrics.on(OURS)
def collected(kind: type[Pool]) -> Cell:
    from prometheus_client import CollectorRegistry, generate_latest

    from prefork_executor.integrations.prometheus import ExecutorCollector

    registry, pool = CollectorRegistry(), kind()
    pool.submit(tasks.pid)()
    registry.register(ExecutorCollector(it=pool.executor))  # type: ignore[attr-defined]
    text = generate_latest(registry).decode()
    return check('tasks_finished_total{executor="it"} 1.0' in text, yes("`ExecutorCollector`"))


@metrics.on(DASK)
def scraped(kind: type[Pool]) -> Cell:
    text = fetch(kind().cluster.dashboard_link.replace("/status", "/metrics"))  # type: ignore[attr-defined]
    return check("dask_scheduler_workers" in text, yes("`/metrics` of the scheduler"))


metrics.on()(lambda kind: silent_on(kind, "prometheus"))

traces = feature("opentelemetry", "OpenTelemetry's context travels with the task", TOLD)


@traces.on()
def a_context(kind: type[Pool]) -> Cell:
    """Not that in which the pool started, which a fork inherits."""
    from opentelemetry import propagate, trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    tracer = trace.get_tracer("comparison")
    pool: Any = kind()
    submit = pool.submit
    if kind.name == OURS:
        from prefork_executor.integrations.opentelemetry import ContextExecutor

        traced = ContextExecutor(pool.executor)
        submit = lambda fn, *args: traced.submit(fn, *args).result  # noqa: E731
    with tracer.start_as_current_span("first"):
        pool.many(tasks.nap, [(0.1,)] * 4)()
    with tracer.start_as_current_span("second"):
        expected = tasks.trace_id()
        if submit(tasks.trace_id)() == expected:
            return yes("`ContextExecutor`" if kind.name == OURS else "")
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        carried = pool.submit(tasks.trace_id_of, carrier)() == expected
        return check(carried, by_hand("`inject`, `extract`"))
