"""Bad input: a clear error at the call that gave it, naming the argument, or in the
future whose task it was; and nobody else is harmed. What test_executor.py,
test_functions.py and test_tracebacks.py have of it is not repeated here."""

from __future__ import annotations

import concurrent.futures
import datetime
import decimal
import fractions
import functools
import multiprocessing
import multiprocessing.context
import os
import pickle
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from light_tasks import square
from waiting import BOUND

from prefork_executor import PreforkExecutor, yell
from prefork_executor._support import faults

HUGE = 10**5000
"""More digits than Python prints, and far beyond any float."""
NAN, INFINITE = float("nan"), float("inf")


def printable(value: object) -> str | None:
    """A test's name for a value of which pytest could make none."""
    is_huge = isinstance(value, int) and abs(value) == HUGE
    return ("huge" if value == HUGE else "minus huge") if is_huge else None


def same(x: object) -> object:
    return x


def nothing(*_: object) -> None:
    pass


def refused(error: type[Exception], name: str, message: str) -> Any:
    return pytest.raises(error, match=rf"^{re.escape(name)}.* {message}")


# --- the constructor's arguments ------------------------------------------------------------------

BAD_OPTIONS = [
    ("max_workers", HUGE, ValueError, "at most 4096, not a number of more than 20 digits"),
    ("max_workers", "2", TypeError, "an int, not str"),
    ("max_workers", np.float64(2), TypeError, "an int, not float64"),
    ("mp_context", multiprocessing.context.BaseContext(), TypeError, "not BaseContext"),
    ("mp_context", "", ValueError, "cannot find context for ''"),
    ("initializer", "os.getpid", TypeError, "callable or None, not str"),
    ("initargs", None, TypeError, "iterable, not NoneType"),
    ("initargs", square, TypeError, "iterable, not function"),
    ("max_tasks_per_child", -1, ValueError, "at least 1, not -1"),
    ("max_tasks_per_child", -HUGE, ValueError, "at least 1, not a number of"),
    ("max_tasks_per_child", 2.0, TypeError, "an int, not float"),
    ("min_spare_workers", None, TypeError, "an int, not NoneType"),
    ("min_spare_workers", 0.5, TypeError, "an int, not float"),
    ("min_spare_workers", HUGE, ValueError, "above max_workers"),
    ("max_spare_workers", -1, ValueError, "at least 0, not -1"),
    ("max_spare_workers", HUGE, ValueError, "above max_workers"),
    ("max_spare_workers", "1", TypeError, "an int, not str"),
    ("start_workers", 1.0, TypeError, "an int, not float"),
    ("start_workers", False, TypeError, "an int, not bool"),
    ("start_workers", HUGE, ValueError, "above max_workers"),
    ("idle_timeout", True, TypeError, "seconds or None, not bool"),
    ("idle_timeout", "Auto", ValueError, "seconds, None or \"auto\", not 'Auto'"),
    ("idle_timeout", b"auto", TypeError, "seconds or None, not bytes"),
    ("idle_timeout", -HUGE, ValueError, "at least 0 seconds, not -1e"),
    ("idle_timeout", -INFINITE, ValueError, "at least 0 seconds, not -1e"),
    ("idle_timeout", decimal.Decimal(1), TypeError, "seconds or None, not Decimal"),
    ("max_memory_per_child", 0, ValueError, "at least 1, not 0"),
    ("max_memory_per_child", -1, ValueError, "at least 1, not -1"),
    ("max_memory_per_child", 1e9, TypeError, "an int, not float"),
    ("max_memory_per_child", "1G", TypeError, "an int, not str"),
    ("max_memory_per_child", True, TypeError, "an int, not bool"),
    ("max_memory", 0, ValueError, "at least 1, not 0"),
    ("max_memory", -HUGE, ValueError, "at least 1, not a number of"),
    ("max_memory", 0.0, ValueError, "above 0 and at most 1.0 as a float, not 0"),
    ("max_memory", 1.5, ValueError, "above 0 and at most 1.0 as a float, not 1.5"),
    ("max_memory", NAN, ValueError, "at most 1.0 as a float, not nan"),
    ("max_memory", "1G", TypeError, "an int, not str"),
    ("max_memory", True, TypeError, "an int, not bool"),
    ("max_backlog", 0, ValueError, "at least 1, not 0"),
    ("max_backlog", 1.5, TypeError, "an int, not float"),
    ("max_backlog", True, TypeError, "an int, not bool"),
    ("resources", [("gpu", 1)], TypeError, "a mapping of names to numbers, not list"),
    ("nice", "1", TypeError, "an int, not str"),
    ("task_timeout", 0, ValueError, "above 0 seconds, not 0"),
    ("task_timeout", -1.5, ValueError, "above 0 seconds, not -1.5"),
    ("task_timeout", -HUGE, ValueError, "above 0 seconds, not -1e"),
    ("task_timeout", NAN, ValueError, "seconds, not nan"),
    ("task_timeout", "1", TypeError, "seconds or None, not str"),
    ("task_timeout", 1j, TypeError, "seconds or None, not complex"),
    ("task_timeout", datetime.timedelta(1), TypeError, "seconds or None, not timedelta"),
    ("retries", -1, ValueError, "at least 0, not -1"),
    ("retries", None, TypeError, "an int, not NoneType"),
    ("retries", 1.0, TypeError, "an int, not float"),
    ("retries", True, TypeError, "an int, not bool"),
    ("preload", 3, TypeError, "module names or a callable, not int"),
    ("preload", os, TypeError, "module names or a callable, not module"),
    ("preload", [3], TypeError, "hold module names, not int"),
    ("preload", b"os", TypeError, "hold module names, not int"),
    ("preload", [square], TypeError, "hold module names, not function"),
    ("preload", "", ValueError, "absolute module names, not ''"),
    ("preload", ["os", ".relative"], ValueError, "absolute module names, not '.relative'"),
    ("on_yell", [square], TypeError, "callable or None, not list"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS, ids=printable)
def test_the_constructor_refuses_it_and_names_the_argument(
    name: str, value: object, error: type[Exception], message: str
) -> None:
    with refused(error, name, message):
        PreforkExecutor(**{"max_workers": 2, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "one", "other"),
    [
        ({"min_spare_workers": 5}, "min_spare_workers (5)", "max_workers (4)"),
        ({"max_spare_workers": 5}, "max_spare_workers (5)", "max_workers (4)"),
        ({"start_workers": 5}, "start_workers (5)", "max_workers (4)"),
        (
            {"max_memory_per_child": 2000, "max_memory": 1000},
            *("max_memory_per_child (2000)", "max_memory (1000)"),
        ),
        (
            {"min_spare_workers": 3, "max_spare_workers": 2},
            *("min_spare_workers (3)", "max_spare_workers (2)"),
        ),
    ],
)
def test_limits_that_contradict_each_other_are_both_named(
    options: dict[str, int], one: str, other: str
) -> None:
    with refused(ValueError, one, "must not be above " + re.escape(other)):
        PreforkExecutor(4, **options)  # type: ignore[arg-type]


def test_the_limits_may_be_equal() -> None:
    executor = PreforkExecutor(4, min_spare_workers=4, max_spare_workers=4, start_workers=4)
    executor.shutdown()


def test_what_an_iterable_of_arguments_raises_is_its_own_affair() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("no more numbers")

    with pytest.raises(LookupError, match="no more numbers"):
        PreforkExecutor(1, initargs=numbers())  # type: ignore[arg-type]
    with PreforkExecutor(1) as executor, pytest.raises(LookupError, match="no more numbers"):
        executor.map(square, numbers())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("idle_timeout", value) for value in (0, 1e7, 1e300, HUGE, INFINITE, np.float32(0.5))),
        *(("task_timeout", value) for value in (3e6, 1e300, HUGE, fractions.Fraction(99))),
        *(("max_tasks_per_child", value) for value in (HUGE, np.uint8(3))),
        ("max_memory_per_child", HUGE),
        *(("max_memory", value) for value in (HUGE, 1.0, np.int64(10**9), np.float64(0.5))),
        ("retries", HUGE),
    ],
    ids=printable,
)
def test_a_number_that_is_odd_and_makes_sense_works(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Clocks and system calls have bounds of their own, which are not the user's affair."""
    with PreforkExecutor(2, "fork", min_spare_workers=0, **{name: value}) as executor:
        assert list(executor.map(square, range(5), timeout=BOUND)) == [0, 1, 4, 9, 16]
        # A look at workers that have become idle, and at how long they may stay so.
        executor.reload().result(BOUND)
        assert executor.submit(square, 5).result(BOUND) == 25
    assert [record.getMessage() for record in caplog.records] == []


# --- the methods' arguments -----------------------------------------------------------------------


@pytest.fixture
def unused() -> Iterator[PreforkExecutor]:
    """An executor that has not started anything, nor has when the test is over."""
    with PreforkExecutor(2) as executor:
        yield executor
        assert executor.stats().workers == ()
        assert executor._client._thread is None


@pytest.mark.parametrize("fn", [None, 3, "square", [square], object()])
def test_what_cannot_be_called_is_refused_by_submit_and_map(
    unused: PreforkExecutor, fn: Any
) -> None:
    with refused(TypeError, "fn", f"callable, not {type(fn).__name__}"):
        unused.submit(fn)
    with refused(TypeError, "fn", f"callable, not {type(fn).__name__}"):
        unused.map(fn, [1])


def test_a_missing_function_is_named(unused: PreforkExecutor) -> None:
    with pytest.raises(TypeError, match="'fn'"):
        unused.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'fn'"):
        unused.map()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunksize": -1}, ValueError, "at least 1, not -1"),
        ({"chunksize": None}, TypeError, "an int, not NoneType"),
        ({"buffersize": -5}, ValueError, "None or > 0, not -5"),
        ({"buffersize": 1.0}, TypeError, "an integer or None, not float"),
        ({"buffersize": -HUGE}, ValueError, "> 0, not a number of"),
        ({"timeout": NAN}, ValueError, "seconds, not nan"),
        ({"timeout": True}, TypeError, "seconds or None, not bool"),
        ({"timeout": 1j}, TypeError, "seconds or None, not complex"),
    ],
    ids=printable,
)
def test_map_refuses_it_and_names_the_argument(
    unused: PreforkExecutor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with refused(error, next(iter(options)), message):
        unused.map(square, [1], **options)


def test_map_says_which_iterable_is_none(unused: PreforkExecutor) -> None:
    with refused(TypeError, "iterables[1]", "iterable, not int"):
        unused.map(pow, [1], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [1e300, HUGE, INFINITE], ids=printable)
def test_map_may_wait_for_ever(timeout: float) -> None:
    with PreforkExecutor(1) as executor:
        assert list(executor.map(square, [1, 2], timeout=timeout)) == [1, 4]


def test_a_map_whose_time_is_up_before_it_begins_times_out() -> None:
    with PreforkExecutor(1) as executor:
        results = executor.map(time.sleep, [0.3], timeout=-HUGE)
        with pytest.raises(TimeoutError):
            next(results)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, ValueError, "above 0 seconds, not 0"),
        ({"timeout": -1}, ValueError, "above 0 seconds, not -1"),
        ({"timeout": NAN}, ValueError, "seconds, not nan"),
        ({"timeout": "1"}, TypeError, "seconds or None, not str"),
        ({"retries": -1}, ValueError, "at least 0, not -1"),
        ({"retries": 0.5}, TypeError, "an int, not float"),
        ({"retries": None}, TypeError, "an int, not NoneType"),
        ({"memory": -1}, ValueError, "at least 0, not -1"),
        ({"memory": 0.5}, TypeError, "an int, not float"),
    ],
)
def test_with_options_refuses_it_and_names_the_argument(
    unused: PreforkExecutor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with refused(error, next(iter(options)), message):
        unused.with_options(**options)
    with refused(error, next(iter(options)), message):
        unused.with_options(retries=1).with_options(**options)


def test_a_task_may_not_be_said_to_take_more_than_all_may() -> None:
    bounded = PreforkExecutor(1, max_memory=1000)
    with refused(ValueError, "memory (1001)", re.escape("must not be above max_memory (1000)")):
        bounded.with_options(memory=1001)
    bounded.with_options(memory=1000)
    bounded.shutdown()


def test_options_that_there_are_not_are_named(unused: PreforkExecutor) -> None:
    with pytest.raises(TypeError, match="'urgency'"):
        unused.with_options(urgency=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'max_threads'"):
        PreforkExecutor(max_threads=1)  # type: ignore[call-arg]


def test_the_future_of_another_cannot_be_aborted() -> None:
    with PreforkExecutor(1) as executor, PreforkExecutor(1) as other:
        theirs = other.submit(square, 2)
        for future in (concurrent.futures.Future[int](), theirs, executor.reload()):
            with refused(ValueError, "future", "this executor's submit"):
                executor.abort(future)
        for thing in (None, 3, "x", executor, square):
            with refused(TypeError, "future", f"a Future, not {type(thing).__name__}"):
                executor.abort(thing)  # type: ignore[arg-type]
        assert theirs.result(BOUND) == 4
        assert other.with_options(retries=1).submit(square, 3).result(BOUND) == 9


def test_hooks_and_initializers_that_are_none_are_refused(unused: PreforkExecutor) -> None:
    for kind in (None, 3, "int", (int, str)):
        with refused(TypeError, "kind", f"a class, not {type(kind).__name__}"):
            unused.add_yell_hook(kind, nothing)  # type: ignore[arg-type]
    for hook in (None, 3, "nothing", [nothing]):
        with refused(TypeError, "hook", f"callable, not {type(hook).__name__}"):
            unused.add_yell_hook(int, hook)  # type: ignore[arg-type]
        with refused(TypeError, "fn", f"callable, not {type(hook).__name__}"):
            unused.add_initializer(hook)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        ("1", TypeError, "seconds or None, not str"),
        (True, TypeError, "seconds or None, not bool"),
        (NAN, ValueError, "seconds, not nan"),
    ],
)
def test_join_refuses_it_and_names_the_argument(
    timeout: Any, error: type[Exception], message: str
) -> None:
    executor = PreforkExecutor(1)
    executor.shutdown()
    with refused(error, "timeout", message):
        executor.join(timeout)


@pytest.mark.parametrize("timeout", [-HUGE, -1, 0, 1e300, HUGE, INFINITE, None], ids=printable)
def test_join_takes_any_time(timeout: float | None) -> None:
    executor = PreforkExecutor(1)
    executor.submit(square, 1).result(BOUND)
    executor.shutdown(wait=True)
    assert executor.join(timeout)


def test_shutdown_takes_anything_for_true_or_false() -> None:
    executor = PreforkExecutor(1)
    executor.submit(square, 1)
    executor.shutdown(wait="later", cancel_futures=[])  # type: ignore[arg-type]
    assert executor.join(BOUND)
    with pytest.raises(TypeError, match="positional argument"):
        executor.shutdown(True, True)  # type: ignore[misc]


def test_stats_takes_nothing_and_works_at_any_time(unused: PreforkExecutor) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        unused.stats(1)  # type: ignore[call-arg]
    unused.shutdown()
    assert unused.stats().workers == ()


# --- arbitrary junk -------------------------------------------------------------------------------

junk = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers()),
    *(st.text(max_size=5), st.binary(max_size=5), st.fractions(), st.decimals()),
    *(st.builds(object), st.timedeltas(), st.functions(), st.just(object), st.just(HUGE)),
    *(st.lists(st.none() | st.text(max_size=3), max_size=3), st.just({}), st.just(-HUGE)),
    *(st.integers(-2, 5), st.integers().map(np.float64), st.just(np.int8(2))),
    st.sampled_from([np.zeros(3), range(3), ..., NotImplemented, multiprocessing, os.environ]),
)
OPTIONS = (
    *("max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child"),
    *("min_spare_workers", "max_spare_workers", "start_workers", "idle_timeout", "on_yell"),
    *("max_memory_per_child", "max_memory", "task_timeout", "retries", "preload"),
)


def works_or_names_it(call: Callable[[], object], names: tuple[str, ...]) -> None:
    refusal = None
    try:
        call()
    except (TypeError, ValueError) as error:
        refusal = str(error)
    assert refusal is None or any(name in refusal for name in names), refusal


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(OPTIONS), junk, min_size=1, max_size=4))
@example({"idle_timeout": np.zeros(3)})
@example({"max_workers": HUGE, "min_spare_workers": -HUGE})
def test_junk_for_the_constructor_is_taken_or_refused_by_name(options: dict[str, Any]) -> None:
    def construct_and_look() -> None:
        with PreforkExecutor(**options) as executor:
            assert executor.stats().finished == 0

    works_or_names_it(construct_and_look, tuple(options))


@settings(max_examples=300, deadline=None)
@given(junk, junk, junk)
def test_junk_for_the_methods_is_taken_or_refused_by_name(one: Any, two: Any, three: Any) -> None:
    executor = PreforkExecutor(1)
    calls: list[tuple[Callable[[], object], tuple[str, ...]]] = [
        (
            # No item to be submitted for, whatever the other iterable is.
            lambda: list(executor.map(one, [], two, timeout=three, chunksize=two, buffersize=one)),
            ("fn", "iterables[1]", "timeout", "chunksize", "buffersize"),
        ),
        (lambda: executor.map(square, [], timeout=one), ("timeout",)),
        (lambda: executor.map(square, [], chunksize=one), ("chunksize",)),
        (lambda: executor.map(square, [], buffersize=one), ("buffersize",)),
        (lambda: executor.with_options(timeout=one, retries=two), ("timeout", "retries")),
        (lambda: executor.with_options(memory=one), ("memory",)),
        (lambda: executor.abort(one), ("future",)),
        (lambda: executor.with_options().abort(one), ("future",)),
        (lambda: executor.add_yell_hook(one, two), ("kind", "hook")),
        (lambda: executor.add_initializer(one, two), ("fn",)),
    ]
    if not callable(one):
        calls.append((lambda: executor.submit(one, two, key=three), ("fn",)))
    for call, names in calls:
        works_or_names_it(call, names)
    with pytest.raises(RuntimeError, match="only inside a task"):
        yell(one)
    executor.shutdown(cancel_futures=True)
    works_or_names_it(lambda: executor.join(one), ("timeout",))


# --- what a pool cannot start with ----------------------------------------------------------------


class Failing:
    """Raises this when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Refusing:
    """Does this when it is unpickled."""

    def __init__(self, does: Callable[..., object], *args: object) -> None:
        self.reduced = (does, args)

    def __reduce__(self) -> Any:
        return self.reduced


class RefusingElsewhere:
    """Raises this when it is unpickled in another process."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_elsewhere, (os.getpid(), self.error)


def raise_elsewhere(pid: int, error: BaseException) -> None:
    if os.getpid() != pid:
        raise error


def raise_it(error: BaseException) -> None:
    raise error


@pytest.fixture(params=["forkserver", "spawn"])
def unpickling_method(request: pytest.FixtureRequest) -> str:
    """A start method under which everything has to travel to the supervisor."""
    return str(request.param)


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("options", "place", "reason"),
    [
        ({"initializer": LOCK.acquire}, "initializer.__self__", "a _thread.lock (TypeError"),
        ({"preload": LOCK.acquire}, "preload.__self__", "a _thread.lock (TypeError"),
        (
            {"initializer": functools.partial(nothing, 1, {"lock": LOCK})},
            *("initializer.args[1]['lock']", "a _thread.lock (TypeError"),
        ),
        (
            {"initializer": nothing, "initargs": (1, [{"lock": LOCK}])},
            *("initargs[1][0]['lock']", "a _thread.lock (TypeError"),
        ),
        (
            {"initializer": nothing, "initargs": (Failing(ValueError("not today")),)},
            *("initargs[0]", "a test_bad_input.Failing (ValueError: not today)"),
        ),
        (
            {"initializer": nothing, "initargs": (Failing(RecursionError("too deep")),)},
            *("initargs[0]", "a test_bad_input.Failing (RecursionError: too deep)"),
        ),
    ],
)
def test_what_cannot_travel_to_the_pool_is_named_by_each_submit(
    unpickling_method: str, options: dict[str, Any], place: str, reason: str
) -> None:
    with PreforkExecutor(1, unpickling_method, **options) as executor:
        for _ in range(2):
            with pytest.raises(pickle.PicklingError) as caught:
                executor.submit(square, 1)
            message = f"the supervisor cannot be started: {place} is {reason}"
            assert str(caught.value).startswith(message)
            assert caught.value.__cause__ is not None
        assert executor.stats().workers == ()


def test_a_lock_of_the_context_is_not_blamed_for_another(unpickling_method: str) -> None:
    context = multiprocessing.get_context(unpickling_method)
    things = (context.Lock(), LOCK)
    with PreforkExecutor(1, context, nothing, things) as executor:
        with pytest.raises(pickle.PicklingError, match=r"initargs\[1\] is a _thread.lock"):
            executor.submit(square, 1)


def test_a_forked_pool_takes_it_as_it_is() -> None:
    with PreforkExecutor(1, "fork", nothing, (LOCK, Failing(SystemExit(1)))) as executor:
        assert executor.submit(square, 3).result(BOUND) == 9


@pytest.mark.parametrize("error", [SystemExit("bye"), KeyboardInterrupt("stop")])
def test_what_exits_while_it_is_pickled_exits_the_submit_and_no_more(
    unpickling_method: str, error: BaseException
) -> None:
    with PreforkExecutor(1, unpickling_method, nothing, (Failing(error),)) as executor:
        with pytest.raises(type(error)):
            executor.submit(square, 1)
    with PreforkExecutor(1, unpickling_method) as executor:
        other = executor.submit(square, 2)
        with pytest.raises(type(error)):
            executor.submit(same, Failing(error))
        assert other.result(BOUND) == 4
        assert executor.submit(square, 3).result(BOUND) == 9


@pytest.mark.parametrize(
    ("method", "thing"),
    [("spawn", Refusing(raise_it, LookupError("no"))), ("forkserver", Refusing(os._exit, 7))],
)
def test_what_workers_cannot_unpickle_breaks_the_pool_and_no_future_hangs(
    method: str, thing: Refusing, capfd: pytest.CaptureFixture[str]
) -> None:
    what = "initializer or initargs could not be unpickled.*LookupError: no|3 workers in a row died"
    with PreforkExecutor(2, method, nothing, (thing,)) as executor:
        error = executor.submit(square, 1).exception(BOUND)
        assert isinstance(error, BrokenProcessPool)
        assert re.search(what, str(error))
        with pytest.raises(BrokenProcessPool, match=what):
            executor.submit(square, 1)
    capfd.readouterr()


def test_a_supervisor_that_ends_before_it_was_given_its_channels_is_no_other_case() -> None:
    def end_it(pid: int, control: socket.socket) -> None:
        os.kill(pid, signal.SIGABRT)
        assert select.select([control], [], [], BOUND)[0], "it has ended"

    with (
        faults.injected("client.gives_channels", end_it),
        PreforkExecutor(2, "forkserver") as executor,
    ):
        error = executor.submit(square, 1).exception(BOUND)
        assert "supervisors in a row ended before they were ready" in str(error)


@pytest.mark.parametrize(
    ("initializer", "initargs", "message"),
    [
        (sys.exit, ("no licence",), "SystemExit: no licence"),
        (raise_it, (KeyboardInterrupt("stop"),), "KeyboardInterrupt: stop"),
        (square, (), "TypeError: .*square.* missing 1 required positional argument"),
        (raise_it, (Failing(ValueError()),), "TypeError: exceptions must derive"),
    ],
)
def test_an_initializer_that_ends_in_any_way_breaks_the_pool_and_says_why(
    initializer: Callable[..., object], initargs: tuple[Any, ...], message: str
) -> None:
    with PreforkExecutor(2, "fork", initializer, initargs) as executor:
        error = executor.submit(square, 1).exception(BOUND)
        assert isinstance(error, BrokenProcessPool)
        assert re.search(f"the initializer failed in worker .*{message}", str(error))


@pytest.mark.parametrize("error", [SystemExit("no"), KeyboardInterrupt("no")])
def test_a_preload_that_exits_breaks_the_pool_and_says_why(error: BaseException) -> None:
    with PreforkExecutor(2, "fork", preload=functools.partial(raise_it, error)) as executor:
        with pytest.raises(BrokenProcessPool, match=f"preload failed: {type(error).__name__}: no"):
            executor.submit(square, 1).result(BOUND)


# --- tasks, results and messages that cannot travel -----------------------------------------------


@pytest.fixture
def executor(start_method: str) -> Iterator[PreforkExecutor]:
    """A pool of one worker, which has to outlive whatever the test does."""
    with PreforkExecutor(1, start_method, on_yell=nothing) as executor:
        pid = executor.submit(os.getpid).result(BOUND)
        yield executor
        assert executor.submit(os.getpid).result(BOUND) == pid, "unharmed to the end"


ODD = [SystemExit(3), KeyboardInterrupt("stop"), RecursionError("deep"), MemoryError("full")]


def unharmed(executor: PreforkExecutor, *odd: Any) -> BaseException | None:
    """What became of a task whose neighbours came to no harm."""
    before = executor.submit(square, 2)
    future = executor.submit(*odd)
    after = executor.submit(square, 3)
    assert (before.result(BOUND), after.result(BOUND)) == (4, 9)
    return future.exception(BOUND)


def test_whatever_a_result_raises_as_it_is_pickled_fails_its_own_future(
    executor: PreforkExecutor,
) -> None:
    for error in ODD:
        got = unharmed(executor, Failing, error)
        # What would end a process ends the task; anything else is explained.
        assert isinstance(got, explained(error))


def explained(error: BaseException) -> type[BaseException]:
    return pickle.PicklingError if isinstance(error, Exception) else type(error)


def test_whatever_an_argument_raises_as_it_is_unpickled_fails_its_own_future(
    executor: PreforkExecutor,
) -> None:
    for error in ODD:
        got = unharmed(executor, same, Refusing(raise_it, error))
        assert type(got) is type(error)
        assert got.__notes__ == ["This was raised while the worker unpickled the task."]


def test_whatever_a_result_raises_as_it_is_unpickled_fails_its_own_future(
    executor: PreforkExecutor,
) -> None:
    for error in ODD:
        got = unharmed(executor, RefusingElsewhere, error)
        assert type(got) is pickle.UnpicklingError
        assert type(got.__cause__) is type(error)


class OddError(Exception):
    """Raises as it is pickled, or as it is unpickled elsewhere."""

    def __reduce__(self) -> Any:
        when, error = self.args
        if when == "pickled":
            raise error
        return raise_elsewhere, (os.getpid(), error)


def raise_odd(when: str, error: BaseException) -> None:
    raise OddError(when, error)


@pytest.mark.parametrize("when", ["pickled", "unpickled"])
def test_an_exception_that_refuses_to_travel_arrives_all_the_same(
    executor: PreforkExecutor, when: str
) -> None:
    for error in ODD:
        got = unharmed(executor, raise_odd, when, error)
        assert type(got) is OddError
        assert (got.args[0], type(got.args[1])) == (when, type(error))


def yell_what_fails(error: BaseException) -> str:
    try:
        yell(Failing(error))
    except BaseException as caught:
        return type(caught).__name__
    return "it was sent"


def yell_this(thing: object) -> str:
    yell(thing)
    return "yelled"


def yell_what_is_refused(error: BaseException) -> str:
    return yell_this(RefusingElsewhere(error))


def test_a_message_that_cannot_travel_is_the_tasks_affair_or_is_logged(
    executor: PreforkExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    for error in ODD:
        caught = executor.submit(yell_what_fails, error).result(BOUND)
        assert caught == explained(error).__name__
        assert executor.submit(yell_what_is_refused, error).result(BOUND) == "yelled"
    assert caplog.text.count("on_yell failed for a message from worker") == len(ODD)


def test_a_hook_that_takes_other_arguments_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hook: Any = square
    with PreforkExecutor(1, on_yell=hook) as executor:
        assert executor.submit(yell_this, 1).result(BOUND) == "yelled"
    assert "on_yell failed" in caplog.text
    assert "takes 1 positional argument but 2 were given" in caplog.text


def test_a_keyword_argument_that_cannot_be_pickled_is_named(executor: PreforkExecutor) -> None:
    future = executor.submit(square, x=Failing(RecursionError("too deep")))
    with pytest.raises(pickle.PicklingError, match=r"kwargs\['x'\] is a .*Failing"):
        future.result(BOUND)


def test_in_a_map_what_cannot_travel_fails_where_its_result_is_taken(
    executor: PreforkExecutor,
) -> None:
    results = executor.map(same, [1, Failing(ValueError("not today")), 3])
    assert next(results) == 1
    with pytest.raises(pickle.PicklingError, match="not today"):
        next(results)
    results = executor.map(square, [1, 2], chunksize=2, timeout=BOUND)
    assert list(results) == [1, 4]
