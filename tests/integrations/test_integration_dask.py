"""Dask: its graphs in a PreforkExecutor, its workers with one, and an executor over a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path
from typing import Any

import dask
import dask.bag
import numpy as np
import psutil
import pytest
from clusters import LOCAL, Cluster, is_gone, running_cluster
from distributed import Client, KilledWorker
from light_tasks import wait_for
from memory_tasks import MIB, take
from node_tasks import (
    address_of_worker,
    alone,
    begin_and_sleep,
    count_tasks,
    die,
    die_at_first,
    fail,
    is_known,
    meet,
    note,
    note_and_wait,
    noted,
    raise_unpicklable,
    sleep_at_first,
    write_line,
)
from scripts import run_python
from waiting import BOUND, eventually

from prefork_executor import (
    Pool,
    PreforkExecutor,
    RemoteExceptionStandIn,
    TaskAborted,
    TaskMemoryExceeded,
    TaskTimeout,
    WorkerDied,
    shared,
    shared_executor,
)
from prefork_executor.integrations._carried import CarriedCall, CarriedError
from prefork_executor.integrations._dask_nodes import Gate, NodePool
from prefork_executor.integrations.dask import NodeDied, PreforkPlugin, connect

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One worker with four threads, for all tests of this module."""
    with running_cluster(n_workers=1, nthreads=4) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, set_as_default=False) as client:
        yield client


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Any]:
    """An executor over the cluster."""
    with connect(cluster.address) as nodes:
        yield nodes


@pytest.fixture(params=["one machine", "a cluster"])
def executor(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Any]:
    """What is to behave the same here and there."""
    if request.param == "one machine":
        with PreforkExecutor(4) as executor:
            yield executor
    else:
        yield request.getfixturevalue("nodes")


# --- graphs in an executor ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"scheduler": True}, {"pool": True}, *({"pool": True, "scheduler": s} for s in
     ("threads", "processes"))],
    ids=["scheduler", "pool", "pool, threads", "pool, processes"],
)  # fmt: skip
def test_dask_computes_in_an_executor(options: dict[str, Any]) -> None:
    with PreforkExecutor(2) as executor:
        chosen = {name: executor if given is True else given for name, given in options.items()}
        with dask.config.set(chosen):
            assert dask.delayed(os.getpid)().compute() != os.getpid()
            doubled = dask.bag.from_sequence(range(10), npartitions=3).map(lambda x: 2 * x)
            assert doubled.sum().compute() == 90
            with pytest.raises(ValueError, match="it was 3") as caught:
                dask.delayed(fail)(3).compute()
            assert traceback.extract_tb(caught.tb)[-1].name == "fail"
            with pytest.raises(WorkerDied):
                dask.delayed(die)().compute()
            assert dask.delayed(fail)(4).compute() == 4


def test_dask_computes_in_the_shared_pool_by_its_name(tmp_path: Path) -> None:
    try:
        mine = shared_executor(max_workers=3)
        mine.submit(os.getpid).result()
        with dask.config.set(scheduler="prefork"):
            pid = dask.delayed(os.getpid)().compute()
            met = [dask.delayed(meet)(tmp_path, 3) for _ in range(3)]
            pids = dask.compute(*met)
            doubled = dask.bag.from_sequence(range(10), npartitions=3).map(lambda x: 2 * x)
            assert doubled.sum().compute(num_workers=1) == 90
            with pytest.raises(ValueError, match="it was 3"):
                dask.delayed(fail)(3).compute()
        assert {pid, *pids} <= {worker.pid for worker in mine.stats().workers}
        assert dask.delayed(os.getpid)().compute(scheduler="prefork") != os.getpid()
    finally:
        shared.shutdown()


def test_dask_uses_all_workers_that_an_executor_may_have(tmp_path: Path) -> None:
    count = dask.system.CPU_COUNT + 2
    with PreforkExecutor(count) as executor:
        met = [dask.delayed(meet)(tmp_path, count) for _ in range(count)]
        assert len(set(dask.compute(*met, scheduler=executor))) == count


def test_dask_uses_no_more_workers_than_a_computation_says(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waiting = [dask.delayed(wait_for)(gate) for _ in range(6)]
    try:
        mine = shared_executor(max_workers=4)
        with ThreadPoolExecutor() as threads:
            told = threads.submit(dask.compute, *waiting, scheduler="prefork", num_workers=2)
            eventually(lambda: mine.stats().busy == 2 or told.done(), "two run")
            assert mine.stats().in_flight + mine.stats().waiting == 2
            gate.touch()
            assert len(told.result(BOUND)) == 6
    finally:
        shared.shutdown()


def test_dask_computes_on_the_terms_of_a_view(tmp_path: Path) -> None:
    with PreforkExecutor(2) as executor, dask.config.set(pool=executor.with_options(retries=1)):
        assert dask.delayed(die_at_first)(tmp_path / "runs").compute() == 2


# --- an executor in each worker ----------------------------------------------------------------


@pytest.fixture
def isolating(client: Client) -> Iterator[Client]:
    plugin = PreforkPlugin()
    client.register_plugin(plugin)
    yield client
    client.unregister_worker_plugin(plugin.name)


def worker_pids(client: Client) -> set[int]:
    return set(client.run(os.getpid).values())


def test_tasks_run_in_processes_below_their_worker_unless_they_need_its_threads(
    isolating: Client,
) -> None:
    pid = isolating.submit(os.getpid, pure=False).result(BOUND)
    ancestors = {parent.pid for parent in psutil.Process(pid).parents()}
    assert pid not in worker_pids(isolating)
    assert len(ancestors & worker_pids(isolating)) == 1
    with dask.annotate(executor="threads"):
        there = isolating.submit(address_of_worker).result(BOUND)
    assert there in isolating.scheduler_info()["workers"]


def test_a_task_that_dies_leaves_its_worker_and_its_data_alone(isolating: Client) -> None:
    before, kept = worker_pids(isolating), isolating.submit(np.arange, 10)
    assert kept.result(BOUND).sum() == 45
    with pytest.raises(WorkerDied, match="killed by SIGKILL while it held task die;"):
        isolating.submit(die).result(BOUND)
    with pytest.raises(RuntimeError, match=r"the task raised SystemExit\(3\)"):
        isolating.submit(sys.exit, 3).result(BOUND)
    assert isolating.submit(sum, kept).result(BOUND) == 45
    assert worker_pids(isolating) == before


def test_only_those_that_ask_for_a_named_executor_run_in_it(client: Client) -> None:
    plugin = PreforkPlugin("isolated", preload=None)
    client.register_plugin(plugin)
    assert client.submit(os.getpid, pure=False).result(BOUND) in worker_pids(client)
    with dask.annotate(executor="isolated"):
        assert client.submit(os.getpid, pure=False).result(BOUND) not in worker_pids(client)
    client.unregister_worker_plugin(plugin.name)


def test_a_plugin_taken_back_ends_its_processes_and_what_they_ran(
    client: Client, tmp_path: Path
) -> None:
    plugin = PreforkPlugin()
    client.register_plugin(plugin)
    future = client.submit(begin_and_sleep, tmp_path / "runs")
    eventually(lambda: noted(tmp_path / "runs"))
    client.unregister_worker_plugin(plugin.name)
    with pytest.raises(BrokenExecutor):
        future.result(BOUND)
    eventually(lambda: is_gone(noted(tmp_path / "runs")[0]))
    assert client.submit(os.getpid, pure=False).result(BOUND) in worker_pids(client)


def test_a_bad_option_of_the_plugin_is_an_error_where_it_is_given() -> None:
    with pytest.raises(TypeError, match="max_wokers"):
        PreforkPlugin(max_wokers=3)
    with pytest.raises(ValueError, match="retries must be at least 0"):
        PreforkPlugin(retries=-1)


def test_workers_can_be_told_by_preload_and_configuration(tmp_path: Path) -> None:
    configuration = {
        "distributed.worker.preload": ["prefork_executor.integrations.dask"],
        "prefork-executor": {"max-tasks-per-child": 1, "max-workers": 1},
    }
    with running_cluster(configuration=configuration, n_workers=1, nthreads=2) as cluster:
        with Client(cluster.address, set_as_default=False) as client:
            pids = [client.submit(os.getpid, pure=False).result(BOUND) for _ in range(3)]
            assert len(set(pids) - worker_pids(client)) == 3


# --- the same on one machine and on many -------------------------------------------------------


def test_calls_give_what_they_give_anywhere(executor: Any) -> None:
    assert executor.submit(divmod, 7, 2).result(BOUND) == (3, 1)
    assert executor.submit(sorted, [1, 2], reverse=True).result(BOUND) == [2, 1]
    # Names that Dask's own submit takes for itself.
    named = executor.submit(dict, key=1, workers=2, retries=3, pure=4).result(BOUND)
    assert named == {"key": 1, "workers": 2, "retries": 3, "pure": 4}
    base = 40
    assert executor.submit(lambda x: base + x, 2).result(BOUND) == 42
    array = executor.submit(np.full, 100_000, 7).result(BOUND)
    assert array.sum() == 700_000


def test_an_exception_arrives_as_itself_with_its_frames(executor: Any) -> None:
    class Own(Exception):
        pass

    def raise_from() -> None:
        try:
            fail(3)
        except ValueError as cause:
            error = Own("long", "x" * 20_000)
            error.add_note("noted")
            raise error from cause

    error = executor.submit(raise_from).exception(BOUND)
    assert type(error) is Own
    assert error.args == ("long", "x" * 20_000)
    assert error.__notes__ == ["noted"]
    assert traceback.extract_tb(error.__traceback__)[-1].name == "raise_from"
    assert isinstance(error.__cause__, ValueError)
    assert traceback.extract_tb(error.__cause__.__traceback__)[-1].name == "fail"


def test_the_wish_to_exit_arrives_as_itself(executor: Any) -> None:
    error = executor.submit(sys.exit, 3).exception(BOUND)
    assert type(error) is SystemExit
    assert error.code == 3
    assert executor.submit(abs, -1).result(BOUND) == 1


def test_what_cannot_be_pickled_is_an_error_of_its_own_task(executor: Any) -> None:
    assert isinstance(executor.submit(id, threading.Lock()).exception(BOUND), pickle.PicklingError)
    assert isinstance(executor.submit(threading.Lock).exception(BOUND), pickle.PicklingError)
    error = executor.submit(raise_unpicklable).exception(BOUND)
    assert isinstance(error, RemoteExceptionStandIn)
    assert error.original_type.endswith("Unpicklable")
    assert "number 7" in str(error)


def test_a_map_gives_results_in_order(executor: Any) -> None:
    assert list(executor.map(pow, range(20), [2] * 20)) == [x * x for x in range(20)]
    assert list(executor.map(abs, range(-50, 50), chunksize=30)) == list(map(abs, range(-50, 50)))
    assert list(executor.map(abs, ())) == []
    with pytest.raises(ValueError, match="it was 3"):
        list(executor.map(fail, range(5)))


def test_a_map_with_a_buffersize_reads_no_further_than_it_must(executor: Any) -> None:
    read: list[int] = []
    results = executor.map(abs, (read.append(i) or i for i in range(10)), buffersize=2)
    assert read == [0, 1]
    assert next(results) == 0
    assert read == [0, 1, 2]
    assert list(results) == list(range(1, 10))


def test_a_map_whose_time_is_up_says_so(executor: Any) -> None:
    results = executor.map(time.sleep, [0, 1], timeout=0.3)
    with pytest.raises(TimeoutError):
        list(results)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
)
def test_bad_arguments_of_map_are_errors_at_the_call(
    executor: Any, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        executor.map(abs, [1], **arguments)
    with pytest.raises(TypeError, match="fn must be callable"):
        executor.map("abs", [1])
    with pytest.raises(TypeError, match="fn must be callable"):
        executor.submit("abs")
    with pytest.raises(ValueError, match="retries"):
        executor.with_options(retries=-1)
    with pytest.raises(TypeError, match="timeout"):
        executor.with_options(timeout="1")
    with pytest.raises(ValueError, match="memory"):
        executor.with_options(memory=-1)


def test_a_process_that_dies_costs_its_own_task_and_nothing_is_run_twice(
    executor: Any, tmp_path: Path
) -> None:
    dying = executor.submit(die_at_first, tmp_path / "runs")
    others = [executor.submit(abs, -i) for i in range(5)]
    with pytest.raises(WorkerDied, match=r"killed by SIGKILL while it held task .*die_at_first"):
        dying.result(BOUND)
    assert [other.result(BOUND) for other in others] == list(range(5))
    assert len(noted(tmp_path / "runs")) == 1


def test_a_task_is_run_again_if_its_caller_asked_for_it(executor: Any, tmp_path: Path) -> None:
    dying = executor.with_options(retries=1).submit(die_at_first, tmp_path / "deaths")
    assert dying.result(BOUND) == 2
    # Starting a process is part of the time that a task may take.
    slow = executor.with_options(retries=3, timeout=2.0).submit(sleep_at_first, tmp_path / "times")
    assert slow.result(BOUND) == 2


def test_a_task_whose_time_is_up_is_ended(executor: Any, tmp_path: Path) -> None:
    future = executor.with_options(timeout=0.5).submit(begin_and_sleep, tmp_path / "runs")
    with pytest.raises(TaskTimeout, match=r"begin_and_sleep ran for more than 0\.5 s"):
        future.result(BOUND)
    eventually(lambda: all(map(is_gone, noted(tmp_path / "runs"))))


def test_an_aborted_task_is_ended(executor: Any, tmp_path: Path) -> None:
    future = executor.submit(begin_and_sleep, tmp_path / "runs")
    eventually(lambda: noted(tmp_path / "runs"))
    assert executor.abort(future)
    with pytest.raises(TaskAborted, match="begin_and_sleep"):
        future.result(BOUND)
    (pid,) = noted(tmp_path / "runs")
    eventually(lambda: is_gone(pid))
    assert not executor.abort(future)
    with pytest.raises(TypeError):
        executor.abort("future")
    with PreforkExecutor(1) as other, pytest.raises(ValueError, match="this executor's"):
        executor.abort(other.submit(abs, 1))


def test_an_aborted_task_that_waits_never_begins(executor: Any, tmp_path: Path) -> None:
    holders = [executor.submit(begin_and_sleep, tmp_path / "runs") for _ in range(4)]
    eventually(lambda: len(noted(tmp_path / "runs")) == 4)
    behind = [executor.submit(note, tmp_path / "begun") for _ in range(4)]
    assert all(executor.abort(future) for future in [*behind, *holders])
    assert {type(future.exception(BOUND)) for future in [*behind, *holders]} == {TaskAborted}
    assert executor.submit(abs, -1).result(BOUND) == 1
    assert noted(tmp_path / "begun") == []


def test_the_repr_of_an_executor_has_the_cluster_and_the_number_of_its_tasks(nodes: Any) -> None:
    nodes.submit(abs, -1).result(BOUND)
    assert repr(nodes).startswith("<DaskExecutor on the cluster at tcp://")
    eventually(lambda: repr(nodes).endswith(", unfinished tasks: 0>"))


def test_futures_are_those_of_the_standard_library(executor: Executor) -> None:
    futures = [executor.submit(abs, -i) for i in range(3)]
    assert {future.result() for future in as_completed(futures, BOUND)} == {0, 1, 2}
    called: list[Any] = []
    futures[0].add_done_callback(called.append)
    assert called == [futures[0]]
    assert wait(futures, BOUND).not_done == set()


# --- an executor over a cluster ----------------------------------------------------------------


def test_a_lost_node_costs_what_had_begun_there_and_nothing_else(tmp_path: Path) -> None:
    with (
        running_cluster(n_workers=2, nthreads=2) as cluster,
        connect(cluster.address) as nodes,
    ):
        # On both nodes: two run, and more wait, some of which Dask has given to the node.
        running = [nodes.submit(begin_and_sleep, tmp_path / f"{i}", BOUND) for i in range(4)]
        waiting = [nodes.submit(note, tmp_path / f"waiting {i}") for i in range(12)]
        eventually(lambda: all(noted(tmp_path / f"{i}") for i in range(4)))
        node_of = [cluster.node_of(noted(tmp_path / f"{i}")[0]) for i in range(4)]
        lost = [i for i in range(4) if node_of[i] == node_of[0]]
        node_of[0].kill()
        for i in lost:
            error = running[i].exception(BOUND)
            assert isinstance(error, NodeDied)
            assert "was lost while it held task" in str(error)
            assert isinstance(error.__cause__, KilledWorker)
            assert isinstance(pickle.loads(pickle.dumps(error)), NodeDied)
        # The other node is none the worse, and has room for the rest.
        assert all(nodes.abort(running[i]) for i in {*range(4)} - {*lost})
        assert [future.result(BOUND) for future in waiting] == [1] * 12
        assert [len(noted(tmp_path / f"{i}")) for i in range(4)] == [1] * 4


def test_a_task_of_a_lost_node_is_run_again_if_its_caller_asked_for_it(tmp_path: Path) -> None:
    with running_cluster(LOCAL, n_workers=1, threads_per_worker=2) as cluster:
        with connect(cluster.address) as nodes:
            future = nodes.with_options(retries=1).submit(sleep_at_first, tmp_path / "runs")
            eventually(lambda: noted(tmp_path / "runs"))
            cluster.node_of(noted(tmp_path / "runs")[0]).kill()
            # Dask puts another node in its place, and it is given a pool as the first was.
            assert future.result(BOUND) == 2


def test_a_running_task_can_be_cancelled_and_runs_on_in_vain(nodes: Any, tmp_path: Path) -> None:
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    future = nodes.submit(note_and_wait, runs, gate)
    eventually(lambda: len(noted(runs)) == 1, "it has begun")
    assert not future.running()
    assert future.cancel()
    gate.touch()
    eventually(lambda: len(noted(runs)) == 2, "it has ended")
    assert future.cancelled()


def test_a_cancelled_task_never_begins(nodes: Any, client: Client, tmp_path: Path) -> None:
    holders = [nodes.submit(begin_and_sleep, tmp_path / "runs") for _ in range(4)]
    eventually(lambda: len(noted(tmp_path / "runs")) == 4)
    behind = nodes.submit(note, tmp_path / "begun")
    assert behind.cancel()
    assert wait([behind], BOUND).done == {behind}
    eventually(lambda: not client.run_on_scheduler(is_known, behind.key))
    assert all(map(nodes.abort, holders))
    assert nodes.submit(abs, -1).result(BOUND) == 1
    assert noted(tmp_path / "begun") == []


def test_a_task_aborted_on_its_way_to_a_node_does_not_begin_there() -> None:
    with PreforkExecutor(1) as pool:
        node = NodePool(pool)
        node.end("key")
        with pytest.raises(CarriedError) as caught:
            node.run(CarriedCall(die, (), {}), "key", None, 0, None)
    assert isinstance(caught.value.restored(), TaskAborted)


def test_executors_with_the_same_options_share_the_nodes_pools(cluster: Cluster) -> None:
    used: list[set[int]] = []
    for _ in range(2):
        with connect(cluster.address, max_workers=1) as nodes:
            used.append({nodes.submit(os.getpid).result(BOUND) for _ in range(4)})
    assert len(used[0]) == 1
    assert used[0] == used[1]


def test_the_nodes_pools_may_have_a_bound_for_memory(cluster: Cluster) -> None:
    with connect(cluster.address, max_workers=1, max_memory=200 * MIB) as nodes:
        assert nodes.with_options(memory=200 * MIB).submit(take, 20, 0).result(BOUND) == 20
        with pytest.raises(ValueError, match=r"memory .* must not be above max_memory"):
            nodes.with_options(memory=201 * MIB).submit(abs, -1).result(BOUND)
        with pytest.raises(TaskMemoryExceeded, match=r"memory_tasks\.take alone took"):
            nodes.submit(take, 230, 60.0).result(BOUND)


def test_resources_are_those_of_dasks_workers(tmp_path: Path) -> None:
    with (
        running_cluster(n_workers=1, nthreads=4, resources={"unit": 1}) as cluster,
        connect(cluster.address) as nodes,
    ):
        one = nodes.with_options(resources={"unit": 1})
        futures = [one.submit(alone, tmp_path / "unit") for _ in range(20)]
        assert nodes.submit(abs, -3).result(BOUND) == 3
        assert all(future.result(BOUND) for future in futures)
        assert nodes.with_options(resources=None).submit(abs, -2).result(BOUND) == 2


def test_priorities_are_dasks(tmp_path: Path) -> None:
    """The worker is sent a few tasks ahead. Of the others those with the highest priority begin
    first."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    with (
        running_cluster(n_workers=1, nthreads=1) as cluster,
        connect(cluster.address) as nodes,
        Client(cluster.address, set_as_default=False) as client,
    ):
        futures = [nodes.submit(wait_for, str(gate))]
        ahead = nodes.with_options(priority=9)
        futures += [ahead.submit(write_line, log, f"ahead{number}") for number in range(4)]
        eventually(lambda: client.run_on_scheduler(count_tasks) == 5)
        for priority in (-1, 1, -2, 2):
            view = nodes.with_options(priority=priority)
            futures.append(view.submit(write_line, log, str(priority)))
        eventually(lambda: client.run_on_scheduler(count_tasks) == 9)
        gate.touch()
        for future in futures:
            future.result(BOUND)
    assert log.read_text().split()[-4:] == ["2", "1", "-1", "-2"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"priority": "1"}, TypeError, "priority must be an int, not str"),
        ({"resources": ["unit"]}, TypeError, "resources must be a mapping"),
        ({"resources": {1: 1}}, TypeError, "the names of resources must be strings"),
        ({"resources": {"unit": "1"}}, TypeError, r"resources\['unit'\] must be a number, not str"),
        ({"resources": {"unit": 0}}, ValueError, r"resources\['unit'\] must be above 0, not 0"),
        ({"urgency": 1}, TypeError, "urgency"),
    ],
)
def test_a_bad_option_of_a_task_of_a_cluster_is_an_error_where_it_is_given(
    cluster: Cluster, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with connect(cluster.address) as nodes, pytest.raises(error, match=message):
        nodes.with_options(**options)


def test_what_a_cluster_has_not_is_refused_by_name(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="resources are Dask's own"):
        connect(cluster.address, resources={"unit": 1})
    with pytest.raises(TypeError, match="max_backlog works on one machine only"):
        connect(cluster.address, max_backlog=3)
    with connect(cluster.address) as nodes:
        first = nodes.submit(abs, -1)
        with pytest.raises(TypeError, match="takes no future as an argument"):
            nodes.submit(abs, first)


def test_after_shutdown_nothing_is_taken_and_all_is_done(cluster: Cluster) -> None:
    nodes = connect(cluster.address)
    future = nodes.submit(time.sleep, 0.2)
    view = nodes.with_options(retries=1)
    nodes.shutdown()
    assert future.done()
    for each in (nodes, view):
        with pytest.raises(RuntimeError, match="after shutdown"):
            each.submit(abs, 1)
    nodes.shutdown()


def test_shutdown_need_not_wait_and_may_cancel(cluster: Cluster, tmp_path: Path) -> None:
    nodes = connect(cluster.address)
    future = nodes.submit(begin_and_sleep, tmp_path / "runs", 0.2)
    nodes.shutdown(wait=False)
    assert future.result(BOUND) == "slept"
    nodes = connect(cluster.address)
    futures = [nodes.submit(begin_and_sleep, tmp_path / "runs", 0.2) for _ in range(100)]
    nodes.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[-1].cancelled()


def test_a_client_that_was_given_stays_open(client: Client) -> None:
    with connect(client) as nodes:
        assert nodes.submit(abs, -1).result(BOUND) == 1
    assert client.submit(abs, -2).result(BOUND) == 2


def test_a_client_closed_under_an_executor_breaks_it_and_hangs_nobody(
    cluster: Cluster, tmp_path: Path
) -> None:
    client = Client(cluster.address, set_as_default=False)
    with connect(client) as nodes:
        futures = [nodes.submit(begin_and_sleep, tmp_path / "runs", 0.2) for _ in range(20)]
        client.close()
        assert isinstance(futures[-1].exception(BOUND), BrokenExecutor)
        assert wait(futures, BOUND).not_done == set()
        with pytest.raises(BrokenExecutor):
            nodes.submit(abs, 1)


def test_bad_arguments_of_connect_are_errors_at_the_call(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="max_wokers"):
        connect(cluster.address, max_wokers=3)
    with pytest.raises(ValueError, match="retries"):
        connect(cluster.address, retries=-1)
    with dask.config.set({"distributed.comm.timeouts.connect": "0.1s"}):
        with pytest.raises(OSError, match="Timed out"):
            connect("tcp://127.0.0.1:1")


def test_an_asynchronous_client_is_refused(cluster: Cluster) -> None:
    async def connect_in_a_loop() -> None:
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(TypeError, match="asynchronous"):
                connect(client)

    asyncio.run(connect_in_a_loop())


@pytest.mark.parametrize("how", [Cluster.kill, Cluster.close])
def test_the_loss_of_the_scheduler_breaks_the_executor_and_hangs_nobody(
    how: Callable[[Cluster], None], tmp_path: Path
) -> None:
    with running_cluster(n_workers=1, nthreads=2) as cluster:
        with connect(cluster.address) as nodes:
            futures = [nodes.submit(begin_and_sleep, tmp_path / "runs") for _ in range(4)]
            eventually(lambda: len(noted(tmp_path / "runs")) == 2)
            how(cluster)
            assert all(isinstance(each.exception(BOUND), BrokenExecutor) for each in futures)
            with pytest.raises(BrokenExecutor, match=r"scheduler tcp://.* was lost"):
                nodes.submit(abs, 1)
    assert len(noted(tmp_path / "runs")) == 2


# --- at most once, in particular ---------------------------------------------------------------


class Task:
    suspicious = 0


class Scheduler:
    """As much of Dask's as the gate sees."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.tasks = {"key": Task()}
        self.allowed_failures = 3


@pytest.fixture
def gate() -> Gate:
    gate = Gate()
    run(gate.start(Scheduler()))
    gate.update_graph(gate._scheduler, annotations={"prefork_executor": {"key": True}})
    return gate


def run(coroutine: Any) -> Any:
    with contextlib.closing(coroutine):
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
    raise AssertionError("it waits for something")


def deaths_endured(gate: Gate) -> int:
    """How many of its workers a task may lose before Dask gives it up."""
    return gate._scheduler.allowed_failures - gate._scheduler.tasks["key"].suspicious


def test_a_task_that_has_not_begun_endures_any_number_of_deaths(gate: Gate) -> None:
    assert deaths_endured(gate) > 1_000_000


def test_a_task_begins_once_and_dies_with_its_node(gate: Gate) -> None:
    assert run(gate.begin("key", retries=0))
    assert deaths_endured(gate) == 0
    # Its result was lost, say, and Dask would compute it again.
    assert not run(gate.begin("key", retries=0))


def test_a_task_begins_as_often_as_its_caller_allows(gate: Gate) -> None:
    assert run(gate.begin("key", retries=1))
    assert deaths_endured(gate) > 1_000_000
    assert run(gate.begin("key", retries=1))
    assert deaths_endured(gate) == 0
    assert not run(gate.begin("key", retries=1))


def test_a_task_that_the_scheduler_has_dropped_does_not_begin(gate: Gate) -> None:
    assert run(gate.begin("key", retries=0))
    del gate._scheduler.tasks["key"]
    gate.transition("key", "released", "forgotten", stimulus_id="")
    assert not run(gate.begin("key", retries=0))
    assert gate._begun == {}


class Finicky(Exception):
    def __init__(self, number: int, *, text: str) -> None:
        super().__init__(f"{text} {number}")
        self.number = number


def with_cause(error: BaseException) -> BaseException:
    try:
        try:
            raise KeyError("cause")
        except KeyError as cause:
            error.add_note("noted")
            raise error from cause
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        FileNotFoundError(2, "No such file", "/there"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"),
        ImportError("no", name="module", path="/there"),
        SystemExit(3),
        StopIteration(5),
        Finicky(7, text="number"),
        ExceptionGroup("both", [ValueError(1), Finicky(7, text="number")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_carried_with_all_it_has(error: BaseException) -> None:
    error = with_cause(error)
    arrived = CarriedError.of(error).restored()
    assert type(arrived) is type(error)
    assert (str(arrived), repr(arrived)) == (str(error), repr(error))
    assert vars(arrived) == vars(error)
    for name in ("code", "value", "filename", "start", "name", "path"):
        assert getattr(arrived, name, None) == getattr(error, name, None)
    assert repr(arrived.__cause__) == "KeyError('cause')"
    assert traceback.extract_tb(arrived.__traceback__)[-1].name == "with_cause"


def test_an_error_that_cannot_be_unpickled_here_is_still_told() -> None:
    carried = CarriedError("there.Error", "what it says", b"nonsense")
    error = carried.restored()
    assert isinstance(error, RemoteExceptionStandIn)
    assert (error.original_type, str(error)) == ("there.Error", "what it says")
    assert "UnpicklingError" in error.reason


def test_a_carried_call_is_called_what_its_function_is_called() -> None:
    assert CarriedCall(fail, (1,), {}).name == "node_tasks.fail"
    assert CarriedCall(abs, (1,), {}).name == "abs"


# --- the example -------------------------------------------------------------------------------


def test_the_example_gives_the_same_on_one_machine_and_on_a_cluster(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = str(EXAMPLES / "dask_cluster.py")
    here = run_python(tmp_path, program, "--samples", "20000")
    there = run_python(tmp_path, program, "--samples", "20000", "--scheduler", cluster.address)
    estimate = [line for line in here.splitlines() if line.startswith("pi is about")]
    assert estimate
    assert estimate[0] in there.splitlines()


def test_a_pool_moves_to_a_cluster_by_one_argument(tmp_path: Path) -> None:
    # Two nodes, so that there is one left when the other is killed.
    with running_cluster(LOCAL, n_workers=2, threads_per_worker=2) as cluster:
        with connect(cluster.address) as nodes, Pool(executor=nodes) as pool:
            assert pool._processes == 4
            assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))
            assert pool.starmap(pow, [(2, 3), (3, 2)], chunksize=2) == [8, 9]
            assert list(pool.imap(abs, range(-5, 0), 2)) == [5, 4, 3, 2, 1]
            assert sorted(pool.imap_unordered(abs, range(-5, 0))) == [1, 2, 3, 4, 5]
            with pytest.raises(ValueError, match="it was 3"):
                pool.apply(fail, (3,))
            with pytest.raises(MaybeEncodingError, match="cannot pickle"):
                pool.apply(threading.Lock)
            lost = pool.apply_async(begin_and_sleep, (tmp_path / "runs",))
            eventually(lambda: noted(tmp_path / "runs"))
            mapped = pool.map_async(abs, range(-200, 0), chunksize=1)
            cluster.node_of(noted(tmp_path / "runs")[0]).kill()
            with pytest.raises(NodeDied):
                lost.get(BOUND)
            # Of these some may have run there, and then it is said; none is run twice.
            with contextlib.suppress(NodeDied):
                assert mapped.get(BOUND) == list(range(200, 0, -1))
            assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))


def test_a_map_on_a_cluster_may_be_unordered(nodes: Any) -> None:
    assert sorted(nodes.map(fail, range(3), ordered=False, buffersize=2)) == [0, 1, 2]
    assert list(nodes.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]
    with pytest.raises(WorkerDied, match=r"node_tasks\.die"):
        list(nodes.starmap(die, [(), ()], chunksize=2))
