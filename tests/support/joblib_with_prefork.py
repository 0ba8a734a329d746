"""A pytest plugin for a run of joblib's own tests: those that take a backend as a
parameter get ours as well, and only those with ours are run.

``python -m pytest -p joblib_with_prefork --pyargs joblib.test.test_parallel``

Tests that are not run as they are stand in one table, with the reason.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
from joblib.testing import check_subprocess_call
from waiting import BOUND

from prefork_executor.integrations import joblib as ours

EXCLUDED = {
    "test_nested_loop[[]prefork-loky]": "loky's workers outlive the process that started them, for "
    "five minutes",
    "test_nested_loop[[]*back_compat*": "back_compat_backend is loky by another name",
    "test_parallel_with_unpicklable_functions_in_args[[ak]*": "starts a program for each of three "
    "places that a function may stand in; to ours they are all in one pickle. One place is run",
    # What stands in place of the others is in test_integration_joblib.py.
    "test_error_capture": "wants a failed call to replace the pool; ours ends the call's own "
    "tasks and keeps it: test_a_failed_call_leaves_the_pool_as_it_was",
    "test_auto_memmap_on_arrays_from_generator": "wants each large array to be a np.memmap on a "
    "file; ours shares what tasks have in common: test_a_large_argument_is_laid_down_once",
    "test_memmapping_leaks": "looks for the files of np.memmap; ours have no name: "
    "test_nothing_is_left_of_shared_arguments",
}

# The workers' functions are this module's, whose imports take a second. So they are
# imported once, in the process that all pools come from; as JOBLIB_START_METHOD would
# have it, which would be for other backends as well.
multiprocessing.set_forkserver_preload(["joblib.test.test_parallel", "prefork_executor"])
ours.DEFAULT_MP_CONTEXT = multiprocessing.get_context("forkserver")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where the backends are written out, ours is one of them. Where they are those
    that are registered, it already is."""
    # Ten seconds are plenty for a script, but not on every machine.
    metafunc.module.check_subprocess_call = patiently_check_subprocess_call
    for marker in metafunc.definition.iter_markers("parametrize"):
        names, values = marker.args
        if not isinstance(values, list):
            continue
        if names == "backend" and "loky" in values and "prefork" not in values:
            values.append("prefork")
        # Whether the end of one generator ends another's pool.
        if names == "backend, error" and ("prefork", False) not in values:
            values.append(("prefork", False))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those with our backend, without the excluded.

    Raises:
        pytest.UsageError: an exclusion is stale.
    """
    ours = [item for item in items if any(map(_is_our_backend, _parameters(item)))]
    stale = [tests for tests in EXCLUDED if not any(_is_of(item, tests) for item in ours)]
    if stale:
        raise pytest.UsageError(f"excluded, but not there: {', '.join(stale)}")
    run = [item for item in ours if not any(_is_of(item, tests) for tests in EXCLUDED)]
    config.hook.pytest_deselected(items=[item for item in items if item not in run])
    items[:] = run


def _is_of(item: pytest.Item, tests: str) -> bool:
    return fnmatchcase(item.name, tests) or item.name.partition("[")[0] == tests


def patiently_check_subprocess_call(cmd: list[str], timeout: float = 0, **options: Any) -> None:
    """joblib's, with a bound that is no guess at how fast a machine is."""
    check_subprocess_call(cmd, timeout=BOUND, **options)


def _parameters(item: pytest.Item) -> Iterator[object]:
    if hasattr(item, "callspec"):
        yield from item.callspec.params.values()


def _is_our_backend(value: object) -> bool:
    return value == "prefork" or isinstance(value, ours.PreforkBackend)
