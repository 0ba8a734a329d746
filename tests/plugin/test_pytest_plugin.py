"""The pytest plugin, as its users see it: small suites run by an inner pytest."""

from __future__ import annotations

import psutil
import pytest
from inner_pytest import NO_TIME, Inner, inner, output
from waiting import BOUND, eventually

from prefork_executor.pytest_plugin import TEARDOWN_TIMEOUT

__all__ = ["inner"]

# --- the fixtures ---------------------------------------------------------------------------


def test_the_executor_of_a_test_works(inner: Inner) -> None:
    inner.suite("""
    def test_it(prefork_executor):
        assert isinstance(prefork_executor, PreforkExecutor)
        assert prefork_executor.submit(pow, 2, 3).result() == 8
        assert list(prefork_executor.map(abs, [-1, 2])) == [1, 2]
    """)
    inner.run().assert_outcomes(passed=1)


def test_each_test_has_an_executor_of_its_own(inner: Inner) -> None:
    inner.suite("""
    seen = []

    @pytest.mark.parametrize("again", [False, True])
    def test_it(prefork_executor, again):
        assert prefork_executor not in seen
        assert prefork_executor.stats().finished == 0
        assert prefork_executor.submit(pow, 2, 3).result() == 8
        seen.append(prefork_executor)
        if again:
            assert len(seen) == 2
            with pytest.raises(RuntimeError, match="after shutdown"):
                seen[0].submit(pow, 2, 3)
            assert seen[0].stats().workers == ()
    """)
    inner.run().assert_outcomes(passed=2)


def test_the_factory_makes_executors_and_ends_the_latest_first(inner: Inner) -> None:
    inner.suite("""
    made, ended = [], []

    @pytest.fixture
    def recorded(monkeypatch):
        shutdown = PreforkExecutor.shutdown
        def record(self, *args, **kwargs):
            ended.append(self)
            shutdown(self, *args, **kwargs)
        monkeypatch.setattr(PreforkExecutor, "shutdown", record)

    def test_make(recorded, prefork_executor_factory):
        for workers in (1, 2, 3):
            executor = prefork_executor_factory(max_workers=workers)
            assert executor.stats().max_workers == workers
            assert executor.submit(pow, 2, 3).result() == 8
            made.append(executor)

    def test_all_have_ended():
        assert len(made) == 3
        assert ended == made[::-1]
        assert all(executor.join(0) for executor in made)
    """)
    inner.run().assert_outcomes(passed=2)


def test_the_session_has_one_executor_and_its_processes_go_with_it(inner: Inner) -> None:
    inner.suite("""
    seen = set()

    @pytest.mark.parametrize("number", range(3))
    def test_it(prefork_session_executor, number):
        seen.add(prefork_session_executor)
        worker = prefork_session_executor.submit(os.getpid).result()
        supervisor = prefork_session_executor.submit(os.getppid).result()
        with open("pids", "a") as file:
            print(worker, supervisor, file=file)
        assert len(seen) == 1
        assert prefork_session_executor.stats().finished >= number
    """)
    inner.run_apart().assert_outcomes(passed=3)
    pids = {int(pid) for pid in (inner.path / "pids").read_text().split()}
    assert len(pids) >= 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_executor_that_the_test_shut_down_itself_is_fine(inner: Inner) -> None:
    inner.suite("""
    def test_it(prefork_executor):
        with prefork_executor:
            assert prefork_executor.submit(pow, 2, 3).result() == 8
    """)
    inner.run().assert_outcomes(passed=1)


def test_a_crash_in_one_test_does_not_reach_the_next(inner: Inner) -> None:
    inner.suite("""
    from prefork_executor import WorkerDied

    def fail():
        raise OSError("no")

    def test_worker(prefork_executor):
        assert isinstance(prefork_executor.submit(os._exit, 3).exception(), WorkerDied)

    def test_next(prefork_executor, prefork_session_executor):
        assert prefork_executor.submit(pow, 2, 3).result() == 8
        assert isinstance(prefork_session_executor.submit(os._exit, 3).exception(), WorkerDied)

    @pytest.mark.prefork(initializer=fail)
    def test_initializer(prefork_executor):
        assert "no" in str(prefork_executor.submit(pow, 2, 3).exception())

    def test_last(prefork_executor, prefork_session_executor):
        assert prefork_executor.submit(pow, 2, 3).result() == 8
        assert prefork_session_executor.submit(pow, 2, 3).result() == 8
    """)
    inner.run_apart().assert_outcomes(passed=4)


# --- the marker -----------------------------------------------------------------------------


def test_the_marker_is_declared(inner: Inner) -> None:
    result = inner.run("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.prefork([*][*]options): *"])


def test_marker_options_reach_the_executor(inner: Inner) -> None:
    inner.suite("""
    def tell(value):
        os.environ["TOLD"] = value

    @pytest.mark.prefork(max_workers=3, initializer=tell, initargs=("hello",))
    def test_it(prefork_executor):
        assert prefork_executor.stats().max_workers == 3
        assert prefork_executor.submit(os.getenv, "TOLD").result() == "hello"
    """)
    inner.run().assert_outcomes(passed=1)


def test_the_closest_marker_wins_option_by_option(inner: Inner) -> None:
    inner.suite("""
    def tell(value):
        os.environ["TOLD"] = value

    pytestmark = pytest.mark.prefork(max_workers=5, initializer=tell, initargs=("module",))

    def options(executor):
        return executor.stats().max_workers, executor.submit(os.getenv, "TOLD").result()

    @pytest.mark.prefork(max_workers=4)
    class TestClass:
        def test_class(self, prefork_executor):
            assert options(prefork_executor) == (4, "module")

        @pytest.mark.prefork(initargs=("function",))
        def test_function(self, prefork_executor):
            assert options(prefork_executor) == (4, "function")

    def test_module(prefork_executor):
        assert options(prefork_executor) == (5, "module")
    """)
    inner.run().assert_outcomes(passed=3)


def test_marker_options_are_the_factorys_defaults(inner: Inner) -> None:
    inner.suite("""
    @pytest.mark.prefork(max_workers=3)
    def test_it(prefork_executor_factory):
        assert prefork_executor_factory().stats().max_workers == 3
        assert prefork_executor_factory(max_workers=4).stats().max_workers == 4
    """)
    inner.run().assert_outcomes(passed=1)


@pytest.mark.parametrize("fixture", ["prefork_executor", "prefork_executor_factory"])
@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("max_worker=1", "*no option 'max_worker', did you mean 'max_workers'?"),
        ("colour=1", "*no option 'colour', there are *initializer, *max_workers*"),
        ("3", "*options are given by name, as max_workers=2, not 3"),
    ],
)
def test_a_bad_marker_is_an_error_that_names_test_and_option(
    inner: Inner, fixture: str, marker: str, complaint: str
) -> None:
    inner.suite(f"""
    @pytest.mark.prefork({marker})
    def test_it({fixture}):
        pass
    """)
    result = inner.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_it*", f"@pytest.mark.prefork: {complaint}", "*::test_it."]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("max_workers=0", "max_workers must be greater than 0 (in force: max_workers=0)"),
        ("initargs=3", "initargs must be iterable, not int (*)"),
        ("min_spare_workers=9", "min_spare_workers (9) must not be above max_workers (2) (*)"),
    ],
)
def test_a_bad_value_in_a_marker_is_an_error_that_names_test_and_option(
    inner: Inner, marker: str, complaint: str
) -> None:
    inner.suite(f"""
    @pytest.mark.prefork({marker})
    def test_it(prefork_executor):
        pass
    """)
    result = inner.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at setup of test_it*", f"@pytest.mark.prefork: {complaint}", "*::test_it."]
    )
    result.stdout.no_fnmatch_line("*During handling*")


def test_a_bad_option_given_to_the_factory_is_raised_there(inner: Inner) -> None:
    inner.suite("""
    @pytest.mark.prefork(min_spare_workers=2)
    def test_it(prefork_executor_factory):
        with pytest.raises(ValueError, match="min_spare_workers") as caught:
            prefork_executor_factory(max_workers=1)
        assert caught.value.__notes__ == [
            "Options in force: max_workers=1, min_spare_workers=2"
        ]
        with pytest.raises(TypeError, match="colour"):
            prefork_executor_factory(colour=1)
    """)
    inner.run().assert_outcomes(passed=1)


# --- the options ----------------------------------------------------------------------------

ALL_HAVE = """
    def test_it(prefork_executor, prefork_executor_factory, prefork_session_executor):
        executors = prefork_executor, prefork_executor_factory(), prefork_session_executor
        assert [executor.stats().max_workers for executor in executors] == [{0}] * 3
"""


def test_the_default_is_two_workers(inner: Inner) -> None:
    inner.suite(ALL_HAVE.format(2))
    inner.run_apart().assert_outcomes(passed=1)


def test_the_ini_option_comes_before_the_default(inner: Inner) -> None:
    inner.ini("prefork_max_workers = 3")
    inner.suite(ALL_HAVE.format(3))
    inner.run_apart().assert_outcomes(passed=1)


def test_the_command_line_comes_before_the_ini_option(inner: Inner) -> None:
    inner.ini("prefork_max_workers = 3")
    inner.suite(ALL_HAVE.format(4))
    inner.run_apart("--prefork-max-workers=4").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--prefork-max-workers=0"], "--prefork-max-workers must be a whole number*, not '0'"),
        (["--prefork-max-workers=x"], "--prefork-max-workers must be a whole number*, not 'x'"),
        (["-o", "prefork_max_workers=1.5"], "prefork_max_workers must be a whole*, not '1.5'"),
        (["-o", "prefork_teardown_timeout=0"], "prefork_teardown_timeout must be a*, not '0'"),
        (["-o", "prefork_teardown_timeout=nan"], "prefork_teardown_timeout must be*, not 'nan'"),
        (["-o", "prefork_teardown_timeout=soon"], "prefork_teardown_timeout must*, not 'soon'"),
    ],
)
def test_a_bad_option_is_a_usage_error(inner: Inner, args: list[str], complaint: str) -> None:
    result = inner.run_apart(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {complaint}"])


# --- the teardown ---------------------------------------------------------------------------


def test_a_test_that_leaves_hanging_tasks_fails_by_name(inner: Inner) -> None:
    inner.suite("""
    def test_before(prefork_executor):
        assert prefork_executor.submit(pow, 2, 3).result() == 8

    def test_hangs(prefork_executor):
        leave_running(prefork_executor, hang, "one")
        leave_running(prefork_executor, hang_and_ignore_sigterm, "two")

    def test_after(prefork_executor):
        for name in ("one", "two"):
            assert not os.path.exists("/proc/" + pathlib.Path(name).read_text())
        assert prefork_executor.submit(pow, 2, 3).result() == 8
    """)
    # With the usual bound, for the sake of the two tests that leave nothing.
    result = inner.run_apart()
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*ERROR at teardown of test_hangs*",
            f"prefork_executor did not end within {TEARDOWN_TIMEOUT:g} s; still alive:",
            f"  worker {inner.pid('one')}, busy for * s with task test_inner.hang",
            f"  worker {inner.pid('two')}, busy for * s with task test_inner.hang_and_ignore_*",
            "They have been killed*",
            "ERROR test_inner.py::test_hangs*",
        ]
    )
    for name in ("one", "two"):
        assert not psutil.pid_exists(inner.pid(name))


def test_it_stops_a_run_with_x(inner: Inner) -> None:
    inner.suite("""
    def test_hangs(prefork_executor):
        leave_running(prefork_executor, hang, "pid")

    def test_not_reached():
        pass
    """)
    result = inner.run_with_no_time("-x")
    result.assert_outcomes(passed=1, errors=1)
    assert not psutil.pid_exists(inner.pid("pid"))


def test_x_with_a_failing_test_leaves_nothing(inner: Inner) -> None:
    inner.suite("""
    def test_fails(prefork_executor, prefork_session_executor):
        leave_running(prefork_executor, hang, "pid")
        leave_running(prefork_session_executor, hang, "pid-of-session")
        assert False

    def test_not_reached():
        pass
    """)
    result = inner.run_with_no_time("-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for name in ("pid", "pid-of-session"):
        result.stdout.fnmatch_lines([f"*worker {inner.pid(name)}, busy for *test_inner.hang"])
        assert not psutil.pid_exists(inner.pid(name))


def test_all_executors_of_the_factory_are_named_within_one_bound(inner: Inner) -> None:
    inner.suite("""
    def test_hangs(prefork_executor_factory):
        leave_running(prefork_executor_factory(), hang, "one")
        prefork_executor_factory().submit(pow, 2, 3).result()
        leave_running(prefork_executor_factory(), hang, "two")
    """)
    result = inner.run_with_no_time()
    result.assert_outcomes(passed=1, errors=1)
    for name in ("two", "one"):
        result.stdout.fnmatch_lines([f"  worker {inner.pid(name)}, busy for *test_inner.hang"])
        assert not psutil.pid_exists(inner.pid(name))
    # What follows may say it again: pytest's summary does, where it is not shortened.
    report, _, _ = output(result).partition("short test summary info")
    assert report.count(f"did not end within {NO_TIME} s;") == 1


def test_a_task_left_in_the_sessions_executor_fails_and_names_the_test(inner: Inner) -> None:
    inner.suite("""
    def test_before(prefork_session_executor):
        assert prefork_session_executor.submit(pow, 2, 3).result() == 8

    def test_hangs(prefork_session_executor):
        leave_running(prefork_session_executor, hang, "pid")

    def test_after(prefork_session_executor):
        assert prefork_session_executor.submit(pow, 2, 3).result() == 8
    """)
    result = inner.run_with_no_time()
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            f"prefork_session_executor did not end within {NO_TIME} s; still alive:",
            f"  worker {inner.pid('pid')}, busy for * s with task test_inner.hang",
            "It had work at the end of every test since test_inner.py::test_hangs.",
        ]
    )
    assert not psutil.pid_exists(inner.pid("pid"))


LEAVES_SLOWLY = """
    import multiprocessing.util

    def leave_slowly(name):
        pathlib.Path(name).write_text(str(os.getpid()))
        multiprocessing.util.Finalize(None, time.sleep, args=(3600,), exitpriority=1)

    def test_it(prefork_executor):
        prefork_executor.submit(leave_slowly, "pid").result()
"""


def test_a_worker_that_is_slow_to_leave_is_not_the_tests_fault(inner: Inner) -> None:
    inner.suite(LEAVES_SLOWLY)
    # The pool kills it ten seconds after it should have left.
    inner.run_with_no_time().assert_outcomes(passed=1)
    assert not psutil.pid_exists(inner.pid("pid"))


def test_a_worker_that_does_not_leave_has_a_bound_and_an_error_of_its_own(inner: Inner) -> None:
    inner.suite(LEAVES_SLOWLY)
    result = inner.run_with_no_time("-o", "prefork_leave_timeout=0.3")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "prefork_executor: workers without a task did not leave within 0.6 s; still alive:",
            f"  worker {inner.pid('pid')}, leaving for *",
            "They have been killed*",
            "All tasks had ended. Look at what workers do when they leave:*",
        ]
    )
    assert "should wait for its futures" not in output(result)
    assert not psutil.pid_exists(inner.pid("pid"))


def test_a_running_task_is_reported_though_another_executors_worker_leaves_slowly(
    inner: Inner,
) -> None:
    inner.suite(
        LEAVES_SLOWLY,
        """
    def test_hangs(prefork_executor_factory):
        prefork_executor_factory().submit(leave_slowly, "slow").result()
        leave_running(prefork_executor_factory(), hang, "hangs")
    """,
    )
    result = inner.run_with_no_time("-k", "test_hangs")
    result.assert_outcomes(passed=1, errors=1, deselected=1)
    result.stdout.fnmatch_lines([f"  worker {inner.pid('hangs')}, busy for *test_inner.hang"])
    for name in ("slow", "hangs"):
        assert not psutil.pid_exists(inner.pid(name))


def test_tasks_that_end_within_the_bound_are_fine(inner: Inner) -> None:
    inner.suite("""
    def wait_for(name):
        until(pathlib.Path(name).exists)
        pathlib.Path("done").touch()

    @pytest.fixture
    def afterwards(prefork_executor, request):
        yield
        # When the test is over, and the executor is about to be shut down.
        pathlib.Path("go").touch()

    def test_it(prefork_executor, afterwards):
        futures = [prefork_executor.submit(wait_for, "go") for _ in range(2)]
        until(lambda: prefork_executor.stats().busy == 2)

    def test_then():
        assert pathlib.Path("done").exists()
    """)
    inner.run("-o", f"prefork_teardown_timeout={BOUND}").assert_outcomes(passed=2)


def test_waiting_tasks_are_cancelled(inner: Inner) -> None:
    inner.suite("""
    futures = []

    @pytest.mark.prefork(max_workers=1)
    def test_it(prefork_executor):
        leave_running(prefork_executor, hang, "pid")
        futures.extend(prefork_executor.submit(pow, 2, 3) for _ in range(20))

    def test_then():
        assert all(future.done() for future in futures)
        assert futures[-1].cancelled()
    """)
    inner.run_with_no_time().assert_outcomes(passed=2, errors=1)


def test_ctrl_c_ends_the_run_and_its_workers(inner: Inner) -> None:
    inner.suite("""
    def test_it(prefork_executor):
        leave_running(prefork_executor, hang, "pid")
        raise KeyboardInterrupt
    """)
    result = inner.run_with_no_time()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in output(result)
    assert not psutil.pid_exists(inner.pid("pid"))


def test_ctrl_c_during_the_teardown_does_not_wait_for_the_tasks(inner: Inner) -> None:
    inner.suite("""
    @pytest.fixture
    def impatience(monkeypatch, request):
        def join(self, timeout=None):
            monkeypatch.undo()
            raise KeyboardInterrupt
        monkeypatch.setattr(PreforkExecutor, "join", join)

    def test_it(impatience, prefork_executor):
        leave_running(prefork_executor, hang, "pid")
    """)
    result = inner.run_apart()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    eventually(lambda: not psutil.pid_exists(inner.pid("pid")))


# --- the plugin itself ----------------------------------------------------------------------


def test_the_suite_can_do_without_it(inner: Inner) -> None:
    inner.suite("""
    def test_it():
        pass
    """)
    inner.run_apart("-p", "no:prefork_executor").assert_outcomes(passed=1)
