"""What a bridge says if the library that it leads to is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(extra: str, *packages: str) -> Iterator[None]:
    """Import in this context what the extra installs.

    Args:
        extra: the name of prefork-executor's extra.
        packages: the top-level packages that it installs.

    Raises:
        ModuleNotFoundError: one of them is missing. The message says which extra to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in packages:
            raise  # Something that a package itself needs is missing.
        raise ModuleNotFoundError(
            f"{error.name} is not installed, but this part of prefork_executor needs it: "
            f"pip install 'prefork-executor[{extra}]'",
            name=error.name,
            path=error.path,
        ) from error
