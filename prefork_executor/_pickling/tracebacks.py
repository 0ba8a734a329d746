"""Tracebacks to plain data and back: real ones, with frames.

The idea is tblib's. A traceback that Python and its debuggers accept needs frames, and a
frame comes from calling a stub whose code has the right file and name. We record of a
frame what tblib records, and more: the line and the columns of the instruction, where the
function begins, and ``__tracebackhide__``. So a remote traceback prints, and looks in a
debugger, exactly like a local one.

So the stubs are made here: tblib's have none of these. Ours are also generators that
are never started. The frame of a function that has raised keeps referring to its caller's
frame, that to its own caller, and so on. Through them an exception would keep alive all
objects in the frames where it was unpickled, other tasks' results included. A frame that
never ran has no caller.

The variables do not travel: they are the task's data, of any kind and any size.

tblib is never installed into copyreg. We must not change what pickle does elsewhere in
the caller's process.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Place = dict[str, Any]
    """What is recorded of one frame of a traceback."""

MAX_FRAMES = 1000
"""Frames of one traceback that travel, as many as Python's default recursion limit. Of a longer
traceback the two ends travel, and between them a frame that says so."""

_NO_COLUMNS, _COLUMNS = 13, 14
"""Types of entries in a code object's line table."""


def dump_traceback(traceback: types.TracebackType | None, skip_frames: int) -> list[Place]:
    """A traceback as data, without its outermost ``skip_frames`` frames if it has others."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    # At least one frame stays: the exception was raised in it.
    frames = frames[min(skip_frames, len(frames) - 1) :] if frames else []
    if len(frames) <= MAX_FRAMES:
        return [_dump_frame(tb) for tb in frames]
    half = MAX_FRAMES // 2
    gap = _dump_frame(frames[half])
    gap["tb_frame"]["f_code"]["co_filename"] = f"<{len(frames) - 2 * half} more frames>"
    return [*map(_dump_frame, frames[:half]), gap, *map(_dump_frame, frames[-half:])]


def load_traceback(places: list[Place]) -> types.TracebackType | None:
    """The traceback that :func:`dump_traceback` was given."""
    result: types.TracebackType | None = None
    for place in reversed(places):
        result = types.TracebackType(result, _make_frame(place), 0, place["tb_lineno"])
    return result


def _dump_frame(tb: types.TracebackType) -> Place:
    from tblib import Traceback

    code = tb.tb_frame.f_code
    line = tb.tb_lineno if tb.tb_lineno is not None else code.co_firstlineno
    # One frame at a time: tblib nests its chain, and pickling would recurse into it.
    alone = types.TracebackType(None, tb.tb_frame, tb.tb_lasti, line)
    place: Place = Traceback(alone).as_dict()
    place["hidden"] = _is_hidden(tb.tb_frame)
    place["first_line"] = code.co_firstlineno
    place["qualname"] = code.co_qualname
    place["position"] = _position(code, tb.tb_lasti)
    return place


def _position(code: types.CodeType, instruction: int) -> tuple[int | None, ...]:
    """An instruction's first line, last line, first column and last column."""
    if instruction < 0:
        return (None,) * 4
    return next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)


def _is_hidden(frame: types.FrameType) -> bool:
    """Whether the frame's function has told pytest not to show it."""
    # Check the names first: f_locals makes a dict of all variables.
    name = "__tracebackhide__"
    return name in frame.f_code.co_varnames and frame.f_locals.get(name) is True


def _stub() -> Iterator[None]:
    yield


def _hidden_stub(__tracebackhide__: bool) -> Iterator[None]:
    yield


def _make_frame(place: Place) -> types.FrameType:
    stub, variables = (_hidden_stub, (True,)) if place["hidden"] else (_stub, ())
    namespace = dict(place["tb_frame"]["f_globals"])
    generator: Any = types.FunctionType(_make_code(place, stub.__code__), namespace)(*variables)
    frame: types.FrameType = generator.gi_frame
    return frame


def _make_code(place: Place, stub: types.CodeType) -> types.CodeType:
    code = place["tb_frame"]["f_code"]
    return stub.replace(
        co_filename=code["co_filename"],
        co_name=code["co_name"],
        co_qualname=place["qualname"],
        co_firstlineno=place["first_line"],
        co_linetable=_line_table(place, len(stub.co_code) // 2),
    )


def _line_table(place: Place, steps: int) -> bytes:
    """A table that gives ``steps`` instructions the same position. CPython's
    Objects/locations.md describes the format."""
    line, end_line, column, end_column = place["position"]
    if line is None:
        line = place["tb_lineno"]
    delta, rest, kind = line - place["first_line"], b"", _NO_COLUMNS
    if None not in (end_line, column, end_column) and end_line >= line:
        kind = _COLUMNS
        rest = b"".join(map(_varint, (end_line - line, column + 1, end_column + 1)))
    table = bytearray()
    for start in range(0, steps, 8):
        length = min(8, steps - start)
        table.append(0x80 | kind << 3 | length - 1)
        table += _signed_varint(delta) + rest
        delta = 0
    return bytes(table)


def _signed_varint(number: int) -> bytes:
    return _varint(-number << 1 | 1 if number < 0 else number << 1)


def _varint(number: int) -> bytes:
    """Six bits a byte, the lowest first. All bytes except the last are marked."""
    result = bytearray()
    while number >= 64:
        result.append(0x40 | number & 63)
        number >>= 6
    result.append(number)
    return bytes(result)
