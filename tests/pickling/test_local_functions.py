"""Lambdas and functions within functions: what a task gets of them is what was there at submit."""

from __future__ import annotations

import linecache
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripts import run_python

from prefork_executor import PreforkExecutor

FACTOR = 2


@pytest.fixture(scope="module")
def executor() -> Iterator[PreforkExecutor]:
    """One pool and one worker for all: what a task leaves behind, the next would find."""
    with PreforkExecutor(1, idle_timeout=None) as executor:
        executor.submit(int).result()
        yield executor


def counter(start: int) -> Callable[[], int]:
    def count() -> int:
        nonlocal start
        start += 1
        return start

    del count.__annotations__["return"]
    return count


def test_each_call_gets_the_values_of_its_own_submit(executor: PreforkExecutor) -> None:
    number = 1
    multiply = lambda x, by=[10]: x * number * by[0] * FACTOR  # noqa: E731
    first = executor.submit(multiply, 1)
    number = 3
    multiply.__defaults__[0][0] = 100  # type: ignore[index]
    second = executor.submit(multiply, 1)
    assert (first.result(), second.result()) == (20, 600)


def test_a_global_that_has_changed_between_two_calls_has_changed_in_the_second(
    executor: PreforkExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = lambda x: FACTOR * x  # noqa: E731
    assert executor.submit(double, 1).result() == 2
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert executor.submit(double, 1).result() == 5


def test_no_task_sees_what_another_has_left_in_a_variable(executor: PreforkExecutor) -> None:
    count = counter(6)
    assert [executor.submit(count).result() for _ in range(3)] == [7, 7, 7]
    leave = lambda: globals().setdefault("left", []).append(1) or len(globals()["left"])  # noqa: E731
    assert [executor.submit(leave).result() for _ in range(3)] == [1, 1, 1]
    keep = lambda kept={}: kept.setdefault("times", []).append(1) or len(kept["times"])  # noqa: E731
    assert [executor.submit(keep).result() for _ in range(3)] == [1, 1, 1]


def test_a_function_of_another_name_or_code_is_another_function(executor: PreforkExecutor) -> None:
    code = (lambda: 1).__code__
    first = lambda: 0  # noqa: E731
    first.__code__ = code
    told = lambda function: (function.__name__, function.__qualname__, function())  # noqa: E731
    before = executor.submit(told, first).result()
    first.__name__, first.__qualname__ = "second", "<within>.second"
    assert before[0] == "<lambda>"
    assert executor.submit(told, first).result() == ("second", "<within>.second", 1)
    assert executor.submit(first).result() == 1
    first.__code__ = (lambda: 2).__code__
    assert executor.submit(first).result() == 2


def test_what_a_function_and_an_argument_share_is_one_object(executor: PreforkExecutor) -> None:
    shared: list[int] = []
    assert executor.submit(lambda other: other is shared, shared).result()


def test_an_annotated_function_keeps_its_annotations(executor: PreforkExecutor) -> None:
    def annotated(x: int) -> str:
        return str(annotated.__annotations__)

    assert "x" in executor.submit(annotated, 1).result()


def test_a_function_may_call_itself_and_its_neighbours(executor: PreforkExecutor) -> None:
    def factorial(n):  # type: ignore[no-untyped-def]
        return 1 if n == 0 else n * factorial(n - 1)

    def above(n):  # type: ignore[no-untyped-def]
        return math.floor(factorial(n) + 0.5)

    assert executor.submit(above, 5).result() == 120


def test_each_function_of_a_map_with_chunks_is_a_lambda_too(executor: PreforkExecutor) -> None:
    assert list(executor.map(lambda x: x * FACTOR, range(5), chunksize=2)) == [0, 2, 4, 6, 8]


def test_a_traceback_shows_the_source_of_a_lambda(executor: PreforkExecutor) -> None:
    error = executor.submit(lambda: 1 / 0).exception()
    assert error is not None
    linecache.checkcache()
    assert "lambda: 1 / 0" in "".join(traceback.format_exception(error))


SCRIPT = """
import math, sys
from prefork_executor import PreforkExecutor

NUMBER = 2

def made(n):
    return lambda x: (x * n + NUMBER, math.floor(2.5), __name__, "cloudpickle" in sys.modules)

class Here: pass

if __name__ == "__main__":
    with PreforkExecutor(1, {method!r}) as executor:
        print(executor.submit(made(4), 3).result(), "cloudpickle" in sys.modules)
        here = executor.submit(lambda: Here()).result()
        print(type(here) is Here, executor.submit(lambda x: type(x) is Here, here).result())
"""


def test_a_plain_lambda_of_main_needs_cloudpickle_in_no_process(
    tmp_path: Path, start_method: str
) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT.format(method=start_method))
    told = run_python(tmp_path, str(script)).splitlines()
    assert told == ["(14, 2, '__main__', False) False", "True True"]
