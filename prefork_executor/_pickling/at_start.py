"""What a supervisor starts with, where multiprocessing pickles it: the initializer, for example.

Only supervisors that are not forked need it.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from multiprocessing.context import get_spawning_popen

from .._support.handlers import let_through
from . import calls, reducers
from .blame import describe, find_culprit
from .main_snapshot import main_is_importable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _ByValue:
    """Unpickles as the object that was pickled into it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> Any:
        return pickle.loads, (self._data,)


def portable(thing: Any) -> Any:
    """The object, or a wrapper that unpickles as it in a spawned supervisor. multiprocessing
    pickles what goes there, and does not know cloudpickle. The wrapper is for objects that the
    supervisor will not find: lambdas, and a notebook's definitions."""
    found_there = False
    with _nothing_passed_on():
        try:
            found_there = calls.OF_MAIN not in reducers.dumps(thing, None) or main_is_importable()
        except Exception as error:
            let_through(error)
    if not found_there:
        try:
            return _ByValue(calls.pickle_by_rule(thing, _never, None))
        except Exception as error:
            let_through(error)
    return thing


@contextlib.contextmanager
def _nothing_passed_on() -> Iterator[None]:
    """While something is pickled only to test whether it can be: the process that is being
    started gets none of its descriptors. Otherwise it would get them twice, which fails."""
    passed_on: list[int] = getattr(get_spawning_popen(), "_fds", [])
    before = len(passed_on)
    try:
        yield
    finally:
        del passed_on[before:]


def _never(_thing: Any) -> Any:
    return None


def explain_start(things: Mapping[str, Any], error: Exception) -> pickle.PicklingError | None:
    """Which part of these objects cannot be pickled, so that the start of a supervisor failed
    with this error. None: they are not the reason."""

    def why_not(thing: Any) -> Exception | None:
        try:
            reducers.dumps(portable(thing), None)
        except Exception as found:
            let_through(found)
            # multiprocessing's locks, for example, fail here but did not fail there.
            return found if describe(found) == describe(error) else None
        return None

    for place, thing in things.items():
        if why_not(thing) is not None:
            found = find_culprit(thing, place, why_not)
            return pickle.PicklingError(f"the supervisor cannot be started: {found}")
    return None
