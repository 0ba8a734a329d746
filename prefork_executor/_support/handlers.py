"""Whether an exception was raised by a signal handler, and is nobody else's.

A handler of the caller's may raise at any line of a call: a timeout by ``signal.alarm``, say.
Where an exception is taken for that of the thing at hand, which cannot be pickled or has no
length, one of a handler's must get through: it is for the program, and it comes but once.

It is known by its traceback. A handler is called with the number of its signal and the frame
that it has interrupted, and that is the frame before its own.
"""

from __future__ import annotations

import itertools
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HAS_VARIABLE = 4
"""In a code's flags: it takes any number of arguments, the rest of them in a tuple."""


def is_by_handler(error: BaseException) -> bool:
    """Whether a signal handler in Python has raised it, and nobody has caught it before."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        interrupted, step = step.tb_frame, step.tb_next
        if _is_handler(step.tb_frame, interrupted):
            return True
    return False


def let_through(error: BaseException) -> None:
    """Raise it again if a signal handler has raised it. In an ``except`` of what may be
    anybody's."""
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
