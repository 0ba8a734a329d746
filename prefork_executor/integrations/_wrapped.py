"""A callable around a task's function. Messages call it by the function's name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Wrapped:
    """Travels to a worker as its function does. Subclasses say how it calls the function.

    Raises:
        TypeError: ``fn`` cannot be called.
    """

    __qualname__: str

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        self.fn = fn
        inner = fn
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.__module__ = getattr(inner, "__module__", None) or "builtins"
        self.__qualname__ = getattr(inner, "__qualname__", None) or type(inner).__qualname__
