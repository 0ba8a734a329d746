"""What newer Pythons have brought, in programs of which the workers have no file: so all
travels by value."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from scripts import run_python

METHODS = ("fork", "forkserver", "spawn")
since_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax of Python 3.12")
since_314 = pytest.mark.skipif(sys.version_info < (3, 14), reason="the annotations of Python 3.14")
since_315 = pytest.mark.skipif(sys.version_info < (3, 15), reason="new in Python 3.15")


def run(directory: Path, method: str, source: str) -> list[str]:
    """What the program prints; it has an executor ``ex``, started before it defines anything."""
    start = f"""
from prefork_executor import PreforkExecutor
ex = PreforkExecutor(1, "{method}")
ex.submit(abs, -1).result()
"""
    text = f"{start}\n{textwrap.dedent(source)}\nex.shutdown()\n"
    lazy = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("lazy "))
    return run_python(directory, "-", text=lazy + text).splitlines()


@since_314
@pytest.mark.parametrize("method", METHODS)
def test_annotations_that_cannot_be_evaluated_travel_as_their_text(
    tmp_path: Path, method: str
) -> None:
    source = """
        def f(x: NotThere, *, y: "nor this" = 1) -> Missing[int]:
            return x + y

        class Box:
            content: Nowhere

        def look(thing):
            return thing.__annotations__

        print(ex.submit(f, 2).result())
        print(ex.submit(look, f).result())
        print(ex.submit(look, Box).result())
    """
    assert run(tmp_path, method, source) == [
        "3",
        "{'x': 'NotThere', 'y': 'nor this', 'return': 'Missing[int]'}",
        "{'content': 'Nowhere'}",
    ]


@since_314
@pytest.mark.parametrize("method", METHODS)
def test_a_class_keeps_its_annotations(tmp_path: Path, method: str) -> None:
    source = """
        from dataclasses import dataclass
        from typing import NamedTuple, TypedDict

        @dataclass
        class Node:
            value: int
            next: Node | None = None

        def local(kind):
            class A:
                x: kind
            return A

        class Row(NamedTuple):
            x: int

        class Options(TypedDict):
            y: int

        def node():
            return Node(1, Node(2))

        def look(kind):
            return kind.__annotations__

        print(ex.submit(node).result())
        print(type(ex.submit(node).result()) is Node)
        print(ex.submit(lambda n: n.next.value, Node(1, Node(7))).result())
        for kind in (Node, local(int), Row, Options):
            print(ex.submit(look, kind).result())
    """
    assert run(tmp_path, method, source) == [
        *("Node(value=1, next=Node(value=2, next=None))", "True", "7"),
        "{'value': <class 'int'>, 'next': __main__.Node | None}",
        *("{'x': <class 'int'>}", "{'x': <class 'int'>}", "{'y': <class 'int'>}"),
    ]


@since_312
@pytest.mark.parametrize("method", METHODS)
def test_what_is_known_by_its_name_only_is_made_anew(tmp_path: Path, method: str) -> None:
    source = """
        from typing import NewType, ParamSpec

        type Pair[T] = tuple[T, T]
        type Json = dict[str, Json] | int
        UserId = NewType("UserId", int)
        P = ParamSpec("P")

        def f(x: Pair[int] = (1, 2)) -> Json:
            is_whole = "Json" in str(Json.__value__)
            return is_whole, Pair[int].__args__, Pair.__module__, UserId(5), P.__name__

        print(ex.submit(f).result())
        print(ex.submit(lambda kind: kind(3), UserId).result())
        print(ex.submit(lambda: Json).result() is Json)
    """
    first, *others = run(tmp_path, method, source)
    assert first == "(True, (<class 'int'>,), '__main__', 5, 'P')"
    assert others == ["3", "True"]


@since_315
@pytest.mark.parametrize("method", METHODS)
def test_a_sentinel_is_the_same_wherever_it_comes(tmp_path: Path, method: str) -> None:
    source = """
        MISSING = sentinel("MISSING")
        def f(x=MISSING):
            return x is MISSING
        print(ex.submit(f).result(), ex.submit(f, MISSING).result())
        print(ex.submit(lambda: MISSING).result() is MISSING)
    """
    assert run(tmp_path, method, source) == ["True True", "True"]


@since_315
@pytest.mark.parametrize("method", METHODS)
def test_a_function_that_names_lazily_imported_modules_travels(tmp_path: Path, method: str) -> None:
    source = """
lazy import json
lazy import xml.dom
lazy import xml.sax as sax
lazy from textwrap import dedent
lazy import no_such_module

def f(x):
    return json.dumps([x]), dedent("  a"), xml.dom.__name__, sax.__name__

def g(wants):
    return no_such_module.x if wants else "not wanted"

print(ex.submit(f, 1).result())
print(ex.submit(lambda: json.dumps(2)).result())
print(ex.submit(g, False).result())
print(ex.submit(g, True).exception().name)
    """
    assert run(tmp_path, method, source) == [
        *("('[1]', 'a', 'xml.dom', 'xml.sax')", "2", "not wanted"),
        "no_such_module",
    ]
