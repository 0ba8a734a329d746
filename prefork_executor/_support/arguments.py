"""Checks of arguments, where they are given: each error names the argument."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

FOREVER = 1e9
"""Seconds, about thirty years. A time to wait that is this long or longer counts as one
without an end: far longer ones overflow the clocks of the system."""


def check_int(name: str, value: object, *, takes_bool: bool = False) -> None:
    """Raise TypeError unless the value is an int or one of NumPy's integers. A bool is most
    likely a mistake. Where ProcessPoolExecutor accepts one as an int, so do we (``takes_bool``)."""
    if type(value) is int or (takes_bool and type(value) is bool):
        return
    import numbers  # Most programs never need it.

    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")


def check_count(name: str, value: int, minimum: int, *, takes_bool: bool = False) -> None:
    """Raise TypeError unless the value is an int (see :func:`check_int`), and ValueError if it
    is below ``minimum``."""
    check_int(name, value, takes_bool=takes_bool)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {brief(value)}")


def brief(value: int) -> str:
    """The number, for a message. Python refuses to print one of thousands of digits."""
    return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"


def check_buffersize(value: int | None) -> int | None:
    """Check the ``buffersize`` of a ``map``, and lower it to what iterators can count to.

    Raises:
        TypeError, ValueError: the value is no int, or below 1. The message is that of
            Python's own ``map``, and names the value.
    """
    if value is None:
        return None
    try:
        check_int("buffersize", value, takes_bool=True)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"buffersize must be an integer or None, not {kind}") from None
    if value < 1:
        raise ValueError(f"buffersize must be None or > 0, not {brief(value)}")
    return min(value, sys.maxsize)


def check_order(name: str, value: int, bound_name: str, bound: int) -> None:
    """Raise ValueError if a limit is above the one that bounds it."""
    if value > bound:
        raise ValueError(f"{name} ({brief(value)}) must not be above {bound_name} ({bound})")


def check_function(name: str, value: object) -> None:
    """Raise TypeError unless the value can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {type(value).__name__}")


def check_callable(name: str, value: object) -> None:
    """Raise TypeError unless the value can be called or is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {type(value).__name__}")


def check_iterable(name: str, value: Iterable[T]) -> Iterator[T]:
    """An iterator over the value. Raises TypeError if there can be none."""
    try:
        return iter(value)
    except TypeError as error:
        raise TypeError(f"{name} must be iterable, not {type(value).__name__}") from error


def check_seconds(name: str, value: Any) -> float | None:
    """Seconds as a float. None means without an end: for None, and from FOREVER on.

    Raises:
        TypeError: the value is no number.
        ValueError: the value is nan.
    """
    if value is None:
        return None
    if type(value) is not int and type(value) is not float:
        import numbers  # Most programs never need it.

        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be seconds or None, not {type(value).__name__}")
    if value != value:
        raise ValueError(f"{name} must be seconds, not nan")
    # Not every int fits into a float.
    return None if value >= FOREVER else float(max(value, -FOREVER))


def time_limit(name: str, value: object) -> float | None:
    """As :func:`check_seconds`, for a time that must be above 0."""
    seconds = check_seconds(name, value)
    if seconds is not None and seconds <= 0:
        raise ValueError(f"{name} must be above 0 seconds, not {seconds:g}")
    return seconds


def check_resource_names(resources: object) -> None:
    """Raise TypeError unless this maps names to something, and ValueError if a name is empty."""
    if not isinstance(resources, Mapping):
        kind = type(resources).__name__
        raise TypeError(f"resources must be a mapping of names to numbers, not {kind}")
    for name in resources:
        if not isinstance(name, str):
            raise TypeError(f"the names of resources must be strings, not {type(name).__name__}")
        if not name:
            raise ValueError("the name of a resource must not be empty")


def has_future(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether there is a future among these arguments of a call."""
    # By their types: an argument's __class__ may be a lie, and asking for it may run code.
    for arg in args:
        if issubclass(type(arg), Future):
            return True
    return bool(kwargs) and any(issubclass(type(arg), Future) for arg in kwargs.values())
