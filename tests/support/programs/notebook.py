import linecache
import sys

# What a notebook's kernel does: no file, and cells that have names of their own.
main = sys.modules["__main__"]
method = sys.argv[1]
source = open(main.__file__, encoding="utf-8").read().partition("\n# CELLS\n")[2]
del main.__file__
for number, cell in enumerate(source.split("\n# CELL\n")):
    name = f"<cell {number}>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    exec(compile(cell, name, "exec"), vars(main))
sys.exit()
# CELLS
import dataclasses
import enum
import functools
import traceback

from prefork_executor import PreforkExecutor


class Start:
    number = 1


def begin(start, see):
    import builtins

    builtins.seen = [see(start.number)]


executor = PreforkExecutor(1, method, begin, (Start(), lambda number: number + 1))
print("an initializer", executor.submit(eval, "seen").result())
offset = 1


def add(x):
    return x + offset


print("a function", executor.submit(add, 1).result())
# CELL
offset = 10


def add(x):
    return x + offset + 100


print("a function redefined", executor.submit(add, 1).result())


# CELL
@dataclasses.dataclass
class Point:
    x: int


class Color(enum.Enum):
    RED = 1


def move(point):
    assert isinstance(point, Point)
    return Point(add(point.x))


moved = executor.submit(move, Point(1)).result()
print("a class", type(moved) is Point, moved)
print(
    "an enum",
    executor.submit(lambda color: color is Color.RED, Color.RED).result(),
    executor.submit(lambda: Color.RED).result() is Color.RED,
)


# CELL
class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


moved = executor.submit(lambda point: Point(point.y, point.x), Point(1, 2)).result()
print("a class redefined", type(moved) is Point, moved.x, moved.y)


# CELL
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@functools.lru_cache(maxsize=None)
def quick_fibonacci(n):
    return n if n < 2 else quick_fibonacci(n - 1) + quick_fibonacci(n - 2)


print("recursion", executor.submit(fibonacci, 10).result())
print("a cached function", executor.submit(quick_fibonacci, 80).result())


# CELL
class Wrong(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


def fail():
    raise Wrong(5)  # This line.


try:
    executor.submit(fail).result()
except Wrong as error:
    print("an exception", type(error) is Wrong, error.code, error)
    print("with its source", "".join(traceback.format_exception(error)).count("# This line."))
# CELL
print("a map", list(executor.map(add, range(3), chunksize=2)))
executor.shutdown()
