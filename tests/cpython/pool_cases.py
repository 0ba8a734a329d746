"""What CPython's tests of multiprocessing.Pool need to run on ours, and our versions of those
that cannot be run as they are. Only imported where CPython's tests are installed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.managers
import textwrap
import threading
import traceback
import unittest.mock
from multiprocessing.pool import MaybeEncodingError
from typing import Any, ClassVar

import pytest
from test import _test_multiprocessing as theirs
from test import support
from test.support.script_helper import assert_python_ok
from waiting import BOUND, eventually

from prefork_executor import Pool

from . import tasks

support.SHORT_TIMEOUT = BOUND  # That of CPython's tests is half a minute.

WORKERS = 4
"""Of the pool that most of CPython's tests share."""


class OnPrefork:
    """Runs a test case of CPython's with our Pool in the place of multiprocessing's. It goes
    before that in the bases; what has unittest.TestCase comes last."""

    start_method: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method(cls.start_method, force=True)
        patch = unittest.mock.patch.object(multiprocessing, "Pool", Pool)
        patch.start()
        register = multiprocessing.managers.SyncManager.register
        proxy = multiprocessing.managers.PoolProxy  # type: ignore[attr-defined]
        register("Pool", Pool, proxy)
        cls.addClassCleanup(multiprocessing.set_start_method, before, force=True)
        cls.addClassCleanup(patch.stop)
        cls.addClassCleanup(register, "Pool", multiprocessing.pool.Pool, proxy)
        super().setUpClass()
        if hasattr(cls, "pool"):
            # And the connection to the manager, if it is there.
            eventually(cls._has_workers, "its workers are there before the first test")

    @classmethod
    def _has_workers(cls) -> bool:
        pids = cls.pool.map(tasks.pid_after_a_moment, range(2 * WORKERS), 1)
        return len(set(pids)) == WORKERS

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        # What CPython's check of threads finds are those by which pytest bounds a test.
        left = [thread for thread in threading.enumerate() if "prefork" in thread.name]
        assert (left, multiprocessing.active_children()) == ([], [])


class Processes(OnPrefork):
    """For those that make pools in the test's own process."""

    Pool = staticmethod(Pool)


class Initializers(Processes):
    def tearDown(self) -> None:
        super().tearDown()
        # unittest keeps the test case, and so what it has of the manager, beyond the leak check.
        self.mgr = self.ns = None


class WholePool(Processes):
    def test_an_exception_has_its_remote_frames(self) -> None:
        with Pool(1) as pool:
            with pytest.raises(RuntimeError) as caught:
                pool.apply(theirs._TestPool._test_traceback)
            source = "raise RuntimeError(123) # some comment"
            assert caught.value.args == (123,)
            assert source in "".join(traceback.format_exception(caught.value))
            with pytest.raises(theirs.SayWhenError) as raised:
                pool.map(theirs.sqr, theirs.exception_throwing_generator(1, -1), 1)
            assert raised.value.__cause__ is None


class WorkerErrors(Processes):
    def test_a_result_that_cannot_be_pickled(self) -> None:
        pool = Pool(2)
        for _ in range(20):
            told: list[Any] = []
            result = pool.apply_async(threading.Lock, error_callback=told.append)
            with pytest.raises(MaybeEncodingError):
                result.get(BOUND)
            assert isinstance(told[0], MaybeEncodingError)
            assert "cannot pickle" in told[0].exc
            assert "lock" in told[0].value
        pool.close()
        pool.join()

    def test_a_lambda_arrives(self) -> None:
        with Pool(1) as pool:
            assert pool.apply(theirs.unpickleable_result)() == 42


class WorkerLifetime(Processes):
    def test_a_pool_of_a_global_ends_with_its_program(self) -> None:
        self.run_script("""
            problem = None
            class A:
                def __init__(self):
                    self.pool = Pool(processes=1)
            def test():
                global problem
                problem = A()
                problem.pool.map(float, tuple(range(10)))
            if __name__ == "__main__":
                test()
            """)

    def test_a_large_pool(self) -> None:
        out = self.run_script("""
            if __name__ == "__main__":
                with Pool(200) as pool:
                    print(sum(pool.map(abs, range(-1000, 0))))
            """)
        assert out.strip() == "500500"

    def run_script(self, script: str) -> str:
        """What a Python that runs this script prints. It complains of nothing."""
        header = f"""\
            import functools
            from multiprocessing import get_context
            from prefork_executor import Pool
            Pool = functools.partial(Pool, context=get_context({self.start_method!r}))
            """
        _, out, err = assert_python_ok("-c", textwrap.dedent(header) + textwrap.dedent(script))
        assert not err, err
        return out.decode()


class PoolInProcess(Processes):
    def test_a_pool_in_a_process(self) -> None:
        context = multiprocessing.get_context(self.start_method)
        process = context.Process(target=tasks.use_pool)
        process.start()
        process.join()
        assert process.exitcode == 0
