"""Progress bars over maps: what map tells them, and bars that tasks advance."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator
from operator import length_hint
from typing import Any

import pytest
from rich.progress import Progress
from tqdm import tqdm
from waiting import eventually

from prefork_executor import PreforkExecutor, WorkerDied, yell
from prefork_executor.integrations.progress import advance, progress_map


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2) as executor:
        yield executor


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm starts a thread that it never ends."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


class KeptBar:
    """A bar that keeps what it is told."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.is_closed = False

    def update(self, n: float, /) -> None:
        assert not self.is_closed
        if n:
            self.updates.append(n)

    def close(self) -> None:
        self.is_closed = True


# --- map itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 3, "buffersize": 2}]
)
def test_a_map_knows_how_many_results_are_to_come(
    executor: PreforkExecutor, options: dict[str, int]
) -> None:
    results = executor.map(abs, range(-4, 4), **options)
    assert length_hint(results) == 8
    for taken in range(1, 9):
        next(results)
        assert length_hint(results) == 8 - taken
    assert next(results, None) is None


def test_the_shortest_iterable_counts(executor: PreforkExecutor) -> None:
    assert length_hint(executor.map(pow, range(5), [2, 2], {1: 1, 2: 2, 3: 3})) == 2
    assert length_hint(executor.map(abs)) == 0


def test_a_map_of_a_map_knows_it_too(executor: PreforkExecutor) -> None:
    assert length_hint(executor.map(abs, executor.map(abs, [-1, -2]))) == 2


class NoLength:
    """Whose length is an error."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])

    def __len__(self) -> int:
        raise RuntimeError("ask somebody else")


def test_what_cannot_be_told_is_not(executor: PreforkExecutor) -> None:
    for items in ((n for n in (1, 2)), NoLength()):
        results = executor.map(abs, items)
        assert length_hint(results, 99) == 99
        assert list(results) == [1, 2]


def test_a_map_that_is_closed_takes_no_more(executor: PreforkExecutor) -> None:
    for options in ({}, {"chunksize": 2}):
        results: Any = executor.map(abs, range(5), **options)
        next(results)
        results.close()
        assert len(list(results)) < 2  # One may be left of a chunk.


def test_rich_finds_the_total_by_itself(executor: PreforkExecutor) -> None:
    with Progress() as progress:
        assert list(progress.track(executor.map(abs, range(5)))) == [0, 1, 2, 3, 4]
    [task] = progress.tasks
    assert (task.total, task.completed) == (5, 5)


def test_tqdm_has_to_be_told_the_total(
    executor: PreforkExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(tqdm(executor.map(abs, range(5)), total=5)) == [0, 1, 2, 3, 4]
    assert "5/5" in capsys.readouterr().err


# --- a bar over a map -------------------------------------------------------------------------


@pytest.mark.parametrize("bar", ["rich", "tqdm"])
@pytest.mark.parametrize("options", [{}, {"chunksize": 3, "buffersize": 2}])
def test_one_call_gives_the_results_and_shows_a_bar(
    executor: PreforkExecutor, capsys: pytest.CaptureFixture[str], bar: str, options: dict[str, int]
) -> None:
    results = progress_map(executor, pow, range(7), [2] * 7, bar=bar, description="Sums", **options)
    assert list(results) == [n * n for n in range(7)]
    out, err = capsys.readouterr()
    shown = out if bar == "rich" else err
    assert "Sums" in shown
    assert "100%" in shown


def test_it_counts_the_results_taken(executor: PreforkExecutor) -> None:
    bar = KeptBar()
    results = progress_map(executor, abs, range(3), bar=bar)
    assert bar.updates == []
    assert next(results) == 0
    assert bar.updates == [1]
    assert list(results) == [1, 2]
    assert bar.updates == [1, 1, 1]
    assert bar.is_closed


def copy(size: int) -> int:
    for _ in range(size):
        advance(2.5)
    return size


def test_tasks_advance_it_themselves(start_method: str) -> None:
    bar = KeptBar()
    heard: list[object] = []
    with PreforkExecutor(2, start_method, on_yell=lambda _, data: heard.append(data)) as executor:
        results = progress_map(executor, copy, [3, 0, 4], bar=bar, self_advancing=True, chunksize=2)
        assert next(results) == 3
        # Reports come before the results, in parts if the bar was not yet there.
        assert sum(bar.updates) >= 7.5
        assert list(results) == [0, 4]
    assert sum(bar.updates) == 17.5
    assert bar.is_closed
    assert heard == []


@pytest.mark.parametrize("bar", ["rich", "tqdm"])
def test_a_total_of_the_tasks_own_units(
    executor: PreforkExecutor, capsys: pytest.CaptureFixture[str], bar: str
) -> None:
    assert list(progress_map(executor, copy, [3, 5], bar=bar, total=20, self_advancing=True)) == [
        3,
        5,
    ]
    assert "100%" in "".join(capsys.readouterr())


def copy_when_told(path: str) -> None:
    advance(1)
    while not os.path.exists(path):
        time.sleep(0.005)
    advance(10)


def test_it_moves_while_a_task_runs(executor: PreforkExecutor, tmp_path: Any) -> None:
    bar = KeptBar()
    path = tmp_path / "go"
    results = progress_map(executor, copy_when_told, [str(path)], bar=bar, self_advancing=True)
    eventually(lambda: bar.updates == [1])
    path.touch()
    assert list(results) == [None]
    assert bar.updates == [1, 10]


def test_each_map_advances_its_own_bar(executor: PreforkExecutor) -> None:
    bars = [KeptBar(), KeptBar()]
    maps = [
        progress_map(executor, copy, sizes, bar=bar, self_advancing=True)
        for bar, sizes in zip(bars, ([1] * 10, [2] * 10), strict=True)
    ]
    assert list(zip(*maps, strict=True)) == [(1, 2)] * 10
    maps.clear()
    assert [sum(bar.updates) for bar in bars] == [25, 50]


def test_a_function_that_advances_runs_anywhere(executor: PreforkExecutor) -> None:
    assert copy(2) == 2
    assert executor.submit(copy, 2).result() == 2
    bar = KeptBar()
    assert list(progress_map(executor, copy, [2], bar=bar)) == [2]
    assert bar.updates == [1]


def shout_and_advance(word: str) -> None:
    yell(word)
    advance()


def test_on_yell_remains_the_users() -> None:
    heard: list[object] = []
    with PreforkExecutor(1, on_yell=lambda _, data: heard.append(data)) as executor:
        bar = KeptBar()
        list(progress_map(executor, shout_and_advance, "ab", bar=bar, self_advancing=True))
    assert heard == ["a", "b"]
    assert sum(bar.updates) == 2


def test_views_have_it_too(executor: PreforkExecutor) -> None:
    view = executor.with_options(timeout=60)
    bar = KeptBar()
    assert list(progress_map(view, copy, [1], bar=bar, self_advancing=True)) == [1]
    assert bar.updates == [2.5]


# --- its end ----------------------------------------------------------------------------------


def fail(_number: int) -> None:
    raise ValueError("no")


def test_a_task_that_fails_ends_it(executor: PreforkExecutor) -> None:
    bar = KeptBar()
    with pytest.raises(ValueError, match="no"):
        list(progress_map(executor, fail, [1], bar=bar))
    assert bar.is_closed


def test_dropping_the_iterator_ends_it(executor: PreforkExecutor) -> None:
    for self_advancing in (False, True):
        bar = KeptBar()
        results = progress_map(executor, copy, [1] * 3, bar=bar, self_advancing=self_advancing)
        assert not bar.is_closed
        del results
        assert bar.is_closed


def test_what_tasks_report_after_that_is_dropped(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bar, path = KeptBar(), tmp_path / "go"
    with PreforkExecutor(1) as executor:
        results = progress_map(executor, copy_when_told, [str(path)], bar=bar, self_advancing=True)
        eventually(lambda: bar.updates == [1])
        del results
        path.touch()
        assert executor.submit(abs, -1).result() == 1
    assert bar.updates == [1]
    assert caplog.text == ""


def die(_number: int) -> None:
    advance()
    os._exit(3)


def test_messages_call_a_task_by_its_functions_name(executor: PreforkExecutor) -> None:
    for fn in (die, functools.partial(die)):
        with pytest.raises(WorkerDied, match=r"test_integration_progress\.die"):
            list(progress_map(executor, fn, [1], bar=KeptBar(), self_advancing=True))


@pytest.mark.parametrize(("bar", "error"), [("plain", ValueError), (3, TypeError), ([], TypeError)])
def test_a_bar_that_is_none_is_an_error_and_starts_nothing(
    bar: Any, error: type[Exception]
) -> None:
    executor = PreforkExecutor(1)
    with pytest.raises(error, match="bar must be 'rich', 'tqdm', or a bar, not"):
        progress_map(executor, abs, [1], bar=bar)
    assert executor.stats().workers == ()
    executor.shutdown()


@pytest.mark.parametrize("bar", ["rich", "tqdm"])
def test_a_library_that_is_missing_is_named(
    executor: PreforkExecutor, monkeypatch: pytest.MonkeyPatch, bar: str
) -> None:
    monkeypatch.setitem(sys.modules, bar, None)
    with pytest.raises(ImportError, match=rf"needs {bar}: pip install 'prefork-executor\[prog"):
        progress_map(executor, abs, [1], bar=bar)


def test_bad_arguments_are_those_of_map(executor: PreforkExecutor) -> None:
    bar = KeptBar()
    with pytest.raises(ValueError, match="chunksize"):
        progress_map(executor, abs, [1], bar=bar, chunksize=0)
    with pytest.raises(TypeError, match="fn must be callable, not int"):
        progress_map(executor, 3, [1], bar=bar, self_advancing=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"iterables\[0\]"):
        progress_map(executor, abs, 3, bar=bar)  # type: ignore[arg-type]
