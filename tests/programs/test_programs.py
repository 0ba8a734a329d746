"""A program that used ProcessPoolExecutor does the same with PreforkExecutor, and one that
used multiprocessing.Pool with Pool."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from .programs import PROGRAMS
from .running import BOUND, POOL, Outcome, Program, run

DOCS = Path(__file__).parents[2] / "docs"
WHOLE = bool(os.environ.get("PREFORK_EXECUTOR_LONG"))
"""Whether every program is run with every start method: that takes some
ten minutes on two processors."""


def cases() -> list[object]:
    """The programs, each with the start methods that it is run with."""
    return [
        pytest.param(program, method, id=f"{program.name}-{method}", marks=marks(program))
        for program in PROGRAMS
        if WHOLE or program.light
        for method in (program.start_methods if WHOLE else program.start_methods[:1])
    ]


def marks(program: Program) -> list[pytest.MarkDecorator]:
    """What pytest must know of a program."""
    expected = [pytest.mark.xfail(reason=program.fails, strict=True)] if program.fails else []
    return [pytest.mark.timeout(2 * BOUND + 100), *expected]


def is_installed(module: str) -> bool:
    """Whether a module could be imported. Its packages are."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("program", "start_method"), cases())
def test_a_program_does_the_same_with_either_pool(
    program: Program, start_method: str, tmp_path: Path
) -> None:
    if not all(map(is_installed, program.needs)):
        pytest.skip("it is not installed: the group 'programs' brings it")
    if sys.version_info >= program.below:
        pytest.skip("the program itself does not work on this Python")
    standard, prefork = program.pools
    with_standard = run(program, standard, start_method, tmp_path / "standard")
    assert_in_order(program, with_standard)
    with_prefork = run(program, prefork, start_method, tmp_path / "prefork")
    assert_in_order(program, with_prefork)
    assert_same(program, with_prefork, with_standard)


def assert_in_order(program: Program, outcome: Outcome) -> None:
    """It ended as it should, used the pool that is tried and no other, and left no process."""
    said = "\n".join([*outcome.stdout, *outcome.stderr])
    assert outcome.exitcode == program.exitcode, said
    assert outcome.tasks > 0, said
    assert outcome.strays == 0, said
    assert outcome.processes == []


def assert_same(program: Program, found: Outcome, expected: Outcome) -> None:
    """It printed and wrote the same, and left no more behind."""
    assert found.stderr == expected.stderr
    assert found.stdout == expected.stdout
    assert found.files == expected.files
    assert found.temporary <= expected.temporary
    if program.same_count:
        assert (found.executors, found.tasks) == (expected.executors, expected.tasks)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_table_has_every_program(program: Program) -> None:
    page = DOCS / ("pool.md" if POOL in program.pools else "migrating.md")
    table = page.read_text(encoding="utf-8").partition("## Programs that were tried")[2].lower()
    name = program.name.removesuffix("_default").removeprefix("pool_")
    assert name in table or name.replace("_", "-") in table
