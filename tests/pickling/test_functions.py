"""What travels: functions, arguments and results. For those of ``__main__`` see
test_main_module.py."""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import enum
import functools
import importlib
import math
import operator
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from light_tasks import wait_for
from waiting import eventually

from prefork_executor import PreforkExecutor
from prefork_executor.errors import CallPicklingError, ResultPicklingError


@pytest.fixture(scope="module")
def executor() -> Iterator[PreforkExecutor]:
    """One pool for all: whatever a test sends, the next finds the same worker."""
    with PreforkExecutor(1, idle_timeout=None) as executor:
        executor.submit(int).result()
        yield executor


# --- every kind of callable ---------------------------------------------------------------------


def twice(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def wrapper(x: Any) -> Any:
        return function(function(x))

    return wrapper


@twice
def add_one_twice(x: int) -> int:
    return x + 1


@functools.lru_cache
def cached(x: int) -> int:
    return x + 1


def add(x: int, y: int = 1, *, z: int = 0) -> int:
    return x + y + z


def factorial(n: int) -> int:
    return 1 if n == 0 else n * factorial(n - 1)


class Adder:
    def __init__(self, y: int = 1) -> None:
        self.y = y

    def __call__(self, x: int) -> int:
        return x + self.y

    def add(self, x: int) -> int:
        return x + self.y

    @classmethod
    def add_in_class(cls, x: int) -> int:
        return cls().add(x)

    @staticmethod
    def add_one(x: int) -> int:
        return x + 1

    def __int__(self) -> int:
        return self.y


def local_functions() -> dict[str, Callable[[int], Any]]:
    one = 1

    def closure(x: int) -> int:
        return x + one

    def recursive(n: int) -> int:
        return 1 if n == 0 else n * recursive(n - 1)

    @functools.lru_cache
    def local_cached(x: int) -> int:
        return x + one

    @twice
    def decorated(x: int) -> int:
        return x + one

    class Local:
        def __call__(self, x: int) -> int:
            return x + one

    def by_keyword(x: int, *, y: int = 1) -> int:
        return x + y

    def generator_inside(x: int) -> int:
        return sum(i for i in range(x + one)) - 9

    return {
        "a lambda": lambda x: x + one,
        "a closure": closure,
        "a local recursive function": lambda x: recursive(x - 2),
        "a local cached function": local_cached,
        "a local decorated function": lambda x: decorated(x) - 1,
        "an instance of a local class": Local(),
        "a bound method of a local class": Local().__call__,
        "a local function with defaults": by_keyword,
        "a partial of a lambda": functools.partial(lambda y, x: x + y, 1),
        "a local function with a generator inside": generator_inside,
    }


CALLABLES: dict[str, Callable[[int], Any]] = {
    "a function of a module": add,
    "a cached function": cached,
    "a partial": functools.partial(add, z=0),
    "a partial of a partial": functools.partial(functools.partial(add, y=1), z=0),
    "a bound method": Adder().add,
    "a class method": Adder.add_in_class,
    "a static method": Adder.add_one,
    "an instance": Adder(),
    "a function in C": functools.partial(operator.add, 1),
    "a method of a number": (1).__add__,
    "a method descriptor": functools.partial(int.__add__, 1),
    "a method caller": operator.methodcaller("__add__", 1),
    "a NumPy function": functools.partial(np.add, 1),
    **local_functions(),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_any_callable_can_be_a_task(executor: PreforkExecutor, kind: str) -> None:
    assert executor.submit(CALLABLES[kind], 5).result() == 6


def test_a_decorated_function_goes_by_its_name(executor: PreforkExecutor) -> None:
    assert executor.submit(add_one_twice, 1).result() == 3


def test_a_class_can_be_a_task(executor: PreforkExecutor) -> None:
    made = executor.submit(Adder, 7).result()
    assert type(made) is Adder
    assert made.y == 7
    assert executor.submit(int, "12").result() == 12
    assert executor.submit(dict, a=1).result() == {"a": 1}


def test_deep_recursion_is_the_tasks_own_affair(executor: PreforkExecutor) -> None:
    assert executor.submit(factorial, 200).result() == math.factorial(200)


def test_keyword_arguments_may_have_any_name(executor: PreforkExecutor) -> None:
    names = {"fn": 1, "self": 2, "args": 3, "kwargs": 4, "executor": 5, "timeout": 6}
    assert executor.submit(dict, **names).result() == names


def test_functions_travel_as_arguments_and_come_back_as_results(
    executor: PreforkExecutor,
) -> None:
    assert executor.submit(call, lambda x: x + 1, 1).result() == 2
    made = executor.submit(lambda y: lambda x: x + y, 5).result()
    assert made(1) == 6
    assert executor.submit(same, add).result() is add
    assert executor.submit(same, [add, {"f": lambda: 3}]).result()[1]["f"]() == 3


def call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def same(thing: Any) -> Any:
    return thing


def test_a_closure_carries_what_it_had_when_it_was_submitted(executor: PreforkExecutor) -> None:
    basket: list[int] = []
    futures = []
    for number in range(3):
        basket.append(number)
        futures.append(executor.submit(lambda: list(basket)))
    assert [future.result() for future in futures] == [[0], [0, 1], [0, 1, 2]]


def test_a_local_class_is_the_same_class_when_its_instance_comes_back(
    executor: PreforkExecutor,
) -> None:
    class Local:
        value = 1

    class Shade(enum.Enum):
        DARK = 1

    assert type(executor.submit(same, Local()).result()) is Local
    assert type(executor.submit(lambda: Local()).result()) is Local
    assert executor.submit(lambda: Shade.DARK).result() is Shade.DARK


@dataclass
class Order:
    number: int
    lines: list[str] = field(default_factory=list)


class Level(enum.IntEnum):
    LOW = 1


def test_dataclasses_and_enums_come_back_equal(executor: PreforkExecutor) -> None:
    order = Order(1, ["a"])
    assert executor.submit(same, order).result() == order
    assert executor.submit(same, Level.LOW).result() is Level.LOW


MODULE = """
class Answer:
    def __init__(self, value):
        self.value = value

def answer():
    return Answer(42)
"""


def test_a_module_that_workers_cannot_import_goes_by_value_registered_so_or_not(
    executor: PreforkExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.submit(int).result()  # From now on, what is imported here is news to the worker.
    (tmp_path / "only_here.py").write_text(MODULE)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        module = importlib.import_module("only_here")
    patch.setitem(sys.modules, "only_here", module)
    assert executor.submit(module.answer).result().value == 42
    cloudpickle.register_pickle_by_value(module)
    try:
        result = executor.submit(module.answer).result()
        assert type(result) is module.Answer
        assert result.value == 42
        assert executor.submit(same, module.Answer(1)).result().value == 1
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    patch.undo()


# --- what cannot be pickled ---------------------------------------------------------------------


class Holder:
    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def get(self) -> Any:
        return self.thing


class SlottedHolder:
    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing


class HolderWithoutItsLock:
    """Knows that its lock cannot travel, but not that its generator cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.items = (i for i in range(3))

    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items}


class FailingReduce:
    def __reduce__(self) -> Any:
        raise RuntimeError("no reduction today")


class FailingGetstate:
    def __getstate__(self) -> Any:
        raise RuntimeError("no state today")


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    await asyncio.sleep(0)


def unpicklable(kind: str, stack: contextlib.ExitStack) -> Any:
    if kind == "a generator":
        return generator()
    if kind == "a coroutine":
        made = coroutine()
        stack.callback(made.close)
        return made
    if kind == "a text file":
        return stack.enter_context(open(__file__, encoding="utf-8"))
    if kind == "a binary file":
        return stack.enter_context(open(__file__, "rb"))
    if kind == "a frame":
        return sys._getframe()
    if kind == "a lock of multiprocessing":
        import multiprocessing

        return multiprocessing.Lock()
    makers: dict[str, Callable[[], Any]] = {
        "a structure of C": lambda: sys.version_info,
        "a class of C": lambda: type(iter([])),
        "a lock": threading.Lock,
        "a condition": threading.Condition,
        "a thread-local": threading.local,
        "a failing __reduce__": FailingReduce,
        "a failing __getstate__": FailingGetstate,
    }
    return makers[kind]()


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("a lock", r"args\[0\] is a _thread\.lock \(TypeError: "),
        ("a condition", r"args\[0\]\._lock is a _thread\.RLock \(TypeError: "),
        ("a thread-local", r"args\[0\] is a _thread\._local \(TypeError: "),
        ("a generator", r"args\[0\] is a generator \(TypeError: "),
        ("a coroutine", r"args\[0\] is a coroutine \(TypeError: "),
        ("a text file", r"args\[0\] is a _io\.TextIOWrapper \(TypeError: .* open file"),
        ("a binary file", r"args\[0\] is a _io\.BufferedReader \(TypeError: "),
        ("a frame", r"args\[0\] is a frame \(TypeError: "),
        ("a structure of C", r"args\[0\] is a sys\.version_info \(PicklingError: "),
        ("a class of C", r"args\[0\] is a type \(PicklingError: .*list_iterator"),
        ("a lock of multiprocessing", r"args\[0\] is a .*Lock \(RuntimeError: .*inheritance"),
        ("a failing __reduce__", r"FailingReduce \(RuntimeError: no reduction today\)"),
        ("a failing __getstate__", r"FailingGetstate \(RuntimeError: no state today\)"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named_in_its_own_future(
    executor: PreforkExecutor, kind: str, complaint: str
) -> None:
    with contextlib.ExitStack() as stack:
        before = executor.submit(same, 1)
        future = executor.submit(same, unpicklable(kind, stack))
        after = executor.submit(same, 2)
        error = future.exception()
        assert type(error) is CallPicklingError
        assert error.__cause__ is not None
        with pytest.raises(
            pickle.PicklingError,
            match=f"task test_functions.same cannot be sent to a worker: .*{complaint}",
        ):
            future.result()
        assert (before.result(), after.result()) == (1, 2)


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("place", "args", "kwargs"),
    [
        ("args[1]", (1, LOCK), {}),
        ("kwargs['lock']", (), {"lock": LOCK}),
        ("args[0]['lock']", ({"lock": LOCK},), {}),
        ("args[0][2][0]['deep']", ([1, 2, [{"deep": LOCK}]],), {}),
        ("args[0].thing", (Holder(LOCK),), {}),
        ("args[0].thing", (SlottedHolder(LOCK),), {}),
        ("args[0].thing['x'].thing", (Holder({"x": SlottedHolder(LOCK)}),), {}),
        ("args[0].keywords['lock']", (functools.partial(print, lock=LOCK),), {}),
        ("args[0].args[0]", (functools.partial(print, LOCK),), {}),
        ("args[0].__self__.thing", (Holder(LOCK).get,), {}),
        ("an item of args[0]", ({LOCK},), {}),
        ("a key of args[0]", ({LOCK: 1},), {}),
        ("args[0].args[1]", (ValueError("a", LOCK),), {}),
        ("args[0]['x' * 100", ({"x" * 100: LOCK},), {}),
    ],
)
def test_the_place_of_what_cannot_be_pickled_is_named(
    executor: PreforkExecutor, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    message = str(executor.submit(same, *args, **kwargs).exception())
    if "'x' * 100" in place:
        place = "args[0]['xxxxxxxx"
        assert "..." in message
        assert "] is a _thread.lock" in message
        assert place in message
    else:
        assert f": {place} is a _thread.lock (TypeError: " in message


def test_what_knows_how_to_be_pickled_is_not_blamed_for_what_it_leaves_out(
    executor: PreforkExecutor,
) -> None:
    message = str(executor.submit(same, HolderWithoutItsLock()).exception())
    assert "args[0].items is a generator" in message


def test_a_function_that_holds_what_cannot_be_pickled_is_named(executor: PreforkExecutor) -> None:
    lock = threading.Lock()

    class Local:
        kept = lock

    def with_default(x: int, guard: Any = lock) -> Any:
        return guard

    places = {
        "the function's variable 'lock'": lambda: lock,
        "the function's variable 'Local'.kept": lambda: Local,
        "the function's default 0": with_default,
        "the function.args[0]": functools.partial(print, lock),
        "the function.__self__.thing": Holder(lock).get,
    }
    for place, function in places.items():
        message = str(executor.submit(function).exception())
        assert f": {place} is a _thread.lock (TypeError: " in message


def test_the_culprit_in_a_chunk_of_a_map_is_named(executor: PreforkExecutor) -> None:
    results = executor.map(same, [1, LOCK], chunksize=2)
    with pytest.raises(pickle.PicklingError, match=r"args\[0\]\[1\] is a _thread.lock"):
        list(results)


def test_what_is_nested_too_deep_fails_its_own_future(executor: PreforkExecutor) -> None:
    nest: list[Any] = []
    for _ in range(50_000):
        nest = [nest]
    error = executor.submit(same, nest).exception()
    assert isinstance(error, pickle.PicklingError)
    assert "recursion" in str(error)
    assert executor.submit(same, 1).result() == 1
    while nest:
        nest = nest.pop()


def make(kind: str) -> Any:
    """What cannot be pickled, made by the worker."""
    return {"it": [unpicklable(kind, contextlib.ExitStack())]}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("a lock", "result['it'][0] is a _thread.lock (TypeError: "),
        ("a generator", "result['it'][0] is a generator (TypeError: "),
        ("a structure of C", "result['it'][0] is a sys.version_info (PicklingError: "),
        ("a class of C", "result['it'][0] is a type (PicklingError: "),
        ("a text file", "result['it'][0] is a _io.TextIOWrapper (TypeError: "),
        ("a failing __reduce__", "FailingReduce (RuntimeError: no reduction today)"),
    ],
)
def test_a_result_that_cannot_be_pickled_is_named_in_its_own_future(
    executor: PreforkExecutor, kind: str, complaint: str
) -> None:
    pid = executor.submit(os.getpid).result()
    error = executor.submit(make, kind).exception()
    assert type(error) is ResultPicklingError
    assert str(error).startswith("the result of task test_functions.make cannot be pickled: ")
    assert complaint in str(error)
    assert error.__cause__ is not None
    assert executor.submit(os.getpid).result() == pid


# --- what cannot be unpickled -------------------------------------------------------------------


def refuse(message: str) -> None:
    raise LookupError(message)


def refuse_outside(pid: int) -> str:
    if os.getpid() != pid:
        raise LookupError(f"not made for process {os.getpid()}")
    return "at home"


class RefusedThere:
    def __reduce__(self) -> Any:
        return refuse, ("unwelcome",)


class RefusedElsewhere:
    """Cannot be unpickled in any process but the one that pickled it."""

    def __reduce__(self) -> Any:
        return refuse_outside, (os.getpid(),)


class LeavingWhenUnpickled:
    def __reduce__(self) -> Any:
        return sys.exit, ("on my way out",)


def test_an_argument_that_cannot_be_unpickled_fails_its_own_future(
    executor: PreforkExecutor,
) -> None:
    pid = executor.submit(os.getpid).result()
    error = executor.submit(same, RefusedThere()).exception()
    assert type(error) is LookupError
    assert error.args == ("unwelcome",)
    assert error.__notes__ == ["This was raised while the worker unpickled the task."]
    assert type(executor.submit(same, LeavingWhenUnpickled()).exception()) is SystemExit
    assert executor.submit(os.getpid).result() == pid


@pytest.mark.parametrize("kind", [RefusedThere, RefusedElsewhere, LeavingWhenUnpickled])
def test_a_result_that_cannot_be_unpickled_fails_its_own_future(
    executor: PreforkExecutor, kind: type
) -> None:
    error = executor.submit(kind).exception()
    assert type(error) is pickle.UnpicklingError
    assert f"the result of task test_functions.{kind.__name__} could not be unpickled" in str(error)
    assert isinstance(error.__cause__, LookupError | SystemExit)
    assert executor.submit(same, 1).result() == 1


# --- tasks that would end the process -----------------------------------------------------------


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [SystemExit(3), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit("x")]
)
def test_what_would_end_a_process_ends_the_task_only(
    executor: PreforkExecutor, error: BaseException
) -> None:
    pid = executor.submit(os.getpid).result()
    got = executor.submit(raise_it, error).exception()
    assert type(got) is type(error)
    assert got.args == error.args
    assert executor.submit(os.getpid).result() == pid


def test_sys_exit_of_a_task_is_its_futures_exception(executor: PreforkExecutor) -> None:
    future = executor.submit(sys.exit, 4)
    with pytest.raises(SystemExit) as caught:
        future.result()
    assert caught.value.code == 4


# --- arguments stay the caller's ----------------------------------------------------------------


def spoil(things: list[Any]) -> str:
    things.append("spoiled")
    things[0]["x"] = "spoiled"
    things[1][:] = b"\xff" * len(things[1])
    things[2][:] = -1
    things[3].y = "spoiled"
    return "done"


@pytest.mark.parametrize("size", [8, 1_000_000])
def test_what_a_task_does_to_its_arguments_the_caller_does_not_see(
    executor: PreforkExecutor, size: int
) -> None:
    things = [{"x": 1}, bytearray(size), np.zeros(size), Adder(5)]
    assert executor.submit(spoil, things).result() == "done"
    assert len(things) == 4
    assert things[0] == {"x": 1}
    assert things[1] == bytes(size)
    assert not things[2].any()
    assert things[3].y == 5


def test_two_tasks_with_the_same_array_do_not_see_each_other(executor: PreforkExecutor) -> None:
    array = np.zeros(100_000)
    futures = [executor.submit(count_up, array) for _ in range(3)]
    assert [future.result() for future in futures] == [1.0, 1.0, 1.0]


def count_up(array: np.ndarray[Any, Any]) -> float:
    array += 1
    return float(array[-1])


# --- arrays and buffers -------------------------------------------------------------------------


def arrays(size: int) -> dict[str, np.ndarray[Any, Any]]:
    read_only = np.arange(size)
    read_only.flags.writeable = False
    record = np.dtype([("a", "i4"), ("b", "f8")])
    return {
        "C order": np.arange(size).reshape(2, -1),
        "Fortran order": np.asfortranarray(np.arange(size).reshape(2, -1)),
        "read-only": read_only,
        "every other": np.arange(2 * size)[::2],
        "backwards": np.arange(size)[::-1],
        "a transposed slice": np.arange(2 * size).reshape(-1, 4)[:, :2].T,
        "no items": np.empty((0, 3)),
        "no dimensions": np.array(3.5),
        "records": np.zeros(size, record),
        "dates": np.arange(size).astype("datetime64[s]"),
        "texts": np.array(["ä", "bc"] * (size // 2)),
        "objects": np.array([1, "a", None, [2]] * (size // 4), dtype=object),
        "complex": np.full(size, 1j),
        "bytes": np.frombuffer(bytearray(size), dtype="u1"),
        "big-endian": np.arange(size, dtype=">i8"),
    }


@pytest.mark.parametrize("kind", arrays(4))
def test_an_array_comes_back_as_it_went(executor: PreforkExecutor, kind: str) -> None:
    for size in (16, 100_000):
        array = arrays(size)[kind]
        back = executor.submit(same, array).result()
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array)
        assert back.flags.writeable == array.flags.writeable
        assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
        assert executor.submit(is_writeable, array).result() == array.flags.writeable


def is_writeable(array: np.ndarray[Any, Any]) -> bool:
    if array.flags.writeable:
        array.fill(array.flat[0] if array.size else 0)
    return bool(array.flags.writeable)


def test_a_big_array_is_the_callers_own_to_change(executor: PreforkExecutor) -> None:
    array = executor.submit(np.zeros, 1_000_000).result()
    array += 1
    assert array.sum() == 1_000_000
    assert not executor.submit(np.zeros, 1_000_000).result().any()


@pytest.mark.parametrize("kind", [bytes, bytearray, str, memoryview])
def test_bytes_and_texts_of_any_size_come_back(executor: PreforkExecutor, kind: type) -> None:
    for size in (0, 100, 32 * 1024, 10_000_000):
        thing = "ä" * size if kind is str else kind(b"\xe4" * size)
        back = executor.submit(same, thing).result()
        assert back == thing
        assert executor.submit(len, thing).result() == size
        if kind is not memoryview:
            assert type(back) is kind


def test_pickle_buffers_come_as_views(executor: PreforkExecutor) -> None:
    for size in (10, 100_000):
        buffer = pickle.PickleBuffer(bytearray(size))
        assert bytes(executor.submit(same, buffer).result()) == bytes(size)


def test_a_buffer_with_gaps_is_named_and_nothing_is_lost(executor: PreforkExecutor) -> None:
    buffer = pickle.PickleBuffer(np.zeros(100_000, "u1")[::2])
    error = executor.submit(same, buffer).exception()
    assert isinstance(error, pickle.PicklingError)
    assert "args[0] is a pickle.PickleBuffer" in str(error)
    assert executor.submit(same, 1).result() == 1


def test_a_buffer_that_is_released_too_early_fails_its_own_future(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waiting = [executor.submit(wait_for, str(gate)) for _ in range(10)]
    eventually(lambda: executor.stats().waiting, "there are more than can be sent ahead")
    buffer = pickle.PickleBuffer(bytearray(100_000))
    future = executor.submit(same, buffer)
    buffer.release()
    gate.touch()
    assert isinstance(future.exception(), ValueError)
    assert not any(task.exception() for task in waiting)
    assert executor.submit(same, 1).result() == 1


@pytest.mark.parametrize("size", [10, 32 * 1024])
def test_thousands_of_buffers_travel_in_one_call(executor: PreforkExecutor, size: int) -> None:
    arrays = [np.full(size, number % 251, dtype="u1") for number in range(5000)]
    back = executor.submit(same, arrays).result()
    assert all(map(np.array_equal, back, arrays))
    assert all(array.flags.writeable for array in back)


def test_one_array_twice_in_a_call_is_one_array_there(executor: PreforkExecutor) -> None:
    array = np.zeros(100_000)
    assert executor.submit(operator.is_, array, array).result() is True


# --- the caller's process -----------------------------------------------------------------------


def test_pickle_in_the_callers_process_is_left_as_it_was(executor: PreforkExecutor) -> None:
    before = dict(copyreg.dispatch_table)
    executor.submit(lambda: 1 / 0).exception()
    executor.submit(same, LOCK).exception()
    assert executor.submit(same, np.zeros(100_000)).result().size == 100_000
    assert copyreg.dispatch_table == before
