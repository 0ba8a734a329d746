"""Numbers in messages and on screens."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number and what it counts: ``1 worker``, ``2 workers``, ``1,000 workers``. ``noun`` is
    the singular, and takes an s in the plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
