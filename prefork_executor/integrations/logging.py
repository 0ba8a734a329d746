"""Log records made in workers, handled by the caller's own loggers.

    executor = PreforkExecutor()
    forward_logging(executor)

A new worker's loggers are reset, whatever they have inherited: no handlers, no filters, the
levels that the caller's had. Their records and warnings go upstream by `yell`, so in order and
before the task's result. There the caller's logger of the same name gets them, and its levels,
filters and handlers decide.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefork_executor import PreforkExecutor, yell

__all__ = ["LogMessage", "forward_logging"]

_FORMATTER = logging.Formatter()
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class LogMessage:
    """A record on its way.

    Attributes:
        fields: the record's fields by name. The message is complete, the exception a text.
    """

    fields: dict[str, Any]


def forward_logging(executor: PreforkExecutor, level: int | str | None = None) -> None:
    """Have the caller's loggers handle what workers log, and warnings in workers.

    The records keep their time, level, extra fields and the worker's process id and
    name. They are handled in the executor's own thread, so a handler that blocks delays
    the pool. The executor's ``initializer`` and ``on_yell`` remain the user's. Handlers
    that ``initializer`` adds stay in force.

    Args:
        executor: one that has not had its first task.
        level: the lowest level of records that leave a worker. None: each logger has
            the level that the caller's logger of that name has now.

    Raises:
        RuntimeError: the executor has had its first task, or was shut down.
        TypeError, ValueError: there is no such level.
    """
    # A handler turns a level into a number, and raises if there is no such level.
    levels = _levels() if level is None else {"": logging.Handler(level).level}
    executor.add_initializer(_start_forwarding, levels)
    executor.add_yell_hook(LogMessage, _handle)


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _levels() -> dict[str, int]:
    """The levels that were set, by the names of the loggers. The root's name is empty."""
    named = {logger.name: logger.level for logger in _loggers() if logger.level}
    return named | {"": logging.root.level}


# --- in a worker ----------------------------------------------------------------------------


class _Forwarder(logging.Handler):
    """Sends records upstream."""

    def __init__(self) -> None:
        super().__init__()
        self._worker = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() == self._worker:
            self._send(record)
        elif logging.lastResort and record.levelno >= logging.lastResort.level:
            # A process that a task has forked cannot send upstream.
            logging.lastResort.handle(record)

    def _send(self, record: logging.LogRecord) -> None:
        try:
            fields = _fields(record)
            try:
                yell(LogMessage(fields))
            except pickle.PicklingError:
                yell(LogMessage({name: _plain(value) for name, value in fields.items()}))
        except (BrokenPipeError, ConnectionResetError):
            pass  # The caller has gone.
        except Exception:  # noqa: BLE001 - as in every handler: a bad record fails no task
            self.handleError(record)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    text = record.exc_text
    if record.exc_info and not text:
        text = _FORMATTER.formatException(record.exc_info)
    message = {"msg": record.getMessage(), "args": None}
    return {**vars(record), **message, "exc_info": None, "exc_text": text}


def _plain(value: object) -> object:
    return value if type(value) in _PLAIN else repr(value)


def _start_forwarding(levels: dict[str, int]) -> None:
    for logger in _loggers():
        logger.handlers.clear()
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.disabled = False
    logging.disable(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.root.addHandler(_Forwarder())
    # Off and on: what it had replaced may have been replaced since, by pytest for example.
    logging.captureWarnings(False)
    logging.captureWarnings(True)


# --- in the caller's process ------------------------------------------------------------------


def _handle(_pid: int, message: LogMessage) -> None:
    record = logging.makeLogRecord(message.fields)
    record.levelname = logging.getLevelName(record.levelno)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
