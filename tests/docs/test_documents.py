"""What the documents say of the tests is so, and their examples run."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from inner_pytest import INNER
from page_examples import PIECE, Example, examples
from waiting import BOUND, eventually

from prefork_executor._pool import regulator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [example for page in PAGES for example in examples(page)]
MOST_NOT_RUN = 4
PROVEN = re.compile(r"`(test_\w+\.py)`(?:: ([^|`]+?))? *\|")


def promised() -> list[tuple[str, str]]:
    """The tests that the page on reliability names: file and, in words, name."""
    return PROVEN.findall((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))


def test_the_page_on_reliability_names_many_tests() -> None:
    assert len(promised()) > 40


@pytest.mark.parametrize(("file", "words"), sorted(set(promised())))
def test_the_tests_it_names_exist(file: str, words: str) -> None:
    (path,) = (ROOT / "tests").rglob(file)
    source = path.read_text(encoding="utf-8")
    name = words.replace(" ", "_").strip("_")
    assert re.search(rf"def test_{name}\w*\(", source)


# --- the folders of the tests ---------------------------------------------------------------------

TESTS = ROOT / "tests"
CI = ROOT / ".ci" / "run"
ROW = re.compile(r"^  ([* ]) ([a-z]+(?:, [a-z]+)*)  ", re.MULTILINE)


def folders_by_the_head_of_conftest() -> dict[str, bool]:
    """Whether every supported Python runs them, by name."""
    head = (TESTS / "conftest.py").read_text(encoding="utf-8").split('"""')[1]
    return {name: star == "*" for star, names in ROW.findall(head) for name in names.split(", ")}


def test_the_head_of_conftest_has_every_folder_of_tests() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name.isalpha()}
    assert folders_by_the_head_of_conftest().keys() == folders


@pytest.mark.skipif(not CI.exists(), reason="only a checkout has it")
def test_ci_runs_the_folders_on_every_python_that_the_head_of_conftest_marks() -> None:
    marked = [name for name, star in folders_by_the_head_of_conftest().items() if star]
    assert f'by_python="{" ".join(f"tests/{name}" for name in marked)}"' in CI.read_text()


def test_every_test_lies_in_a_folder_and_its_file_has_a_name_that_no_other_has() -> None:
    files = [path.name for path in TESTS.glob("*/**/test_*.py")]
    assert len(files) == len(set(files))
    assert not list(TESTS.glob("test_*.py"))


# --- figures ------------------------------------------------------------------------------------


def test_the_table_of_the_page_on_regulation_is_that_of_its_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    import regulation

    document = json.loads(regulation.JSON.read_text(encoding="utf-8"))
    page = regulation.PAGE.read_text(encoding="utf-8")
    assert "\n".join(regulation.table(document)) in page


@pytest.mark.parametrize(
    "row",
    [
        f"| between two steps of growth | {regulator.RAMP_INTERVAL * 1e3:g} ms |",
        f"| the largest step | {regulator.MAX_RAMP} workers |",
        f"| without growth, before the step is 1 again | {regulator.RAMP_REST:g} s |",
        f"| crashes in a row that cost no wait | {regulator.FREE_CRASHES} |",
        "| the first wait, the longest "
        f"| {regulator.MIN_BACKOFF:g} s, {regulator.MAX_BACKOFF:g} s |",
        f"| two looks for idle workers | {regulator.MIN_LOOK_INTERVAL:g} s apart at least |",
    ],
)
def test_the_page_on_regulation_has_the_regulators_constants(row: str) -> None:
    assert row in (ROOT / "docs" / "regulation.md").read_text(encoding="utf-8")


# --- examples -----------------------------------------------------------------------------------


def output_of(example: Example, directory: Path) -> str:
    """What it prints. It must end well and complain of nothing."""
    # Where the page names a port, any that is free will do.
    source = example.source.replace("8000", "0")
    command = [sys.executable, "-"]
    if example.is_script:
        (directory / "script.py").write_text(source)
        command[1] = "script.py"
    done = subprocess.run(
        command,
        cwd=directory,
        input=None if example.is_script else source,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback|Warning", done.stderr), done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_an_example_runs_and_prints_what_its_page_says(
    example: Example, tmp_path: Path, pytester: pytest.Pytester
) -> None:
    if example.why_not:
        pytest.skip(example.why_not)
    if missing := example.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    if example.is_test:
        pytester.makepyfile(test_page=example.source)
        assert pytester.runpytest_inprocess(*INNER).ret == pytest.ExitCode.OK
        return
    printed = output_of(example, tmp_path)
    if example.prints is not None:
        checker = doctest.OutputChecker()
        assert checker.check_output(example.prints, printed, doctest.ELLIPSIS), printed


def test_few_examples_are_not_run_and_each_says_why() -> None:
    not_run = [example for example in EXAMPLES if example.why_not]
    assert len(not_run) <= MOST_NOT_RUN
    assert all(len(example.why_not.split()) > 2 for example in not_run)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_example_of_a_page_is_found_and_every_mark_stands_before_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(list(examples(page))) == text.count("```python\n")
    marks = [piece for piece in PIECE.finditer(text) if piece["mark"]]
    assert len(marks) == len(re.findall(r"^<!-- (?:given|continued|not run)", text, re.MULTILINE))


def test_the_server_of_the_raw_page_serves_and_ends(tmp_path: Path) -> None:
    page = next(example for example in EXAMPLES if example.page.name == "raw.md")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(page.source.replace("20116", str(port)))
    with subprocess.Popen([sys.executable, "server.py"], cwd=tmp_path) as server:
        try:
            eventually(lambda: answer(port, b"hello\n") == b"hello\n", "the server answers")
        finally:
            os.kill(server.pid, signal.SIGTERM)
        assert server.wait(BOUND) == 0


def answer(port: int, line: bytes) -> bytes:
    """What a line server says to it; nothing if it is not there yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=BOUND) as connection:
            connection.sendall(line)
            return connection.makefile("rb").readline()
    except ConnectionError:
        return b""
