"""How a function, a class or a module travels: by its name, or by value."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Refer = Callable[[Any], Any]
    """Says how a function, a class or a module travels. NotImplemented: by its name. A pair:
    as from ``__reduce__``. BY_VALUE. None: as cloudpickle decides. It may have a method
    ``change_globals``, which may change the globals that travel with a function."""

BY_VALUE = "by value"
_IMMUTABLE = 1 << 8
"""CPython's flag Py_TPFLAGS_IMMUTABLETYPE."""


def is_written_in_c(kind: type) -> bool:
    """Whether this class, like that of ``sys.version_info``, cannot be made from its attributes:
    it never goes by value."""
    return bool(kind.__flags__ & _IMMUTABLE)
