"""Models as in test_audit.py, with more workers, tasks or deaths: each takes seconds."""

from __future__ import annotations

import pytest
from pool_model import (
    FUNERAL,
    Client,
    Pool,
    Sizes,
    Violation,
    check_every_interleaving,
    explore,
    wander_often,
)


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 0, 2, 1, 1, 0, 0, True),
        Sizes(1, 0, 2, 2, 1, 0, 0, False),
        Sizes(1, 0, 2, 1, 1, 1, 0, False),
        Sizes(3, 1, 1, 3, 1, 0, 0, True),
        Sizes(2, 1, 2, 2, 0, 1, 0, False),
    ],
    ids=str,
)
def test_no_interleaving_loses_a_task_or_runs_one_twice(sizes: Sizes) -> None:
    check_every_interleaving(sizes)


@pytest.mark.parametrize("funeral", [FUNERAL, ("tell", "clear rest", "clear pid")])
def test_reads_and_clearing_writes_may_change_places(funeral: tuple[str, ...]) -> None:
    pool = Pool(funeral=funeral, refills=False)
    explore(pool, Client(backwards=True), pool.new(2, 1, 2))


@pytest.mark.parametrize(("batch", "looks"), [(1, 0), (3, 2)])
def test_no_run_of_a_larger_pool_loses_a_task_or_runs_one_twice(batch: int, looks: int) -> None:
    pool = Pool(batch=batch)
    client = Client(batch=batch, looks=looks)
    wander_often(pool, client, pool.new(3, 3, 3, 2, 2), runs=300)


def test_the_supervisor_must_tell_of_a_death_before_it_clears_the_slot() -> None:
    pool = Pool(funeral=("clear pid", "tell", "clear rest"), refills=False)
    with pytest.raises(Violation, match="ran twice"):
        explore(pool, Client(), pool.new(2, 1, 2))
