"""The rows of comparison.py about what other pools bring and users like."""

from __future__ import annotations

import importlib
import json
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
    by_hand,
    check,
    feature,
    lacks,
    no,
    sources,
    text_of,
    yes,
)
from comparison_waiting import fetch, settled
from performance_pools import Pool

BROUGHT = "what else they bring"

# --- what else they bring ----------------------------------------------------------------------

dashboard = feature("dashboard", "a dashboard in the browser", BROUGHT)


@dashboard.on(DASK)
def a_dashboard_of_dask(kind: type[Pool]) -> Cell:
    text = fetch(kind().cluster.dashboard_link)  # type: ignore[attr-defined]
    return check("bokeh" in text.lower() and "<script" in text, yes("with bokeh"))


@dashboard.on(MPIRE)
def a_dashboard_of_mpire(kind: type[Pool]) -> Cell:
    from mpire.dashboard import start_dashboard

    address = start_dashboard()
    page = fetch(f"http://127.0.0.1:{address['dashboard_port_nr']}/")
    return check("mpire" in page.lower(), yes("`mpire.dashboard`, with flask"))


@dashboard.on(OURS)
def a_page_of_ours(kind: type[Pool]) -> Cell:
    pool = kind()
    pool.submit(tasks.nap, 0.1)()
    command = [sys.executable, "-m", "prefork_executor", "top", "--web", str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        page = fetch(server.stdout.readline().strip())
        server.kill()
    return check("page.js" in page, yes("`prefork-executor top --web`"))


dashboard.lacking("dashboard")

insights = feature("insights", "reports how long workers started, waited and worked", BROUGHT)


@insights.on(MPIRE)
def insights_of_mpire(_: type[Pool]) -> Cell:
    from mpire import WorkerPool

    with WorkerPool(2, enable_insights=True) as pool:
        pool.map(tasks.nap, [0.1] * 4)
        return check(pool.get_insights()["total_working_time"], yes("`enable_insights`"))


@insights.on(DASK)
def a_report_of_dask(kind: type[Pool]) -> Cell:
    from distributed import performance_report

    pool: Any = kind()
    with performance_report(filename="report.html"):
        pool.many(tasks.nap, [(0.1,)] * 4)()
    return check(Path("report.html").stat().st_size > 10_000, yes("`performance_report`"))


@insights.on(OURS)
def a_timeline_of_ours(kind: type[Pool]) -> Cell:
    pool: Any = kind()
    with pool.executor.record("run.json"):
        pool.many(tasks.nap, [(0.1,)] * 4)()
    events = json.loads(Path("run.json").read_text())["traceEvents"]
    worked = [event["dur"] for event in events if "nap" in event["name"] and "dur" in event]
    assert pool.executor.stats().waits.p50 is not None
    return check(len(worked) == 4 and min(worked) >= 100_000, yes("`record`, `stats().waits`"))


insights.lacking("insight|performance_report")

reused = feature("reusable", "one pool for the whole program, by a call", BROUGHT)


@reused.on(LOKY)
def reused_by_loky(_: type[Pool]) -> Cell:
    import loky

    one, other = loky.get_reusable_executor(2), loky.get_reusable_executor(2)
    return check(one is other, yes("`get_reusable_executor`"))


@reused.on(OURS)
def reused_by_ours(_: type[Pool]) -> Cell:
    from prefork_executor import shared_executor

    one, other = shared_executor(max_workers=2), shared_executor()
    pids = {executor.submit(os.getpid).result() for executor in (one, other)}
    workers = {worker.pid for worker in one.stats().workers}
    return check(one.executor is other.executor and pids <= workers, yes("`shared_executor`"))


@reused.on(JOBLIB)
def reused_by_joblib(_: type[Pool]) -> Cell:
    from joblib import Parallel, delayed

    runs = [set(Parallel(2)(delayed(tasks.nap)(0.3) for _ in range(4))) for _ in range(2)]
    return check(runs[0] == runs[1], yes("every `Parallel`"))


@reused.on(DASK)
def reused_by_dask(kind: type[Pool]) -> Cell:
    from distributed import get_client

    return check(kind().client is get_client(), yes("`get_client`"))  # type: ignore[attr-defined]


reused.lacking("reus|get_client|default_executor")

cache = feature("cache", "results are kept on disk for the next run", BROUGHT)


@cache.on()
def cached(kind: type[Pool]) -> Cell:
    """joblib.Memory, in the workers."""
    from joblib import Memory

    kept = Memory("cache", verbose=0).cache(tasks.note_then)
    pool = kind()
    for _ in range(2):
        pool.submit(kept, "calls", 42)()
    once = len(Path("calls").read_text().splitlines()) == 1
    return check(once, yes("`Memory`") if kind.name == JOBLIB else by_hand("`joblib.Memory`"))


@cache.on(INTERPRETERS)
def cached_in_an_interpreter(kind: type[Pool]) -> Cell:
    if settled(kind().submit(importlib.import_module, "joblib")).exception() is None:
        return cached(kind)
    return no("joblib cannot be imported there")


threads = feature("threads", "the same interface over threads", BROUGHT)


@threads.on()
def over_threads(kind: type[Pool]) -> Cell:
    run = THREADS.get(kind.name)
    if run is None:
        return lacks(kind, "[Tt]hread(s|ing|Pool|PoolExecutor)?$")
    detail, call = run
    return check(call() == os.getpid(), yes(detail))


def _threads_of_standard() -> int:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(2).submit(tasks.pid).result()


def _threads_of_pebble() -> int:
    import pebble

    result: int = pebble.ThreadPool(max_workers=2).schedule(tasks.pid).result()
    return result


def _threads_of_mpire() -> int:
    from mpire import WorkerPool

    result: int = WorkerPool(2, start_method="threading").apply(tasks.pid)
    return result


def _threads_of_joblib() -> int:
    from joblib import Parallel, delayed

    result: int = Parallel(2, backend="threading")([delayed(tasks.pid)()])[0]
    return result


def _threads_of_dask() -> int:
    from distributed import Client

    client = Client(processes=False, dashboard_address=None)
    result: int = client.submit(tasks.pid).result()
    return result


THREADS: dict[str, tuple[str, Callable[[], int]]] = {
    STANDARD: ("`ThreadPoolExecutor`", _threads_of_standard),
    INTERPRETERS: ("`ThreadPoolExecutor`", _threads_of_standard),
    PEBBLE: ("`ThreadPool`", _threads_of_pebble),
    MPIRE: ('`start_method="threading"`', _threads_of_mpire),
    JOBLIB: ('`backend="threading"`', _threads_of_joblib),
    DASK: ("`processes=False`", _threads_of_dask),
}
decorator = feature("decorator", "a decorator makes a function run in a process", BROUGHT)


@decorator.on(PEBBLE)
def decorated(_: type[Pool]) -> Cell:
    from pebble import concurrent

    run = concurrent.process(tasks.pid)
    return check(run().result() != os.getpid(), yes("`concurrent.process`"))


@decorator.on(DASK)
def delayed_by_dask(kind: type[Pool]) -> Cell:
    import dask

    kind()
    return check(dask.delayed(tasks.pid)().compute() != os.getpid(), yes("`dask.delayed`"))


decorator.lacking("decorat|^asynchronous$|^process$")

windows = feature("windows", "supports Windows (nothing was run there)", BROUGHT)


@windows.on()
def win32(kind: type[Pool]) -> Cell:
    words = ("win32", "windows", 'os.name == "nt"')
    found = any(word in text_of(file) for file in sources(kind) for word in words)
    return check(found, yes())._replace(how="Windows is mentioned in its source, or not")


@windows.on(INTERPRETERS)
def of_no_system(kind: type[Pool]) -> Cell:
    """Threads and interpreters are everywhere."""
    words = ("fork", "signal", "posix", "win32", "windows")
    found = [word for file in sources(kind) for word in words if word in text_of(file)]
    return check(not found, yes())._replace(how="no system is mentioned in its source")


@windows.on(OURS)
def refuses_windows(_: type[Pool]) -> Cell:
    """What it says where there is no fork."""
    program = "import os; del os.fork\n"
    program += (
        "from prefork_executor import PreforkExecutor; PreforkExecutor(1).submit(int).result()"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.PIPE)
    return check(ended.returncode == 0, yes(), "a clear error" if b"POSIX" in ended.stderr else "")
