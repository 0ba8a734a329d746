import abc
import contextlib
import dataclasses
import enum
import functools
import os
import random
import sys
import typing

from prefork_executor import PreforkExecutor


class Table:
    def __reduce__(self):
        raise AssertionError("the table travels")


TABLE = Table()


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def with_set(x="a"):
    return TABLE is not None and x in {"a", "b", "c", "d", "e", "f"}


def with_constants(x=1):
    return TABLE is not None and x in (1, 2.5, b"x", (None, ..., True), 1j)


def with_other_defaults(x=random.random(), *, pid=os.getpid()):
    return TABLE is not None


def with_functions_inside():
    return TABLE is not None and all((lambda x: [y for y in {x}])(x) for x in {1, 2})


@logged
@logged
def decorated():
    return TABLE is not None


@functools.cache
def cached():
    return TABLE is not None


@contextlib.contextmanager
def managed():
    yield TABLE


def with_manager():
    with managed() as table:
        return table is not None


class Base(abc.ABC):
    limit: int = 3
    names = {"a", "b", "c"}

    @abc.abstractmethod
    def run(self): ...

    @classmethod
    def build(cls):
        return cls()

    @staticmethod
    def check():
        return TABLE is not None

    @functools.cached_property
    def table(self):
        return TABLE


class Derived(Base):
    def run(self):
        return self.table is not None and self.check()


@dataclasses.dataclass(order=True)
class Data:
    a: int = 1
    b: set = dataclasses.field(default_factory=set)

    def check(self):
        return TABLE is not None


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"

    def check(self):
        return TABLE is not None


T = typing.TypeVar("T")


class Generic(typing.Generic[T]):
    def check(self) -> bool:
        return TABLE is not None


def derived():
    return Derived.build().run()


def data():
    return Data().check() and Data() < Data(2)


def color():
    return Color.RED.check() and Color("g") is Color.GREEN


def generic():
    return Generic[int]().check()


if __name__ == "__main__":
    functions = [
        with_set,
        with_constants,
        with_other_defaults,
        with_functions_inside,
        decorated,
        cached,
        with_manager,
        derived,
        data,
        color,
        generic,
        Base.check,
        Derived().run,
        Data().check,
        Color.RED.check,
        Generic().check,
    ]
    with PreforkExecutor(1, sys.argv[1]) as executor:
        for function in functions:
            assert executor.submit(function).result() is True, function
    print("ok")
