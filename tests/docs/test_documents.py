"""What the documents say of the tests is so, and their examples run."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import socket
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import running_cluster
from fresh_environment import ENVIRONMENT, FreshPython, fresh_python, lacking
from inner_pytest import INNER
from packaging.requirements import Requirement
from page_examples import Example, examples
from waiting import BOUND, eventually

from prefork_executor._client import memory_rules, memory_watch
from prefork_executor._messages import wire
from prefork_executor._pool import regulator

__all__ = ["fresh_python"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [example for page in PAGES for example in examples(page)]
MOST_NOT_RUN = 3
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
        '| the idleness that a start is worth, by "auto" '
        f"| {regulator.STARTS_WORTH:g} times as long |",
        f'| the idleness that a second of work earns, by "auto" | {regulator.WORKS_WORTH:g} s |',
        '| the shortest and the longest, by "auto" '
        f"| {regulator.MIN_DWELL:g} s, {regulator.MAX_DWELL:g} s |",
        f"| the latest start's share in what a start costs | {regulator.LEARNING:g} |",
        f"| tasks foreseen while a backlog grows, at most | {regulator.FORESIGHT} times as many |",
        f"| two looks for idle workers | {regulator.MIN_LOOK_INTERVAL:g} s apart at least |",
    ],
)
def test_the_page_on_regulation_has_the_regulators_constants(row: str) -> None:
    assert row in (ROOT / "docs" / "regulation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        f"{memory_watch.LOOK_EVERY:g} s; {memory_watch.LOOK_CLOSELY:g} s while tasks are held back",
        f"| {memory_watch.LOOKS_SHARE * 100:g} % at most |",
        f"if it adds up to {wire.LIGHT >> 20} MiB |",
        {16: "| a sixteenth of the bound, or"}[memory_rules.PROBE_SHARE],
        {50: "counts a fiftieth of the system's memory as not"}[memory_rules.RESERVE_SHARE],
        {0.75: "or three quarters of the bound are used"}[memory_watch.CLOSE],
        f"| tasks that may pass a task that does not fit | {memory_rules.MAX_PASSED} at most |",
    ],
)
def test_the_page_on_memory_has_the_constants_of_the_code(words: str) -> None:
    assert words in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


# --- examples -----------------------------------------------------------------------------------


@pytest.fixture
def run_alone(fresh_python: FreshPython, tmp_path: Path) -> Callable[[Example], str]:
    """Gives what an example prints in a process of its own, where its page's reader has no more
    than what the page says to install. It must end well and complain of nothing."""

    def run(example: Example) -> str:
        if missing := lacking(example.installs):
            pytest.skip(f"needs {', '.join(missing)}")
        command: list[str | Path] = [fresh_python(example.installs), "-"]
        if example.is_test:
            (tmp_path / "test_page.py").write_text(example.source)
            command[1:] = ["-m", "pytest", *INNER]
        elif example.is_script:
            (tmp_path / "script.py").write_text(example.source)
            command[1] = "script.py"
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=ENVIRONMENT,
            input="" if example.is_script else example.source,
            capture_output=True,
            text=True,
            timeout=BOUND,
            check=False,
        )
        if done.returncode or re.search("Traceback|Warning", done.stderr):
            pytest.fail(f"{example.conditions}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_an_example_runs_and_prints_what_its_page_says(
    example: Example, run_alone: Callable[[Example], str]
) -> None:
    if example.why_not:
        pytest.skip(example.why_not)
    # Where the page names a port, any that is free will do.
    printed = run_alone(replace(example, source=re.sub(r"\b800\d\b", "0", example.source)))
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
    found = list(examples(page))
    assert len(found) == text.count("```python\n")
    assert sum(bool(example.why_not) for example in found) == text.count("<!-- not run")


def test_what_the_pages_say_to_install_is_where_ci_runs_their_examples() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    group = [line for line in project["dependency-groups"]["integrations"] if isinstance(line, str)]
    of_test = project["project"]["optional-dependencies"]["test"]
    there = {name for line in group + of_test for name in names_in(line)}
    said = {name for example in EXAMPLES for line in example.installs for name in names_in(line)}
    assert said - there == {"prefork-executor"}


def names_in(requirement: str) -> set[str]:
    """The distribution that it asks for, or the extras of it."""
    asked = Requirement(requirement)
    return {f"{asked.name}[{extra}]" for extra in asked.extras} or {asked.name}


PAGE = """# A page

<!-- A comment names {comment}. -->
{head}

## Before

{before}

## With the example

{above}

```python
import {module}
from prefork_executor import PreforkExecutor

with PreforkExecutor(1) as executor:
    print(executor.submit({module}.__name__.upper).result())
```

{below}
"""


def example_of(folder: Path, **said: str) -> Example:
    """That of PAGE, with this said here and there."""
    nothing = dict.fromkeys(["comment", "head", "before", "above", "below"], "")
    page = folder / "page.md"
    page.write_text(PAGE.format(**{**nothing, "module": "pytest", **said}))
    (example,) = examples(page)
    return example


@pytest.mark.parametrize("where", ["comment", "before", "below"])
def test_what_a_page_names_elsewhere_is_not_installed_for_an_example(
    where: str, tmp_path: Path
) -> None:
    assert example_of(tmp_path, **{where: "`pip install pytest`"}).installs == set()


@pytest.mark.parametrize("where", ["head", "above"])
def test_what_it_names_above_an_example_is_installed(where: str, tmp_path: Path) -> None:
    said = {where: '`pip install -q "prefork-executor[pytest]" numpy` brings'}
    assert example_of(tmp_path, **said).installs == {"prefork-executor[pytest]", "numpy"}


def test_an_example_that_needs_more_than_its_page_names_fails_and_says_so(
    tmp_path: Path, run_alone: Callable[[Example], str]
) -> None:
    example = example_of(tmp_path, head="`pip install .`", below="`pip install pytest`")
    with pytest.raises(pytest.fail.Exception) as failed:
        run_alone(example)
    assert "the page names no other package above it" in str(failed.value)
    assert "ModuleNotFoundError: No module named 'pytest'" in str(failed.value)


def test_an_example_has_what_its_page_names(
    tmp_path: Path, run_alone: Callable[[Example], str]
) -> None:
    assert run_alone(example_of(tmp_path, above="`pip install pytest`:")) == "PYTEST\n"


# --- examples that are not run with the others ----------------------------------------------------


def test_the_server_of_the_raw_page_serves_and_ends(
    fresh_python: FreshPython, tmp_path: Path
) -> None:
    page = next(example for example in EXAMPLES if example.page.name == "raw.md")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "server.py").write_text(page.source.replace("20116", str(port)))
    command = [fresh_python(page.installs), "server.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT) as server:
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


def test_the_examples_for_a_cluster_run_on_one(run_alone: Callable[[Example], str]) -> None:
    pytest.importorskip("distributed")
    # The cluster has numpy. Dask warns if its client has not.
    on_many = [
        replace(example, installs=example.installs | {"numpy"})
        for example in EXAMPLES
        if example.page.name == "scaling-out.md" and example.why_not
    ]
    with running_cluster(n_workers=1, nthreads=2) as cluster:
        printed = [
            run_alone(replace(e, source=e.source.replace("tcp://scheduler:8786", cluster.address)))
            for e in on_many
        ]
    assert printed == [example.prints or "" for example in on_many]
