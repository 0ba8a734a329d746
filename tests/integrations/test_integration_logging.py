"""Log records made in workers, as the caller's loggers get them."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import BOUND

from prefork_executor import PreforkExecutor, WorkerDied, yell
from prefork_executor.integrations.logging import forward_logging

logger = logging.getLogger("shop.orders")


class Kept(logging.Handler):
    """Keeps the records that it handles, and in which process."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler of the logger "shop", which hands on nothing."""
    handler, shop = Kept(), logging.getLogger("shop")
    shop.addHandler(handler)
    shop.setLevel(logging.DEBUG)
    shop.propagate = False
    yield handler
    shop.removeHandler(handler)
    shop.setLevel(logging.NOTSET)
    shop.propagate = True


def log(*words: object) -> tuple[int, str]:
    import multiprocessing

    logger.info("sold %s for %d", *words, extra={"basket": {"size": 3}})
    return os.getpid(), multiprocessing.current_process().name


def test_a_record_reaches_the_callers_logger_as_it_was_made(start_method: str, kept: Kept) -> None:
    with PreforkExecutor(1, start_method) as executor:
        forward_logging(executor)
        pid, name = executor.submit(log, "a book", 12).result()
        [record] = kept.records
    assert record.getMessage() == "sold a book for 12"
    assert (record.levelno, record.levelname) == (logging.INFO, "INFO")
    assert (record.name, record.funcName) == ("shop.orders", "log")
    assert (record.process, record.processName) == (pid, name)
    assert record.basket == {"size": 3}  # type: ignore[attr-defined]
    assert record.lineno == log.__code__.co_firstlineno + 3
    assert pid != os.getpid()


def set_up(word: str) -> None:
    logger.warning("set up")
    os.environ["WORD"] = word


def log_and_yell(count: int) -> str:
    for number in range(count):
        logger.info("record %d", number)
        yell(number)
    return os.environ["WORD"]


def test_initializer_and_on_yell_remain_the_users(start_method: str, kept: Kept) -> None:
    told: list[object] = []

    def hear(_pid: int, data: object) -> None:
        told.append((data, kept.messages[-1]))

    with PreforkExecutor(
        1, start_method, initializer=set_up, initargs=("hi",), on_yell=hear
    ) as executor:
        forward_logging(executor)
        assert executor.submit(log_and_yell, 20).result() == "hi"
        assert kept.messages == ["set up", *(f"record {number}" for number in range(20))]
        assert told == [(number, f"record {number}") for number in range(20)]


def log_at_all_levels() -> None:
    for name in ("shop.orders", "shop.quiet", "elsewhere"):
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            logging.getLogger(name).log(level, "%s %d", name, level)


@pytest.fixture
def quiet() -> Iterator[logging.Logger]:
    logger = logging.getLogger("shop.quiet")
    logger.setLevel(logging.ERROR)
    yield logger
    logger.setLevel(logging.NOTSET)


def test_levels_are_the_callers_each_loggers_own(
    start_method: str, kept: Kept, quiet: logging.Logger
) -> None:
    with PreforkExecutor(1, start_method) as executor:
        forward_logging(executor)
        executor.submit(log_at_all_levels).result()
    assert kept.messages == [
        *("shop.orders 10", "shop.orders 20", "shop.orders 40"),
        "shop.quiet 40",
    ]


def test_a_level_given_decides_what_leaves_a_worker(
    start_method: str, kept: Kept, quiet: logging.Logger
) -> None:
    with PreforkExecutor(1, start_method) as executor:
        forward_logging(executor, "INFO")
        executor.submit(log_at_all_levels).result()
        # The caller's loggers decide again, by the levels that they have then.
        quiet.setLevel(logging.INFO)
        executor.submit(log_at_all_levels).result()
    first = ["shop.orders 20", "shop.orders 40", "shop.quiet 40"]
    assert kept.messages == [*first, *first[:2], "shop.quiet 20", "shop.quiet 40"]


def log_an_exception() -> None:
    try:
        raise ValueError("out of stock")
    except ValueError:
        logger.exception("failed")
    logger.info("here", stack_info=True)


def test_exceptions_and_stacks_come_as_text(start_method: str, kept: Kept) -> None:
    with PreforkExecutor(1, start_method) as executor:
        forward_logging(executor)
        executor.submit(log_an_exception).result()
    failed, here = kept.records
    shown = logging.Formatter("%(message)s").format(failed)
    assert shown.startswith("failed\nTraceback (most recent call last):\n")
    assert "in log_an_exception" in shown
    assert shown.endswith("ValueError: out of stock")
    assert "in log_an_exception" in logging.Formatter().format(here)


def warn() -> None:
    warnings.simplefilter("default")
    warnings.warn("is old", FutureWarning, stacklevel=1)


def test_warnings_come_as_records(start_method: str, caplog: pytest.LogCaptureFixture) -> None:
    with PreforkExecutor(1, start_method) as executor:
        forward_logging(executor)
        executor.submit(warn).result()
    [(name, level, text)] = caplog.record_tuples
    assert (name, level) == ("py.warnings", logging.WARNING)
    assert "FutureWarning: is old" in text


def test_warnings_come_even_if_the_caller_keeps_its_own(caplog: pytest.LogCaptureFixture) -> None:
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings(record=True), PreforkExecutor(1, "fork") as executor:
            forward_logging(executor)
            executor.submit(warn).result()
    finally:
        logging.captureWarnings(False)
    assert "FutureWarning: is old" in caplog.text


def log_what_cannot_travel() -> None:
    logger.info("waiting", extra={"lock": threading.Lock(), "number": 3})


def test_what_cannot_be_pickled_comes_as_its_repr(kept: Kept) -> None:
    with PreforkExecutor(1) as executor:
        forward_logging(executor)
        executor.submit(log_what_cannot_travel).result()
    fields: dict[str, Any] = vars(kept.records[0])
    assert fields["lock"].startswith("<unlocked _thread.lock")
    assert fields["number"] == 3
    assert kept.messages == ["waiting"]


def log_badly() -> str:
    logger.info("%d", "no number")
    logger.info("fine")
    return "done"


def test_a_bad_record_fails_no_task(kept: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    with PreforkExecutor(1, "spawn") as executor:
        forward_logging(executor)
        assert executor.submit(log_badly).result() == "done"
    assert kept.messages == ["fine"]
    assert "--- Logging error ---" in capfd.readouterr().err


def log_and_die() -> None:
    logger.error("dying")
    os._exit(3)


def test_what_a_worker_logs_before_it_dies_is_not_lost(kept: Kept) -> None:
    with PreforkExecutor(1) as executor:
        forward_logging(executor)
        future = executor.submit(log_and_die)
        assert isinstance(future.exception(BOUND), WorkerDied)
        assert kept.messages == ["dying"]


def log_in_a_fork() -> None:
    pid = os.fork()
    if not pid:
        logger.warning("from a fork")
        os._exit(0)
    os.waitpid(pid, 0)


def test_what_a_fork_of_a_worker_logs_goes_to_stderr(
    kept: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    with PreforkExecutor(1, "spawn") as executor:
        forward_logging(executor)
        executor.submit(log_in_a_fork).result()
    assert kept.messages == []
    assert "from a fork" in capfd.readouterr().err


def test_handlers_that_a_worker_has_inherited_are_not_used_there(
    kept: Kept, tmp_path: Path
) -> None:
    file = logging.FileHandler(tmp_path / "log", delay=True)
    logging.getLogger("shop").addHandler(file)
    file.addFilter(lambda _record: True)
    try:
        with PreforkExecutor(1, "fork") as executor:
            forward_logging(executor)
            executor.submit(log, "a pen", 1).result()
    finally:
        logging.getLogger("shop").removeHandler(file)
        file.close()
    assert (tmp_path / "log").read_text() == "sold a pen for 1\n"


def log_to_file(path: str) -> None:
    logging.getLogger("shop").addHandler(logging.FileHandler(path))


def test_handlers_that_the_initializer_adds_are_used_beside_it(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with PreforkExecutor(1, initializer=log_to_file, initargs=(str(path),)) as executor:
        forward_logging(executor)
        executor.submit(log, "a pen", 1).result()
    assert path.read_text() == "sold a pen for 1\n"
    assert kept.messages == ["sold a pen for 1"]


def test_asking_twice_is_the_same_as_once(kept: Kept) -> None:
    with PreforkExecutor(1) as executor:
        forward_logging(executor)
        forward_logging(executor)
        executor.submit(log, "a pen", 1).result()
    assert kept.messages == ["sold a pen for 1"]


def log_at(level: int) -> None:
    logger.log(level, "noted")


def test_a_level_of_the_callers_own_keeps_its_name(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_levelToName", {**logging._levelToName, 25: "NOTICE"})
    with PreforkExecutor(1, "spawn") as executor:
        forward_logging(executor)
        executor.submit(log_at, 25).result()
    assert kept.records[0].levelname == "NOTICE"


def test_it_comes_before_the_first_task() -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(abs, 1).result()
        with pytest.raises(RuntimeError, match="comes before the first task"):
            forward_logging(executor)


@pytest.mark.parametrize(("level", "error"), [("LOUD", ValueError), (1.5, TypeError)])
def test_a_level_that_there_is_not_is_an_error(level: Any, error: type[Exception]) -> None:
    with PreforkExecutor(1) as executor, pytest.raises(error):
        forward_logging(executor, level)
