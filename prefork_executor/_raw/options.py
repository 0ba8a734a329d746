"""The options of raw mode, checked where they are given. Each error names the option."""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._pool.regulator import Limits
from .._support.arguments import check_function
from .._support.named_tuples import NamedTuple
from .._system.signals import Handler
from .events import Watchers
from .wear import ChildLimits

DataHook = Callable[[int, Any, int | None], object]
Count = int | str
"""A number of children, or a part of max_servers such as "10%"."""
ChildSignals = Mapping[str, Callable[[int, Any], Any] | str]

MIN_SPARE_SERVERS, MAX_SPARE_SERVERS, START_SERVERS, MAX_SERVERS = 5, 10, 5, 73
"""Defaults, those of the Perl module."""
_UNHANDLED = (signal.SIGKILL, signal.SIGSTOP)


class Settings(NamedTuple):
    """What a raw pool was asked for, checked."""

    limits: Limits
    handlers: dict[int, Handler]
    """Signal dispositions that every child starts with."""
    hook: DataHook | None
    hook_in_main: bool
    return_on_failure: bool
    """The caller retries a fork that failed."""
    term_timeout: float
    handshake_timeout: float
    hook_timeout: float | None
    child_limits: ChildLimits
    watchers: Watchers
    listeners: tuple[socket.socket, ...]


class Spares(NamedTuple):
    """The counts of children. None: the default, as far as the others allow it."""

    min_spare_servers: int | None
    max_spare_servers: int | None
    start_servers: int | None
    max_servers: int

    @classmethod
    def given(
        cls, min_spare: Count | None, max_spare: Count | None, start: Count | None, most: int
    ) -> Spares:
        """With parts of ``max_servers``, such as "10%", rounded up.

        Raises:
            TypeError, ValueError: one of them is no part.
        """
        _check_count("max_servers", most, minimum=1)
        return cls(
            _number("min_spare_servers", min_spare, most),
            _number("max_spare_servers", max_spare, most),
            _number("start_servers", start, most),
            most,
        )

    def limits(self, idle_timeout: float = 0.0) -> Limits:
        """The limits for the regulator.

        Raises:
            TypeError, ValueError: a value that is no count, or two that contradict each other.
        """
        for name, value in self._asdict().items():
            _check_count(name, value, minimum=0 if name == "start_servers" else 1)
        max_servers = self.max_servers
        min_spare = _given(
            self.min_spare_servers, MIN_SPARE_SERVERS, max_servers, self.max_spare_servers
        )
        max_spare = max(_given(self.max_spare_servers, MAX_SPARE_SERVERS, None), min_spare)
        start = _given(self.start_servers, START_SERVERS, max_servers)
        self._check_pairs(max_servers)
        max_spare = min(max_spare, max_servers)
        return Limits(max_servers, min_spare, max_spare, start, idle_timeout, surplus_only=True)

    def _check_pairs(self, max_servers: int) -> None:
        low, high = self.min_spare_servers, self.max_spare_servers
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_spare_servers ({low}) is above max_spare_servers ({high})")
        for name in ("min_spare_servers", "start_servers"):
            value = getattr(self, name)
            if value is not None and value > max_servers:
                raise ValueError(f"{name} ({value}) is above max_servers ({max_servers})")


def _check_count(name: str, value: object, minimum: int) -> None:
    if value is None and name != "max_servers":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def _number(name: str, value: Count | None, whole: int) -> int | None:
    """The value itself, or that part of the whole."""
    if not isinstance(value, str):
        return value
    number = value.removesuffix("%")
    if number == value or not number.strip().isdecimal() or int(number) > 100:
        raise ValueError(f'{name} must be an int, or a part such as "10%", not {value!r}')
    return math.ceil(whole * int(number) / 100)


def _given(value: int | None, default: int, *bounds: int | None) -> int:
    if value is not None:
        return value
    return min([default, *(bound for bound in bounds if bound is not None)])


def handlers(child_sigh: ChildSignals | None) -> dict[int, Handler]:
    """Signal numbers to dispositions. SIGTERM is always among them.

    Raises:
        TypeError, ValueError: there is no such signal, or the value is no handler.
    """
    if child_sigh is None:
        child_sigh = {}
    if not isinstance(child_sigh, Mapping):
        raise TypeError(f"child_sigh must be a mapping, not {type(child_sigh).__name__}")
    found: dict[int, Handler] = {int(signal.SIGTERM): signal.SIG_DFL}
    for names, handler in child_sigh.items():
        checked = _handler(names, handler)
        found.update((number, checked) for number in _signal_numbers(names))
    return found


def _signal_numbers(names: str) -> list[int]:
    if not isinstance(names, str):
        raise TypeError(f"child_sigh: a string of signal names, not {names!r}")
    numbers = []
    for name in names.split():
        number = getattr(signal.Signals, f"SIG{name.removeprefix('SIG')}", None)
        if number is None:
            raise ValueError(f"child_sigh: there is no signal {name!r}")
        if number in _UNHANDLED:
            raise ValueError(f"child_sigh: {name} cannot be handled")
        numbers.append(int(number))
    return numbers


def _handler(names: str, handler: object) -> Handler:
    if isinstance(handler, str) and handler in ("DEFAULT", "IGNORE"):
        return signal.SIG_DFL if handler == "DEFAULT" else signal.SIG_IGN
    if not callable(handler):
        raise TypeError(
            f'child_sigh[{names!r}] must be a callable, "DEFAULT" or "IGNORE", not {handler!r}'
        )
    return handler


def check_hook(hook: object) -> None:
    """Raise TypeError if the hook cannot be called."""
    if hook is not None:
        check_function("child_data_hook", hook)


def check_on_fork_failure(value: object) -> None:
    """Raise ValueError if the value is neither of the two words."""
    if value not in ("retry", "return"):
        raise ValueError(f'on_fork_failure must be "retry" or "return", not {value!r}')


def check_timeout(name: str, value: object) -> None:
    """Raise TypeError or ValueError if the value is no time to wait."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 seconds and finite, not {value!r}")


def check_child_limits(limits: ChildLimits) -> None:
    """Raise TypeError or ValueError, by the option's name, if a limit is none."""
    for name, count in (
        ("max_requests_per_child", limits.max_requests),
        ("max_memory_per_child", limits.max_memory),
    ):
        if count is not None:
            _check_count(name, count, minimum=1)
    for name, seconds in (
        ("max_lifetime", limits.max_lifetime),
        ("busy_timeout", limits.busy_timeout),
    ):
        if seconds is not None:
            check_timeout(name, seconds)
    _check_jitter(limits.jitter)


def _check_jitter(value: object) -> None:
    """Raise TypeError or ValueError unless the value is a part, from 0 up to below 1."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"limits_jitter must be a number, not {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"limits_jitter must be at least 0 and below 1, not {value!r}")


def check_idle_timeout(value: object) -> None:
    """Raise TypeError or ValueError if the value is no time, or below 0."""
    if value != 0 or isinstance(value, bool):
        check_timeout("idle_timeout", value)


def check_listeners(listeners: object) -> tuple[socket.socket, ...]:
    """The listeners as a tuple.

    Raises:
        TypeError: one of them is no socket.
    """
    if isinstance(listeners, socket.socket) or not isinstance(listeners, Iterable):
        kind = type(listeners).__name__
        raise TypeError(f"listeners must be sockets in a list or another iterable, not {kind}")
    found = tuple(listeners)
    for listener in found:
        if not isinstance(listener, socket.socket):
            raise TypeError(f"listeners must be sockets, not {type(listener).__name__}")
    return found
