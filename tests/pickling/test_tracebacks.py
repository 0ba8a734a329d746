"""A task's exception arrives as it was: type, traceback, causes, notes, attributes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import json
import operator
import os
import pickle
import re
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import program_text, run_python, run_script
from waiting import eventually

from prefork_executor import PreforkExecutor, RemoteExceptionStandIn


@pytest.fixture(scope="module")
def executor() -> Iterator[PreforkExecutor]:
    """One pool for all: whatever a task raises, the next finds the same worker."""
    with PreforkExecutor(1, idle_timeout=None) as executor:
        executor.submit(int).result()
        yield executor


def raised_by(function: Callable[[], Any]) -> BaseException:
    """What this raises here, without the frame of this helper."""
    try:
        function()
    except BaseException as error:
        ours: Any = error.__traceback__
        return error.with_traceback(ours.tb_next)
    raise AssertionError("it raised nothing")


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def frames_of(error: BaseException) -> list[tuple[str, int]]:
    return [(frame.f_code.co_name, line) for frame, line in traceback.walk_tb(error.__traceback__)]


# --- things that raise --------------------------------------------------------------------------


def divide(a: int, b: int) -> float:
    return a / b


def columns() -> Any:
    data: dict[str, Any] = {"a": {"b": 1}, "x": {"y": None}}
    return data["a"]["b"] + data["x"]["y"]["z"]


def several_lines() -> Any:
    return functools.reduce(
        operator.add,
        [1, 2],
        divide(
            1,
            0,
        ),
    )


def wide_text() -> Any:
    return {"ä": 1, "漢字": None}["漢字"]["é"]  # type: ignore[index]


def from_a_cause() -> None:
    try:
        divide(1, 0)
    except ZeroDivisionError as error:
        raise ValueError("no quotient") from error


def from_no_cause() -> None:
    try:
        divide(1, 0)
    except ZeroDivisionError:
        raise ValueError("no quotient") from None


def in_a_context() -> None:
    try:
        divide(1, 0)
    except ZeroDivisionError:
        [].pop()


def from_a_chain_of_causes() -> None:
    try:
        from_a_cause()
    except ValueError as error:
        try:
            in_a_context()
        except IndexError as other:
            error.add_note("a note below")
            other.__cause__ = error
            raise RuntimeError("at last") from other


def with_notes() -> None:
    error = ValueError("noted")
    error.add_note("first")
    error.add_note("second\nin two lines")
    raise error


class Coded(Exception):
    """Changes its args: pickle would make ``code code 5`` of it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class KeywordsOnly(Exception):
    def __init__(self, *, code: int, reason: str = "none") -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class MoreThanItPassesOn(Exception):
    def __init__(self, path: str, line: int) -> None:
        super().__init__(path)
        self.line = line


class Silent(Exception):
    """Passes nothing on."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"silent {self.code}"


class Slotted(Exception):
    __slots__ = ("_Slotted__hidden", "code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code
        self.__hidden = code + 1

    def __str__(self) -> str:
        return f"{self.code} and {self.__hidden}"


class Made(Exception):
    """Has a ``__new__`` of its own that wants other things."""

    code: int

    def __new__(cls, code: int, *, scale: int) -> Made:
        made = super().__new__(cls, code * scale)
        made.code = code
        return made

    def __init__(self, code: int, *, scale: int) -> None:
        pass


@dataclasses.dataclass
class Data(Exception):
    code: int
    reason: str = "none"


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int

    def __str__(self) -> str:
        return f"frozen {self.code}"


class Reduced(Exception):
    """Travels by a ``__reduce__`` of its own, which knows nothing of notes."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Reduced, (self.code,)


class Disk(OSError):
    def __init__(self, path: str, free: int) -> None:
        super().__init__(errno.ENOSPC, "no room", path)
        self.free = free


class Refused(Exception):
    """Does not let anybody set its attributes."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.__dict__["code"] = code

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError(f"do not set {name}")


class Propertied(Exception):
    def __init__(self) -> None:
        super().__init__("propertied")
        self.__dict__["code"] = 5

    @property
    def code(self) -> int:
        return int(self.__dict__["code"])


def raise_coded() -> None:
    raise Coded(5)


def raise_keywords_only() -> None:
    raise KeywordsOnly(code=5)


def raise_more() -> None:
    raise MoreThanItPassesOn("a.txt", 5)


def raise_silent() -> None:
    raise Silent(5)


def raise_slotted() -> None:
    raise Slotted(5)


def raise_made() -> None:
    raise Made(5, scale=2)


def raise_data() -> None:
    raise Data(5, reason="data")


def raise_frozen() -> None:
    raise Frozen(5)


def raise_reduced() -> None:
    error = Reduced(5)
    error.add_note("a note all the same")
    raise error


def raise_disk() -> None:
    raise Disk("/a/b", 5)


def raise_refused() -> None:
    raise Refused(5)


def raise_propertied() -> None:
    raise Propertied


def open_missing() -> None:
    with open("/no/such/file"):
        pass


def rename_missing() -> None:
    os.rename("/no/such/file", "/no/such/target")


def decode() -> None:
    b"ab\xff".decode()


def encode() -> None:
    "ab\udc80".encode()


def stop() -> None:
    next(iter([]))


def stop_with_a_value() -> None:
    raise StopIteration({"value": 5})


def exit_with_a_value() -> None:
    sys.exit({"status": 5})


def import_missing() -> None:
    import no_such_module_at_all  # type: ignore[import-not-found] # noqa: F401


def import_missing_name() -> None:
    from json import no_such_name  # type: ignore[attr-defined] # noqa: F401


def wrong_attribute() -> None:
    json.no_such_attribute  # type: ignore[attr-defined] # noqa: B018


def wrong_name() -> None:
    no_such_name_at_all  # type: ignore[name-defined] # noqa: B018, F821


def wrong_key() -> None:
    {}["missing"]  # type: ignore[index]


def wrong_syntax() -> None:
    compile("x = = 1", "somewhere.py", "exec")


def wrong_indentation() -> None:
    compile("if x:\npass", "somewhere.py", "exec")


def wrong_json() -> None:
    json.loads('{"a": }')


def in_c() -> None:
    sorted([1, "a"])  # type: ignore[type-var]


def in_c_calling_python() -> None:
    sorted([1, 0], key=lambda x: divide(1, x))


def in_a_generator() -> None:
    sum(divide(1, x) for x in (1, 0))


def in_code_without_source() -> None:
    exec("def inner():\n    1 / 0\ninner()")


def in_a_local_function() -> None:
    def local() -> None:
        with contextlib.suppress(KeyError):
            divide(1, 0)

    local()


def group() -> None:
    raise ExceptionGroup("outer", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])])


def group_with_tracebacks() -> None:
    errors = [raised_by(function) for function in (columns, from_a_cause, raise_coded)]
    raise BaseExceptionGroup("all of them", [*errors, raised_by(exit_with_a_value)])


class Report(ExceptionGroup[Exception]):
    """A group with more arguments, made anew by ``derive``."""

    def __new__(cls, message: str, errors: list[Exception], code: int) -> Report:
        made = super().__new__(cls, message, errors)
        made.code = code
        return made

    code: int

    def derive(self, errors: Any) -> Report:
        return Report(self.message, errors, self.code)


def group_of_its_own_kind() -> None:
    error = Report("report", [ValueError(1), Coded(5)], 7)
    error.add_note("a note of the group")
    raise error from raised_by(in_c)


def empty_message() -> None:
    raise ValueError


def many_arguments() -> None:
    raise ValueError(1, "two", [3], {"four": 4})


def huge_message() -> None:
    raise ValueError("x" * 1_000_000)


def failing_assertion() -> None:
    value = 5
    raise AssertionError(f"{value=}")


RAISING = [
    columns,
    several_lines,
    wide_text,
    from_a_cause,
    from_no_cause,
    in_a_context,
    from_a_chain_of_causes,
    with_notes,
    raise_coded,
    raise_keywords_only,
    raise_more,
    raise_silent,
    raise_slotted,
    raise_made,
    raise_data,
    raise_frozen,
    raise_reduced,
    raise_disk,
    raise_refused,
    raise_propertied,
    open_missing,
    rename_missing,
    decode,
    encode,
    stop,
    stop_with_a_value,
    exit_with_a_value,
    import_missing,
    import_missing_name,
    wrong_attribute,
    wrong_name,
    wrong_key,
    wrong_syntax,
    wrong_indentation,
    wrong_json,
    in_c,
    in_c_calling_python,
    in_a_generator,
    in_code_without_source,
    in_a_local_function,
    group,
    group_with_tracebacks,
    group_of_its_own_kind,
    empty_message,
    many_arguments,
    huge_message,
    failing_assertion,
]


@pytest.mark.parametrize("function", RAISING)
def test_it_is_and_prints_as_if_it_had_been_raised_here(
    executor: PreforkExecutor, function: Callable[[], None]
) -> None:
    local = raised_by(function)
    remote = executor.submit(function).exception()
    assert remote is not None
    assert type(remote) is type(local)
    assert repr(remote.args) == repr(local.args)
    assert str(remote) == str(local)
    assert printed(remote) == printed(local)
    assert frames_of(remote) == frames_of(local)


# --- printing -----------------------------------------------------------------------------------


def test_the_line_that_raised_is_printed_once(executor: PreforkExecutor) -> None:
    future = executor.submit(divide, 1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as caught:
            future.result()
        text = printed(caught.value)
        assert text.count("return a / b") == 1
        assert text.count("ZeroDivisionError: division by zero") == 1
        assert "in result" in text
    unraised = future.exception()
    assert unraised is caught.value
    assert printed(unraised).count("return a / b") == 1


def test_asking_twice_gives_the_same_exception(executor: PreforkExecutor) -> None:
    future = executor.submit(from_a_cause)
    first, second = future.exception(), future.exception()
    assert first is second
    for _ in range(2):
        with pytest.raises(ValueError, match="no quotient") as caught:
            future.result()
        assert caught.value is first
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert frames_of(caught.value)[-1] == frames_of(raised_by(from_a_cause))[-1]


def test_in_a_map_it_is_raised_where_its_result_is_taken(executor: PreforkExecutor) -> None:
    results = executor.map(divide, [1, 1], [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert frames_of(caught.value)[-1][0] == "divide"


def test_a_wrong_call_shows_where_it_was_called(executor: PreforkExecutor) -> None:
    error = executor.submit(divide, 1, 2, 3).exception()
    assert isinstance(error, TypeError)
    assert "takes 2 positional arguments but 3 were given" in str(error)
    assert executor.submit(int, "x").exception().args == (  # type: ignore[union-attr]
        "invalid literal for int() with base 10: 'x'",
    )


def test_the_attributes_of_errors_in_c_arrive(executor: PreforkExecutor) -> None:
    def remote(function: Callable[[], None]) -> Any:
        return executor.submit(function).exception()

    assert remote(wrong_name).name == "no_such_name_at_all"
    assert remote(wrong_attribute).name == "no_such_attribute"
    assert (remote(import_missing).name, remote(import_missing).path) == (
        "no_such_module_at_all",
        None,
    )
    assert remote(import_missing_name).path == json.__file__
    assert (remote(open_missing).errno, remote(open_missing).filename) == (2, "/no/such/file")
    assert remote(rename_missing).filename2 == "/no/such/target"
    disk = remote(raise_disk)
    assert (disk.errno, disk.strerror, disk.filename, disk.free) == (28, "no room", "/a/b", 5)
    wrong = remote(decode)
    assert (wrong.encoding, wrong.object, wrong.start, wrong.end) == ("utf-8", b"ab\xff", 2, 3)
    wrong = remote(wrong_syntax)
    assert (wrong.filename, wrong.lineno, wrong.offset) == ("somewhere.py", 1, 5)
    assert remote(stop_with_a_value).value == {"value": 5}
    assert remote(exit_with_a_value).code == {"status": 5}
    wrong = remote(wrong_json)
    assert (wrong.doc, wrong.pos, wrong.lineno) == ('{"a": }', 6, 1)


def test_attributes_arrive(executor: PreforkExecutor) -> None:
    def remote(function: Callable[[], None]) -> Any:
        return executor.submit(function).exception()

    for function in (
        raise_coded,
        raise_keywords_only,
        raise_silent,
        raise_slotted,
        raise_made,
        raise_data,
        raise_frozen,
        raise_reduced,
        raise_refused,
        raise_propertied,
    ):
        assert remote(function).code == 5, function
    assert remote(raise_more).line == 5
    assert not hasattr(remote(raise_slotted), "unset")
    assert remote(raise_reduced).lock.acquire(blocking=False)
    assert remote(raise_reduced).__notes__ == ["a note all the same"]


# --- causes, contexts, groups -------------------------------------------------------------------


def test_suppression_of_the_context_arrives(executor: PreforkExecutor) -> None:
    error = executor.submit(from_no_cause).exception()
    assert error is not None
    assert error.__suppress_context__
    assert error.__cause__ is None
    assert isinstance(error.__context__, ZeroDivisionError)
    error = executor.submit(in_a_context).exception()
    assert error is not None
    assert not error.__suppress_context__


def loop() -> None:
    """Two exceptions that are each other's cause and context."""
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    second.__context__ = first
    raise first


def loop_through_a_group() -> None:
    """A group is the cause of one of its own members."""
    first = ValueError("first")
    first.__cause__ = ExceptionGroup("group", [first, KeyError("second")])
    raise first


def test_what_is_linked_in_a_circle_is_linked_so_there(executor: PreforkExecutor) -> None:
    error = executor.submit(loop).exception()
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.__cause__ is error
    assert error.__cause__.__context__ is error
    assert printed(error) == printed(raised_by(loop))
    error = executor.submit(loop_through_a_group).exception()
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, ExceptionGroup)
    assert error.__cause__.exceptions[0] is error
    assert len(error.__cause__.exceptions) == 2


def same_cause_twice() -> None:
    cause = raised_by(in_c)
    errors = [ValueError(1), ValueError(2)]
    for error in errors:
        error.__cause__ = cause
    raise ExceptionGroup("both", errors)


def test_what_is_shared_is_shared_there(executor: PreforkExecutor) -> None:
    error = executor.submit(same_cause_twice).exception()
    assert isinstance(error, ExceptionGroup)
    one, other = error.exceptions
    assert one.__cause__ is other.__cause__
    assert frames_of(one.__cause__)[-1][0] == "in_c"


def test_groups_are_split_by_except_star(executor: PreforkExecutor) -> None:
    taken = []
    try:
        executor.submit(group).result()
    except* KeyError as found:
        taken.append(found.exceptions[0].exceptions[0].args)  # type: ignore[union-attr]
    except* ValueError as found:
        taken.append(found.exceptions[0].args)
    assert taken == [("k",), (1,)]


def test_a_group_of_its_own_kind_is_split_by_its_own_rule(executor: PreforkExecutor) -> None:
    error = executor.submit(group_of_its_own_kind).exception()
    assert type(error) is Report
    assert error.code == 7
    assert error.args == ("report", [error.exceptions[0], error.exceptions[1]], 7)
    match, rest = error.split(Coded)
    assert type(match) is type(rest) is Report
    assert match.code == rest.code == 7
    assert match.__notes__ == ["a note of the group"]


def many_members() -> None:
    raise ExceptionGroup("many", [ValueError(number) for number in range(1000)])


def deep_group() -> None:
    error: Exception = ValueError("innermost")
    for depth in range(300):
        error = ExceptionGroup(str(depth), [error])
    raise error


def long_chain() -> None:
    error: Exception = ValueError("first")
    for number in range(1000):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    raise error


def too_many() -> None:
    raise ExceptionGroup("too many", [ValueError(number) for number in range(20_000)])


def test_all_members_of_a_group_arrive(executor: PreforkExecutor) -> None:
    error = executor.submit(many_members).exception()
    assert isinstance(error, ExceptionGroup)
    assert [member.args for member in error.exceptions] == [(number,) for number in range(1000)]


def test_deep_groups_and_long_chains_arrive_whole(executor: PreforkExecutor) -> None:
    error: Any = executor.submit(deep_group).exception()
    for depth in reversed(range(300)):
        assert error.message == str(depth)
        (error,) = error.exceptions
    assert error.args == ("innermost",)
    error = executor.submit(long_chain).exception()
    for number in reversed(range(1000)):
        assert error.args == (number,)
        error = error.__cause__
    assert error.args == ("first",)


def test_of_far_too_many_exceptions_some_are_left_out_and_a_note_says_so(
    executor: PreforkExecutor,
) -> None:
    error: Any = executor.submit(too_many).exception()
    assert isinstance(error, ExceptionGroup)
    assert 9_000 < len(error.exceptions) < 20_000
    assert re.match(r"Only \d+ of its exceptions were sent here", error.__notes__[0])


# --- stand-ins ----------------------------------------------------------------------------------


class Locked(LookupError):
    """Cannot be pickled, but its class can."""

    def __init__(self, code: int) -> None:
        super().__init__("locked", threading.Lock())
        self.code = code
        self.lock = threading.Lock()
        self.end = socket.socket
        self.where = sys._getframe()

    def __str__(self) -> str:
        return f"locked by {self.code}"


def raise_locked() -> None:
    error = Locked(5)
    error.add_note("a note")
    raise error from raised_by(in_c)


def test_an_exception_that_cannot_be_pickled_has_a_faithful_stand_in(
    executor: PreforkExecutor,
) -> None:
    error = executor.submit(raise_locked).exception()
    assert isinstance(error, RemoteExceptionStandIn)
    assert isinstance(error, Locked)
    assert isinstance(error, LookupError)
    assert printed(error) == printed(raised_by(raise_locked))
    assert error.original_type == "test_tracebacks.Locked"
    assert error.original_str == str(error) == "locked by 5"
    assert re.fullmatch(r"Locked\('locked', <unlocked _thread.lock .*>\)", error.original_repr)
    assert repr(error) == error.original_repr
    assert error.code == 5
    assert error.end is socket.socket
    assert set(error.original_attributes) == {"lock", "where"}
    assert error.original_attributes["lock"].startswith("<unlocked _thread.lock")
    assert error.args[0] == "locked"
    assert error.args[1].startswith("<unlocked _thread.lock")
    assert error.__notes__ == ["a note"]
    assert isinstance(error.__cause__, TypeError)
    assert "cannot pickle" in error.reason


def raise_local() -> None:
    class Local(KeyError):
        pass

    raise Local("local")


def raise_local_with_lock() -> None:
    lock = threading.Lock()

    class Local(KeyError):
        held = lock

    raise Local("local")


def test_an_exception_of_a_local_class_is_caught_by_what_it_derives_from(
    executor: PreforkExecutor,
) -> None:
    for function in (raise_local, raise_local_with_lock):
        error = executor.submit(function).exception()
        assert isinstance(error, KeyError)
        assert error.args == ("local",)
        assert printed(error) == printed(raised_by(function))


class LockedGroup(ExceptionGroup[Exception]):
    lock: Any


def raise_locked_group() -> None:
    error = LockedGroup("locked group", [raised_by(raise_coded), Locked(5)])  # type: ignore[list-item]
    error.lock = threading.Lock()
    error.code = 5  # type: ignore[attr-defined]
    raise error


def test_a_group_that_cannot_be_pickled_keeps_its_members(executor: PreforkExecutor) -> None:
    error: Any = executor.submit(raise_locked_group).exception()
    assert isinstance(error, RemoteExceptionStandIn)
    assert isinstance(error, LockedGroup)
    assert type(error.exceptions[0]) is Coded
    assert isinstance(error.exceptions[1], Locked)
    assert error.code == 5
    assert error.message == "locked group"
    assert printed(error) == printed(raised_by(raise_locked_group))


def raise_locked_base_group() -> None:
    class Local(BaseExceptionGroup[BaseException]):
        lock = threading.Lock()

    raise Local("locked", [KeyboardInterrupt(), ValueError(1)])


def test_so_does_one_whose_members_are_no_exceptions(executor: PreforkExecutor) -> None:
    error = executor.submit(raise_locked_base_group).exception()
    assert isinstance(error, BaseExceptionGroup)
    assert error.message == "locked"
    assert [type(member) for member in error.exceptions] == [KeyboardInterrupt, ValueError]


@dataclasses.dataclass(frozen=True)
class FrozenLocked(Exception):
    code: int
    lock: Any


def raise_frozen_locked() -> None:
    raise FrozenLocked(5, threading.Lock())


def test_an_exception_that_lets_nothing_be_set_has_a_stand_in(executor: PreforkExecutor) -> None:
    error = executor.submit(raise_frozen_locked).exception()
    assert isinstance(error, FrozenLocked)
    assert isinstance(error, RemoteExceptionStandIn)
    assert error.code == 5
    assert error.original_str.startswith("(5, <unlocked _thread.lock")


def refuse(text: str) -> Any:
    raise LookupError(text)


def refuse_outside(pid: int) -> Exception:
    if os.getpid() != pid:
        raise LookupError("not in this process")
    return RefusedElsewhere("at home")


class RefusedEverywhere(OSError):
    def __reduce__(self) -> Any:
        return refuse, ("no",)


class RefusedElsewhere(OSError):
    """Can be unpickled in the worker and not in the caller's process."""

    def __reduce__(self) -> Any:
        return refuse_outside, (os.getpid(),)


class LeavingWhenUnpickled(OSError):
    def __reduce__(self) -> Any:
        return sys.exit, ("on my way out",)


class BadReduce(OSError):
    def __reduce__(self) -> Any:
        raise ValueError("no reduction")


@pytest.mark.parametrize(
    "kind", [RefusedEverywhere, RefusedElsewhere, LeavingWhenUnpickled, BadReduce]
)
def test_an_exception_that_refuses_to_be_copied_arrives(
    executor: PreforkExecutor, kind: type[OSError]
) -> None:
    pid = executor.submit(os.getpid).result()
    error = executor.submit(raise_it, kind, "at home").exception()
    assert isinstance(error, kind)
    assert str(error) == "at home"
    local = raised_by(functools.partial(raise_it, kind, "at home"))
    assert printed(error) == printed(local)
    assert executor.submit(os.getpid).result() == pid


def raise_it(kind: type[BaseException], *args: Any) -> None:
    raise kind(*args)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    def __repr__(self) -> str:
        raise ValueError("no text either")


class UnprintableLocked(Unprintable):
    def __init__(self) -> None:
        self.lock = threading.Lock()


def raise_unprintable() -> None:
    raise Unprintable("a")


def raise_unprintable_locked() -> None:
    raise UnprintableLocked


def test_an_exception_that_cannot_be_printed_arrives(executor: PreforkExecutor) -> None:
    error = executor.submit(raise_unprintable).exception()
    assert type(error) is Unprintable
    assert error.args == ("a",)
    assert printed(error) == printed(raised_by(raise_unprintable))
    error = executor.submit(raise_unprintable_locked).exception()
    assert isinstance(error, UnprintableLocked)
    assert str(error) == "<UnprintableLocked whose str() raised ValueError>"
    assert executor.submit(int).result() == 0


class Odd(Exception):
    """Everything about it is odd."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no attributes")

    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def raise_odd() -> None:
    raise Odd("odd")


def test_an_exception_that_hides_everything_fails_its_own_future(
    executor: PreforkExecutor,
) -> None:
    pid = executor.submit(os.getpid).result()
    error = executor.submit(raise_odd).exception()
    assert "Odd" in f"{type(error)} {error}"
    assert executor.submit(os.getpid).result() == pid


def raise_with_an_array() -> None:
    import numpy as np

    raise ValueError("array", np.arange(100_000))


def raise_with_objects() -> None:
    raise ValueError(threading, object, Coded)


class Plain:
    """Equal to nothing but itself."""


def raise_with_an_object() -> None:
    raise ValueError(Plain())


def test_arguments_of_any_kind_arrive(executor: PreforkExecutor) -> None:
    error = executor.submit(raise_with_an_array).exception()
    assert type(error) is ValueError
    assert error.args[1].sum() == sum(range(100_000))
    error = executor.submit(raise_with_objects).exception()
    assert type(error) is ValueError
    assert error.args == (threading, object, Coded)
    error = executor.submit(raise_with_an_object).exception()
    assert type(error) is ValueError
    assert type(error.args[0]) is Plain


def test_a_stand_in_can_be_pickled_on(executor: PreforkExecutor) -> None:
    error: Any = executor.submit(raise_locked).exception()
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, Locked)
    assert (str(copy), repr(copy), copy.code) == (str(error), repr(error), 5)
    assert copy.original_attributes == error.original_attributes
    assert copy.__notes__ == ["a note"]


# --- deep and odd tracebacks --------------------------------------------------------------------


def recurse(depth: int) -> int:
    return recurse(depth + 1)


def test_a_recursion_error_has_all_its_frames(executor: PreforkExecutor) -> None:
    error = executor.submit(recurse, 0).exception()
    assert isinstance(error, RecursionError)
    assert len(frames_of(error)) > sys.getrecursionlimit() * 0.9
    assert re.search(r"\[Previous line repeated 9\d\d more times\]", printed(error))
    assert printed(error).count("return recurse(depth + 1)") == 3


def recurse_far() -> None:
    sys.setrecursionlimit(5000)
    try:
        recurse(0)
    finally:
        sys.setrecursionlimit(1000)


def test_of_a_longer_traceback_the_ends_arrive_and_it_says_so(executor: PreforkExecutor) -> None:
    error = executor.submit(recurse_far).exception()
    assert isinstance(error, RecursionError)
    names = [name for name, _ in frames_of(error)]
    assert names[0] == "recurse_far"
    assert set(names[1:]) == {"recurse"}
    assert re.search(r'File "<\d{4} more frames>"', printed(error))


def hidden() -> None:
    __tracebackhide__ = True
    divide(1, 0)


def test_frames_know_their_module_and_function_and_whether_to_hide(
    executor: PreforkExecutor,
) -> None:
    error = executor.submit(hidden).exception()
    assert error is not None
    (first, _), (last, line) = traceback.walk_tb(error.__traceback__)
    assert first.f_locals.get("__tracebackhide__") is True
    assert "__tracebackhide__" not in last.f_locals
    assert last.f_globals["__name__"] == __name__
    assert last.f_globals["__file__"] == __file__
    code = divide.__code__
    assert (last.f_code.co_filename, last.f_code.co_firstlineno) == (
        code.co_filename,
        code.co_firstlineno,
    )
    assert last.f_code.co_qualname == "divide"
    assert last.f_lineno == line == code.co_firstlineno + 1


def test_an_exception_keeps_nothing_alive_of_what_was_around_it(
    executor: PreforkExecutor,
) -> None:
    failing = executor.submit(from_a_cause)
    neighbour = executor.submit(Plain)
    error: Any = failing.exception()
    result = weakref.ref(neighbour.result())
    del neighbour
    gc.disable()  # Nothing may even be part of a cycle.
    try:
        eventually(lambda: result() is None, "the result of another task is gone")
    finally:
        gc.enable()
    for one in (error, error.__cause__):
        callers = {frame.f_back for frame, _ in traceback.walk_tb(one.__traceback__)}
        assert callers == {None}


DEBUGGED = """
    import pdb
    import sys

    from prefork_executor import PreforkExecutor

    def innermost(x):
        y = x - 1
        return 1 / y  # It fails here.

    def outermost():
        try:
            return innermost(1)  # It is called here.
        except ZeroDivisionError as error:
            raise ValueError("chained") from error

    if __name__ == "__main__":
        with PreforkExecutor(1, sys.argv[1]) as executor:
            error = executor.submit(outermost).exception()
        pdb.post_mortem(error.__cause__.__traceback__)
"""


def test_the_debugger_walks_the_remote_frames(tmp_path: Path, start_method: str) -> None:
    commands = "where\nlist\nup\nlist\nlonglist\ndown\np __name__\nquit\n"
    script = tmp_path / "script.py"
    script.write_text(DEBUGGED.replace("\n    ", "\n"))
    told = run_python(tmp_path, str(script), start_method, text=commands)
    for line in (
        f"> {script}(9)innermost()",
        f"> {script}(13)outermost()",
        "  9  ->\t    return 1 / y  # It fails here.",
        " 13  ->\t        return innermost(1)  # It is called here.",
        " 11  \tdef outermost():",
    ):
        assert line in told, told


def test_pickling_of_tracebacks_is_not_left_behind(tmp_path: Path) -> None:
    source = program_text("tracebacks_unpicklable")
    assert run_script(tmp_path, source).splitlines() == [
        "False",
        "False",
        "cannot pickle 'traceback' object",
        "None",
    ]


def test_it_arrives_the_same_where_tblib_is_installed_for_every_exception(
    tmp_path: Path, start_method: str
) -> None:
    """distributed does that as it is imported. Then each pickled exception brings along its
    cause and its traceback, and its frames keep alive what is around them."""
    source = program_text("tblib_installed")
    out = run_script(tmp_path, source, start_method)
    assert out.splitlines() == ["True asked SystemExit(3)", "first None"]


# --- onward -------------------------------------------------------------------------------------


def through_another(function: Callable[[], None]) -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(function).result()


@pytest.mark.parametrize("function", [columns, from_a_cause, raise_locked, group_of_its_own_kind])
def test_it_travels_on_through_executors_in_executors(
    executor: PreforkExecutor, function: Callable[[], None]
) -> None:
    local = raised_by(function)
    future = executor.submit(through_another, functools.partial(through_another, function))
    error = future.exception()
    assert error is not None
    names = [name for name, _ in frames_of(error)]
    assert names.count("through_another") == 2
    assert names[-1] == frames_of(local)[-1][0]
    assert isinstance(error, type(local))
    assert str(error) == str(local)
    tail = printed(local).split("Traceback (most recent call last):\n")[-1]
    assert tail in printed(error)
    assert getattr(error, "__notes__", None) == getattr(local, "__notes__", None)
    if isinstance(error, RemoteExceptionStandIn):
        assert set(error.original_attributes) == {"lock", "where"}
        assert "cannot pickle" in error.reason


def test_what_the_script_raises_prints_as_it_would_here(tmp_path: Path, start_method: str) -> None:
    source = program_text("tracebacks_of_main")
    assert run_script(tmp_path, source, start_method) == "ok\n"
