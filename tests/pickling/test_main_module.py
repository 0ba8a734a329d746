"""Functions and classes of ``__main__``: each test is a program of its own, under
every start method."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts import BOUND, run_python, run_script


def test_a_function_of_the_script_leaves_the_globals_it_uses_where_they_are(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import functools
        import sys

        from prefork_executor import PreforkExecutor

        class Table:
            def __init__(self):
                self.rows = bytearray(200_000_000)

            def __reduce__(self):
                raise AssertionError("the table travels")

        TABLE = Table()

        def size():
            return len(TABLE.rows)

        def size_by_way_of_another():
            return size()

        def call(function):
            return function()

        @functools.lru_cache
        def cached_size():
            return len(TABLE.rows)

        class Reader:
            def size(self):
                return len(TABLE.rows)

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                calls = [
                    (size,),
                    (size_by_way_of_another,),
                    (call, size),
                    (call, functools.partial(size)),
                    (functools.partial(call, size),),
                    (cached_size,),
                    (call, cached_size),
                    (Reader().size,),
                    (lambda: size(),),
                ]
                futures = [executor.submit(*call) for call in calls]
                print({future.result() for future in futures})
                print(set(executor.map(call, [size] * 10, chunksize=5)))
                # The proof that it would be noticed:
                print(executor.submit(lambda: len(TABLE.rows)).exception())
    """
    every, mapped, by_value = run_script(tmp_path, source, start_method).splitlines()
    assert every == mapped == "{200000000}"
    assert "the function's global 'TABLE' is a __main__.Table" in by_value
    assert "AssertionError: the table travels" in by_value


def test_however_a_definition_is_made_it_is_recognized_in_a_new_process(
    tmp_path: Path, start_method: str
) -> None:
    """Sets and hashes have another order there. That must not show."""
    source = """
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
            functions = [with_set, with_constants, with_other_defaults, with_functions_inside,
                         decorated, cached, with_manager, derived, data, color, generic,
                         Base.check, Derived().run, Data().check, Color.RED.check, Generic().check]
            with PreforkExecutor(1, sys.argv[1]) as executor:
                for function in functions:
                    assert executor.submit(function).result() is True, function
            print("ok")
    """
    assert run_script(tmp_path, source, start_method) == "ok\n"


def test_what_stands_under_the_main_guard_works_as_well(tmp_path: Path, start_method: str) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        if __name__ == "__main__":
            class Point:
                def __init__(self, x):
                    self.x = x

            def double(x):
                return 2 * x

            def move(point):
                return Point(double(point.x))

            with PreforkExecutor(1, sys.argv[1]) as executor:
                print(executor.submit(double, 21).result())
                moved = executor.submit(move, Point(3)).result()
                print(type(moved) is Point, moved.x)
    """
    assert run_script(tmp_path, source, start_method).splitlines() == ["42", "True 6"]


def test_what_was_redefined_since_the_pool_started_runs_as_it_is_now(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import functools
        import sys

        from prefork_executor import PreforkExecutor

        class Table:
            def __reduce__(self):
                raise AssertionError("the table travels")

        TABLE = Table()

        def uses_table():
            return type(TABLE).__name__

        def alone():
            return "old"

        def helper():
            return "old"

        def user_of_helper():
            return helper()

        def user_of_user():
            return [user_of_helper() for _ in range(1)][0]

        @functools.cache
        def cached_helper():
            return "old"

        def user_of_cached_helper():
            return cached_helper()

        class Thing:
            def name(self):
                return "old"

            @property
            def title(self):
                return "old"

            class Part:
                def name(self):
                    return "old"

        class Derived(Thing):
            pass

        def name_of_new_thing():
            return Thing().name()

        def name_of(thing):
            return thing.name()

        def title_of(thing):
            return thing.title

        def user_of_what_is_not_there_yet():
            return what_is_not_there_yet()

        def user_of_data():
            return data

        data = "old"

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                def now(function, *args):
                    return executor.submit(function, *args).result()

                print("before", now(alone), now(user_of_user), now(name_of_new_thing),
                      now(name_of, Thing()), now(name_of, Derived()), now(name_of, Thing.Part()),
                      now(user_of_cached_helper), now(user_of_data))

                def alone():
                    return "new"
                print("a function", now(alone))

                old_helper = helper
                def helper():
                    return "new"
                print("a helper", now(user_of_helper), now(user_of_user), now(lambda: helper()))
                helper = old_helper
                print("and back", now(user_of_user))

                @functools.cache
                def cached_helper():
                    return "new"
                print("a cached helper", now(user_of_cached_helper))

                def new_name(self):
                    return "new"
                old_name, Thing.name = Thing.name, new_name
                print("a method", now(name_of_new_thing), now(name_of, Thing()),
                      now(name_of, Derived()))
                Thing.name = old_name
                print("and back", now(name_of_new_thing), now(name_of, Derived()))
                Thing.title = property(lambda self: "new")
                print("a property", now(title_of, Thing()))
                Thing.Part.name = new_name
                print("a class in a class", now(name_of, Thing.Part()))

                class Thing:
                    def name(self):
                        return "new"
                print("a class", now(name_of_new_thing), now(name_of, Thing()))

                def what_is_not_there_yet():
                    return "new"
                print("a new helper", now(user_of_what_is_not_there_yet))

                def data():
                    return "no data"
                print("data that became a function", now(user_of_data)())

                print("the others stay where they are", now(uses_table))
    """
    assert run_script(tmp_path, source, start_method).splitlines() == [
        "before old old old old old old old old",
        "a function new",
        "a helper new new new",
        "and back old",
        "a cached helper new",
        "a method new new new",
        "and back old old",
        "a property new",
        "a class in a class new",
        "a class new new",
        "a new helper new",
        "data that became a function no data",
        "the others stay where they are Table",
    ]


def test_classes_of_the_script_come_and_go_as_themselves(tmp_path: Path, start_method: str) -> None:
    source = """
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
                    things = [executor.submit(same, each()), executor.submit(new, each),
                              executor.submit(lambda each=each: each())]
                    assert [type(thing.result()) for thing in things] == [each] * 3, each
                    assert executor.submit(kind, each()).result() is each, each
                    assert executor.submit(same, each).result() is each, each
                assert executor.submit(is_red, Color.RED).result() is True
                assert executor.submit(same, Color.RED).result() is Color.RED
                assert executor.submit(lambda: Color.RED).result() is Color.RED
                assert executor.submit(same, Flags.A | Flags.B).result() == Flags.A | Flags.B
                assert executor.submit(same, {Color.RED: [Frozen()]}).result() == {
                    Color.RED: [Frozen()]
                }
                copy = executor.submit(same, Plain()).result()
                assert copy.me is copy
                assert executor.submit(same, same).result() is same
                assert executor.submit(same, executor.submit).exception() is not None
            print("ok")
    """
    assert run_script(tmp_path, source, start_method) == "ok\n"


PROGRAM_WITHOUT_A_FILE = """
import sys
from prefork_executor import PreforkExecutor

class Point:
    def __init__(self, x):
        self.x = x

def double(x):
    return 2 * x

def move(point):
    return Point(double(point.x))

if __name__ == "__main__":
    with PreforkExecutor(1, sys.argv[1]) as executor:
        moved = executor.submit(move, Point(3)).result()
        print(type(moved) is Point, moved.x, executor.submit(lambda: double(1)).result())
"""


def test_a_program_from_standard_input_works(tmp_path: Path, start_method: str) -> None:
    printed = run_python(tmp_path, "-", start_method, text=PROGRAM_WITHOUT_A_FILE)
    assert printed == "True 6 2\n"


def test_a_program_from_the_command_line_works(tmp_path: Path, start_method: str) -> None:
    printed = run_python(tmp_path, "-c", PROGRAM_WITHOUT_A_FILE, start_method)
    assert printed == "True 6 2\n"


SESSION = """
import sys; sys.ps1 = sys.ps2 = ""
from prefork_executor import PreforkExecutor
class Point:
    def __init__(self, x):
        self.x = x

def double(x):
    return 2 * x

def move(point):
    return Point(double(point.x))

executor = PreforkExecutor(1, sys.argv[1])
moved = executor.submit(move, Point(3)).result()
def double(x):
    return 3 * x

again = executor.submit(move, Point(3)).result()
print(type(moved) is Point, moved.x, type(again) is Point, again.x)
executor.shutdown()
"""


def test_an_interactive_session_works(tmp_path: Path, start_method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-i", "-q", "-", start_method],
        cwd=tmp_path,
        input=SESSION,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=True,
    )
    assert (done.stdout, done.stderr.strip("> \n")) == ("True 6 True 9\n", "")


def test_a_program_run_as_a_module_works(tmp_path: Path, start_method: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "program.py").write_text(PROGRAM_WITHOUT_A_FILE)
    assert run_python(tmp_path, "-m", "package.program", start_method) == "True 6 2\n"


def test_a_program_that_another_program_runs_works(tmp_path: Path, start_method: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM_WITHOUT_A_FILE)
    # As profilers and the like do. To multiprocessing the old __main__ is the one.
    runner = "import multiprocessing, runpy; runpy.run_path('program.py', run_name='__main__')"
    assert run_python(tmp_path, "-c", runner, start_method) == "True 6 2\n"


NOTEBOOK = r"""
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
print("an enum", executor.submit(lambda color: color is Color.RED, Color.RED).result(),
      executor.submit(lambda: Color.RED).result() is Color.RED)
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
"""


def test_a_notebook_works(tmp_path: Path, start_method: str) -> None:
    assert run_script(tmp_path, NOTEBOOK, start_method).splitlines() == [
        "an initializer [2]",
        "a function 2",
        "a function redefined 111",
        "a class True Point(x=111)",
        "an enum True True",
        "a class redefined True 2 1",
        "recursion 55",
        "a cached function 23416728348467685",
        "an exception True 5 code 5",
        "with its source 1",
        "a map [110, 111, 112]",
    ]


def test_a_task_of_the_script_may_use_an_executor_of_its_own(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        class Point:
            def __init__(self, x):
                self.x = x

        def inner(point):
            return Point(point.x + 1)

        def outer(point):
            with PreforkExecutor(1, sys.argv[1]) as executor:
                point = executor.submit(inner, point).result()
                return executor.submit(lambda: Point(inner(point).x)).result()

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                point = executor.submit(outer, Point(1)).result()
                print(type(point) is Point, point.x)
    """
    assert run_script(tmp_path, source, start_method) == "True 3\n"


def test_arguments_are_taken_as_they_are_when_the_task_is_submitted(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        class Box:
            number = None

        def number_in(box):
            return box.number

        if __name__ == "__main__":
            box, futures = Box(), []
            with PreforkExecutor(1, sys.argv[1]) as executor:
                # The first of them wait for the pool to start.
                for box.number in range(20):
                    futures.append(executor.submit(number_in, box))
                print([future.result() for future in futures] == list(range(20)))
    """
    assert run_script(tmp_path, source, start_method) == "True\n"


def test_what_cannot_be_pickled_late_fails_its_own_future_too(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        class Bad:
            def __init__(self, error):
                self.error = error

            def __reduce__(self):
                raise self.error

        def same(thing):
            return thing

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                # Submitted as the pool starts, when it is not known what it holds.
                bad = executor.submit(same, Bad(ValueError("bad")))
                print(executor.submit(same, 1).result(), bad.exception())
                try:
                    print(repr(executor.submit(same, Bad(SystemExit("bad"))).exception()))
                except SystemExit as error:
                    print("SystemExit('bad')")
                print(executor.submit(same, 2).result())
    """
    assert run_script(tmp_path, source, start_method).splitlines() == [
        "1 task __main__.same cannot be sent to a worker: "
        "args[0] is a __main__.Bad (ValueError: bad)",
        "SystemExit('bad')",
        "2",
    ]


def test_pickling_an_argument_may_itself_use_the_executor(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        class Nosy:
            def __reduce__(self):
                asides.append(executor.submit(same, 1))
                return Nosy, ()

        def same(thing):
            return thing

        def kind(thing):
            return type(thing).__name__

        if __name__ == "__main__":
            asides = []
            with PreforkExecutor(1, sys.argv[1]) as executor:
                # The first of them as the pool starts.
                for _ in range(3):
                    print(executor.submit(kind, Nosy()).result())
                print({aside.result() for aside in asides})
    """
    assert run_script(tmp_path, source, start_method).splitlines() == ["Nosy"] * 3 + ["{1}"]


def test_connections_and_sockets_reach_the_task_open(tmp_path: Path, start_method: str) -> None:
    source = """
        import multiprocessing
        import socket
        import sys

        from prefork_executor import PreforkExecutor

        def greet(connection, name):
            connection.send(f"hello {name}")
            connection.close()

        def greet_by_socket(end):
            end.sendall(b"hello")
            end.close()

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                for greeting in (greet, lambda *args: greet(*args)):
                    ours, theirs = multiprocessing.Pipe()
                    executor.submit(greeting, theirs, "you").result()
                    print(ours.recv())
                here, there = socket.socketpair()
                executor.submit(greet_by_socket, there).result()
                print(here.recv(100))
                with multiprocessing.Manager() as manager:
                    shared = manager.list()
                    executor.submit(shared.append, 1).result()
                    print(list(shared))
    """
    assert run_script(tmp_path, source, start_method).splitlines() == [
        "hello you",
        "hello you",
        "b'hello'",
        "[1]",
    ]
