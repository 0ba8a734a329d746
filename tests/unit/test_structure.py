"""How the package is built: no circles, nobody writes another's private attributes, and the points
at which tests inject faults are those that are listed."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator

import pytest

pytest.importorskip("grimp")

import structure

from prefork_executor._support.fault_points import POINTS


def writes_in(code: str) -> list[str]:
    files = {"example.py": textwrap.dedent(code)}
    return [write.target for write in structure.writes_from_outside(files)]


def test_no_rooms_import_each_other() -> None:
    assert structure.circles(structure.between_rooms(structure.imports())) == []


def test_no_files_of_a_room_import_each_other() -> None:
    assert structure.circles(structure.within_rooms(structure.imports())) == []


def test_no_private_attribute_is_written_from_outside_its_class() -> None:
    writes = structure.writes_from_outside(structure.sources())
    assert [str(write) for write in writes if not write.is_of_others] == []


def test_what_is_written_of_others_is_listed_as_long_as_it_is_written() -> None:
    written = {write.target for write in structure.writes_from_outside(structure.sources())}
    assert structure.OF_OTHERS.keys() <= written


def test_a_circle_is_found_that_leads_by_way_of_others() -> None:
    arrows = {"a": {"b", "e"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set[str]()}
    assert structure.circles(arrows) == [["a", "b", "c"]]


def test_rooms_may_form_a_circle_though_their_files_form_none() -> None:
    files = {"up.one": {"down.one"}, "up.two": set[str](), "down.one": {"up.two"}}
    assert structure.circles(files) == []
    assert structure.circles(structure.between_rooms(files)) == [["down", "up"]]


@pytest.mark.parametrize(
    "statement",
    [
        "door._is_open = 1",
        "door._is_open += 1",
        "del door._is_open",
        "setattr(door, '_is_open', 1)",
    ],
)
def test_a_write_from_outside_is_found(statement: str) -> None:
    code = f"""
        class Door:
            def __init__(self):
                self._is_open = False

        class Visitor:
            def enter(self, door):
                {statement}
    """
    assert writes_in(code) == ["door._is_open"]


def test_a_class_may_write_its_own_private_attributes_of_any_object() -> None:
    code = """
        class Door:
            _width = 1

            @classmethod
            def wide(cls):
                door = cls()
                door._width = 2
                return door
    """
    assert writes_in(code) == []


def fault_points() -> Iterator[tuple[str, str, int]]:
    """Each point that the code passes: its name, the file, and how much is given there."""
    for file, code in structure.sources().items():
        for node in ast.walk(ast.parse(code)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="faults"), attr="at"),
                    args=[ast.Constant(value=str(name)), *given],
                ):
                    yield name, file, len(given)


def test_each_fault_point_is_listed_and_each_that_is_listed_lies_in_the_code_once() -> None:
    listed = [(name, point.file, len(point.given)) for name, point in POINTS.items()]
    assert sorted(fault_points()) == sorted(listed)
