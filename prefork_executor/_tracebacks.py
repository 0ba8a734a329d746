"""Tracebacks to plain data and back: real ones, with frames.

tblib's idea: a traceback that Python and its debuggers take for one of their own
needs frames, and a frame comes from running a stub whose code has the right file
and name. What is told of a frame is what tblib tells of it, and more, so that a
remote traceback prints, and is shown by a debugger, exactly as a local one: the
line and the columns of the instruction, where its function begins, and
``__tracebackhide__``. So the stubs are made here and not by tblib, whose own have
neither.

The variables do not travel: they are the task's data, of any kind and any size.

tblib is never installed into copyreg: what pickle does elsewhere in the caller's
process is not ours to change.
"""

from __future__ import annotations

import itertools
import types
from typing import Any

MOST_FRAMES = 1000
"""Frames of one traceback that travel, as many as Python's own recursion limit
allows; of a longer one the two ends, and between them a frame that says so."""

Place = dict[str, Any]
"""What is told of one frame of a traceback."""

_STUB = compile("raise __remote_frame__", "<remote>", "exec")
"""Fails, because nothing has that name; which is all that it is for."""
_NO_COLUMNS, _COLUMNS = 13, 14
"""Kinds of entries of a code object's line table."""


def dump_traceback(traceback: types.TracebackType | None, skip_frames: int) -> list[Place]:
    """A traceback, without so many of its outermost frames if it has others."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    # At least one stays: where else could the exception have been raised?
    frames = frames[min(skip_frames, len(frames) - 1) :] if frames else []
    if len(frames) <= MOST_FRAMES:
        return [_dump_frame(tb) for tb in frames]
    half = MOST_FRAMES // 2
    gap = _dump_frame(frames[half])
    gap["tb_frame"]["f_code"]["co_filename"] = f"<{len(frames) - 2 * half} more frames>"
    return [*map(_dump_frame, frames[:half]), gap, *map(_dump_frame, frames[-half:])]


def load_traceback(places: list[Place]) -> types.TracebackType | None:
    """The traceback that :func:`dump_traceback` was given."""
    result: types.TracebackType | None = None
    for place in reversed(places):
        made = _run_stub(_make_code(place), place["tb_frame"])
        result = types.TracebackType(result, made.tb_frame, made.tb_lasti, place["tb_lineno"])
    return result


def _dump_frame(tb: types.TracebackType) -> Place:
    from tblib import Traceback

    code = tb.tb_frame.f_code
    line = tb.tb_lineno if tb.tb_lineno is not None else code.co_firstlineno
    # One by one: tblib's own chain nests, and pickling would recurse into it.
    alone = types.TracebackType(None, tb.tb_frame, tb.tb_lasti, line)
    place: Place = Traceback(alone, get_locals=_get_locals).as_dict()
    place["first_line"] = code.co_firstlineno
    place["qualname"] = code.co_qualname
    place["position"] = _position(code, tb.tb_lasti)
    return place


def _position(code: types.CodeType, instruction: int) -> tuple[int | None, ...]:
    """An instruction's first and last line and first and last column."""
    if instruction < 0:
        return (None,) * 4
    return next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)


def _get_locals(frame: types.FrameType) -> dict[str, Any]:
    if "__tracebackhide__" in frame.f_code.co_varnames:
        return {"__tracebackhide__": bool(frame.f_locals.get("__tracebackhide__"))}
    return {}


def _make_code(place: Place) -> types.CodeType:
    code = place["tb_frame"]["f_code"]
    return _STUB.replace(
        co_filename=code["co_filename"],
        co_name=code["co_name"],
        co_qualname=place["qualname"],
        co_firstlineno=place["first_line"],
        co_linetable=_line_table(place),
    )


def _run_stub(code: types.CodeType, frame: dict[str, Any]) -> types.TracebackType:
    try:
        exec(code, dict(frame["f_globals"]), dict(frame["f_locals"]))
    except NameError as error:
        ours: Any = error.__traceback__
        theirs: types.TracebackType = ours.tb_next
        return theirs
    raise AssertionError


def _line_table(place: Place) -> bytes:
    """A table that gives every instruction of the stub the one position. The format
    is described in CPython's Objects/locations.md."""
    line, end_line, column, end_column = place["position"]
    if line is None:
        line = place["tb_lineno"]
    delta, rest, kind = line - place["first_line"], b"", _NO_COLUMNS
    if None not in (end_line, column, end_column) and end_line >= line:
        kind = _COLUMNS
        rest = b"".join(map(_varint, (end_line - line, column + 1, end_column + 1)))
    table = bytearray()
    for start in range(0, len(_STUB.co_code) // 2, 8):
        length = min(8, len(_STUB.co_code) // 2 - start)
        table.append(0x80 | kind << 3 | length - 1)
        table += _signed_varint(delta) + rest
        delta = 0
    return bytes(table)


def _signed_varint(number: int) -> bytes:
    return _varint(-number << 1 | 1 if number < 0 else number << 1)


def _varint(number: int) -> bytes:
    """Six bits a byte, the lowest first; all bytes but the last are marked."""
    result = bytearray()
    while number >= 64:
        result.append(0x40 | number & 63)
        number >>= 6
    result.append(number)
    return bytes(result)
