"""Maps in any order, and starmap."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from injection import lines
from light_tasks import fail_at_three, note, power, run_until, square, wait_at_zero
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2) as executor:
        yield executor


SHAPES = [(1, None), (1, 3), (4, None), (4, 2), (100, 1)]


@pytest.mark.parametrize(("chunksize", "buffersize"), SHAPES)
def test_an_unordered_map_gives_every_result_once(
    executor: PreforkExecutor, chunksize: int, buffersize: int | None
) -> None:
    results = executor.map(
        power, range(50), itertools.repeat(2), ordered=False, chunksize=chunksize,
        buffersize=buffersize,
    )  # fmt: skip
    assert sorted(results) == [x * x for x in range(50)]


def test_an_unordered_map_does_not_wait_for_a_slow_task(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    results = executor.map(wait_at_zero, [str(gate)] * 4, range(4), ordered=False)
    assert sorted(itertools.islice(results, 3)) == [1, 2, 3]
    gate.touch()
    assert list(results) == [0]


@pytest.mark.parametrize(("chunksize", "buffersize"), SHAPES)
def test_starmap_is_that_of_itertools(
    executor: PreforkExecutor, chunksize: int, buffersize: int | None
) -> None:
    rows = [(x, x % 3) for x in range(20)]
    results = executor.starmap(power, rows, chunksize=chunksize, buffersize=buffersize)
    assert list(results) == list(itertools.starmap(power, rows))


def test_starmap_takes_rows_of_any_kind_and_length(executor: PreforkExecutor) -> None:
    rows: list[Any] = [(2, 3), [4], iter((5, 1)), "7"]
    with pytest.raises(TypeError):
        list(executor.starmap(power, rows, chunksize=4))
    rows = [(2, 3), [4], iter((5, 1))]
    assert list(executor.starmap(power, rows, chunksize=3)) == [8, 16, 5]
    assert list(executor.starmap(dict, [(), ()], chunksize=2)) == [{}, {}]


def test_starmap_can_be_unordered(executor: PreforkExecutor) -> None:
    assert sorted(executor.starmap(power, zip(range(9)), ordered=False)) == [
        x * x for x in range(9)
    ]


def test_a_map_of_no_iterables_is_empty(executor: PreforkExecutor) -> None:
    assert list(executor.map(square)) == list(executor.map(square, ordered=False)) == []


class Counting(PreforkExecutor):
    """Counts what is submitted."""

    count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("buffersize", [None, 3])
def test_maps_submit_by_the_submit_of_a_subclass(buffersize: int | None) -> None:
    with Counting(2) as executor:
        assert list(executor.map(square, range(10), buffersize=buffersize)) == [
            x * x for x in range(10)
        ]
        assert executor.count == 10
        assert list(executor.starmap(power, [(2, 3)] * 5, buffersize=buffersize)) == [8] * 5
    assert executor.count == 15


@pytest.mark.parametrize("buffersize", [None, 3])
def test_maps_submit_by_what_a_program_has_put_in_the_place_of_submit(
    executor: PreforkExecutor, buffersize: int | None
) -> None:
    """tqdm's process_map does so, to be told of every task."""
    done: list[Future[Any]] = []
    original = executor.submit

    def submit(*args: Any, **kwargs: Any) -> Future[Any]:
        future = original(*args, **kwargs)
        future.add_done_callback(done.append)
        return future

    executor.submit = submit  # type: ignore[method-assign]
    assert list(executor.map(square, range(10), buffersize=buffersize)) == [
        x * x for x in range(10)
    ]
    eventually(lambda: len(done) == 10)


def test_views_have_both(executor: PreforkExecutor) -> None:
    view = executor.with_options(timeout=BOUND)
    assert list(view.starmap(power, [(2, 5)])) == [32]
    assert list(view.map(square, [3], ordered=False)) == [9]


@pytest.mark.parametrize("ordered", [True, False])
def test_both_know_their_length(executor: PreforkExecutor, ordered: bool) -> None:
    for results in (
        executor.map(square, range(7), ordered=ordered),
        executor.starmap(square, [(x,) for x in range(7)], ordered=ordered),
    ):
        assert operator.length_hint(results) == 7
        next(results)
        assert operator.length_hint(results) == 6
        list(results)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_iterable_is_read_as_far_as_the_buffer(
    executor: PreforkExecutor, ordered: bool
) -> None:
    read: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for number in itertools.count():
            read.append(number)
            yield (number,)

    results = executor.starmap(square, numbers(), buffersize=5, ordered=ordered)
    for _ in range(20):
        next(results)
    assert len(read) == 25
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_failure_ends_the_map(executor: PreforkExecutor, ordered: bool) -> None:
    results = executor.map(fail_at_three, range(9), ordered=ordered)
    with pytest.raises(KeyError):
        list(results)
    assert list(results) == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("is_begun", [True, False])
def test_closing_the_iterator_cancels_the_rest(
    tmp_path: Path, ordered: bool, is_begun: bool
) -> None:
    gate, noted = tmp_path / "gate", tmp_path / "noted"
    with PreforkExecutor(1) as executor:
        rows = [(str(gate), str(noted))] * 50
        if is_begun:
            rows.insert(0, (str(tmp_path), str(noted)))
        results: Any = executor.starmap(run_until, rows, ordered=ordered)
        if is_begun:
            next(results)
        eventually(noted.exists)
        results.close()
        gate.touch()
    assert len(noted.read_text().split()) < 10


@pytest.mark.parametrize("ordered", [True, False])
def test_a_timeout_is_for_all_results(
    executor: PreforkExecutor, tmp_path: Path, ordered: bool
) -> None:
    gate = tmp_path / "gate"
    results = executor.map(wait_at_zero, [str(gate)], [0], timeout=0.2, ordered=ordered)
    with pytest.raises(TimeoutError):
        next(results)
    gate.touch()


class SlowToPickle:
    """A path, for tasks. While one is pickled that is to do so, it lets them run, and waits
    until some have begun."""

    def __init__(self, path: Path, gate: Path | None) -> None:
        self._path = path
        self._gate = gate

    def __reduce__(self) -> Any:
        time.sleep(0.002)
        if self._gate is not None:
            self._gate.touch()
            eventually(lambda: self._path.exists() and len(self._path.read_text().split()) > 9)
        return str, (str(self._path),)


def test_workers_need_not_wait_for_calls_that_are_slow_to_pickle(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    gate, noted = tmp_path / "gate", tmp_path / "noted"
    items = [SlowToPickle(noted, gate if number == 40 else None) for number in range(60)]
    results = executor.map(functools.partial(run_until, str(gate)), items)
    assert len(list(results)) == 60


def test_in_a_fork_of_the_program_an_unordered_map_says_whose_it_is(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    results = executor.map(wait_at_zero, [str(gate)] * 2, [1, 0], ordered=False)
    assert next(results) == 1
    pid = os.fork()
    if not pid:
        try:
            next(results)
        except BaseException as error:
            os._exit(7 if type(error).__name__ == "BrokenProcessPool" else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    gate.touch()
    assert next(results) == 0


def note_and_fork(path: str, item: int) -> int:
    """Both processes return."""
    note(path, str(item))
    if child := os.fork():
        os.waitpid(child, 0)
    return item


@pytest.mark.parametrize("is_starred", [False, True])
def test_a_process_that_an_item_has_forked_runs_no_other_item(
    executor: PreforkExecutor, tmp_path: Path, is_starred: bool
) -> None:
    path, items = str(tmp_path / "noted"), range(6)
    if is_starred:
        results = executor.starmap(note_and_fork, [(path, item) for item in items], chunksize=6)
    else:
        results = executor.map(functools.partial(note_and_fork, path), items, chunksize=6)
    assert list(results) == [*items]
    assert lines(tmp_path / "noted") == [str(item) for item in items]


def test_bad_arguments_are_named(executor: PreforkExecutor) -> None:
    with pytest.raises(TypeError, match="fn must be callable, not int"):
        executor.starmap(3, [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="iterable must be iterable, not int"):
        executor.starmap(square, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunksize"):
        executor.starmap(square, [], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        executor.starmap(square, [], buffersize=0)
