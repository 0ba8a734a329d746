"""``prefork-executor map``: what becomes of lines that fail, and what its options do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from map_command import Command
from waiting import BOUND


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def calls(command: Command) -> Counter[str]:
    """How often the function was called for each line."""
    return Counter(command.calls.read_text().split())


# --- lines that are sent together ---------------------------------------------------------------

TOGETHER = pytest.mark.parametrize("options", [(), ("--chunksize", "40")], ids=["measured", "40"])


def test_lines_that_take_microseconds_are_sent_together(command: Command) -> None:
    command.write("in.txt", *range(5000))
    code, out, _ = command.run("lines_to_map:same", "in.txt", "--record", "run.json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [str(i) for i in range(5000)]
    events = json.loads((command.folder / "run.json").read_text())["traceEvents"]
    tasks = [event for event in events if event.get("cat") == "task"]
    assert len(tasks) < 1000


@TOGETHER
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_death_costs_the_line_it_came_at_and_no_line_runs_twice(
    command: Command, options: tuple[str, ...], start: str
) -> None:
    lines = [f"{i}" for i in range(1200)]
    lines[700] = lines[1100] = "die"
    command.write("in.txt", *lines)
    code, out, err = command.run(
        "lines_to_map:some_die_counted", "in.txt", "--start-method", start, *options
    )
    assert code == 1
    results = [json.loads(line) for line in out.splitlines()]
    assert results == [None if line == "die" else line for line in lines]
    assert "line 701: WorkerDied: worker " in err
    assert calls(command) == Counter(lines)


@TOGETHER
def test_a_time_out_costs_the_line_that_took_too_long_and_no_line_runs_twice(
    command: Command, options: tuple[str, ...]
) -> None:
    lines = [f"{i}" for i in range(600)]
    lines[350] = "sleep"
    command.write("in.txt", *lines)
    code, out, err = command.run(
        "lines_to_map:some_die_counted", "in.txt", "--timeout", "2", *options
    )
    assert code == 1
    results = [json.loads(line) for line in out.splitlines()]
    assert results == [None if line == "sleep" else line for line in lines]
    assert "line 351: TaskTimeout: task lines_to_map.some_die_counted ran for more than 2 s" in err
    assert calls(command) == Counter(lines)


def test_results_of_lines_that_took_long_do_not_wait_for_those_sent_with_them(
    command: Command,
) -> None:
    """When a task has run for long enough, its worker gives back the lines that are left."""
    command.write("in.txt", "slow", "wait")
    arguments = ("lines_to_map:waits_if_told", "in.txt", "--chunksize", "2", "--max-workers", "1")
    with command.start(*arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b'"slow"\n'
        command.calls.touch()
        assert process.stdout.read() == b'"wait"\n'
        assert process.wait(BOUND) == 0


def test_long_lines_and_results_are_whole_whatever_is_sent_together(command: Command) -> None:
    lines = [str(i % 10) * (i * 37 % 50_000) for i in range(400)]
    lines[200] = "x" * 300_000
    command.write("in.txt", *lines)
    code, out, _ = command.run("lines_to_map:same", "in.txt", "--chunksize", "100")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == lines


# --- runs after failures ------------------------------------------------------------------------


@TOGETHER
def test_with_retries_a_line_runs_again_after_deaths(
    command: Command, options: tuple[str, ...]
) -> None:
    lines = [*map(str, range(200)), "d1", *map(str, range(200, 300)), "d2"]
    command.write("in.txt", *lines)
    code, out, _ = command.run("lines_to_map:dies_twice", "in.txt", "--retries", "2", *options)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == lines
    assert calls(command) == Counter(lines) + Counter(["d1", "d1", "d2", "d2"])


@pytest.mark.parametrize(
    ("options", "runs", "fails"),
    [
        (["--retries", "2"], 1, True),
        (["--retries", "1", "--retry-on-error"], 2, True),
        (["--retries", "2", "--retry-on-error"], 3, False),
        (["--retries", "5", "--retry-on-error"], 3, False),
    ],
)
def test_a_line_runs_again_after_an_exception_if_told_to(
    command: Command, options: list[str], runs: int, fails: bool
) -> None:
    command.write("in.txt", *"abc")
    code, out, err = command.run("lines_to_map:fails_twice", "in.txt", *options)
    assert code == fails
    assert out.splitlines() == (["null"] * 3 if fails else ['"a"', '"b"', '"c"'])
    assert ("line 2: ValueError: not yet b" in err) is fails
    assert calls(command) == Counter("abc" * runs)


def test_no_more_lines_begin_when_so_many_have_failed(command: Command) -> None:
    command.write("in.txt", *["7"] * 100, *range(100_000))
    arguments = ("lines_to_map:some_fail", "in.txt", "-o", "out", "--errors", "err")
    code, out, err = command.run(*arguments, "--halt", "3")
    assert (code, out) == (1, "")
    assert err.endswith("prefork-executor map: stopped by --halt 3; --resume goes on\n")
    assert 3 <= len(command.lines("out")) < 100_000
    assert command.run(*arguments, "--resume")[0] == 1
    assert len(command.lines("out")) == 100_100
    assert len(command.lines("err")) == 100 + len(range(0, 100_000, 7))


def test_lines_that_have_begun_are_finished_before_it_halts(command: Command) -> None:
    command.write("in.txt", *["7"] * 20, *range(20, 1000))
    code, _, _ = command.run("lines_to_map:slow_fail_counted", "in.txt", "-o", "out", "--halt", "1")
    assert code == 1
    assert len(command.lines("out")) == calls(command).total() < 1000


@pytest.mark.parametrize(("percent", "lines"), [("10%", 100_000), ("20%", 2000)])
def test_it_halts_at_a_percentage_of_failures(command: Command, percent: str, lines: int) -> None:
    command.write("in.txt", *range(1, lines + 1))  # Of which one in seven fails.
    code, out, err = command.run("lines_to_map:some_fail", "in.txt", "--halt", percent)
    assert code == 1
    halts = percent == "10%"
    assert ("stopped by --halt 10%" in err) is halts
    assert (len(out.splitlines()) < lines) is halts


# --- what is written ----------------------------------------------------------------------------


def test_unordered_results_do_not_wait_for_earlier_lines(command: Command) -> None:
    command.write("in.txt", "wait", "b", "c")
    arguments = ("lines_to_map:waits_if_told", "in.txt", "--unordered", "--max-workers", "2")
    with command.start(*arguments) as process:
        assert process.stdout is not None
        assert {process.stdout.readline() for _ in "bc"} == {b'"b"\n', b'"c"\n'}
        command.calls.touch()
        assert process.stdout.readline() == b'"wait"\n'
        assert process.wait(BOUND) == 0


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log."""
    head, *lines = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_the_log_has_times_worker_and_outcome_of_each_line(command: Command) -> None:
    command.write("in.txt", "a", "die", "exit", "sleep", *range(50))
    code, _, _ = command.run(
        *("lines_to_map:some_die", "in.txt", "--joblog", "log", "--timeout", "1", "-q"),
    )
    assert code == 1
    path = command.folder / "log"
    assert path.read_text().startswith(
        "Seq\tWorker\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tOutcome\n"
    )
    found = {row["Seq"]: row for row in rows(path)}
    assert found.keys() == {str(i) for i in range(1, 55)}
    outcomes = [
        (row["Exitval"], row["Signal"], row["Outcome"].split(":")[0])
        for row in (found[seq] for seq in "1234")
    ]
    assert outcomes == [
        ("0", "0", "ok"),
        ("0", "9", "WorkerDied"),
        ("1", "0", "SystemExit"),
        ("-1", "0", "TaskTimeout"),
    ]
    assert (found["1"]["Send"], found["1"]["Receive"]) == ("2", "4")
    assert float(found["4"]["JobRuntime"]) >= 1
    assert float(found["1"]["JobRuntime"]) < 1
    begun = [float(row["Starttime"]) for row in found.values()]
    assert max(begun) - min(begun) < BOUND
    assert all(int(row["Worker"]) > 1 for row in found.values())


def test_a_resumed_run_adds_to_the_log(command: Command) -> None:
    command.write("in.txt", "a", "b")
    arguments = ("lines_to_map:same", "in.txt", "-o", "out", "--joblog", "log", "-q")
    assert command.run(*arguments)[0] == 0
    command.write("in.txt", "a", "b", "c")
    code, _, err = command.run(*arguments)
    assert code == 2
    assert "out exists" in err
    assert command.run(*arguments, "--resume")[0] == 0
    assert sorted(row["Seq"] for row in rows(command.folder / "log")) == ["1", "2", "3"]
    assert command.run(*arguments, "--overwrite")[0] == 0
    assert len(rows(command.folder / "log")) == 3


def test_half_a_row_that_an_interruption_has_left_in_the_log_is_cut_off(command: Command) -> None:
    command.write("in.txt", "a", "b")
    arguments = ("lines_to_map:same", "in.txt", "-o", "out", "--joblog", "log", "-q")
    assert command.run(*arguments)[0] == 0
    for name in ("out", "log"):
        path = command.folder / name
        os.truncate(path, path.stat().st_size - 3)
    assert command.run(*arguments, "--resume")[0] == 0
    assert [row["Seq"] for row in rows(command.folder / "log")] == ["1", "2"]
    assert [row["Outcome"] for row in rows(command.folder / "log")] == ["ok", "ok"]


def test_only_so_many_failures_are_told_and_not_all_of_a_long_one(command: Command) -> None:
    command.write("in.txt", *range(1000))
    code, _, err = command.run("lines_to_map:fails_at_length", "in.txt")
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 22
    assert max(map(len, lines)) < 600
    assert "--errors FILE keeps all of them" in lines[-2]
    assert "1,000 lines" in lines[-1]
    assert "1,000 failed" in lines[-1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full")
@pytest.mark.parametrize("option", ["-o", "--errors", "--joblog"])
def test_a_full_disk_is_named_with_the_option_and_the_file(command: Command, option: str) -> None:
    command.write("in.txt", *range(1, 100))
    code, _, err = command.run("lines_to_map:some_fail", "in.txt", option, "/dev/full")
    assert code == 1
    words = f"prefork-executor map: {option} /dev/full cannot be written: No space left on device"
    assert words in err
    assert "Traceback" not in err


def test_a_file_that_cannot_be_opened_is_named_with_its_option(command: Command) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(command.folder):
        listener.bind("out")
    code, out, err = command.run("lines_to_map:same", "-o", "out", given=b"a\n")
    assert (code, out) == (2, "")
    assert err.startswith("prefork-executor map: -o out cannot be opened: No such device")


def test_the_mark_at_the_beginning_of_a_file_is_no_part_of_its_first_line(command: Command) -> None:
    for text, lines in (("\ufeffa\nb\n", ["a", "b"]), ("\ufeff", [""]), ("x\ufeff\n", ["x\ufeff"])):
        code, out, _ = command.run("lines_to_map:same", given=text.encode())
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == lines


# --- the function -------------------------------------------------------------------------------


def test_constants_are_keyword_arguments_of_each_call(command: Command) -> None:
    arguments = ("lines_to_map:joined", "--arg", "by==", "--arg-json", "times=3")
    assert command.run(*arguments, given=b"a\nb\n")[1] == '"a=a=a"\n"b=b=b"\n'
    for option, value in (("--arg", "str 7"), ("--arg-json", "int 7")):
        _, out, _ = command.run("lines_to_map:type_of", option, "value=7", given=b"a\n")
        assert out == f'"{value}"\n'


def test_with_star_a_line_has_precedence_over_constants(command: Command) -> None:
    given = b'["a"]\n{"line": "b", "times": 1}\n'
    _, out, _ = command.run(
        *("lines_to_map:joined", "--star", "--arg", "by=-", "--arg-json", "times=2"), given=given
    )
    assert out == '"a-a"\n"b"\n'


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("lambda line: len(line)", "3\n"),
        ("len", "3\n"),
        ("import re; lambda line: re.sub('b', '-', line)", '"a-c"\n'),
        ("def twice(line):\n    return line * 2\ntwice", '"abcabc"\n'),
        ("from lines_to_map import upper; upper", '"ABC"\n'),
    ],
)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_code_on_the_command_line_can_be_the_function(
    command: Command, code: str, expected: str, start: str
) -> None:
    command.write("in.txt", "abc")
    exit_code, out, _ = command.run("-c", code, "in.txt", "--start-method", start)
    assert (exit_code, out) == (0, expected)
    assert command.run("-c", code, given=b"abc\n")[1] == expected


def test_async_functions_are_awaited(command: Command) -> None:
    code, out, err = command.run("lines_to_map:later", "--max-workers", "1", given=b"a\nbad\nb\n")
    assert code == 1
    assert out == '"a 1"\nnull\n"b 1"\n'
    assert "line 2: ValueError: bad luck" in err
    assert "Warning" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lines_to_map:generated"], "lines_to_map:generated is a generator function"),
        (["-c", "def f(line):\n    yield line\nf"], "-c is a generator function"),
        (["lines_to_map:joined"], "cannot be called with a line as its argument: missing"),
        (["lines_to_map:joined"], "--arg NAME=VALUE gives one that is the same for all lines"),
        (["lines_to_map:upper", "--arg", "x=1"], "got an unexpected keyword argument 'x'"),
        (["lines_to_map:upper", "--star", "--arg", "x=1"], "unexpected keyword argument 'x'"),
        (["-c", "lambda: 1"], "-c() cannot be called with a line as its argument: too many"),
        (["-c", "lambda line"], "-c is not valid Python: "),
        (["-c", "import re"], "-c must end in an expression whose value is the function"),
        (["-c", ""], "-c must end in an expression whose value is the function"),
        (["-c", "nothing"], "-c raised NameError: name 'nothing' is not defined"),
        ([".relative:f"], "does not have the form package.module:function"),
        (["-c", "7"], "-c is int, which cannot be called"),
        (
            ["-c", "len", "in.txt", "more"],
            "give either package.module:function or -c CODE, and not both",
        ),
        ([], "give either package.module:function or -c CODE, and not both"),
        (["lines_to_map:upper", "--arg", "x"], "--arg must be NAME=VALUE, not x"),
        (["lines_to_map:upper", "--arg-json", "x=["], "--arg-json x is not JSON: "),
        (["lines_to_map:upper", "--arg", "x=1", "--arg", "x=2"], "--arg x is given twice"),
        (["lines_to_map:upper", "--timeout", "0"], "--timeout must be above 0 seconds, not 0"),
        (["lines_to_map:upper", "--retries", "-1"], "--retries must be at least 0"),
        (["lines_to_map:upper", "--max-tasks-per-child", "0"], "--max-tasks-per-child must be"),
        (["lines_to_map:upper", "--halt", "0"], "--halt must be a number of failed lines"),
        (["lines_to_map:upper", "--halt", "101%"], "--halt must be a number of failed lines"),
        (["lines_to_map:upper", "--halt", "now,fail=1"], "--halt must be a number"),
        (["lines_to_map:upper", "--retry-on-error"], "--retry-on-error needs --retries N"),
        (
            ["lines_to_map:upper", "-o", "x", "--unordered", "--resume"],
            "--unordered cannot be resumed",
        ),
        (["lines_to_map:upper", "in.txt", "--joblog", "in.txt"], "must be different files"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_line(
    command: Command, arguments: list[str], words: str
) -> None:
    command.write("in.txt", "a")
    code, out, err = command.run(*arguments, given=b"a\nb\n")
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("fault", ["int('x')", "len(1)", "len.nothing", "{}[1]"])
def test_a_module_that_raises_when_it_is_imported_gets_its_traceback(
    command: Command, fault: str
) -> None:
    (command.folder / "faulty.py").write_text(f"import os\n\n{fault}\n")
    code, _, err = command.run("faulty:f", given=b"a\n")
    assert code == 1
    assert 'faulty.py", line 3' in err


# --- progress -----------------------------------------------------------------------------------


def test_off_a_terminal_eta_says_how_far_it_is(command: Command) -> None:
    command.write("in.txt", *range(40))
    with command.start("lines_to_map:slowly", "in.txt", "-o", "out", "--eta") as process:
        assert process.stderr is not None
        lines = process.stderr.read().decode().splitlines()
        assert process.wait(BOUND) == 0
    *words, last = lines
    assert words
    for line in words:
        assert re.search(r": \d+ lines?, \d+% of the input(, .* left)?$", line), line
    assert last.startswith("prefork-executor map: 40 lines in ")


def test_off_a_terminal_nothing_but_a_summary_is_told(command: Command) -> None:
    command.write("in.txt", *range(3000))
    _, _, err = command.run("lines_to_map:same", "in.txt", "-o", "out")
    assert re.fullmatch(r"prefork-executor map: 3,000 lines in .+ m?s\n", err)
    assert command.run("lines_to_map:same", "in.txt", "-o", "out", "--overwrite", "-q")[2] == ""


# --- the texts of all commands ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "map", "list", "status", "top", "trace"])
def test_help_texts_are_plain_text(name: str) -> None:
    arguments: Any = [sys.executable, "-m", "prefork_executor", *filter(None, [name]), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=BOUND, check=True)
    assert "`" not in done.stdout
    assert ":class:" not in done.stdout
