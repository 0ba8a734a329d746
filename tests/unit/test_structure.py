"""How the package is built: no circles, nobody writes another's private attributes, the points
at which tests inject faults are those that are listed, and the states of workers and of tasks are
changed where, and as, their tables say."""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Iterator

import pytest

pytest.importorskip("grimp")

import structure

from prefork_executor._board.worker_states import TABLE, WRITERS, State
from prefork_executor._client import task_states
from prefork_executor._support.fault_points import POINTS


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Each file of the package, parsed."""
    return {file: ast.parse(code) for file, code in structure.sources().items()}


@functools.cache
def arrows() -> dict[str, set[str]]:
    """What each file of the package imports."""
    return structure.imports()


@functools.cache
def outside_writes() -> list[structure.Write]:
    """The package's writes to attributes from outside."""
    return structure.writes_from_outside(structure.sources())


def writes_in(code: str) -> list[str]:
    files = {"example.py": textwrap.dedent(code)}
    return [write.target for write in structure.writes_from_outside(files)]


def test_no_rooms_import_each_other() -> None:
    assert structure.circles(structure.between_rooms(arrows())) == []


def test_no_files_of_a_room_import_each_other() -> None:
    assert structure.circles(structure.within_rooms(arrows())) == []


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    long = [
        str(file) for file in structure.lengths(structure.sources()) if file.lines > structure.LONG
    ]
    assert long == []


def test_nobody_writes_the_attributes_of_others_objects() -> None:
    assert [str(write) for write in outside_writes() if not write.is_of_others] == []


def test_what_is_written_of_others_is_listed_as_long_as_it_is_written() -> None:
    written = {write.target for write in outside_writes()}
    assert structure.OF_OTHERS.keys() <= written


def test_a_circle_is_found_that_leads_by_way_of_others() -> None:
    circle = {"a": {"b", "e"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set[str]()}
    assert structure.circles(circle) == [["a", "b", "c"]]


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


def test_a_write_to_a_public_attribute_is_found_if_its_class_is_of_another_file() -> None:
    door = """
        class Door:
            def __init__(self):
                self.width = 1

        def widen(door):
            door.width = 2
    """
    visitor = "def enter(door):\n    door.width = 3\n    door.name_of_another_packages = 4"
    files = {"door.py": textwrap.dedent(door), "visitor.py": visitor}
    found = structure.writes_from_outside(files)
    assert [(write.place, write.target) for write in found] == [("visitor.py:2", "door.width")]


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
    for file, tree in trees().items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="faults"), attr="at"),
                    args=[ast.Constant(value=str(name)), *given],
                ):
                    yield name, file, len(given)


def test_each_fault_point_is_listed_and_each_that_is_listed_lies_in_the_code_once() -> None:
    listed = [(name, point.file, len(point.given)) for name, point in POINTS.items()]
    assert sorted(fault_points()) == sorted(listed)


# --- a worker's states ----------------------------------------------------------------------


def worker_events() -> Iterator[tuple[str, str]]:
    """Each event of a worker's that the code names, and the file."""
    for file, tree in trees().items():
        if file != "_board/worker_states.py":
            for event in events_in(tree):
                yield event, file


def events_in(node: ast.AST) -> set[str]:
    return named_events(node) & TABLE.keys()


def named_events(node: ast.AST) -> set[str]:
    """Those of any table."""
    return {
        name.attr
        for name in ast.walk(node)
        if isinstance(name, ast.Attribute) and ast.unparse(name.value) == "Event"
    }


def test_each_event_of_a_worker_comes_where_its_writer_is_and_each_comes() -> None:
    made = set(worker_events())
    assert {event for event, _ in made} == TABLE.keys()
    assert [
        (event, file) for event, file in made if file not in WRITERS[event.partition("_")[0]]
    ] == []


def writes_of_states(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Each place that writes HOLDS: what is checked before it, and the states that the table
    has then and that are written, which are to be one."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        checked: ast.Call | None = None
        for node in sorted(
            (node for node in ast.walk(function) if isinstance(node, ast.Call | ast.Assign)),
            key=lambda node: (node.lineno, node.col_offset),
        ):
            if isinstance(node, ast.Call):
                is_check = ast.unparse(node.func).endswith(("check", "_check"))
                checked = node if is_check else checked
            elif is_holds(node.targets[0]):
                before = "nothing" if checked is None else ast.unparse(checked.args[-1])
                states = {TABLE[event][1].name for event in events_in(checked or ast.Pass())}
                yield f"{function.name}: {before}", states | states_in(node.value)
                checked = None


def is_holds(target: ast.expr) -> bool:
    return isinstance(target, ast.Subscript) and "holds" in ast.unparse(target.slice).lower()


def states_in(value: ast.expr) -> set[str]:
    names = {node.attr for node in ast.walk(value) if isinstance(node, ast.Attribute)}
    return names & State.__members__.keys()


def test_whoever_writes_a_state_checks_before_that_the_table_has_it() -> None:
    written = [
        (file, place, states)
        for file, tree in trees().items()
        for place, states in writes_of_states(tree)
    ]
    assert len({file for file, _, _ in written}) == 3
    # Where the event is given, the state that is written is the table's.
    wrong = [
        (file, place, states)
        for file, place, states in written
        if len(states) != (0 if place.endswith(": event") else 1)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "place", "states"),
    [
        ("words[base + sb.HOLDS] = sb.pack_holds(sb.BUSY)", "nothing", {"BUSY"}),
        (
            "check(Event.WORKER_ASKS); words[holds] = sb.BUSY",
            "Event.WORKER_ASKS",
            {"TAKING", "BUSY"},
        ),
        (
            "check(Event.WORKER_NAMES); words[holds] = 1 << 16 | sb.BUSY",
            "Event.WORKER_NAMES",
            {"BUSY"},
        ),
    ],
)
def test_it_is_seen_what_is_checked_before_a_write_and_what_is_written(
    code: str, place: str, states: set[str]
) -> None:
    assert list(writes_of_states(ast.parse(f"def f(): {code}"))) == [(f"f: {place}", states)]


# --- a task's states ------------------------------------------------------------------------


def test_the_ledger_alone_makes_the_transitions_of_tasks_and_it_makes_each() -> None:
    names = task_states.NEXT.keys()
    made = {
        file: named & names
        for file, tree in trees().items()
        if file != "_client/task_states.py" and (named := named_events(tree)) & names
    }
    assert made == {"_client/ledger.py": set(names)}


def test_what_goes_with_a_tasks_state_is_written_by_the_task_itself() -> None:
    written = {
        (file, ast.unparse(node))
        for file, tree in trees().items()
        if file.startswith("_client/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if node.attr in ("state", "verdict", "lost_runs")
    }
    assert written == {
        ("_client/ledger.py", f"self.{name}") for name in ("state", "verdict", "lost_runs")
    }
