"""``mp_context`` takes whatever can start a process: the contexts of other packages too."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.context
import multiprocessing.dummy
import subprocess
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from context_tasks import keep, put_under_the_lock

from prefork_executor import PreforkExecutor

CONTEXTS = [
    *(
        (package, method)
        for package in ("multiprocess", "billiard")
        for method in ("fork", "spawn")
    ),
    ("multiprocess", "forkserver"),
    ("loky.backend", "loky"),
    ("loky.backend", "loky_init_main"),
    ("loky.backend", "spawn"),
]


HELPERS = [
    "multiprocess.resource_tracker",
    "multiprocess.forkserver",
    "billiard.semaphore_tracker",
    "loky.backend.resource_tracker",
]


@pytest.fixture(scope="module", autouse=True)
def _helpers_of_other_packages() -> None:
    """Processes that these packages start once and keep. They are there before the first
    test, so that no test is blamed for them."""
    for name in HELPERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name).ensure_running()


@pytest.fixture(params=CONTEXTS, ids=" ".join)
def context(request: pytest.FixtureRequest) -> Any:
    package, method = request.param
    pytest.importorskip(package.partition(".")[0])
    return importlib.import_module(package).get_context(method)


@pytest.fixture
def executor(context: Any) -> Iterator[PreforkExecutor]:
    with PreforkExecutor(2, mp_context=context) as executor:
        yield executor


def test_a_context_of_another_package_starts_a_pool(executor: PreforkExecutor) -> None:
    assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_lambdas_travel_by_such_a_pool(executor: PreforkExecutor) -> None:
    assert executor.submit(lambda: 3).result(60) == 3


def test_its_locks_and_queues_may_be_arguments_of_the_initializer(context: Any) -> None:
    # A worker's last words in a queue are written by a thread of the package's own.
    queue = context.Queue()
    given = (context.Lock(), queue)
    with PreforkExecutor(2, mp_context=context, initializer=keep, initargs=given) as executor:
        assert sorted(executor.map(put_under_the_lock, range(20))) == list(range(20))
        said = [queue.get(timeout=60) for _ in range(20)]
    assert sorted(number for _, number in said) == list(range(20))


def test_what_a_worker_has_put_into_such_a_queue_last_is_not_lost(context: Any) -> None:
    queue = context.Queue()
    options = {"initializer": keep, "initargs": (context.Lock(), queue)}
    with PreforkExecutor(1, mp_context=context, max_tasks_per_child=1, **options) as executor:
        list(executor.map(put_under_the_lock, range(3)))
    assert sorted(queue.get(timeout=60)[1] for _ in range(3)) == [0, 1, 2]


@pytest.mark.parametrize("package", ["multiprocess.fork", "billiard.fork", "loky.backend.loky"])
def test_a_program_with_such_a_pool_ends_in_silence(package: str) -> None:
    module, _, method = package.rpartition(".")
    pytest.importorskip(module.partition(".")[0])
    program = (
        f"import {module}; from prefork_executor import PreforkExecutor\n"
        f"executor = PreforkExecutor(1, mp_context={module}.get_context({method!r}))\n"
        "print(executor.submit(abs, -3).result(60))\n"
        "executor.shutdown()\n"
        f"other = PreforkExecutor(1, mp_context={module}.get_context({method!r}))\n"
        "other.submit(abs, -3)  # Left to the interpreter's end."
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3\n", "")


@pytest.mark.parametrize("kind", [PreforkExecutor, ProcessPoolExecutor])
def test_the_module_multiprocessing_is_a_context(kind: type) -> None:
    with kind(1, mp_context=multiprocessing) as executor:
        assert executor.submit(abs, -3).result(60) == 3


def test_the_module_stands_for_the_start_method_that_is_set() -> None:
    program = (
        "import multiprocessing, sys; from prefork_executor import PreforkExecutor\n"
        "multiprocessing.set_start_method('fork')\n"
        "sys.mark = 1\n"
        "with PreforkExecutor(1, mp_context=multiprocessing) as executor:\n"
        "    print(executor.submit(lambda: getattr(sys, 'mark', 0)).result(60))"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "1\n"


class _WithoutMethod:
    Process = multiprocessing.Process


class _OfAnotherKind(_WithoutMethod):
    def get_start_method(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (multiprocessing.context.BaseContext(), "BaseContext"),
        (multiprocessing.context.SpawnContext, "the class SpawnContext"),
        (multiprocessing.dummy, "the module multiprocessing.dummy"),
        (types, "the module types"),
        (_WithoutMethod(), "_WithoutMethod"),
        (_OfAnotherKind(), "_OfAnotherKind"),
        (3, "int"),
    ],
)
def test_what_cannot_start_a_process_is_refused_by_the_constructor(given: Any, what: str) -> None:
    with pytest.raises(TypeError, match=f"mp_context must be .*, not {what}$"):
        PreforkExecutor(1, mp_context=given)


@pytest.mark.parametrize("kind", [PreforkExecutor, ProcessPoolExecutor])
def test_true_is_one_where_the_standard_librarys_pool_takes_it(kind: type) -> None:
    context = multiprocessing.get_context("spawn")
    with kind(max_workers=True, mp_context=context, max_tasks_per_child=True) as executor:
        assert list(executor.map(abs, [-1, -2], chunksize=True)) == [1, 2]


def _starts_a_pool(answers: Any, kind: type) -> None:
    try:
        with kind(1) as executor:
            answers.put(executor.submit(abs, -3).result(60))
    except BaseException as error:
        answers.put((type(error).__name__, str(error)))


def test_a_daemonic_process_is_told_what_to_do() -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    for kind in (ProcessPoolExecutor, PreforkExecutor):
        process = context.Process(target=_starts_a_pool, args=(answers, kind), daemon=True)
        process.start()
        name, message = answers.get(timeout=60)
        process.join(60)
        assert name == "AssertionError"
    assert "daemon=False" in message
