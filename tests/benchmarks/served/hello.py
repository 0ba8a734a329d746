"""The application that every server of the benchmark serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BODY = b"Hello, world!\n" * 8


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """A short answer, whatever was asked."""
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
    start_response("200 OK", headers)
    return [BODY]
