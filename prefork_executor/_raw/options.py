"""The options of raw mode, checked where they are given. Each error names the option."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from .._pool.regulator import Limits
from .._support.arguments import check_function
from .._support.named_tuples import NamedTuple
from .._system.signals import Handler

ChildSignals = Mapping[str, Callable[[int, Any], Any] | str]

MIN_SPARE_SERVERS, MAX_SPARE_SERVERS, START_SERVERS, MAX_SERVERS = 5, 10, 5, 73
"""Defaults, those of the Perl module."""
_UNHANDLED = (signal.SIGKILL, signal.SIGSTOP)


class Spares(NamedTuple):
    """The counts of children as given. None: the default, as far as the others allow it."""

    min_spare_servers: int | None
    max_spare_servers: int | None
    start_servers: int | None
    max_servers: int

    def limits(self) -> Limits:
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
        return Limits(max_servers, min_spare, min(max_spare, max_servers), start, None)

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


def check_term_timeout(value: object) -> None:
    """Raise TypeError or ValueError if the value is no time to wait."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"term_timeout must be a number of seconds, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"term_timeout must be above 0 seconds and finite, not {value!r}")
