"""Executors as Prometheus metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_tasks import wait_for
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from raw_programs import TERM, Run, linux_only, run
from waiting import eventually

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.prometheus import ExecutorCollector, PoolCollector

__all__ = ["run"]


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2, min_spare_workers=2) as executor:
        yield executor
        (tmp_path / "go").touch()


def scrape(**executors: PreforkExecutor) -> dict[tuple[str, ...], float]:
    """What a scrape gives: a value for each name and label values."""
    return scrape_of(ExecutorCollector(**executors))


def scrape_of(collector: Collector) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    samples = (sample for family in families for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_an_executor_that_has_done_nothing_is_all_zeros(executor: PreforkExecutor) -> None:
    metrics = scrape(pool=executor)
    assert ("prefork_executor_start_seconds", "pool") not in metrics, "it has started none"
    assert metrics.pop(("prefork_executor_workers_max", "pool")) == 2
    assert len(metrics) == 10
    assert set(metrics.values()) == {0}


def names_of_tasks(executor: PreforkExecutor) -> list[str | None]:
    return [worker.task for worker in executor.stats().workers]


def test_it_shows_what_the_executor_does(executor: PreforkExecutor, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    for future in [executor.submit(os._exit, 3), executor.submit(abs, -1)]:
        future.exception()
    futures = [executor.submit(wait_for, path) for _ in range(20)]
    # The slot of the one that has died may be seen for a moment after its death was told.
    eventually(lambda: names_of_tasks(executor).count("light_tasks.wait_for") == 2)
    metrics = scrape(pool=executor)
    assert metrics["prefork_executor_workers", "pool", "busy"] == 2
    assert metrics["prefork_executor_workers", "pool", "idle"] == 0
    assert metrics["prefork_executor_workers_peak", "pool"] == 2
    assert metrics["prefork_executor_tasks_finished_total", "pool"] == 1  # The other died.
    assert metrics["prefork_executor_worker_deaths_total", "pool"] == 1
    assert metrics["prefork_executor_longest_task_seconds", "pool"] > 0
    start_seconds = ("prefork_executor_start_seconds", "pool")
    eventually(lambda: scrape(pool=executor).get(start_seconds) == executor.stats().start_cost)
    in_flight = metrics["prefork_executor_tasks_in_flight", "pool"]
    assert in_flight >= 2
    assert in_flight + metrics["prefork_executor_tasks_waiting", "pool"] == 20
    Path(path).touch()
    for future in futures:
        future.result()
    eventually(lambda: scrape(pool=executor)["prefork_executor_workers", "pool", "idle"] == 2)
    metrics = scrape(pool=executor)
    assert metrics["prefork_executor_tasks_finished_total", "pool"] == 21
    assert metrics["prefork_executor_longest_task_seconds", "pool"] == 0


def test_it_shows_the_memory_of_an_executor_that_has_a_bound(executor: PreforkExecutor) -> None:
    with PreforkExecutor(1, max_memory=2**30) as bounded:
        bounded.submit(abs, -1).result()
        metrics = scrape(pool=executor, bounded=bounded)
    assert metrics["prefork_executor_memory_bound_bytes", "bounded"] == 2**30
    assert metrics["prefork_executor_memory_left_bytes", "bounded"] > 0
    assert metrics["prefork_executor_tasks_held", "bounded"] == 0
    assert metrics["prefork_executor_tasks_ended_for_memory_total", "bounded"] == 0
    assert metrics["prefork_executor_tasks_too_large_total", "bounded"] == 0
    assert ("prefork_executor_memory_bound_bytes", "pool") not in metrics


def test_one_collector_serves_several_executors(executor: PreforkExecutor) -> None:
    with PreforkExecutor(3) as other:
        metrics = scrape(thumbnails=executor, mail=other)
    assert metrics["prefork_executor_workers_max", "thumbnails"] == 2
    assert metrics["prefork_executor_workers_max", "mail"] == 3


def test_an_executor_that_was_shut_down_remains_readable(executor: PreforkExecutor) -> None:
    executor.submit(abs, -1).result()
    executor.shutdown()
    metrics = scrape(pool=executor)
    assert metrics["prefork_executor_tasks_finished_total", "pool"] == 1
    assert metrics["prefork_executor_workers", "pool", "idle"] == 0


@linux_only
def test_a_raw_pool_is_scraped_from_another_process(run: Run) -> None:
    program = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        listener = listen()
        pf_init(max_servers=1, listeners=[listener])
        whip(serve, (listener,))
        """
    )
    name = "prefork_executor_pool"

    def scrape_pool() -> dict[tuple[str, ...], float]:
        return scrape_of(PoolCollector(web=program.pid, gone=lambda: int("no number")))

    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        with program.connect():
            eventually(lambda: scrape_pool()[f"{name}_backlog", "web"] == 1)
            metrics = scrape_pool()
    assert metrics[f"{name}_up", "web"] == 1
    assert metrics[f"{name}_up", "gone"] == 0
    assert metrics[f"{name}_workers", "web", "busy"] == 1
    assert metrics[f"{name}_forks_total", "web"] == 1
    eventually(lambda: scrape_pool()[f"{name}_tasks_done_total", "web"] == 2)
    program.signal(TERM)
    assert program.wait() == 0
    assert scrape_pool() == {(f"{name}_up", "web"): 0, (f"{name}_up", "gone"): 0}
