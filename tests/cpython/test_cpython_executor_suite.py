"""CPython's own executor tests, run on PreforkExecutor.

For every test case that CPython runs on ProcessPoolExecutor, one for each start
method, there is a subclass of it here, made below, whose executor is ours. Tests
that are not run as they are stand in one table, with the reason and what is run
in their place; the tests at the end see to it that the table tells the truth.

CPython's tests are part of a Python's installation, or are left out of it by its
distributor; then all this is skipped.
"""

from __future__ import annotations

import gc
import re
import sys
import unittest
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import pytest

from prefork_executor import PreforkExecutor

from . import installed

pytest.register_assert_rewrite(f"{__package__}.adapted")
pytestmark = pytest.mark.skipif(
    installed.why_missing() is not None, reason=installed.why_missing() or ""
)

START_METHODS = ("Fork", "Forkserver", "Spawn")


class Exclusion(NamedTuple):
    """Why tests of CPython's are not run, and which of ours are run instead."""

    reason: str
    replaced_by: str = ""
    since: tuple[int, int] = installed.FIRST_VERSION
    """The Python that was the first to come with them."""


NO_PROCESSES = "takes what _processes holds for children of its own"
OWN_ERROR = "wants one task's failure to break the pool; here it is the task's own"
NO_THREAD = "waits for _executor_manager_thread, which PreforkExecutor does not have"
BY_NAME = "names ProcessPoolExecutor itself, so it would pass without ours"
SKIPS_FORK = "skips itself under fork"

EXCLUDED = {
    # Not about executors of processes.
    "test_future.*": Exclusion("tests Future, which is the standard library's here too"),
    "test_thread_pool.*": Exclusion("tests ThreadPoolExecutor"),
    "*.ThreadPool*": Exclusion("the same test on ThreadPoolExecutor"),
    "test_interpreter_pool.*": Exclusion("tests InterpreterPoolExecutor", since=(3, 14)),
    "*.InterpreterPool*": Exclusion("the same test on InterpreterPoolExecutor", since=(3, 14)),
    # Times that a busy machine may not keep.
    "test_process_pool.ProcessPool*.test_map_timeout": Exclusion(
        "wants a pool to start and to answer within five seconds", "test_a_map_times_out"
    ),
    "test_shutdown.ProcessPool*.test_hang_gh94440": Exclusion(
        "wants a pool to end within five seconds", "test_shutdown_ends_after_a_cancel"
    ),
    # Initializers.
    "test_init.ProcessPool*FailingInitializerTest.test_initializer": Exclusion(
        'reads _broken, and the log "concurrent.futures" where ours is "prefork_executor"',
        "test_failing_initializer_breaks_the_pool test_failing_initializer_is_logged",
    ),
    "test_init.FailingInitializerResourcesTest.*": Exclusion(
        "runs the test above, and stops the resource tracker of all tests that follow",
        "test_failing_initializer_leaves_no_resources",
    ),
    # Deadlocks.
    "test_deadlock.*.test_exit_at_task_unpickle": Exclusion(
        OWN_ERROR, "test_exit_at_task_unpickle_is_the_tasks_own_error"
    ),
    "test_deadlock.*.test_error_at_task_unpickle": Exclusion(
        OWN_ERROR, "test_error_at_task_unpickle_is_the_tasks_own_error"
    ),
    "test_deadlock.*.test_exit_during_result_unpickle_in_result_handler": Exclusion(
        OWN_ERROR, "test_exit_during_result_unpickle_is_the_tasks_own_error"
    ),
    "test_deadlock.*.test_error_during_result_unpickle_in_result_handler": Exclusion(
        OWN_ERROR, "test_error_during_result_unpickle_is_the_tasks_own_error"
    ),
    "test_deadlock.*.test_shutdown_deadlock_pickle": Exclusion(
        "reads _executor_manager_thread", "test_shutdown_after_a_failure_at_pickle"
    ),
    "test_deadlock.*.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": Exclusion(
        "replaces parts of ProcessPoolExecutor to make submit wait",
        "test_submit_does_not_wait_for_a_pool_that_stands_still",
    ),
    # The pool.
    "test_process_pool.*.test_max_workers_too_large": Exclusion("only for Windows"),
    "test_process_pool.*.test_killed_child": Exclusion(
        NO_PROCESSES + "; wants one death to break the pool",
        "test_killed_worker_costs_its_own_task_only",
    ),
    "test_process_pool.*.test_traceback": Exclusion(
        "wants a _RemoteTraceback as the cause; ours has the frames themselves",
        "test_traceback_has_the_workers_frames",
    ),
    "test_process_pool.*.test_saturation": Exclusion(
        NO_PROCESSES + "; its tasks cannot be pickled, so none of them runs",
        "test_saturation_by_blocked_tasks",
    ),
    "test_process_pool.*.test_idle_process_reuse_one": Exclusion(
        NO_PROCESSES, "test_idle_worker_is_reused"
    ),
    "test_process_pool.*.test_idle_process_reuse_multiple": Exclusion(
        NO_PROCESSES, "test_idle_workers_are_reused"
    ),
    "test_process_pool.*.test_max_tasks_per_child": Exclusion(
        NO_PROCESSES + "; wants ValueError under fork, where ours allows it",
        "test_max_tasks_per_child_under_every_start_method",
    ),
    "test_process_pool.*.test_max_tasks_per_child_defaults_to_spawn_context": Exclusion(
        "reads _mp_context; ours keeps Python's default, having no reason to change it",
        "test_max_tasks_per_child_with_the_default_context",
    ),
    "test_process_pool.ProcessPoolFork[!s]*.test_max_tasks_early_shutdown": Exclusion(
        SKIPS_FORK, "test_max_tasks_early_shutdown_under_fork"
    ),
    "test_process_pool.ProcessPoolFork[!s]*.test_max_tasks_per_child_pending_tasks_gh115634": (
        Exclusion(SKIPS_FORK, "test_max_tasks_per_child_with_tasks_waiting", since=(3, 14))
    ),
    "test_process_pool.*.test_shutdown_no_wait_max_tasks_gh119592": Exclusion(
        NO_THREAD + "; wants waiting tasks to fail once the executor is collected",
        "test_tasks_wait_for_new_workers_after_shutdown "
        "test_tasks_wait_for_new_workers_when_nobody_refers_to_the_executor",
        since=(3, 14),
    ),
    "test_process_pool.*.test_gc_during_max_tasks_worker_exit_gh152967": Exclusion(
        NO_THREAD + "; wants waiting tasks to fail once the executor is collected",
        "test_tasks_wait_for_new_workers_when_nobody_refers_to_the_executor",
        since=(3, 14),
    ),
    "test_process_pool.*.test_force_shutdown_during_max_tasks_worker_exit": Exclusion(
        "sets _force_shutting_down", "test_no_waiting_task_survives_kill_workers", since=(3, 14)
    ),
    "test_process_pool.*.test_failed_worker_replacement_breaks_pool": Exclusion(
        "makes a function of ProcessPoolExecutor's fail; ours tries again, as test_scarcity shows",
        since=(3, 14),
    ),
    "test_process_pool.*.test_broken_process_pool_traceback": Exclusion(
        NO_PROCESSES, "test_each_future_has_an_error_of_its_own", since=(3, 14)
    ),
    "test_process_pool.*.test_traceback_when_child_process_terminates_abruptly": Exclusion(
        "wants a _RemoteTraceback as the cause; here the error itself says it",
        "test_death_says_the_exit_code",
        since=(3, 15),
    ),
    # Ending the workers.
    "test_process_pool.*.test_terminate_workers": Exclusion(
        "replaces _force_shutdown", "test_ended_workers_end_their_tasks", since=(3, 14)
    ),
    "test_process_pool.*.test_kill_workers": Exclusion(
        "replaces _force_shutdown", "test_ended_workers_end_their_tasks", since=(3, 14)
    ),
    "test_process_pool.*.test_force_shutdown_workers_invalid_op": Exclusion(
        "calls _force_shutdown", since=(3, 14)
    ),
    "test_process_pool.*.test_force_shutdown_workers": Exclusion(
        NO_PROCESSES, "test_ended_workers_end_their_tasks", since=(3, 14)
    ),
    "test_process_pool.*.test_force_shutdown_workers_stops_pool": Exclusion(
        NO_PROCESSES + "; wants the pool to be of no more use, where ours goes on",
        "test_ended_workers_are_replaced",
        since=(3, 14),
    ),
    "test_process_pool.*.test_python_finalization_error": Exclusion(
        "counts the threads that ProcessPoolExecutor starts", "test_no_thread_can_be_started"
    ),
    # Shutdown.
    "test_shutdown.ProcessPool*.test_interpreter_shutdown": Exclusion(
        "its script imports the executor from concurrent.futures by the class's name",
        "test_interpreter_waits_for_tasks",
    ),
    "test_shutdown.ProcessPool*.test_submit_after_interpreter_shutdown": Exclusion(
        "its script imports the executor from concurrent.futures by the class's name",
        "test_submit_while_the_interpreter_ends",
    ),
    "test_shutdown.ProcessPool*.test_hang_gh83386": Exclusion(
        "its script imports the executor from concurrent.futures by the class's name",
        "test_interpreter_waits_for_tasks_after_shutdown_without_wait",
    ),
    "test_shutdown.ProcessPool*.test_processes_terminate": Exclusion(
        NO_PROCESSES + "; its tasks cannot be pickled, so none of them runs",
        "test_workers_end_with_shutdown",
    ),
    "test_shutdown.ProcessPool*.test_context_manager_shutdown": Exclusion(
        BY_NAME, "test_workers_end_with_the_context_manager"
    ),
    "test_shutdown.ProcessPool*.test_del_shutdown": Exclusion(
        BY_NAME, "test_workers_end_when_nobody_refers_to_the_executor"
    ),
    "test_shutdown.ProcessPool*.test_shutdown_no_wait": Exclusion(
        BY_NAME, "test_workers_end_after_shutdown_without_wait"
    ),
}


def exclusions_of(test: str) -> list[Exclusion]:
    """Those that a test of CPython's, ``module.class.name``, falls under."""
    return [exclusion for tests, exclusion in EXCLUDED.items() if fnmatchcase(test, tests)]


# --- our test cases -------------------------------------------------------------------------


def adaptation_to(family: str) -> type[unittest.TestCase]:
    """What a test case needs whose name ends so, beside the start method's name."""
    from . import adapted

    return {
        "AsCompletedTest": adapted.WithSleepers,
        "ExecutorDeadlockTest": adapted.Deadlock,
        "FailingInitializerTest": adapted.FailingInitializer,
        "ProcessPoolExecutorTest": adapted.ProcessPool,
        "ProcessPoolShutdownTest": adapted.Shutdown,
        "WaitTest": adapted.WithSleepers,
    }.get(family, adapted.OnPrefork)


def make_cases() -> Iterator[tuple[str, type[unittest.TestCase]]]:
    """Our subclass of each of CPython's test cases on processes, by that one's name."""
    for name, case in installed.cases().items():
        pattern = rf"ProcessPool({'|'.join(START_METHODS)})([A-Z]\w+)"
        if match := re.fullmatch(pattern, case.__name__):
            yield name, make_case(name, case, *match.groups())


def make_case(
    name: str, case: type[unittest.TestCase], method: str, family: str
) -> type[unittest.TestCase]:
    excluded = [test for test in installed.names_of(case) if exclusions_of(f"{name}.{test}")]
    attributes = {"__module__": __name__, **dict.fromkeys(excluded)}
    return type(f"Prefork{method}{family}", (adaptation_to(family), case), attributes)


CASES = {} if installed.why_missing() else dict(make_cases())
globals().update({case.__name__: case for case in CASES.values()})


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Collecting garbage is a good part of what these many short tests cost, and
    most of what is collected over and over are the modules of the test run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# --- the table tells the truth -----------------------------------------------------------------


def all_tests() -> Iterator[tuple[str, str, str]]:
    """Of CPython's executor tests: the case's name, the test's, and both together."""
    for name, case in installed.cases().items():
        for test in installed.names_of(case):
            yield name, test, f"{name}.{test}"


def is_run(case: str, test: str) -> bool:
    """Whether we run the very function that CPython runs, and it does not skip."""
    ours = getattr(CASES.get(case), test, None)
    theirs = getattr(installed.cases()[case], test)
    return ours is theirs and not getattr(theirs, "__unittest_skip__", False)


def test_every_test_of_cpython_is_either_run_or_excluded() -> None:
    unlike = {
        full_name: "both" if is_run(case, test) else "neither"
        for case, test, full_name in all_tests()
        if is_run(case, test) == bool(exclusions_of(full_name))
    }
    assert unlike == {}


def test_no_exclusion_is_stale() -> None:
    names = [full_name for _, _, full_name in all_tests()]
    due = [tests for tests, exclusion in EXCLUDED.items() if exclusion.since <= sys.version_info]
    stale = [tests for tests in due if not any(fnmatchcase(name, tests) for name in names)]
    assert stale == []


@pytest.mark.parametrize("method", START_METHODS)
def test_every_replacement_is_run(method: str) -> None:
    wanted = {name for exclusion in EXCLUDED.values() for name in exclusion.replaced_by.split()}
    cases = [case for case in CASES.values() if case.__name__.startswith(f"Prefork{method}")]
    ours = {test for case in cases for test in installed.names_of(case)}
    assert wanted - ours == set()


def test_every_case_is_run_under_every_start_method() -> None:
    methods: dict[str, set[str]] = {}
    for case in CASES.values():
        family = re.sub(f"^Prefork({'|'.join(START_METHODS)})(?=[A-Z])", "", case.__name__)
        methods.setdefault(family, set()).add(case.ctx)
    assert {case.executor_type for case in CASES.values()} == {PreforkExecutor}
    assert {family: used for family, used in methods.items() if len(used) != 3} == {}
