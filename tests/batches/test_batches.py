"""Tasks that are known to be short travel several in a message. Nobody notices but by the
speed: one that turns out to be long, or dies, or is to be ended, costs no other anything."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest
from injection import batches_sent
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskAborted, TaskTimeout, WorkerDied, yell
from prefork_executor._client import batches as batches_module
from prefork_executor._support import faults

FOREVER = 3600.0
WARM_UP = 500
"""Tasks after which a function is known to be short."""

KILLS = 30


def task(x: int, what: str = "") -> int:
    """Short, unless it is told otherwise: nobody can know before it runs."""
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "sleep":
        time.sleep(FOREVER)
    elif what == "fail":
        raise LookupError(x)
    return x


def warm(executor: PreforkExecutor) -> None:
    assert list(executor.map(task, range(WARM_UP))) == list(range(WARM_UP))


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    with PreforkExecutor(
        2, start_method, preload=__name__, start_workers=2, idle_timeout=None
    ) as executor:
        warm(executor)
        yield executor


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    # What is short is a matter of the machine, too, and of what else it does.
    monkeypatch.setattr(batches_module, "BATCHABLE_NS", 10**12)
    monkeypatch.setattr(batches_module, "MAX_SPAN_NS", 10**15)
    with batches_sent() as sizes:
        yield sizes


def many(executor: PreforkExecutor, odd: dict[int, str], count: int = 600) -> list[Future[int]]:
    """Tasks of which most are short, and these are not."""
    return [executor.submit(task, i, odd.get(i, "")) for i in range(count)]


def but(odd: dict[int, str], futures: list[Future[int]]) -> list[Future[int]]:
    return [future for i, future in enumerate(futures) if i not in odd]


def test_a_death_costs_the_task_that_ran_and_none_of_its_message(
    executor: PreforkExecutor, batches: list[int]
) -> None:
    odd = dict.fromkeys(range(50, 600, 70), "die")
    futures = many(executor, odd)
    results = [future.result(BOUND) for future in but(odd, futures)]
    assert results == [i for i in range(600) if i not in odd]
    assert all(isinstance(futures[i].exception(BOUND), WorkerDied) for i in odd)


def test_a_task_that_turns_out_to_be_long_holds_up_no_other(
    executor: PreforkExecutor, batches: list[int]
) -> None:
    odd = {100: "sleep"}
    futures = many(executor, odd)
    for future in but(odd, futures):
        future.result(BOUND)
    assert not futures[100].done()
    executor.abort(futures[100])
    assert isinstance(futures[100].exception(BOUND), TaskAborted)


def test_time_limits_hold_for_one_task_of_a_message(
    executor: PreforkExecutor, batches: list[int]
) -> None:
    limited = executor.with_options(timeout=0.3)
    odd = {100: "sleep", 110: "sleep", 400: "sleep"}
    futures = [limited.submit(task, i, odd.get(i, "")) for i in range(600)]
    assert all(future.exception(BOUND) is None for future in but(odd, futures))
    assert all(isinstance(futures[i].exception(BOUND), TaskTimeout) for i in odd)


def test_a_failure_is_its_own_tasks(executor: PreforkExecutor, batches: list[int]) -> None:
    odd = dict.fromkeys(range(0, 600, 7), "fail")
    futures = many(executor, odd)
    assert [future.result(BOUND) for future in but(odd, futures)] == [
        i for i in range(600) if i not in odd
    ]
    assert [futures[i].exception(BOUND).args for i in odd] == [(i,) for i in odd]  # type: ignore[union-attr]


def pid_of(_: int) -> int:
    return os.getpid()


def test_a_worker_takes_no_more_tasks_than_it_may(batches: list[int]) -> None:
    with PreforkExecutor(2, max_tasks_per_child=50, preload=__name__) as executor:
        counts = collections.Counter(executor.map(pid_of, range(1000)))
    assert max(counts.values()) <= 50
    assert sum(counts.values()) == 1000


def test_a_reload_loses_no_task_of_a_message(executor: PreforkExecutor, batches: list[int]) -> None:
    futures = many(executor, {}, 3000)
    executor.reload().result(BOUND)
    assert [future.result(BOUND) for future in futures] == list(range(3000))


def large(size: int) -> bytes:
    return bytes(size)


def test_results_of_every_size_come_back(batches: list[int]) -> None:
    with PreforkExecutor(2) as executor:
        sizes = [0, 10, 3000, 5000, 40_000, 1, 4000, 4096, 2, 100_000] * 100
        assert [len(result) for result in executor.map(large, sizes)] == sizes


def yelling(i: int) -> int:
    yell(i)
    return i


def test_a_tasks_messages_come_before_its_result(batches: list[int]) -> None:
    heard: list[int] = []
    early: list[int] = []

    def note_result(future: Future[int]) -> None:
        if future.result() not in heard:
            early.append(future.result())

    with PreforkExecutor(1, on_yell=lambda _pid, data: heard.append(data)) as executor:
        list(executor.map(yelling, range(300)))
        heard.clear()
        for i in range(500):
            executor.submit(yelling, i).add_done_callback(note_result)
    assert sorted(heard) == list(range(500))
    assert early == []


def noting(i: int, nap: float = 0.0) -> int:
    if nap:
        time.sleep(nap)
    yell(i)
    return i


def test_one_worker_begins_tasks_in_their_order_though_one_turns_out_to_be_long(
    batches: list[int],
) -> None:
    begun: list[int] = []
    with PreforkExecutor(1, on_yell=lambda _pid, data: begun.append(data)) as executor:
        list(executor.map(noting, range(WARM_UP)))
        begun.clear()
        for i in range(500):
            executor.submit(noting, i, 0.2 if i == 100 else 0.0)
    assert begun == list(range(500))


@contextlib.contextmanager
def looks_counted() -> Iterator[Callable[[], None]]:
    """Gives a function that waits until the client has looked for long tasks many times."""
    looks: list[float] = []

    def wait_for_looks() -> None:
        looks.clear()
        eventually(lambda: len(looks) > 20, "the client looks for long tasks")

    with faults.injected("client.looks_for_slow", lambda: looks.append(time.monotonic())):
        yield wait_for_looks


def test_what_waits_behind_a_long_task_is_sent_again_once_and_not_at_every_look(
    executor: PreforkExecutor, batches: list[int]
) -> None:
    with looks_counted() as wait_for_looks:
        futures = many(executor, {20: "sleep", 120: "sleep"}, 200)
        eventually(lambda: futures[19].done(), "the first long one runs")
        eventually(lambda: futures[119].done(), "and the second")
        wait_for_looks()
        sent = sum(batches)
        wait_for_looks()
        assert sum(batches) == sent > len(futures)
        assert executor.abort(futures[20])
        assert executor.abort(futures[120])
        assert futures[-1].result(BOUND) == 199


def test_what_waits_behind_a_long_task_of_the_only_worker_stays_where_it_is(
    batches: list[int],
) -> None:
    with looks_counted() as wait_for_looks, PreforkExecutor(1) as executor:
        warm(executor)
        batches.clear()
        futures = many(executor, {20: "sleep"}, 200)
        eventually(lambda: futures[19].done(), "the long one runs")
        wait_for_looks()
        sent, sent_once = sum(batches), 20 + executor.stats().in_flight
        assert executor.abort(futures[20])
        assert [futures[i].result(BOUND) for i in (21, 199)] == [21, 199]
    assert sent <= sent_once


def test_the_supervisors_death_fails_what_ran_and_nothing_else(
    executor: PreforkExecutor, batches: list[int]
) -> None:
    futures = many(executor, {}, 20_000)
    supervisor = psutil.Process(executor.stats().workers[0].pid).ppid()
    os.kill(supervisor, signal.SIGKILL)
    errors = [future.exception(BOUND) for future in futures]
    lost = [error for error in errors if error is not None]
    assert all(isinstance(error, WorkerDied) for error in lost)
    assert len(lost) <= 2, "no more than there are workers"


def test_a_batch_is_a_fair_share_and_cancelling_spares_all_but_a_few(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    futures = many(executor, {}, 5000)
    cancelled = sum(future.cancel() for future in futures)
    eventually(lambda: all(future.done() for future in futures))
    done = [future for future in futures if not future.cancelled()]
    assert cancelled + len(done) == 5000
    assert all(future.exception() is None for future in done)


def test_many_kills_among_many_short_tasks_lose_only_what_ran(
    executor: PreforkExecutor, batches: list[int], tmp_path: Path
) -> None:
    futures: list[Future[int]] = []
    kills = 0
    while kills < KILLS:
        futures += many(executor, {}, 300)
        # The pool is patient with those that die as they start.
        workers = [w for w in executor.stats().workers if w.state in ("idle", "busy")]
        if not workers:
            futures[-1].exception(BOUND)
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(workers[0].pid, signal.SIGKILL)
            kills += 1
    errors = [future.exception(BOUND) for future in futures]
    lost = [error for error in errors if error is not None]
    assert all(isinstance(error, WorkerDied) for error in lost)
    assert len(lost) <= kills


def test_tasks_that_are_not_known_to_be_short_travel_alone() -> None:
    together: list[int] = []
    alone: list[None] = []
    with (
        faults.injected("client.sends_batch", lambda _number, count: together.append(count)),
        faults.injected("client.sent_task", lambda: alone.append(None)),
        PreforkExecutor(2) as executor,
    ):
        list(executor.map(time.sleep, [0.001] * 300))
    assert (len(together), len(alone)) == (0, 300)


def test_a_fault_of_ours_leaves_no_future_unresolved() -> None:
    def fault(*_: object) -> None:
        raise TypeError("a fault of ours")

    with PreforkExecutor(1, "fork") as executor:
        list(executor.map(task, range(30)))
        futures: list[Future[int]] = []
        with faults.injected("client.sends_batch", fault):
            with contextlib.suppress(BrokenProcessPool):  # It may be known before all are there.
                futures.extend(executor.submit(task, i) for i in range(300))
            errors = [future.exception(BOUND) for future in futures]
    assert any(errors)
    assert all(error is None or isinstance(error, BrokenProcessPool) for error in errors)
