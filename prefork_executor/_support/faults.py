"""Named points of the code at which tests let something go wrong.

A promise counts when a test injects the fault and sees it hold. Most faults come from outside, and
a test sends them from there: it kills a process, or stops it. But some must come at one moment, of
a microsecond. For these the code names the moment::

    faults.at("client.starts_supervisor")

and a test says what happens there, as long as its ``with`` lasts::

    with faults.injected("client.starts_supervisor", fail):
        ...

The function that a test injects may raise, wait, end its process, or call the pool as a signal
handler would. Whatever it returns is ignored. It runs in the thread and in the process that has
come to the point.

A process that is forked within the ``with`` inherits what is injected, and keeps it. So the
supervisor and the workers have it if the pool was started by fork within the ``with``; one that is
injected later is injected in this process alone. What is started by spawn or forkserver inherits
nothing: tests that start pools in these ways inject only at points of the caller's own process.

Nothing is injected in production, and then a point costs a call that returns at once. Where a
process passes once a task, even that is too much. There the code asks first::

    if faults.points:
        faults.at("worker.asks")

`fault_points.py` lists all of them. A test holds it against the code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fault = Callable[..., object]


points: dict[str, Fault] = {}
"""What is injected, by the names of the points. Empty in production."""


def at(name: str, *given: Any) -> None:
    """The code has come to this point."""
    if points and (fault := points.get(name)) is not None:
        fault(*given)


@contextlib.contextmanager
def injected(name: str, fault: Fault) -> Iterator[None]:
    """In tests: call ``fault`` at this point, in place of what was called there before.

    Raises:
        ValueError: there is no such point.
    """
    from .fault_points import POINTS  # For tests alone.

    if name not in POINTS:
        raise ValueError(f"no point of the code is called {name!r}")
    before = points.get(name)
    points[name] = fault
    try:
        yield
    finally:
        del points[name]
        if before is not None:
            points[name] = before
