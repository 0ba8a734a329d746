"""Descriptors that a pickle promises: the process that unpickles it fetches them from this one.

multiprocessing keeps them until then (``resource_sharer``). A worker that leaves waits until they
have been fetched. But not every pickle is sent. A failure, for example, is pickled in several ways
until one proves right. No process fetches what the other pickles have promised, and a worker that
waited for that would leave seconds later. So what a discarded pickle has promised is given up.

Other threads may promise something while a pickle is made. What is given up is therefore not
closed: a worker only does not wait for it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_given_up: set[int] = set()
"""Numbers of promises, which the sharer calls keys."""


def sharer() -> Any:
    """multiprocessing's sharer of this process; None if no pickle has promised anything."""
    module = sys.modules.get("multiprocessing.resource_sharer")
    if module is None:  # As in nearly every worker, which asks before each result.
        return None
    found = getattr(module, "_resource_sharer", None)  # None while another thread imports it.
    return None if getattr(found, "_thread", None) is None else found


def latest() -> int:
    """The number of the latest promise; 0 if there is none."""
    found = sharer()
    return 0 if found is None else int(found._key)


def give_up_after(number: int) -> None:
    """No process will fetch what was promised after the promise of this number."""
    found = sharer()
    if found is not None:
        _given_up.update(key for key in list(found._cache) if key > number)


def are_open() -> bool:
    """Whether another process may still fetch something."""
    found = sharer()
    return found is not None and not _given_up.issuperset(list(found._cache))
