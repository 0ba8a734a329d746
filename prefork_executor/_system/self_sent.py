"""Whether a signal was sent by the same code that it has interrupted.

Python does not tell a handler which process sent its signal. But a process that signals itself
gets the signal before the sending call returns. Then the innermost frame, which the handler is
given, is in a call of one of a few functions. Its bytecode tells which function it calls.
"""

from __future__ import annotations

import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SENDERS = frozenset(("kill", "killpg", "raise_signal", "pthread_kill"))
"""The names of the functions, in ``os`` and ``signal``, that send a signal."""


def is_self_sent(frame: types.FrameType | None) -> bool:
    """Whether this frame is calling a function that sends signals. False if the frame does
    not tell: a call that C code makes cannot be seen."""
    try:
        return frame is not None and _called_by(frame) in SENDERS
    except Exception:  # The signal may have come while something used here was being imported.
        return False


def _called_by(frame: types.FrameType) -> Any:
    """The name of the function that is being called."""
    import dis

    done = [step for step in dis.get_instructions(frame.f_code) if step.offset <= frame.f_lasti]
    if not done or not done[-1].opname.startswith("CALL"):
        return None
    start = _start(done[-1])
    names = [
        step.argval for step in done if step.opname.startswith("LOAD") and _start(step) == start
    ]
    if not names or start is None:
        return None
    # The name of an attribute, or of a variable that may hold a function of another name.
    value = frame.f_locals.get(names[-1], frame.f_globals.get(names[-1]))
    return names[-1] if names[-1] in SENDERS else getattr(value, "__name__", None)


def _start(step: Any) -> tuple[int, int] | None:
    """Where this instruction's code begins in the source. A call begins where the name of the
    called function begins."""
    at = step.positions
    return None if at is None or at.lineno is None else (at.lineno, at.col_offset)
