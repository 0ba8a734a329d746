import collections
import dataclasses
import enum
import sys
import typing

from prefork_executor import PreforkExecutor


class Plain:
    def __init__(self):
        self.me = self


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: int = 1


@dataclasses.dataclass(slots=True)
class Slotted:
    value: int = 1


class Color(enum.Enum):
    RED = 1


class Flags(enum.Flag):
    A = 1
    B = 2


class Tuple(typing.NamedTuple):
    value: int = 1


Named = collections.namedtuple("Named", "value", defaults=(1,))

T = typing.TypeVar("T")


class Generic(typing.Generic[T]):
    pass


class Outer:
    class Inner:
        pass


class Error(Exception):
    pass


def same(thing):
    return thing


def kind(thing):
    return type(thing)


def is_red(thing):
    return thing is Color.RED


def new(kind):
    return kind()


if __name__ == "__main__":
    kinds = [Plain, Slots, Frozen, Slotted, Tuple, Named, Generic, Outer.Inner, Error]
    with PreforkExecutor(1, sys.argv[1]) as executor:
        for each in kinds:
            things = [
                executor.submit(same, each()),
                executor.submit(new, each),
                executor.submit(lambda each=each: each()),
            ]
            assert [type(thing.result()) for thing in things] == [each] * 3, each
            assert executor.submit(kind, each()).result() is each, each
            assert executor.submit(same, each).result() is each, each
        assert executor.submit(is_red, Color.RED).result() is True
        assert executor.submit(same, Color.RED).result() is Color.RED
        assert executor.submit(lambda: Color.RED).result() is Color.RED
        assert executor.submit(same, Flags.A | Flags.B).result() == Flags.A | Flags.B
        assert executor.submit(same, {Color.RED: [Frozen()]}).result() == {Color.RED: [Frozen()]}
        copy = executor.submit(same, Plain()).result()
        assert copy.me is copy
        assert executor.submit(same, same).result() is same
        assert executor.submit(same, executor.submit).exception() is not None
    print("ok")
