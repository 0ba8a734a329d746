"""Whether an exception was raised by a signal handler.

A signal handler of the caller may raise at any line of a call: a timeout by ``signal.alarm``,
say. In some places we take an exception to mean that an object cannot be pickled or has no
length. There a handler's exception must get through: it is meant for the program, and comes
only once.

The traceback shows it. A handler is called with the number of its signal and the frame that it has
interrupted, and that frame precedes its own in the traceback.
"""

from __future__ import annotations

import itertools
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HAS_VARIABLE = 4
"""In a code object's flags: it takes ``*args``."""


def is_by_handler(error: BaseException) -> bool:
    """Whether a Python signal handler has raised it, and no code has caught it since."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        interrupted, step = step.tb_frame, step.tb_next
        if _is_handler(step.tb_frame, interrupted):
            return True
    return False


def let_through(error: BaseException) -> None:
    """Raise the exception again if a signal handler has raised it. For ``except`` clauses
    that catch what any code may have raised."""
    if is_by_handler(error):
        raise error


def _is_handler(frame: types.FrameType, interrupted: types.FrameType) -> bool:
    pairs = itertools.pairwise(_arguments(frame))
    return any(isinstance(number, int) and given is interrupted for number, given in pairs)


def _arguments(frame: types.FrameType) -> list[Any]:
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount
    found = [values.get(name) for name in code.co_varnames[:count]]
    if code.co_flags & _HAS_VARIABLE:
        rest = values.get(code.co_varnames[count + code.co_kwonlyargcount])
        found += rest if isinstance(rest, tuple) else ()
    return found
