"""The logger of this package. A handler or filter of the program that raises harms nobody.

The pool also logs where nothing may raise: in the thread that resolves the futures, in the
supervisor, and before a worker says why its initializer has failed. So what a handler raises is
printed, as ``logging`` prints what its own handlers cannot do, and the pool goes on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback

from .handlers import let_through

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter


class _PoolLogger(Adapter):
    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception as error:
            let_through(error)
            if logging.raiseExceptions and sys.stderr is not None:
                with contextlib.suppress(Exception):
                    traceback.print_exception(error)


logger = _PoolLogger(logging.getLogger("prefork_executor"), {})
