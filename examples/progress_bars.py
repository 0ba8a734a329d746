"""Two progress bars: one counts tasks, and the tasks themselves advance the other.

python examples/progress_bars.py [rich|tqdm]
"""

from __future__ import annotations

import hashlib
import sys

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.progress import advance, progress_map

BLOCK = 1_000_000
"""How many bytes are hashed at a time."""


def digest(size: int) -> str:
    """Hash this many zero bytes, and advance the bar after every block of them."""
    hasher = hashlib.sha256()
    for start in range(0, size, BLOCK):
        block = min(BLOCK, size - start)
        hasher.update(bytes(block))
        advance(block)
    return hasher.hexdigest()


def main(bar: str) -> None:
    """Hash zeros of several sizes, twice."""
    sizes = [n * BLOCK for n in range(1, 21)]
    with PreforkExecutor() as executor:
        counted = list(progress_map(executor, digest, sizes, bar=bar, description="Sizes"))
        measured = list(
            progress_map(
                executor,
                digest,
                sizes,
                bar=bar,
                description="Bytes",
                total=sum(sizes),
                self_advancing=True,
            )
        )
    print("same" if counted == measured else "different")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["rich"])
