"""How a function, a class or a module travels: by its name, or by value."""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Refer = Callable[[Any], Any]
    """Says of a function, a class or a module how it travels: NotImplemented, by its name;
    a pair as ``__reduce__`` returns it; BY_VALUE; or None: as cloudpickle thinks. Its method
    ``change_globals``, if it has one, may change the globals that a function takes along."""

BY_VALUE = "by value"
