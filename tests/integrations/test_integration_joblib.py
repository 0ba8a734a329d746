"""joblib's loops on a PreforkExecutor: the backend named "prefork"."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend
from scripts import program_text, run_python, run_script, search_path
from waiting import BOUND, eventually

from prefork_executor import WorkerDied, shared, shared_executor
from prefork_executor.integrations import joblib as ours
from prefork_executor.integrations._shared_arguments import SharedArguments

FOREVER = 3600.0
"""Seconds that a task sleeps which nobody waits for."""
EXAMPLES = Path(__file__).parents[2] / "examples"
LARGE = 1 << 21
"""Bytes: more than joblib's limit of 1 MB, from which on arguments are shared."""


@pytest.fixture(autouse=True)
def _nothing_is_kept(leaves_nothing_behind: None) -> Iterator[None]:
    yield
    ours.shutdown()


@pytest.fixture
def on_prefork() -> Iterator[None]:
    """Two workers, which have this module from the start."""
    with joblib.parallel_config(backend="prefork", n_jobs=2, mp_context="fork"):
        yield


def kept_executor() -> Any:
    """The executor that the next call would use."""
    return shared_executor().executor


OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-p", "joblib_with_prefork"),
    *("--pyargs", "joblib.test.test_parallel"),
)
"""pytest's, for a run of joblib's own tests."""


# --- joblib's own tests ------------------------------------------------------------------------


MANY_POOLS = "nested or initializer or context_manager or multiple_generator"


@pytest.mark.parametrize(
    "tests", [MANY_POOLS, f"not ({MANY_POOLS})"], ids=["many pools", "all others"]
)
def test_joblibs_own_tests_pass(tests: str, tmp_path: Path) -> None:
    # Some of them run scripts, or nest in processes of other backends: there the name is
    # known as if each began with an import. Not in multiprocessing's resource tracker.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'resource_tracker' not in str(sys.orig_argv):\n"
        "    import prefork_executor.integrations.joblib\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, "-k", tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search_path(tmp_path)},
        capture_output=True,
        text=True,
        timeout=4 * BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 60, done.stdout


# --- the name ----------------------------------------------------------------------------------


def test_the_name_is_known_once_the_integration_is_imported(tmp_path: Path) -> None:
    printed = run_script(
        tmp_path,
        program_text("joblib_by_name"),
    )
    assert printed.splitlines() == [
        "Invalid backend: prefork, expected one of "
        "['loky', 'multiprocessing', 'sequential', 'threading']",
        "[1, 2, 4, 8, 16]",
    ]


def test_an_unknown_option_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="has no option 'retry'"):
        joblib.parallel_config(backend="prefork", retry=1)
    with pytest.raises(TypeError, match="has no option 'max_workers'"):
        Parallel(n_jobs=2, backend="prefork", max_workers=3)([delayed(abs)(1)])


@pytest.mark.parametrize(
    ("n_jobs", "workers"),
    [(1, 1), (3, 3), (None, 1), (-1, joblib.cpu_count()), (-joblib.cpu_count() - 5, 1)],
)
def test_n_jobs_means_what_it_means_in_joblib(n_jobs: int | None, workers: int) -> None:
    with joblib.parallel_config(backend="prefork"):
        assert joblib.effective_n_jobs(n_jobs) == workers


def test_one_job_runs_in_this_process() -> None:
    with joblib.parallel_config(backend="prefork", n_jobs=1):
        assert Parallel()([delayed(os.getpid)()]) == [os.getpid()]
    assert not shared.shared_options()


# --- the pool ----------------------------------------------------------------------------------


def test_one_executor_serves_call_after_call() -> None:
    options = {"n_jobs": 2, "backend": "prefork", "mp_context": "fork"}
    for _ in range(2):
        with joblib.parallel_config(**options):
            for _ in range(2):
                Parallel()(delayed(abs)(i) for i in range(4))
    Parallel(**options)(delayed(abs)(i) for i in range(4))
    assert kept_executor().stats().peak_workers == 2
    assert kept_executor().stats().finished >= 5 * 2


def test_another_n_jobs_takes_another_executor_and_the_old_one_ends(on_prefork: None) -> None:
    Parallel(n_jobs=2)(delayed(abs)(i) for i in range(4))
    old = {worker.pid for worker in kept_executor().stats().workers}
    Parallel(n_jobs=3)(delayed(abs)(i) for i in range(4))
    assert kept_executor().stats().max_workers == 3
    eventually(lambda: not any(map(psutil.pid_exists, old)), "the old workers end")


def test_a_fork_of_the_process_makes_an_executor_of_its_own(tmp_path: Path) -> None:
    printed = run_script(
        tmp_path,
        program_text("joblib_and_fork"),
    )
    assert printed.splitlines() == ["[0, 1, 4, 9]"] * 3


def test_short_tasks_travel_in_batches(on_prefork: None) -> None:
    with Parallel() as parallel:
        assert parallel(delayed(abs)(i) for i in range(2000)) == list(range(2000))
        assert parallel._backend.compute_batch_size() > 1
    assert kept_executor().stats().finished < 2000


def test_workers_start_only_as_tasks_wait_for_them(on_prefork: None) -> None:
    Parallel(n_jobs=50)(delayed(abs)(i) for i in range(2))
    assert kept_executor().stats().peak_workers <= 2


# --- outcomes ----------------------------------------------------------------------------------


def fail(number: int) -> int:
    if number == 3:
        raise ValueError(f"it was {number}")
    return number


def die_at_first(path: Path, number: int) -> int:
    with contextlib.suppress(FileExistsError):
        path.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def begin_and_sleep(directory: Path) -> None:
    (directory / str(os.getpid())).touch()
    time.sleep(FOREVER)


def sleepers(directory: Path) -> list[int]:
    """The workers in which ``begin_and_sleep`` has begun and that are alive."""
    pids = [int(path.name) for path in directory.iterdir()]
    return [pid for pid in pids if psutil.pid_exists(pid)]


def test_an_exception_arrives_as_itself_and_says_where_it_was_raised(on_prefork: None) -> None:
    with pytest.raises(ValueError, match="it was 3") as caught:
        Parallel()(delayed(fail)(i) for i in range(5))
    assert caught.value.args == ("it was 3",)
    assert 'raise ValueError(f"it was {number}")' in "".join(caught.value.__notes__)


def test_what_cannot_be_pickled_is_named(on_prefork: None) -> None:
    with pytest.raises(Exception, match=r"generator"):
        Parallel()([delayed(len)(i for i in ()), delayed(abs)(1)])


def test_a_workers_death_fails_the_call_and_names_the_task(
    on_prefork: None, tmp_path: Path
) -> None:
    with pytest.raises(WorkerDied, match=r"killed by SIGKILL while it held task .*die_at_first"):
        Parallel()(delayed(die_at_first)(tmp_path / "mark", i) for i in range(4))
    before = kept_executor()
    assert Parallel()(delayed(fail)(i) for i in range(3)) == [0, 1, 2]
    assert kept_executor() is before


def test_a_task_whose_worker_died_is_run_again_if_retries_are_asked_for(tmp_path: Path) -> None:
    with joblib.parallel_config(backend="prefork", n_jobs=2, mp_context="fork", retries=1):
        calls = [delayed(die_at_first)(tmp_path / "mark", i) for i in range(4)]
        assert Parallel()(calls) == [0, 1, 2, 3]


def test_a_failed_call_leaves_the_pool_as_it_was(on_prefork: None) -> None:
    with Parallel() as parallel:
        parallel([delayed(abs)(1)])
        before = kept_executor()
        for error, task in [(ValueError, delayed(fail)(3)), (SystemExit, delayed(sys.exit)(1))]:
            with pytest.raises(error):
                parallel([delayed(abs)(1), task])
            assert parallel(delayed(abs)(i) for i in range(4)) == [0, 1, 2, 3]
        assert parallel._backend._workers is before


def test_time_up_ends_the_calls_tasks(on_prefork: None, tmp_path: Path) -> None:
    Parallel()(delayed(fail)(i) for i in range(3))
    with pytest.raises(multiprocessing.TimeoutError):
        # joblib's time begins when it waits for a task, which may be before that has begun.
        Parallel(timeout=0.5)(delayed(begin_and_sleep)(tmp_path) for _ in range(6))
    eventually(lambda: not sleepers(tmp_path), "the workers that ran its tasks end")
    eventually(lambda: kept_executor().stats().waiting == 0, "and nobody takes the others")
    assert Parallel()(delayed(fail)(i) for i in range(3)) == [0, 1, 2]


def test_a_broken_pool_says_why_and_the_next_call_has_another(tmp_path: Path) -> None:
    options = {"initializer": os.listdir, "initargs": (tmp_path / "there",), "mp_context": "fork"}

    def call() -> Any:
        return Parallel(n_jobs=2, backend="prefork", **options)(delayed(abs)(i) for i in range(4))

    for _ in range(2):
        with pytest.raises(BrokenExecutor, match=r"initializer failed.*No such file"):
            call()
    (tmp_path / "there").mkdir()
    assert call() == [0, 1, 2, 3]


# --- generators --------------------------------------------------------------------------------


def test_a_generator_gives_results_in_order_as_they_come(on_prefork: None) -> None:
    results = Parallel(return_as="generator")(delayed(fail)(i) for i in (0, 1, 2))
    assert [next(results), *results] == [0, 1, 2]


def sleep_if_first(directory: Path, number: int) -> int:
    if number == 0:
        begin_and_sleep(directory)
    return number


def dropped(results: Any) -> None:
    """Drop the last reference to a generator, of which joblib warns."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        results.close()


def test_an_unordered_generator_does_not_wait_for_a_slow_task(
    on_prefork: None, tmp_path: Path
) -> None:
    results = Parallel(return_as="generator_unordered", batch_size=1)(
        delayed(sleep_if_first)(tmp_path, i) for i in range(5)
    )
    assert {next(results) for _ in range(4)} == {1, 2, 3, 4}
    dropped(results)


def test_a_dropped_generator_ends_its_own_tasks_and_no_others(
    on_prefork: None, tmp_path: Path
) -> None:
    endless = Parallel(return_as="generator", batch_size=1)(
        delayed(sleep_if_first)(tmp_path, i) for i in range(3)
    )
    other = Parallel(return_as="generator")(delayed(fail)(i) for i in (0, 1, 2))
    eventually(lambda: sleepers(tmp_path), "the endless task begins")
    dropped(endless)
    eventually(lambda: not sleepers(tmp_path), "the endless task ends")
    assert list(other) == [0, 1, 2]


# --- nested loops, threads ---------------------------------------------------------------------


def nested_backend() -> tuple[str, list[int]]:
    """What a loop in a task runs on, and the processes that it runs in."""
    pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(2))
    return type(get_active_backend()[0]).__name__, [*pids, os.getpid()]


def test_a_loop_in_a_task_runs_in_threads_of_its_worker(on_prefork: None) -> None:
    for backend, pids in Parallel()(delayed(nested_backend)() for _ in range(2)):
        assert backend == "ThreadingBackend"
        assert len(set(pids)) == 1
        assert os.getpid() not in pids


def squares_in_a_pool(_: int) -> list[int]:
    return Parallel(n_jobs=2, backend="prefork")(delayed(pow)(i, 2) for i in range(4))


def test_a_loop_in_a_task_may_have_a_pool_of_its_own_which_ends_with_it(on_prefork: None) -> None:
    assert Parallel()(delayed(squares_in_a_pool)(i) for i in range(2)) == [[0, 1, 4, 9]] * 2


def test_loops_in_several_threads_share_the_pool() -> None:
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(squares_in_a_pool, range(6))) == [[0, 1, 4, 9]] * 6
    assert kept_executor().stats().peak_workers <= 2


def test_a_loop_in_a_daemonic_process_runs_in_it_and_says_so(monkeypatch: Any) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.warns(UserWarning, match="cannot be nested in a daemonic process"):
        assert squares_in_a_pool(0) == [0, 1, 4, 9]
    assert not shared.shared_options()


def thread_limits() -> tuple[str | None, set[int]]:
    from threadpoolctl import threadpool_info

    return os.environ.get("OMP_NUM_THREADS"), {pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_threads_of_blas_and_openmp_are_limited_in_a_worker(method: str) -> None:
    # Loaded before the worker is forked, so the environment alone would come too late.
    with joblib.parallel_config(
        backend="prefork", inner_max_num_threads=1, mp_context=method, preload="numpy.linalg"
    ):
        limits = Parallel(n_jobs=2)(delayed(thread_limits)() for _ in range(2))
    assert limits == [("1", {1})] * 2


# --- what tasks have in common -----------------------------------------------------------------


def where_it_lies(array: np.ndarray[Any, Any]) -> tuple[str, bool]:
    """The inode of the memory that it lies in, and whether it may be written to."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="ascii") as file:
        for line in file:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line.split()[4], array.flags.writeable
    raise LookupError(hex(address))


def test_a_large_argument_is_laid_down_once(on_prefork: None) -> None:
    array = np.arange(LARGE, dtype=np.uint8)
    first, *others = Parallel(batch_size=1)(delayed(where_it_lies)(array) for _ in range(8))
    # The first task was sent before it was known that there would be others.
    assert len(set(others)) == 1
    assert others[0] != first


def test_every_task_sees_a_large_array_read_only_as_with_loky(on_prefork: None) -> None:
    array = np.zeros(LARGE)
    told = Parallel(batch_size=1)(delayed(is_writable)(array) for _ in range(4))
    assert told == [False] * 4


def test_an_array_that_only_one_task_has_is_read_only_there(on_prefork: None) -> None:
    told = Parallel(batch_size=1)(delayed(is_writable)(np.zeros(LARGE)) for _ in range(4))
    assert told == [False] * 4


def test_small_arrays_and_arrays_of_objects_are_writable(on_prefork: None) -> None:
    small, objects = np.zeros(10), np.full(LARGE, None)
    told = Parallel(batch_size=1)(delayed(is_writable)(array) for array in (small, objects))
    assert told == [True, True]


def is_writable(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.flags.writeable)


def test_mmap_mode_c_gives_each_task_a_copy_to_write_to(on_prefork: None) -> None:
    array = np.zeros(LARGE)
    sums = Parallel(batch_size=1, mmap_mode="c")(delayed(fill)(array) for _ in range(4))
    assert sums == [LARGE] * 4
    assert not array.any()


def fill(array: np.ndarray[Any, Any]) -> float:
    array += 1
    return float(array.sum())


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_nothing_is_left_of_shared_arguments(on_prefork: None) -> None:
    array = np.zeros(LARGE)
    with Parallel() as parallel:
        parallel([delayed(abs)(1)])
        before = descriptors()
        parallel(delayed(fill_or_not)(array) for _ in range(4))
        # What a call was given may be another thing in the next one.
        array += 1
        assert parallel(delayed(fill_or_not)(array) for _ in range(4)) == [LARGE] * 4
        eventually(lambda: descriptors() == before)


def fill_or_not(array: np.ndarray[Any, Any]) -> float:
    return float(array.sum())


class Table:
    """Arrays in a class of the user's, one of them too short to be aligned with the rest."""

    def __init__(self) -> None:
        self.columns = {"a": np.arange(LARGE), "b": np.arange(3, dtype=np.int8)}


def test_whatever_holds_large_buffers_is_shared_by_the_second_task() -> None:
    shared = SharedArguments(minimum=1000, mode="r")
    table, small, text = Table(), np.arange(3), "text" * 1000
    task = (print, (table, small), {"text": text})
    assert shared.share_in([task]) == [task]
    ((_, (sent, *rest), kwargs),) = shared.share_in([task])
    assert (rest, kwargs) == ([small], {"text": text})
    rebuild, how = sent.__reduce__()
    arrived = rebuild(*how)
    assert type(arrived) is Table
    for name, column in table.columns.items():
        assert np.array_equal(arrived.columns[name], column)


@pytest.mark.parametrize(("least", "mode"), [(None, "r"), (1, None)])
def test_sharing_can_be_turned_off_as_joblib_says(least: int | None, mode: str | None) -> None:
    shared, task = SharedArguments(least, mode), (print, (np.zeros(LARGE),), {})
    assert shared.share_in([task, task, task]) == [task, task, task]


def draw(_: int) -> int:
    time.sleep(0.1)  # So that all workers take part.
    return int(np.random.randint(10**9))


def test_no_two_workers_draw_the_same_random_numbers() -> None:
    with joblib.parallel_config(backend="prefork", n_jobs=3):
        drawn = joblib.Parallel(batch_size=1)(joblib.delayed(draw)(i) for i in range(9))
    assert len(set(drawn)) == 9


# --- scikit-learn, and the example -------------------------------------------------------------


@pytest.fixture
def iris() -> Any:
    from sklearn.datasets import load_iris

    return load_iris(return_X_y=True)


def same_without_a_pool(compute: Callable[[], Any]) -> bool:
    with joblib.parallel_config(backend="prefork", n_jobs=2, mp_context="fork"):
        pooled = compute()
    assert kept_executor().stats().finished, "the pool has had a part in it"
    return bool(np.array_equal(pooled, compute()))


def test_scikit_learn_scores_the_same_in_the_pool(iris: Any) -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    def search() -> Any:
        done = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3).fit(*iris)
        return done.cv_results_["mean_test_score"]

    assert same_without_a_pool(search)
    assert same_without_a_pool(lambda: cross_val_score(SVC(), *iris, cv=4))


def test_the_example_finds_what_a_serial_search_finds(tmp_path: Path) -> None:
    printed = run_python(
        tmp_path, str(EXAMPLES / "joblib_grid_search.py"), "--n-jobs", "2", "--verify"
    )
    assert "Verified: same scores as without a pool" in printed
    assert "18 fits" in printed
