"""Running tasks send messages: the best solution so far.

python examples/messages.py
"""

from __future__ import annotations

import random

from prefork_executor import PreforkExecutor, yell


def search(seed: int) -> float:
    """Look for a small number, and report every smaller one at once."""
    numbers = random.Random(seed)
    best = 1.0
    for _ in range(10_000):
        number = numbers.random()
        if number < best:
            best = number
            yell(best)
    return best


def main() -> None:
    """Search in several workers, and print each number that is smaller than all before."""
    best = [1.0]

    def hear(pid: int, number: float) -> None:
        # The executor calls this in a thread of its own, for one message after the other.
        if number < best[0]:
            best[0] = number
            print(f"worker {pid} has found {number:.6f}")

    with PreforkExecutor(on_yell=hear) as executor:
        results = list(executor.map(search, range(8)))
    print(f"the best of all is {min(results):.6f}, and a message had it: {best[0] == min(results)}")


if __name__ == "__main__":
    main()
