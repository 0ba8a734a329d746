"""Many small buffers in one object: they travel together, and arrive as if each had come alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from light_tasks import wait_for

from prefork_executor import PreforkExecutor

MANY = 300


@pytest.fixture(scope="module")
def executor() -> Iterator[PreforkExecutor]:
    with PreforkExecutor(1, idle_timeout=None) as executor:
        executor.submit(int).result()
        yield executor


def described(arrays: list[Any]) -> list[tuple[Any, ...]]:
    return [
        (array.dtype.str, array.shape, array.flags.writeable, array.flags.aligned, array.sum())
        for array in arrays
    ]


def describe_and_return(arrays: list[Any]) -> tuple[list[tuple[Any, ...]], list[Any]]:
    return described(arrays), arrays


def odd_arrays() -> list[Any]:
    """Of sizes that leave the next one at no even place, if nothing is done about it."""
    arrays: list[Any] = []
    for number in range(MANY):
        arrays.append(np.full(number * 7 % 1001 + 1, number % 2, "?"))
        arrays.append(np.full((5, number % 90 + 1), float(number), order="F"))
        arrays.append(np.full(number % 70, number, np.longdouble))
    arrays[0].flags.writeable = False
    return arrays


def test_each_array_arrives_and_returns_as_it_is(executor: PreforkExecutor) -> None:
    arrays = odd_arrays()
    there, back = executor.submit(describe_and_return, arrays).result()
    assert there == described(arrays) == described(back)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(arrays, back, strict=True))


def change_one(arrays: list[Any]) -> list[float]:
    arrays[3][:] = -1
    return [float(array.sum()) for array in arrays[:5]]


def test_a_change_of_one_array_changes_no_other(executor: PreforkExecutor) -> None:
    arrays = [np.ones(600) for _ in range(MANY)]
    assert executor.submit(change_one, arrays).result() == [600, 600, 600, -600, 600]
    back = executor.submit(describe_and_return, arrays).result()[1]
    back[3][:] = -1
    assert [float(array.sum()) for array in back[:5]] == [600, 600, 600, -600, 600]


def test_one_array_twice_is_one_array_there(executor: PreforkExecutor) -> None:
    array = np.ones(600)
    arrays = [array, *(np.ones(600) for _ in range(MANY)), array]
    assert executor.submit(lambda arrays: arrays[0] is arrays[-1], arrays).result()


def test_a_task_gets_the_arrays_as_they_were_at_submit(tmp_path: Path) -> None:
    with PreforkExecutor(1, "fork") as executor:
        executor.submit(wait_for, tmp_path / "gate")
        arrays = [np.ones(600) for _ in range(MANY)]
        future = executor.submit(change_one, arrays)
        for array in arrays:
            array[:] = 7
        (tmp_path / "gate").touch()
        assert future.result() == [600, 600, 600, -600, 600]


@pytest.mark.parametrize("size", [1, 40])
def test_thousands_of_tiny_arrays_come_back(executor: PreforkExecutor, size: int) -> None:
    arrays = [np.full(size, number) for number in range(10_000)]
    back = executor.submit(describe_and_return, arrays).result()[1]
    assert [int(array[0]) for array in back] == list(range(10_000))
