"""Functions and classes of ``__main__``: each test is a program of its own, under
every start method."""

from __future__ import annotations

import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from scripts import BOUND, program_text, run_python, run_script


def test_a_function_of_the_script_leaves_the_globals_it_uses_where_they_are(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("globals_of_main")
    every, mapped, by_value = run_script(tmp_path, source, start_method).splitlines()
    assert every == mapped == "{200000000}"
    assert "the function's global 'TABLE' is a __main__.Table" in by_value
    assert "AssertionError: the table travels" in by_value


def test_however_a_definition_is_made_it_is_recognized_in_a_new_process(
    tmp_path: Path, start_method: str
) -> None:
    """Sets and hashes have another order there. That must not show."""
    source = program_text("definitions")
    assert run_script(tmp_path, source, start_method) == "ok\n"


def test_what_stands_under_the_main_guard_works_as_well(tmp_path: Path, start_method: str) -> None:
    source = program_text("under_the_main_guard")
    assert run_script(tmp_path, source, start_method).splitlines() == ["42", "True 6"]


def test_what_was_redefined_since_the_pool_started_runs_as_it_is_now(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("redefinitions")
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
    source = program_text("classes_of_main")
    assert run_script(tmp_path, source, start_method) == "ok\n"


PROGRAM_WITHOUT_A_FILE = program_text("without_a_file")


def test_a_program_from_standard_input_works(tmp_path: Path, start_method: str) -> None:
    printed = run_python(tmp_path, "-", start_method, text=PROGRAM_WITHOUT_A_FILE)
    assert printed == "True 6 2\n"


def test_a_program_from_the_command_line_works(tmp_path: Path, start_method: str) -> None:
    printed = run_python(tmp_path, "-c", PROGRAM_WITHOUT_A_FILE, start_method)
    assert printed == "True 6 2\n"


PROGRAM_OF_A_PACKAGE = program_text("main_of_a_package")


@pytest.mark.parametrize("how", ["package", "directory", "archive"])
def test_the_main_program_of_a_package_works_with_its_own_initializer(
    how: str, tmp_path: Path, start_method: str
) -> None:
    """multiprocessing imports no ``__main__.py`` in a process that it spawns."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(PROGRAM_OF_A_PACKAGE)
    zipapp.create_archive(package, tmp_path / "archive.pyz")
    args = {"package": ["-m", "package"], "directory": ["package"], "archive": ["archive.pyz"]}
    printed = run_python(tmp_path, *args[how], start_method)
    assert printed == "red True 6\nleaves: red\n"


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


NOTEBOOK = program_text("notebook")


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
    source = program_text("nested_executor_of_main")
    assert run_script(tmp_path, source, start_method) == "True 3\n"


def test_arguments_are_taken_as_they_are_when_the_task_is_submitted(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("arguments_at_submit")
    assert run_script(tmp_path, source, start_method) == "True\n"


def test_what_cannot_be_pickled_late_fails_its_own_future_too(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("late_pickling_errors")
    assert run_script(tmp_path, source, start_method).splitlines() == [
        "1 task __main__.same cannot be sent to a worker: "
        "args[0] is a __main__.Bad (ValueError: bad)",
        "SystemExit('bad')",
        "2",
    ]


def test_pickling_an_argument_may_itself_use_the_executor(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("pickling_that_submits")
    assert run_script(tmp_path, source, start_method).splitlines() == ["Nosy"] * 3 + ["{1}"]


def test_connections_and_sockets_reach_the_task_open(tmp_path: Path, start_method: str) -> None:
    source = program_text("connections")
    assert run_script(tmp_path, source, start_method).splitlines() == [
        "hello you",
        "hello you",
        "b'hello'",
        "[1]",
    ]
