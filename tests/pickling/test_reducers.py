"""What a program has registered with multiprocessing or copyreg travels by it; and what is
defined where the workers cannot find it travels by value."""

from __future__ import annotations

from pathlib import Path

from scripts import run_python, run_script


def test_a_registered_reducer_serves_arguments_results_messages_and_exceptions(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import sys
        from multiprocessing.reduction import register

        from prefork_executor import PreforkExecutor, yell

        class Handle:
            def __init__(self, value):
                self.value = value

            def __getstate__(self):
                raise TypeError("by its registered reducer only")

        def rebuild(value):
            handle = Handle.__new__(Handle)
            handle.value = f"reduced {value}"
            return handle

        register(Handle, lambda handle: (rebuild, (handle.value,)))

        def take(handle):
            return handle.value

        def give(value):
            yell(Handle(f"yelled {value}"))
            return Handle(value)

        def fail(value):
            raise LookupError(Handle(value))

        def show(pid, handle):
            print(handle.value)

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1], on_yell=show) as executor:
                print(executor.submit(take, Handle(1)).result())
                print(executor.submit(lambda handle: take(handle), Handle(2)).result())
                print(executor.submit(give, 3).result().value)
                print(executor.submit(fail, 4).exception().args[0].value)
    """
    assert run_script(tmp_path, source, start_method).splitlines() == [
        *("reduced 1", "reduced 2", "reduced yelled 3", "reduced 3", "reduced 4"),
    ]


def test_reducers_registered_later_or_for_a_metaclass_or_by_copyreg_count_as_well(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import copyreg
        import sys
        from multiprocessing.reduction import register

        from prefork_executor import PreforkExecutor

        class Late:
            pass

        class Meta(type):
            pass

        class Named(metaclass=Meta):
            pass

        class Copied:
            pass

        def late():
            return "late"

        def find(name):
            return f"found {name}"

        def echo(thing):
            return thing

        copyreg.pickle(Meta, lambda kind: (find, (kind.__name__,)))
        copyreg.pickle(Copied, lambda copied: (find, ("a copy",)))

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                print(type(executor.submit(echo, Late()).result()).__name__)
                register(Late, lambda thing: (late, ()))
                print(executor.submit(echo, Late()).result())
                print(executor.submit(lambda thing: thing, Named).result())
                print(executor.submit(lambda thing: thing, Copied()).result())
    """
    out = run_script(tmp_path, source, start_method)
    assert out.splitlines() == ["Late", "late", "found Named", "found a copy"]


def test_queues_and_locks_may_be_arguments_of_the_initializer_where_reducers_are_registered(
    tmp_path: Path, start_method: str
) -> None:
    source = """
        import multiprocessing
        import sys
        from multiprocessing.reduction import register

        from prefork_executor import PreforkExecutor

        class Handle:
            pass

        register(Handle, lambda handle: (Handle, ()))

        def keep(lock, queue):
            with lock:
                queue.put("kept")

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.Queue()
            given = (context.Lock(), queue)
            for initializer in (keep, lambda *args: keep(*args)):
                with PreforkExecutor(1, context, initializer, given) as executor:
                    print(executor.submit(abs, -1).result(), queue.get())
    """
    assert run_script(tmp_path, source, start_method).splitlines() == ["1 kept"] * 2


def test_the_pickler_of_a_program_s_own_reduction_is_used(tmp_path: Path) -> None:
    source = """
        import multiprocessing
        import multiprocessing.reduction

        class Pickler(multiprocessing.reduction.ForkingPickler):
            def reducer_override(self, thing):
                return (int, (7,)) if isinstance(thing, Number) else NotImplemented

        class Reduction(multiprocessing.reduction.AbstractReducer):
            ForkingPickler = Pickler

        class Number:
            pass

        class Special(Number):
            pass

        context = multiprocessing.get_context("fork")
        context.reducer = Reduction()

        from prefork_executor import PreforkExecutor

        def give():
            return [Special()]

        if __name__ == "__main__":
            with PreforkExecutor(1, "fork") as executor:
                print(executor.submit(abs, Special()).result())
                print(executor.submit(lambda x: x, Special()).result())
                print(executor.submit(give).result())
    """
    assert run_script(tmp_path, source).splitlines() == ["7", "7", "[7]"]


def test_a_descriptor_in_a_result_or_an_exception_outlives_its_worker(
    tmp_path: Path, start_method: str
) -> None:
    """It is fetched from the worker when it is unpickled, and this one leaves after each task."""
    source = """
        import os
        import sys
        from multiprocessing.reduction import DupFd, register

        from prefork_executor import PreforkExecutor

        class File:
            def __init__(self, descriptor):
                self.descriptor = descriptor

        def opened(dup):
            return File(dup.detach())

        register(File, lambda file: (opened, (DupFd(file.descriptor),)))

        def give(text):
            read, write = os.pipe()
            os.write(write, text)
            os.close(write)
            return File(read)

        def fail(text):
            raise LookupError(give(text))

        def read(file):
            return os.read(file.descriptor, 10)

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1], max_tasks_per_child=1) as executor:
                for i in range(3):
                    print(read(executor.submit(give, b"result %d" % i).result()).decode())
                    error = executor.submit(fail, b"error %d" % i).exception()
                    print(read(error.args[0]).decode())
                print(executor.submit(read, give(b"argument")).result().decode())
    """
    out = run_script(tmp_path, source, start_method).splitlines()
    every = [line for i in range(3) for line in (f"result {i}", f"error {i}")]
    assert out == [*every, "argument"]


def test_what_a_module_defines_that_workers_cannot_find_travels_by_value(
    tmp_path: Path, start_method: str
) -> None:
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "by_path.py").write_text(
        "def f(x):\n    return g(x)\ndef g(x):\n    return x + 2\n"
    )
    (tmp_path / "aside" / "by_file.py").write_text(
        "import math\nclass Point:\n    def __init__(self, x):\n        self.x = x\n"
        "    def root(self):\n        return math.sqrt(self.x)\n"
    )
    source = """
        import importlib.util
        import os
        import sys
        import types

        from prefork_executor import PreforkExecutor

        def root(point):
            return point.root()

        def main():
            with PreforkExecutor(1, sys.argv[1]) as executor:
                print(executor.submit(abs, -1).result())

                made = types.ModuleType("made_by_hand")
                sys.modules["made_by_hand"] = made
                exec("def f(x): return x + 1", vars(made))
                print(executor.submit(made.f, 1).result())
                print(executor.submit(lambda: made.f(1)).result())

                sys.path.append(os.path.abspath("aside"))
                import by_path
                print(executor.submit(by_path.f, 1).result())
                print(list(executor.map(by_path.f, [1, 2])))

                spec = importlib.util.spec_from_file_location("other_name", "aside/by_file.py")
                by_file = importlib.util.module_from_spec(spec)
                sys.modules["other_name"] = by_file
                spec.loader.exec_module(by_file)
                print(executor.submit(root, by_file.Point(9)).result())
                print(type(executor.submit(by_file.Point, 9).result()) is by_file.Point)

        if __name__ == "__main__":
            main()
    """
    out = run_script(tmp_path, source, start_method).splitlines()
    assert out == ["1", "2", "2", "3", "[3, 4]", "3.0", "True"]


def test_what_workers_find_goes_by_its_name(tmp_path: Path, start_method: str) -> None:
    """Also if it was imported after the pool had started."""
    (tmp_path / "found.py").write_text(
        "import os\nPID = os.getpid()\ndef f():\n    return PID == os.getpid()\n"
    )
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        if __name__ == "__main__":
            with PreforkExecutor(1, sys.argv[1]) as executor:
                executor.submit(abs, -1).result()
                import found
                print(executor.submit(found.f).result())
    """
    assert run_script(tmp_path, source, start_method) == "True\n"


def test_a_lambda_travels_where_comparing_bytes_with_text_is_an_error(tmp_path: Path) -> None:
    source = """
        from prefork_executor import PreforkExecutor

        if __name__ == "__main__":
            with PreforkExecutor(1) as executor:
                print(executor.submit(lambda: b"x" + b"y").result().decode())
    """
    path = tmp_path / "script.py"
    path.write_text("".join(line[8:] + "\n" for line in source.splitlines()))
    assert run_python(tmp_path, "-bb", "-W", "error", str(path)) == "xy\n"
