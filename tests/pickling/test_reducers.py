"""What a program has registered with multiprocessing or copyreg travels by it; and what is
defined where the workers cannot find it travels by value."""

from __future__ import annotations

from pathlib import Path

from scripts import program_text, run_python, run_script
from waiting import BOUND


def test_a_registered_reducer_serves_arguments_results_messages_and_exceptions(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("registered_reducer")
    assert run_script(tmp_path, source, start_method).splitlines() == [
        *("reduced 1", "reduced 2", "reduced yelled 3", "reduced 3", "reduced 4"),
    ]


def test_reducers_registered_later_or_for_a_metaclass_or_by_copyreg_count_as_well(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("late_reducers")
    out = run_script(tmp_path, source, start_method)
    assert out.splitlines() == ["Late", "late", "found Named", "found a copy"]


def test_queues_and_locks_may_be_arguments_of_the_initializer_where_reducers_are_registered(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("initializer_with_queues")
    assert run_script(tmp_path, source, start_method).splitlines() == ["1 kept"] * 2


def test_the_pickler_of_a_program_s_own_reduction_is_used(tmp_path: Path) -> None:
    source = program_text("own_pickler")
    assert run_script(tmp_path, source).splitlines() == ["7", "7", "[7]"]


def test_a_descriptor_in_a_result_or_an_exception_outlives_its_worker(
    tmp_path: Path, start_method: str
) -> None:
    """It is fetched from the worker when it is unpickled, and this one leaves after each task."""
    source = program_text("descriptors_in_results")
    out = run_script(tmp_path, source, start_method).splitlines()
    every = [line for i in range(3) for line in (f"result {i}", f"error {i}")]
    assert out == [*every, "argument"]


def test_a_worker_does_not_wait_for_descriptors_that_were_never_sent(tmp_path: Path) -> None:
    """A failure is pickled several times, and only the last pickle is sent. A result that cannot be
    pickled is not sent at all."""
    source = f"""
        import os, socket, threading
        from prefork_executor import PreforkExecutor
        from prefork_executor._server import worker

        worker.TAKEN_WITHIN = {10 * BOUND}

        def give():
            return socket.socket()

        def fail():
            raise LookupError(socket.socket())

        def give_with_a_lock():
            return [socket.socket(), threading.Lock()]

        def give_with_a_lambda():
            return [socket.socket(), lambda: 1]

        with PreforkExecutor(1, "fork", max_tasks_per_child=1) as executor:
            for task in (fail, give_with_a_lock, give_with_a_lambda, give):
                error = executor.submit(task).exception()
                print(type(error).__name__)
    """
    told = run_script(tmp_path, source).splitlines()
    assert told == ["LookupError", "ResultPicklingError", "NoneType", "NoneType"]


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
    source = program_text("module_workers_cannot_find")
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
