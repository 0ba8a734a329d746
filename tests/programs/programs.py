"""The programs that are run with both pools."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import Any

from .running import HERE, ORIGINAL, OWN, POOL, Program

SECONDS = r"\d+(\.\d+)? ?(s|ms|seconds?)\b"
DARKER = """
import sys
from darker.__main__ import main_with_error_handling
sys.argv[1:] = ["--workers", "2", "untidy"]
sys.exit(main_with_error_handling())
"""
UNTIDY = """\
import os
import sys
def function_{0}( a,b = {0} ):
    '''Adds.'''
    print("number {{}}".format(b))
    unused = {{ 'a':1,'b' : 2 }}
    if a == None : return b
    return [ a+x for x in range( b ) if x%2==0 ]
"""


def untidy_modules(work: Path) -> None:
    """A package of modules that every formatter and linter has something to say of."""
    package = work / "untidy"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    for number in range(12):
        path = package / f"module_{number:02}.py"
        path.write_text(UNTIDY.format(number), encoding="utf-8")


def with_an_error(work: Path) -> None:
    """The same, one of them with a syntax error."""
    untidy_modules(work)
    (work / "untidy" / "broken.py").write_text("def broken(:\n", encoding="utf-8")


def untidy_pages(work: Path) -> None:
    """Templates of pages, long enough for djlint to think a pool worth while."""
    (work / "pages").mkdir()
    for number in range(9):
        page = f"<div><img src='{number}'><p>{{% if a %}}{{{{ b }}}}{{% endif %}}</p></div>\n" * 600
        (work / "pages" / f"page_{number}.html").write_text(page, encoding="utf-8")


def untidy_queries(work: Path) -> None:
    """Queries in SQL, one of which cannot be parsed."""
    (work / "queries").mkdir()
    for number in range(9):
        query = f"SELECT a,b  from t where c={number} and d in (1,2)\n"
        (work / "queries" / f"query_{number}.sql").write_text(query, encoding="utf-8")
    (work / "queries" / "broken.sql").write_text("select ((a from\n", encoding="utf-8")


def untidy_repository(work: Path) -> None:
    """The same as untidy modules, in the latest commit of a repository tidy ones."""
    untidy_modules(work)
    modules = sorted((work / "untidy").glob("module_*.py"))
    untidy = [path.read_text(encoding="utf-8") for path in modules]
    for path in modules:
        path.write_text("import os\n", encoding="utf-8")
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "gc.auto=0")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "Tidy")):
        subprocess.run([*git, *command], cwd=work, check=True, capture_output=True)
    for path, text in zip(modules, untidy, strict=True):
        path.write_text(text, encoding="utf-8")


def quiet_log(work: Path) -> None:
    """A configuration by which only warnings are logged."""
    (work / "quiet.yml").write_text("version: 1\n", encoding="utf-8")


KEDRO: dict[str, Any] = {
    "prepare": quiet_log,
    "environment": {"KEDRO_LOGGING_CONFIG": "quiet.yml"},
    "below": (3, 15),
}


def tool(name: str, *args: str, does: str, **more: Any) -> Program:
    """A program that is run as ``python -m NAME ...`` on untidy modules."""
    given: dict[str, Any] = {"needs": (name,), "prepare": untidy_modules, **more}
    return Program(name, does, argv=("-m", name, *args), **given)


def script(name: str, *needs: str, **more: Any) -> Program:
    """A script of ours; its docstring says what it does."""
    module = ast.parse((HERE / "scripts" / f"{name}.py").read_text(encoding="utf-8"))
    does = " ".join((ast.get_docstring(module) or "").split())
    return Program(name, does, needs=needs, **more)


OF_POOLS = [
    tool(
        "isort",
        # Quiet, because what its workers print is lost in part with multiprocessing.Pool.
        *("--jobs", "2", "--quiet", "untidy"),
        does="Sorts imports by `imap`, a file a task; never closes its pool.",
        pools=(ORIGINAL, POOL),
    ),
    tool(
        "autoflake",
        *("--jobs", "2", "-i", "-r", "--remove-all-unused-imports", "untidy"),
        does="Removes unused imports by `apply_async`, a file a task.",
        pools=(ORIGINAL, POOL),
    ),
    script("datasets", "datasets", pools=(ORIGINAL, POOL), start_methods=("fork",), light=False),
    script("luigi", "luigi", pools=(ORIGINAL, POOL), start_methods=("fork",)),
    script("pool_scipy", "scipy", pools=(ORIGINAL, POOL)),
    script("pool_dynesty", "dynesty", pools=(ORIGINAL, POOL)),
    script("fonttools", "fontTools", "ufoLib2", pools=(ORIGINAL, POOL)),
]
"""Those that use multiprocessing.Pool."""
PROGRAMS = [
    tool(
        "compileall",
        *("-j2", "-f", "untidy"),
        does="Compiles a directory, a file a task, one with a syntax error.",
        prepare=with_an_error,
        exitcode=1,
    ),
    tool(
        "black",
        *("--workers=2", "untidy"),
        does="Formats files from an asyncio loop, a file a task, one that it cannot parse.",
        prepare=with_an_error,
        exitcode=123,
        noise=(SECONDS,),
    ),
    tool(
        "pylint",
        *("-j2", "--persistent=n", "--score=n", "untidy"),
        does="Lints with `map`; each worker gets the linter from the initializer.",
        exitcode=20,
        below=(3, 15),  # dill, by which it pickles its linter, does not know its code objects.
    ),
    tool("yapf", *("-i", "-p", "-vv", "untidy", "-r"), does="Formats files, a file a task."),
    script("tqdm", "tqdm"),
    script("scipy", "scipy"),
    script("emcee", "emcee"),
    script("dynesty", "dynesty"),
    script("deap", "deap"),
    script("adaptive", "adaptive", same_count=False),
    script("kedro", "kedro", **KEDRO),
    script("kedro_default", "kedro", **KEDRO, light=False),
    script("taskiq", "taskiq"),
    script("apscheduler", "apscheduler", start_methods=(OWN,)),
    script("ocrmypdf", "ocrmypdf"),
    script("aiohttp", "aiohttp"),
    script("fastapi", "fastapi", "httpx"),
    script("requests_futures", "requests_futures"),
    script("dask", "dask", same_count=False),
    script("dask_default", "dask", same_count=False, light=False),
    script("pygad", "pygad"),
    script("platypus", "platypus"),
    script("pipefunc", "pipefunc"),
    script("cython", "Cython", "setuptools", light=False),
    script("tornado", "tornado"),
    script("more_executors", "more_executors"),
    tool(
        "usort",
        *("format", "untidy"),
        does="Sorts imports; trailrunner submits each file, to a pool that it starts by spawn.",
        start_methods=(OWN,),
    ),
    tool(
        "ufmt",
        *("--concurrency", "2", "format", "untidy"),
        does="Formats with usort and black, which import a lot in each worker, by trailrunner.",
        start_methods=(OWN,),
        light=False,
    ),
    tool(
        "djlint",
        *("--reformat", "pages"),
        does="Formats templates, with `map` and an initializer.",
        exitcode=1,
        prepare=untidy_pages,
        light=False,
    ),
    tool(
        "sqlfmt",
        "queries",
        does="Formats queries, from an asyncio loop, with callbacks.",
        prepare=untidy_queries,
        noise=(SECONDS,),
    ),
    Program(
        "darker",
        "Formats what has changed since the last commit, a file a task.",
        # Its main module by name, as its command does: run as `-m darker`, ProcessPoolExecutor
        # finds none of its functions under forkserver and spawn.
        needs=("darker",),
        argv=("-c", DARKER),
        prepare=untidy_repository,
    ),
    Program(
        "libcst",
        "Rewrites `.format()` to f-strings, with `submit`, the transformation pickled.",
        needs=("libcst",),
        argv=(
            *("-m", "libcst.tool", "codemod"),
            *("convert_format_to_fstring.ConvertFormatStringCommand", "untidy"),
            *("--jobs", "2", "--no-format", "--hide-progress"),
        ),
        prepare=untidy_modules,
        noise=(SECONDS,),
    ),
    Program(
        "test_compileall",
        "The tests of compileall that come with CPython; some compile with two workers.",
        needs=("test.test_compileall",),
        argv=("-m", "unittest", "-v", "test.test_compileall"),
        start_methods=("fork", "spawn"),
        light=False,
        noise=(SECONDS,),
    ),
    *OF_POOLS,
]
"""In the order of the tables."""
NAMES = {program.name: program for program in PROGRAMS}
