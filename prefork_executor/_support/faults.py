"""Named points of the code at which tests inject faults.

A promise counts when a test injects the fault and sees it hold. A test causes most faults from
outside: it kills or stops a process. But some faults must happen within a certain microsecond.
For these the code names the moment::

    faults.at("client.starts_supervisor")

and a test says what happens there within its ``with`` block::

    with faults.injected("client.starts_supervisor", fail):
        ...

The injected function may raise, wait, end its process, or call the pool as a signal handler
would. What it returns is ignored. It runs in the process and the thread that has reached the
point.

A process that is forked within the block inherits the injected functions, and keeps them. So the
supervisor and the workers have them if the pool was started by fork within the block. A function
that is injected later is in this process alone. Processes that are started by spawn or forkserver
inherit nothing. Tests that start pools in these ways inject only at points of the caller's process.

Nothing is injected in production, and a point costs a call that returns at once. At a point that
every task passes, even that is too much. There the code asks first::

    if faults.points:
        faults.at("worker.asks")

`fault_points.py` lists all points. A test compares the list with the code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fault = Callable[..., object]


points: dict[str, Fault] = {}
"""The injected functions, by the names of their points. Empty in production."""


def at(name: str, *given: Any) -> None:
    """The code has reached this point."""
    if points and (fault := points.get(name)) is not None:
        fault(*given)


@contextlib.contextmanager
def injected(name: str, fault: Fault) -> Iterator[None]:
    """In tests: call ``fault`` at this point, instead of a function injected before.

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
