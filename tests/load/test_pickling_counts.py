"""What pickling a call costs, counted: how often, by what, and that no thread waits for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from light_tasks import square
from waiting import BOUND

from prefork_executor import PreforkExecutor

BIG = 4 * 2**20


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with PreforkExecutor(1, "fork", idle_timeout=None) as executor:
        executor.submit(square, 1).result()
        yield executor


def pickles(call: Callable[[], object]) -> int:
    """How often something is pickled while this is called in this thread."""
    seen = []

    def see(_frame: object, event: str, arg: Any) -> None:
        if event == "c_call" and arg.__name__ in ("dumps", "dump"):
            seen.append(arg.__qualname__)

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(seen)


def test_a_call_is_pickled_once(executor: PreforkExecutor) -> None:
    assert pickles(lambda: executor.submit(square, 3)) == 1
    assert pickles(lambda: executor.submit(square, np.ones(BIG // 8))) == 1
    assert pickles(lambda: list(executor.map(square, range(10), chunksize=5))) == 2


def test_so_is_a_lambda_whose_code_is_known(executor: PreforkExecutor) -> None:
    number = 3
    function = lambda x: x * number  # noqa: E731
    assert executor.submit(function, 3).result() == 9
    assert pickles(lambda: executor.submit(function, 3)) == 1


def test_many_small_arrays_are_taken_apart_once(executor: PreforkExecutor) -> None:
    arrays = [np.ones(512) for _ in range(100)]
    executor.submit(len, arrays).result()
    # The second is the pickle around the first, and has nothing in it but bytes.
    assert pickles(lambda: executor.submit(len, arrays)) == 2


class Slow:
    """An argument that takes as long to pickle as another thread takes for a task."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def __reduce__(self) -> Any:
        self.meanwhile()
        return int, ()


def test_no_thread_waits_while_another_pickles(executor: PreforkExecutor) -> None:
    done: list[int] = []

    def work_in_another_thread() -> None:
        thread = threading.Thread(target=lambda: done.append(executor.submit(square, 5).result()))
        thread.start()
        thread.join(BOUND)
        assert not thread.is_alive()

    assert executor.submit(abs, Slow(work_in_another_thread)).result() == 0
    assert done == [25]


def test_a_map_pickles_each_call_when_its_turn_comes(executor: PreforkExecutor) -> None:
    results = executor.map(square, range(10**6), buffersize=4)
    assert pickles(lambda: [next(results) for _ in range(10)]) <= 20
    results.close()
