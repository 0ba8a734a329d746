"""Finds the executor tests of the running Python, and those of its Pool, where it has them."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import types
import unittest

PACKAGE = "test.test_concurrent_futures"
FIRST_VERSION = (3, 13)
"""Earlier Pythons keep these tests elsewhere or have others; they are not looked at."""


@functools.cache
def why_missing() -> str | None:
    """Why the tests cannot be run here; None if they can."""
    if sys.version_info < FIRST_VERSION:
        return "written for the executor tests that come with Python 3.13 and later"
    try:
        _modules()
    except ImportError as error:
        return f"this Python came without its own tests: {error}"
    except unittest.SkipTest as reason:
        return f"this Python skips its own executor tests: {reason}"
    return None


@functools.cache
def _modules() -> tuple[types.ModuleType, ...]:
    package = importlib.import_module(PACKAGE)
    return tuple(
        importlib.import_module(f"{PACKAGE}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
        if found.name.startswith("test_")
    )


@functools.cache
def cases() -> dict[str, type[unittest.TestCase]]:
    """The test cases by name, like ``test_wait.ProcessPoolForkWaitTest``."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": thing
        for module in _modules()
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, unittest.TestCase)
        if thing.__module__ == module.__name__ and names_of(thing)
    }


# --- the tests of multiprocessing.Pool ------------------------------------------------------

POOL_MODULE = "test._test_multiprocessing"


@functools.cache
def why_no_pool_tests() -> str | None:
    """Why these tests cannot be run here; None if they can."""
    try:
        importlib.import_module(POOL_MODULE)
    except ImportError as error:
        return f"this Python came without its own tests: {error}"
    except unittest.SkipTest as reason:
        return f"this Python skips its own tests of multiprocessing: {reason}"
    return None


@functools.cache
def pool_cases() -> dict[str, tuple[type, list[str]]]:
    """The classes with tests that make a Pool, by name, and the names of these tests."""
    module = importlib.import_module(POOL_MODULE)
    found = {}
    for name, thing in vars(module).items():
        if isinstance(thing, type) and thing.__module__ == POOL_MODULE:
            names = [test for test in vars(thing) if test.startswith("test_")]
            if names := [test for test in names if _makes_pool(getattr(thing, test))]:
                found[name] = (thing, names)
    return found


def _makes_pool(test: object) -> bool:
    return inspect.isroutine(test) and "pool" in inspect.getsource(test).lower()


def names_of(case: type[unittest.TestCase]) -> list[str]:
    """The names of a case's tests."""
    return list(unittest.defaultTestLoader.getTestCaseNames(case))
