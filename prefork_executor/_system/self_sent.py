"""Whether a signal was sent by the very code that it has interrupted.

A handler in Python is not told who has sent its signal. But a process that signals itself
gets the signal before the call that sends it returns. So the innermost frame, which the
handler is given, is then in a call of one of a few functions, and its bytecode says of which.
"""

from __future__ import annotations

import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SENDERS = frozenset(("kill", "killpg", "raise_signal", "pthread_kill"))
"""The names of the functions, in ``os`` and ``signal``, that send a signal."""


def is_self_sent(frame: types.FrameType | None) -> bool:
    """Whether this frame is in a call of a function that sends signals. False if that
    cannot be told: callers in C are not looked through."""
    try:
        return frame is not None and _called_by(frame) in SENDERS
    except Exception:  # It may have come in the midst of an import of what is used here.
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
    # An attribute's name, or that of a variable, which may hold a function of another name.
    value = frame.f_locals.get(names[-1], frame.f_globals.get(names[-1]))
    return names[-1] if names[-1] in SENDERS else getattr(value, "__name__", None)


def _start(step: Any) -> tuple[int, int] | None:
    """Where in the source begins what this instruction does. A call begins where the name
    of what it calls does."""
    at = step.positions
    return None if at is None or at.lineno is None else (at.lineno, at.col_offset)
