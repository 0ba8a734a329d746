"""What workers log, print and execute, as a test's other fixtures and plugins see it."""

from __future__ import annotations

import json
import textwrap

import pytest
from inner_pytest import Inner, inner

__all__ = ["inner"]

SPEAKING = """
    import logging, subprocess, sys, warnings

    METHODS = ["fork", "forkserver", "spawn"]
    logger = logging.getLogger("shop")

    def log(number):
        logger.debug("debug %d", number)
        logger.info("info %d", number, extra={"basket": [number]})
        logger.warning("warning %d", number)
        return os.getpid()

    def warn():
        warnings.simplefilter("default")
        warnings.warn("is old", FutureWarning)

    def speak():
        print("a worker speaks")
        print("a worker complains", file=sys.stderr)
        subprocess.run(["echo", "so does a process of its own"])
"""
"""What begins an inner module whose workers log and print."""


# --- caplog -----------------------------------------------------------------------------------


def test_records_made_in_workers_reach_caplog_by_its_level(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    @pytest.mark.parametrize("method", METHODS)
    def test_it(prefork_executor_factory, caplog, method):
        executor = prefork_executor_factory(max_workers=1, mp_context=method)
        pid = executor.submit(log, 1).result()
        assert caplog.record_tuples == [("shop", logging.WARNING, "warning 1")]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            executor.submit(log, 2).result()
            assert caplog.messages == ["info 2", "warning 2"]
            assert caplog.records[0].basket == [2]
            assert caplog.records[0].process == pid
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="shop"):
            executor.submit(log, 3).result()
        assert caplog.messages == ["debug 3", "info 3", "warning 3"]
    """,
    )
    inner.run_apart().assert_outcomes(passed=3)


def test_every_fixture_has_it_and_leaves_the_markers_options_alone(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    heard = []

    def set_up():
        logger.warning("an initializer logs")
        os.environ["READY"] = "1"

    @pytest.mark.prefork(initializer=set_up, on_yell=lambda pid, data: heard.append(data))
    def test_it(prefork_executor, prefork_session_executor, caplog):
        assert prefork_executor.submit(os.getenv, "READY").result() == "1"
        assert "an initializer logs" in caplog.messages
        prefork_session_executor.submit(log, 1).result()
        assert "warning 1" in caplog.messages
        assert heard == []
    """,
    )
    inner.run().assert_outcomes(passed=1)


def test_warnings_of_workers_reach_caplog(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    @pytest.mark.parametrize("method", METHODS)
    def test_it(prefork_executor_factory, caplog, method):
        prefork_executor_factory(mp_context=method).submit(warn).result()
        [record] = caplog.records
        assert record.name == "py.warnings"
        assert "FutureWarning: is old" in record.getMessage()
    """,
    )
    inner.run_apart().assert_outcomes(passed=3)


def test_records_are_shown_with_a_test_that_fails(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    def test_it(prefork_executor):
        prefork_executor.submit(log, 1).result()
        assert False
    """,
    )
    result = inner.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Captured log call*", "WARNING *shop:test_inner.py:* warning 1"])


# --- capfd and capsys -----------------------------------------------------------------------------


def test_prints_of_workers_reach_capfd(inner: Inner) -> None:
    # The fork server is started in another test, whose output it has.
    inner.suite(
        SPEAKING,
        """
    @pytest.mark.parametrize("method", [*METHODS, *METHODS])
    def test_it(prefork_executor_factory, capfd, method):
        prefork_executor_factory(mp_context=method).submit(speak).result()
        out, err = capfd.readouterr()
        assert out == "a worker speaks\\nso does a process of its own\\n"
        assert err == "a worker complains\\n"
    """,
    )
    result = inner.run_apart()
    result.assert_outcomes(passed=6)


def test_capsys_does_not_see_them_but_the_report_does(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    @pytest.mark.parametrize("method", METHODS)
    def test_it(prefork_executor_factory, capsys, method):
        prefork_executor_factory(mp_context=method).submit(speak).result()
        assert capsys.readouterr() == ("", "")
        assert False, "to see the report"
    """,
    )
    result = inner.run_apart()
    result.assert_outcomes(failed=3)
    shown = result.stdout.str()
    assert shown.count("\na worker speaks\nso does a process of its own\n") == 3
    assert shown.count("\na worker complains\n") == 3


# --- other plugins --------------------------------------------------------------------------------


def test_all_of_it_works_under_xdist(inner: Inner) -> None:
    inner.suite(
        SPEAKING,
        """
    # xdist has threads of its own, so Python warns of the fork.
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    @pytest.mark.parametrize("method", METHODS)
    def test_it(prefork_executor_factory, caplog, capfd, method):
        executor = prefork_executor_factory(mp_context=method)
        executor.submit(log, 1).result()
        assert caplog.messages == ["warning 1"]
        executor.submit(speak).result()
        assert capfd.readouterr().out.startswith("a worker speaks\\n")
    """,
    )
    inner.run_apart("-n", "2").assert_outcomes(passed=3)


def test_async_tests_use_the_fixtures(inner: Inner) -> None:
    pytest.importorskip("pytest_asyncio")
    inner.ini("asyncio_default_fixture_loop_scope = function")
    inner.suite(
        SPEAKING,
        """
    import asyncio
    from prefork_executor.integrations.asyncio import run

    @pytest.mark.asyncio
    @pytest.mark.parametrize("method", METHODS)
    async def test_it(prefork_executor_factory, caplog, method):
        executor = prefork_executor_factory(mp_context=method)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 3) == 8
        await run(executor, log, 1)
        assert caplog.messages == ["warning 1"]
    """,
    )
    inner.run_apart("-p", "asyncio").assert_outcomes(passed=3)


COVERED = """
    import pathlib, time
    from prefork_executor.raw import *

    def in_a_worker(method):
        if method == "fork":
            return 1
        if method == "forkserver":
            return 2
        return 3

    def in_an_aborted_task(method):
        if method == "fork":
            pathlib.Path(method).touch() or time.sleep(3600)
        if method == "forkserver":
            pathlib.Path(method).touch() or time.sleep(3600)
        pathlib.Path(method).touch() or time.sleep(3600)

    def in_a_child(listener):
        while taken := pf_kid_accept(listener):
            taken[0].close()
            pf_kid_yell(1, thaw=True)
"""
WORKER, ABORTED, CHILD = {*range(5, 10)}, {*range(12, 17)}, {*range(19, 22)}
"""The lines of its functions' bodies. An aborted task's last line begins before its file is there,
so it has certainly begun when the task is aborted."""


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ("", WORKER | ABORTED | CHILD),
        ("concurrency = multiprocessing\n", ABORTED | CHILD),
        ("patch = subprocess, fork, _exit\nsigterm = true\n", set()),
    ],
    ids=["default", "multiprocessing", "patch"],
)
def test_coverage_of_what_workers_execute_depends_on_its_settings(
    inner: Inner, settings: str, missing: set[int]
) -> None:
    pytest.importorskip("pytest_cov")
    (inner.path / ".coveragerc").write_text(f"[run]\n{settings}")
    (inner.path / "covered.py").write_text(textwrap.dedent(COVERED).strip())
    inner.suite(
        SPEAKING,
        """
    import socket
    import covered

    @pytest.mark.parametrize("method", METHODS)
    def test_workers(prefork_executor_factory, method):
        executor = prefork_executor_factory(mp_context=method)
        assert executor.submit(covered.in_a_worker, method).result()

    @pytest.mark.parametrize("method", METHODS)
    def test_abort(prefork_executor_factory, method):
        # A worker that a busy machine does not let save its data in time is killed.
        executor = prefork_executor_factory(mp_context=method)
        for _ in range(20):
            future = executor.submit(covered.in_an_aborted_task, method)
            until(pathlib.Path(method).exists)
            executor.abort(future)
            if future.exception().__cause__.signal == signal.SIGTERM:
                break
            pathlib.Path(method).unlink()
        else:
            pytest.fail("always killed")

    def test_pool(prefork_pool):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            pool = prefork_pool(covered.in_a_child, (listener,), max_servers=1)
            socket.create_connection(listener.getsockname()).close()
            assert pool.wait_for_yells(1)
            assert pool.stop() == 0
    """,
    )
    inner.run_apart("--cov=covered", "--cov-report=json:report.json").assert_outcomes(passed=7)
    report = json.loads((inner.path / "report.json").read_text())
    assert set(report["files"]["covered.py"]["missing_lines"]) == missing
