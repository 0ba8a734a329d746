"""CPython's own tests of multiprocessing.Pool, run on ours.

Every test of ``test._test_multiprocessing`` that makes a Pool is run by every start method
(with PREFORK_EXECUTOR_BRIEF=1 in the environment, by that which is Python's default only),
with our Pool in the place of multiprocessing's: in the test's own process, and, where CPython
has it do so, in that of a manager. Those that are not run as they are stand in one table, with
the reason and what is run in their place; the tests at the end see to it that the table tells
the truth.

CPython's tests are part of a Python's installation, or are left out of it by its
distributor; then all this is skipped.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import unittest
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import installed

pytest.register_assert_rewrite(f"{__package__}.pool_cases")
pytestmark = pytest.mark.skipif(
    installed.why_no_pool_tests() is not None, reason=installed.why_no_pool_tests() or ""
)

BRIEF = os.environ.get("PREFORK_EXECUTOR_BRIEF") == "1"
# The first is the default, also in a worker, which imports this: there another may be set.
DEFAULT = multiprocessing.get_all_start_methods()[0]
START_METHODS = (DEFAULT,) if BRIEF else ("fork", "forkserver", "spawn")
KINDS = ("processes", "manager")


class Exclusion(NamedTuple):
    """Why tests of CPython's are not run, and which of ours are run instead."""

    reason: str
    replaced_by: str = ""
    is_everywhere: bool = True
    """Whether every supported Python has them."""


BY_NAME = "its script imports multiprocessing.Pool, so it would pass without ours"

EXCLUDED = {
    "processes._TestPool.test_traceback": Exclusion(
        "wants a RemoteTraceback as the cause; ours has the frames themselves",
        "test_an_exception_has_its_remote_frames",
    ),
    "processes._TestPoolWorkerErrors.test_unpickleable_result": Exclusion(
        "its result is a lambda, which arrives here",
        "test_a_result_that_cannot_be_pickled test_a_lambda_arrives",
    ),
    "processes._TestPoolWorkerLifetime.test_worker_finalization_via_atexit_handler_of_*": (
        Exclusion(BY_NAME, "test_a_pool_of_a_global_ends_with_its_program")
    ),
    "processes.MiscTestCase.test_large_pool": Exclusion(
        BY_NAME, "test_a_large_pool", is_everywhere=False
    ),
    "processes.TestStdinBadfiledescriptor.test_pool_in_process": Exclusion(
        "under spawn and forkserver it uses multiprocessing's own Pool",
        "test_a_pool_in_a_process",
    ),
    "processes.TestPoolNotLeakOnFailure.test_release_unused_processes": Exclusion(
        "replaces Process of the context, of which ours makes one, the supervisor"
    ),
}


def excluded(test: str) -> list[Exclusion]:
    """Those that a test of CPython's, ``kind.class.name``, falls under."""
    return [exclusion for tests, exclusion in EXCLUDED.items() if fnmatchcase(test, tests)]


# --- our test cases -------------------------------------------------------------------------


def adaptation_to(kind: str, name: str) -> type:
    from . import pool_cases

    if kind != "processes":
        return pool_cases.OnPrefork
    return {
        "_TestPool": pool_cases.WholePool,
        "_TestPoolWorkerErrors": pool_cases.WorkerErrors,
        "_TestPoolWorkerLifetime": pool_cases.WorkerLifetime,
        "TestInitializers": pool_cases.Initializers,
        "TestStdinBadfiledescriptor": pool_cases.PoolInProcess,
    }.get(name, pool_cases.Processes)


def make_cases() -> Iterator[tuple[str, str, str, type[unittest.TestCase]]]:
    """Our subclasses of CPython's cases: kind, name, start method, class."""
    for name, (case, tests) in installed.pool_cases().items():
        for kind in kinds_of(case):
            for method in START_METHODS:
                yield kind, name, method, make_case(kind, name, method, case, tests)


def kinds_of(case: Any) -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if kind in getattr(case, "ALLOWED_TYPES", KINDS[:1]))


def make_case(
    kind: str, name: str, method: str, case: type, tests: list[str]
) -> type[unittest.TestCase]:
    from test import _test_multiprocessing as module

    theirs = (case,)
    if not issubclass(case, unittest.TestCase):
        theirs = (case, getattr(module, f"{kind.capitalize()}Mixin"), unittest.TestCase)
    others = {test for test in dir(case) if test.startswith("test_")} - {*tests}
    not_run = [test for test in tests if excluded(f"{kind}.{name}.{test}")]
    attributes = {
        "__module__": __name__,
        "start_method": method,
        **dict.fromkeys((*others, *not_run)),
    }
    ours = f"{method.capitalize()}{kind.capitalize()}{name.strip('_')}"
    bases = (adaptation_to(kind, name), *theirs)
    return type(ours, bases, attributes)


CASES = [] if installed.why_no_pool_tests() else list(make_cases())
globals().update({case.__name__: case for _, _, _, case in CASES})


# --- the table tells the truth -----------------------------------------------------------------


def test_every_test_of_cpython_is_either_run_or_excluded() -> None:
    unlike = [
        f"{method}.{kind}.{name}.{test}"
        for kind, name, method, case in CASES
        for test in installed.pool_cases()[name][1]
        if (getattr(case, test, None) is None) != bool(excluded(f"{kind}.{name}.{test}"))
    ]
    assert unlike == []


def test_the_cases_that_are_known_are_there() -> None:
    names = {name for _, name, _, _ in CASES}
    assert names >= {"_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime"}
    of_one_method = sum(len(kinds_of(case)) for case, _ in installed.pool_cases().values())
    assert len(CASES) == len(START_METHODS) * of_one_method


def test_no_exclusion_is_stale() -> None:
    tests = [
        f"{kind}.{name}.{test}"
        for kind, name, _, _ in CASES
        for test in installed.pool_cases()[name][1]
    ]
    stale = [
        pattern
        for pattern, exclusion in EXCLUDED.items()
        if exclusion.is_everywhere and not any(fnmatchcase(test, pattern) for test in tests)
    ]
    assert stale == []


@pytest.mark.parametrize("method", START_METHODS)
def test_every_replacement_is_run(method: str) -> None:
    wanted = {name for exclusion in EXCLUDED.values() for name in exclusion.replaced_by.split()}
    ours = {
        test
        for _, _, used, case in CASES
        for test in installed.names_of(case)
        if used == method and getattr(case, test) is not None
    }
    assert wanted - ours == set()


def test_the_page_has_the_numbers_of_tests() -> None:
    counts = {kind: [0, 0, 0] for kind in KINDS}
    for kind, name, method, _ in CASES:
        for test in installed.pool_cases()[name][1] if method == START_METHODS[0] else ():
            of = excluded(f"{kind}.{name}.{test}")
            counts[kind][0 if not of else 1 if of[0].replaced_by else 2] += 1
    page = (Path(__file__).parents[2] / "docs" / "pool.md").read_text(encoding="utf-8")
    (row,) = re.findall(
        r"in the test's own process \| (\d+) \| (\d+) \((\d+) up to 3\.12\) \| (\d+),", page
    )
    run, replaced, replaced_earlier, not_run = map(int, row)
    if sys.version_info < (3, 13):
        replaced = replaced_earlier
    assert counts["processes"] == [run, replaced, not_run]
    assert f"| in a manager's process | {' | '.join(map(str, counts['manager']))} |" in page
