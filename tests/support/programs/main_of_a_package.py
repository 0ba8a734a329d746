import enum
import os
import sys

from prefork_executor import PreforkExecutor


class Colour(enum.Enum):
    RED = "red"


def paint(colour):
    os.environ["PAINT"] = colour.value


def clean(colour):
    print("leaves:", colour.value, flush=True)


def look(colour):
    return os.environ["PAINT"], colour is Colour.RED


def double(x):
    return 2 * x


if __name__ == "__main__":
    begin = {"initializer": paint, "initargs": (Colour.RED,)}
    end = {"finalizer": clean, "finalargs": (Colour.RED,)}
    with PreforkExecutor(1, sys.argv[1], **begin, **end) as executor:
        print(*executor.submit(look, Colour.RED).result(), *executor.map(double, [3]), flush=True)
