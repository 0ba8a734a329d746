"""Exceptions to bytes and back, without a process: whatever they look like."""

from __future__ import annotations

import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork_executor._pickling import exceptions, tracebacks


def there_and_back(error: BaseException) -> BaseException:
    parts = exceptions.dump_failure(error)
    return exceptions.load_failure([memoryview(part) for part in parts])


@st.composite
def graphs(draw: st.DrawFn) -> BaseException:
    """Exceptions that are each other's members, causes and contexts at random."""
    errors: list[BaseException] = []
    for number in range(draw(st.integers(1, 8))):
        members = draw(st.lists(st.sampled_from(errors), max_size=4)) if errors else []
        errors.append(BaseExceptionGroup(str(number), members) if members else ValueError(number))
    for error in errors:
        error.__context__ = draw(st.none() | st.sampled_from(errors))
        if draw(st.booleans()):
            error.__cause__ = draw(st.none() | st.sampled_from(errors))
        for note in draw(st.lists(st.text(max_size=3), max_size=2)):
            error.add_note(note)
    return draw(st.sampled_from(errors))


def outline(error: BaseException) -> list[tuple[Any, ...]]:
    """What can be reached from an exception, with numbers for what is linked."""
    reached = [error]

    def number(other: BaseException | None) -> int | None:
        if other is None:
            return None
        for index, known in enumerate(reached):
            if known is other:
                return index
        reached.append(other)
        return len(reached) - 1

    lines = []
    for one in reached:
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        links = [number(one.__cause__), number(one.__context__), *map(number, members)]
        notes = getattr(one, "__notes__", [])
        lines.append((type(one), str(one), one.__suppress_context__, notes, links))
    return lines


@given(graphs())
def test_a_graph_of_exceptions_keeps_its_shape(error: BaseException) -> None:
    assert outline(there_and_back(error)) == outline(error)


lines = st.integers(1, 100_000)
columns = st.integers(0, 5_000)


@given(first=lines, line=lines, more=st.integers(0, 300), column=columns, end_column=columns)
def test_a_stub_stands_where_the_original_stood(
    first: int, line: int, more: int, column: int, end_column: int
) -> None:
    position = (line, line + more, column, end_column)
    assert stub_at(first, position) == {position}


@given(first=lines, line=lines)
def test_a_stub_has_no_columns_if_the_original_had_none(first: int, line: int) -> None:
    assert stub_at(first, (line, line, None, None)) == {(line, line, None, None)}
    assert stub_at(first, (None, None, None, None), line) == {(line, line, None, None)}


def stub_at(first: int, position: tuple[int | None, ...], line: int = 1) -> set[Any]:
    """The positions of all instructions of a stub that was made for this one."""
    code = tracebacks._make_code(
        {
            "first_line": first,
            "position": position,
            "tb_lineno": line,
            "qualname": "A.f",
            "tb_frame": {"f_code": {"co_filename": "a.py", "co_name": "f"}},
        },
        tracebacks._stub.__code__,
    )
    assert isinstance(code, types.CodeType)
    assert (code.co_firstlineno, code.co_qualname) == (first, "A.f")
    return set(code.co_positions())


def test_a_frame_that_knows_no_line_is_at_the_beginning_of_its_function() -> None:
    try:
        exec(compile("1 / 0", "a.py", "exec").replace(co_linetable=b"", co_firstlineno=7))
    except ZeroDivisionError as error:
        places = tracebacks.dump_traceback(error.__traceback__, skip_frames=1)
    traceback = tracebacks.load_traceback(places)
    assert traceback is not None
    assert traceback.tb_lineno == 7


@pytest.mark.parametrize("error", [ValueError("never raised"), ExceptionGroup("g", [KeyError(1)])])
def test_an_exception_that_was_never_raised_has_no_traceback(error: Exception) -> None:
    assert there_and_back(error).__traceback__ is None
