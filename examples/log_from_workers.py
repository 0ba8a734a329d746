"""Log records and warnings of workers appear in the caller's log.

python examples/log_from_workers.py
"""

from __future__ import annotations

import logging
import warnings

from prefork_executor import PreforkExecutor
from prefork_executor.integrations.logging import forward_logging

logger = logging.getLogger("shop")


def sell(item: str) -> int:
    """Log a message, a warning and an exception."""
    logger.info("selling %s", item)
    if item == "lamp":
        warnings.warn("lamps will not be sold any more", FutureWarning, stacklevel=1)
    try:
        return {"book": 12, "lamp": 30}[item]
    except KeyError:
        logger.exception("no price for %s", item)
        return 0


def main() -> None:
    """Sell some things, and log the total."""
    logging.basicConfig(format="%(levelname)s %(processName)s %(name)s: %(message)s", level="INFO")
    with PreforkExecutor(2) as executor:
        forward_logging(executor)
        total = sum(executor.map(sell, ["book", "lamp", "dragon"]))
    logger.info("sold for %d in total", total)


if __name__ == "__main__":
    main()
