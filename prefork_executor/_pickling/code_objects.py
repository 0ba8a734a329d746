"""What the code of a function names."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those inside it."""
    todo = [code]
    while todo:
        code = todo.pop()
        yield code
        todo.extend(const for const in code.co_consts if isinstance(const, types.CodeType))


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that this code and the codes inside it name."""
    import dis  # Few programs need it, and it takes long to import.

    return tuple(
        {
            step.argval: None
            for inner in codes(code)
            for step in dis.get_instructions(inner)
            if "GLOBAL" in step.opname or step.opname == "LOAD_NAME"
        }
    )
