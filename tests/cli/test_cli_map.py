"""``prefork-executor map``: a line in, a line out, whatever happens in between."""

from __future__ import annotations

import itertools
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from lines_to_map import repaired, some_fail
from map_command import Command
from waiting import BOUND, eventually


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def without_time(err: str) -> str:
    """What it wrote to stderr, with a dash for the time it took."""
    return re.sub(r"(lines?) in [^,\n]*", r"\1 in -", err)


# --- lines in and out ---------------------------------------------------------------------------


def test_lines_of_stdin_come_out_of_stdout_as_json_in_order(command: Command) -> None:
    given = "".join(f"line {i} ä\n" for i in range(3000))
    code, out, err = command.run("lines_to_map:upper", "-q", given=given.encode())
    assert code == 0
    assert err == ""
    assert [json.loads(line) for line in out.splitlines()] == given.upper().splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("lines_to_map:upper", "-o", "out.jsonl", "in.txt"),
        ("-q", "lines_to_map:upper", "-o", "out.jsonl", "in.txt"),
        ("lines_to_map:upper", "in.txt", "-o", "out.jsonl"),
        ("-c", "str.upper", "-o", "out.jsonl", "in.txt"),
        ("in.txt", "-o", "out.jsonl", "-c", "str.upper"),
    ],
)
def test_options_may_stand_before_and_after_each_argument(
    command: Command, arguments: tuple[str, ...]
) -> None:
    command.write("in.txt", "a", "b")
    code, out, err = command.run(*arguments)
    assert (code, out) == (0, ""), err
    assert command.lines("out.jsonl") == ["A", "B"]


def test_arguments_that_nobody_takes_are_named(command: Command) -> None:
    code, _, err = command.run("lines_to_map:upper", "-q", "in.txt", "more.txt", "--odd")
    assert code == 2
    assert "unrecognized arguments: more.txt --odd" in err


def test_the_command_tells_how_many_lines_there_were(command: Command) -> None:
    for lines, told in ((1, "1 line"), (2, "2 lines"), (1001, "1,001 lines")):
        command.write("in.txt", *[7] * lines)
        _, _, err = command.run(
            *("lines_to_map:some_fail", "in.txt", "-o", "out.jsonl", "--errors", "err.jsonl"),
            "--overwrite",
        )
        assert without_time(err) == (
            f"prefork-executor map: {told} in -, {lines:,} failed: see err.jsonl\n"
        )


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_file_is_mapped_to_a_file_under_each_start_method(command: Command, start: str) -> None:
    command.write("in.txt", *range(1, 51))
    code, out, err = command.run(
        *("lines_to_map:some_fail", "in.txt", "-o", "out.jsonl", "--errors", "err.jsonl"),
        *("--start-method", start, "--max-workers", "3", "--max-memory", "0.8"),
    )
    assert code == 1
    assert out == ""
    assert without_time(err) == ("prefork-executor map: 50 lines in -, 7 failed: see err.jsonl\n")
    squares = [None if i % 7 == 0 else i * i for i in range(1, 51)]
    assert command.lines("out.jsonl") == squares
    errors = command.lines("err.jsonl")
    assert [error["line"] for error in errors] == [7, 14, 21, 28, 35, 42, 49]
    assert errors[0]["input"] == "7"
    assert errors[0]["type"] == "ValueError"
    assert errors[0]["message"] == "unlucky 7"
    first, *_, last = errors[0]["traceback"].splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "ValueError: unlucky 7"
    assert "lines_to_map.py" in errors[0]["traceback"]
    assert "_map_worker" not in errors[0]["traceback"]


def test_without_a_file_for_them_errors_are_told_by_line(command: Command) -> None:
    code, out, err = command.run("lines_to_map:some_fail", given=b"1\n7\n")
    assert code == 1
    assert out == "1\nnull\n"
    assert "line 2: ValueError: unlucky 7\n" in err


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("--json", '{"a": [1, null]}\n"x"\n', [{"a": [1, None]}, "x"]),
        ("--json", "\n", [None]),
    ],
)
def test_lines_of_json_are_one_argument(
    command: Command, option: str, given: str, expected: list[Any]
) -> None:
    _, out, _ = command.run("lines_to_map:same", option, given=given.encode())
    assert [json.loads(line) for line in out.splitlines()] == expected


def test_with_star_a_list_is_arguments_and_an_object_keywords(command: Command) -> None:
    code, out, err = command.run("lines_to_map:add", "--star", given=b'[1, 2]\n{"a": 3}\n4\n')
    assert code == 1
    assert out == "3\n13\nnull\n"
    assert "line 3: ValueError: --star needs a list or an object" in err
    assert "use --json" in err


@pytest.mark.parametrize("line", ["set", "nan", "path"])
def test_what_is_no_json_is_an_error_that_names_the_fix(command: Command, line: str) -> None:
    code, out, err = command.run("lines_to_map:not_json", given=f"{line}\nfine\n".encode())
    assert code == 1
    assert out == 'null\n"fine"\n'
    assert "line 1: TypeError: what lines_to_map:not_json returned is not JSON" in err
    assert "str(x)" in err


def test_the_ends_of_lines_are_no_part_of_them(command: Command) -> None:
    _, out, _ = command.run("lines_to_map:same", given=b"unix\nwindows\r\n\nlast")
    assert out == '"unix"\n"windows"\n""\n"last"\n'


def test_a_line_that_is_no_text_is_an_error_of_its_own(command: Command) -> None:
    code, out, err = command.run("lines_to_map:same", given=b"a\n\xff\nb\n")
    assert code == 1
    assert out == '"a"\nnull\n"b"\n'
    assert "line 2: UnicodeDecodeError" in err


def test_half_a_surrogate_pair_is_json_too(command: Command) -> None:
    code, out, _ = command.run("lines_to_map:same", "--json", given=b'"\\ud800"\n')
    assert code == 0
    assert json.loads(out) == "\ud800"


def test_what_functions_print_is_not_among_the_results(command: Command) -> None:
    code, out, err = command.run("lines_to_map:noisy", given=b"a\nb\n")
    assert code == 0
    assert out == '"a"\n"b"\n'
    assert err.count("noise") == 4  # In pieces, perhaps: there are two workers.
    assert "more noise" in err


def test_a_death_costs_one_line(command: Command) -> None:
    given = ["a", "die", "b", "exit", "c"]
    code, out, err = command.run("lines_to_map:some_die", given="\n".join(given).encode())
    assert code == 1
    assert [json.loads(line) for line in out.splitlines()] == ["a", None, "b", None, "c"]
    assert "line 2: WorkerDied: worker " in err
    assert "while it held task lines_to_map.some_die" in err
    assert "line 4: SystemExit: 3" in err


def test_no_line_runs_in_a_process_that_the_function_has_forked(command: Command) -> None:
    command.write("in.txt", *range(5))
    code, out, err = command.run("lines_to_map:forks", "-q", "--chunksize", "5", "in.txt")
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == ["0", "1", "2", "3", "4"]
    assert sorted(command.calls.read_text().split()) == ["0", "1", "2", "3", "4"]


def test_a_line_that_takes_too_long_is_an_error(command: Command) -> None:
    code, out, err = command.run(
        "lines_to_map:some_die", "--timeout", "0.2", given=b"a\nsleep\nb\n"
    )
    assert code == 1
    assert out == '"a"\nnull\n"b"\n'
    assert "line 2: TaskTimeout: " in err


def test_in_a_chunk_each_line_has_its_own_error(command: Command) -> None:
    command.write("in.txt", *range(1, 101))
    code, out, _ = command.run("lines_to_map:some_fail", "in.txt", "--chunksize", "13")
    assert code == 1
    expected = [None if i % 7 == 0 else i * i for i in range(1, 101)]
    assert [json.loads(line) for line in out.splitlines()] == expected


def test_results_come_while_the_input_still_does(command: Command) -> None:
    with command.start("lines_to_map:upper", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == b'"' + line[:-1].upper() + b'"\n'
        process.stdin.close()
        assert process.wait(BOUND) == 0


PEAK = """
import sys
from prefork_executor.cli import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
print(peak, code, file=sys.stderr)
"""


def peak_memory(command: Command, lines: int) -> int:
    """Kilobytes that the command takes at most, for so many lines of 600 bytes."""
    with (command.folder / "in.txt").open("w") as file:
        file.writelines(f"{i:06}" * 100 + "\n" for i in range(lines))
    arguments = ("map", "lines_to_map:same", "in.txt", "-q")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        cwd=command.folder,
        env=command.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=BOUND,
        check=True,
    )
    size, exit_code = done.stderr.split()
    assert exit_code == b"0"
    return int(size)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_input(command: Command) -> None:
    few, many = peak_memory(command, 2_000), peak_memory(command, 200_000)
    # Of the 120 MB more that are read and written not a fifth stays.
    assert many - few < 24_000, (few, many)


def test_an_empty_input_gives_an_empty_output(command: Command) -> None:
    command.write("in.txt")
    assert command.run("lines_to_map:same", "in.txt", "-o", "out.jsonl")[0] == 0
    assert command.lines("out.jsonl") == []


def test_a_run_can_be_recorded(command: Command) -> None:
    code, _, _ = command.run(
        *("lines_to_map:same", "--record", "run.json", "--record", "run.html"), given=b"a\nb\n"
    )
    assert code == 0
    events = json.loads((command.folder / "run.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "task"]
    assert names == ["lines_to_map.same"] * 2
    assert "lines_to_map.same" in (command.folder / "run.html").read_text()


# --- bad usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lines_to_map"], "'lines_to_map' does not have the form package.module:function"),
        (["no_such_module:f"], "module no_such_module cannot be imported: No module named"),
        (["lines_to_map:nothing"], "module lines_to_map has no 'nothing'"),
        (["lines_to_map:NOT_CALLABLE"], "lines_to_map:NOT_CALLABLE is int, which cannot be called"),
        (["lines_to_map:same", "missing.txt"], "missing.txt cannot be read: No such file"),
        (["lines_to_map:same", "-o", "no/out"], "there is no directory no for no/out"),
        (["lines_to_map:same", "-o", "."], ". is a directory"),
        (["lines_to_map:same", "--resume"], "--resume goes on where OUT ends: it needs -o OUT"),
        (["lines_to_map:same", "-o", "x", "--retry-errors"], "--retry-errors needs the file"),
        (["lines_to_map:same", "-o", "x", "--overwrite", "--resume"], "contradict each other"),
        (["lines_to_map:same", "in.txt", "-o", "./in.txt"], "must be different files"),
        (["lines_to_map:same", "--max-workers", "0"], "--max-workers must be greater than 0"),
        (["lines_to_map:same", "--chunksize", "0"], "--chunksize must be at least 1, not 0"),
        (["lines_to_map:same", "--timeout", "-1"], "--timeout must be above 0 seconds, not -1"),
        (
            ["lines_to_map:same", "--max-memory", "1.5"],
            "--max-memory must be above 0 and at most 1.0",
        ),
        (["lines_to_map:same", "--max-memory", "1G"], "invalid memory value: '1G'"),
        (["lines_to_map:same", "--record", "run.txt"], "--record: paths[0] must end in .json"),
        (["lines_to_map:same", "--json", "--star"], "not allowed with"),
    ],
)
def test_bad_usage_is_named_and_has_an_exit_code_of_its_own(
    command: Command, arguments: list[str], words: str
) -> None:
    command.write("in.txt", "a")
    code, out, err = command.run(*arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_an_output_that_exists_is_replaced_only_if_told_to(command: Command) -> None:
    command.write("in.txt", "a", "b")
    arguments = ("lines_to_map:upper", "in.txt", "-o", "out.jsonl")
    command.write("out.jsonl", '"precious"', '"results"', '"here"')
    code, _, err = command.run(*arguments)
    assert code == 2
    assert "out.jsonl exists: --resume goes on where it ends, --overwrite replaces it" in err
    assert command.lines("out.jsonl") == ["precious", "results", "here"]
    assert command.run(*arguments, "--overwrite")[0] == 0
    assert command.lines("out.jsonl") == ["A", "B"]


# --- interruptions --------------------------------------------------------------------------

SLOW = ("lines_to_map:slow_some_fail", "in.txt", "-o", "out.jsonl", "--errors", "err.jsonl")


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    def has_them() -> bool:
        assert process.poll() is None, "it has ended before"
        return path.exists() and path.read_bytes().count(b"\n") >= count

    eventually(has_them, f"{count} lines in {path}")


def wait_until_gone(pids: list[int]) -> None:
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "the pool's processes have ended")


def test_after_kills_at_random_moments_the_output_is_that_of_one_run(command: Command) -> None:
    numbers = range(1, 1501)
    command.write("in.txt", *numbers)
    out, runs = command.folder / "out.jsonl", 0
    chance = random.Random(7)
    written = 0
    while True:
        runs += 1
        process = command.start(*SLOW, "--resume", "--max-workers", "2")
        goal = written + chance.randint(1, 500)
        try:
            if goal >= len(numbers):
                assert process.wait(BOUND) == 1
                break
            wait_for_lines(out, goal, process)
            time.sleep(chance.uniform(0, 0.1))
            pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        finally:
            process.kill()
            process.communicate()
        wait_until_gone(pids)
        written = out.read_bytes().count(b"\n")
        # As if the system had gone down in the midst of a line.
        if chance.random() < 0.5:
            with out.open("ab") as file:
                file.write(b'{"half')
    assert runs > 2
    assert command.lines("out.jsonl") == [i * i if i % 7 else None for i in numbers]
    errors = command.lines("err.jsonl")
    assert [error["line"] for error in errors] == [i for i in numbers if i % 7 == 0]
    assert command.run(*SLOW[:2], "-o", "whole.jsonl", "--errors", "whole.err")[0] == 1
    assert out.read_bytes() == (command.folder / "whole.jsonl").read_bytes()
    assert [e["message"] for e in errors] == [e["message"] for e in command.lines("whole.err")]


def test_no_line_whose_result_is_written_is_run_again(command: Command) -> None:
    command.write("in.txt", *range(10))
    command.write("out.jsonl", *(f'"{i}"' for i in range(6)))
    with (command.folder / "out.jsonl").open("a") as file:
        file.write('"6')
    arguments = ("lines_to_map:calls_counted", "in.txt", "-o", "out.jsonl", "--resume")
    assert command.run(*arguments)[0] == 0
    assert sorted(command.calls.read_text().split()) == ["6", "7", "8", "9"]
    assert command.lines("out.jsonl") == [str(i) for i in range(10)]
    assert command.run(*arguments)[0] == 0
    assert len(command.calls.read_text().split()) == 4


def test_errors_of_lines_that_are_run_again_are_cut_off(command: Command) -> None:
    command.write("in.txt", *range(1, 22))
    command.write("out.jsonl", *(some_fail(str(i)) if i % 7 else "null" for i in range(1, 11)))
    records = [{"line": i, "input": str(i), "type": "E", "message": ""} for i in (7, 14)]
    command.write("err.jsonl", *map(json.dumps, records))
    with (command.folder / "err.jsonl").open("a") as file:
        file.write('{"li')
    code, _, err = command.run(*SLOW, "--resume")
    assert code == 1
    assert "21 lines in -, 3 failed" in without_time(err)
    assert [error["line"] for error in command.lines("err.jsonl")] == [7, 14, 21]
    assert [error["type"] for error in command.lines("err.jsonl")] == [
        "E",
        "ValueError",
        "ValueError",
    ]


def test_an_error_is_on_the_disk_before_its_line_is_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefork_executor.cli.map._lines import FAILED, Item, Output
    from prefork_executor.cli.map._mapping import Result
    from prefork_executor.cli.map._progress import Progress
    from prefork_executor.cli.map._sink import Outputs, Sink

    steps: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    for call in ("pwrite", "fsync"):
        original = getattr(os, call)

        def noted(descriptor: int, *rest: Any, call: str = call, original: Any = original) -> Any:
            steps.append((call, names[descriptor]))
            return original(descriptor, *rest)

        monkeypatch.setattr(os, call, noted)
    outputs = [Output.open(tmp_path / name, name) for name in ("out", "err")]
    names.update(
        {output._descriptor: name for output, name in zip(outputs, ("out", "err"), strict=True)}
    )
    sink = Sink(Outputs(*outputs, None), Progress())
    error = {"type": "E", "message": "", "traceback": ""}
    sink.add(Result(Item(1, b"x", 2), FAILED, error))
    sink.write()
    sink.close()
    assert steps == [("pwrite", "err"), ("fsync", "err"), ("pwrite", "out")]


def test_failed_lines_are_run_again_if_told_to_and_no_others(command: Command) -> None:
    numbers = range(1, 41)
    command.write("in.txt", *numbers)
    assert command.run(*SLOW)[0] == 1
    out = command.folder / "out.jsonl"
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:30]))
    code, _, err = command.run("lines_to_map:repaired", *SLOW[1:], "--retry-errors", "-q")
    assert (code, err) == (0, "")
    assert command.lines("out.jsonl") == [repaired(str(i)) for i in numbers]
    assert command.lines("err.jsonl") == []
    assert sorted(os.listdir(command.folder)) == ["err.jsonl", "in.txt", "out.jsonl"]


def test_what_fails_once_more_stays_an_error(command: Command) -> None:
    command.write("in.txt", *range(1, 41))
    assert command.run(*SLOW)[0] == 1
    before = command.lines("out.jsonl"), command.lines("err.jsonl")
    assert command.run(*SLOW, "--retry-errors")[0] == 1
    assert (command.lines("out.jsonl"), command.lines("err.jsonl")) == before


@pytest.mark.parametrize("change", ["shorter", "other"])
def test_an_input_that_is_another_one_is_noticed(command: Command, change: str) -> None:
    command.write("in.txt", *range(1, 41))
    assert command.run(*SLOW)[0] == 1
    command.write("in.txt", *(range(1, 5) if change == "shorter" else range(2, 60)))
    before = (command.folder / "out.jsonl").read_bytes()
    code, _, err = command.run(*SLOW, "--resume")
    assert code == 2
    assert "is not the output of this input" in err
    assert (command.folder / "out.jsonl").read_bytes() == before


def test_an_input_that_has_grown_is_gone_on_with_and_told(command: Command) -> None:
    path = command.write("in.txt", 1, 2)
    assert command.run(*SLOW)[0] == 0
    command.write("in.txt", 1, 2, 3)
    later = time.time() + 10
    os.utime(path, (later, later))
    code, _, err = command.run(*SLOW, "--resume")
    assert code == 0
    assert "in.txt has changed since out.jsonl was written" in err
    assert command.lines("out.jsonl") == [1, 4, 9]


def test_a_file_of_another_kind_is_not_gone_on_with(command: Command) -> None:
    command.write("in.txt", 1, 2, 3)
    command.write("out.jsonl", "1", "some prose")
    code, _, err = command.run(*SLOW, "--resume")
    assert code == 2
    assert "line 2 of out.jsonl is not JSON, so out.jsonl is not an output of this command" in err


def test_ctrl_c_ends_it_soon_and_leaves_whole_lines(command: Command) -> None:
    command.write("in.txt", *range(1, 100_001))
    process = command.start(*SLOW, "--max-workers", "2")
    out = command.folder / "out.jsonl"
    try:
        wait_for_lines(out, 20, process)
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=BOUND)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert err.decode() == "prefork-executor map: interrupted; --resume goes on\n"
    wait_until_gone(pids)
    text = out.read_text()
    assert text.endswith("\n")
    results = [json.loads(line) for line in text.splitlines()]
    assert results == [i * i if i % 7 else None for i in range(1, len(results) + 1)]
    failed = [error["line"] for error in command.lines("err.jsonl")]
    assert failed == [i for i in range(1, (failed or [0])[-1] + 1) if i % 7 == 0]
    assert len(failed) >= results.count(None)


def test_ctrl_c_ends_a_function_that_would_not_return(command: Command) -> None:
    command.write("in.txt", 1)
    process = command.start("lines_to_map:stop", "in.txt", "-o", "out.jsonl")
    try:
        eventually(command.calls.exists)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=BOUND)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130


def test_who_reads_only_the_first_results_ends_it(command: Command) -> None:
    command.write("in.txt", *range(1, 100_001))
    process = command.start("lines_to_map:slow_some_fail", "in.txt", "--errors", "err.jsonl")
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.wait(BOUND) == 1
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


# --- the progress bar -----------------------------------------------------------------------


@pytest.mark.parametrize(("option", "is_shown"), [([], True), (["--quiet"], False)])
def test_the_bar_is_on_a_terminal_only_and_can_be_left_out(
    command: Command, option: list[str], is_shown: bool
) -> None:
    pytest.importorskip("rich")
    command.write("in.txt", *range(1, 301))
    ours, theirs = pty.openpty()
    process = command.start(*SLOW, *option, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        for _ in itertools.count():
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
        assert process.wait(BOUND) == 1
    finally:
        os.close(ours)
        process.kill()
        process.communicate()
    assert (b"lines" in shown) is is_shown
    assert (b"100%" in shown) is is_shown
    assert (b"failed" in shown) is is_shown


def test_a_write_that_was_interrupted_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefork_executor.cli.map._lines import Output

    output = Output.open(tmp_path / "out", "out")
    output.add(b"first\n")
    output.write()
    original = os.pwrite

    def half(descriptor: int, data: bytes, at: int) -> int:
        original(descriptor, data[:4], at)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", half)
    output.add(b"second\n")
    with pytest.raises(KeyboardInterrupt):
        output.write()
    monkeypatch.undo()
    output.add(b"third\n")
    output.write()
    output.close()
    assert (tmp_path / "out").read_text() == "first\nsecond\nthird\n"


# --- files and functions that are not what they seem ---------------------------------------------


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("option", ["-o", "--errors", "--record"])
def test_a_file_under_another_name_is_no_other_file(
    command: Command, link: Any, option: str
) -> None:
    path = command.write("in.txt", "a", "b")
    link(path, command.folder / "other.json")
    code, _, err = command.run(
        *("lines_to_map:upper", "in.txt", "--overwrite"),
        *((option, "other.json") if option == "-o" else ("-o", "out", option, "other.json")),
    )
    assert code == 2
    assert "FILE, -o, --errors, --joblog and --record must be different files" in err
    assert path.read_text() == "a\nb\n"


@pytest.mark.parametrize(
    "junk", [b"[" * 100_000 + b"\n", b"\xff\xfe\n", b"\0\n", b"9" * 100_000 + b"\n", b'"x"\n']
)
def test_a_corrupted_file_of_errors_is_said_to_be_one(command: Command, junk: bytes) -> None:
    command.write("in.txt", *range(1, 8))
    arguments = ("lines_to_map:some_fail", "in.txt", "-q", "-o", "out", "--errors", "err")
    assert command.run(*arguments)[0] == 1
    (command.folder / "err").write_bytes(junk)
    code, _, err = command.run(*arguments, "--resume")
    assert code == 2
    assert err.endswith("err is not a file of errors that this command has written\n")


def test_a_corrupted_output_is_said_to_be_none(command: Command) -> None:
    command.write("in.txt", 1, 2)
    (command.folder / "out").write_bytes(b"[" * 100_000 + b"\n")
    code, _, err = command.run("lines_to_map:some_fail", "in.txt", "-o", "out", "--resume")
    assert code == 2
    assert "line 1 of out is not JSON" in err


def test_a_function_that_raises_keyboard_interrupt_fails_for_its_line(command: Command) -> None:
    command.write("in.txt", 1, 2, 3)
    arguments = ("lines_to_map:interrupts_at_2", "in.txt", "-o", "out")
    code, _, err = command.run(*arguments)
    assert code == 1
    assert "line 2: KeyboardInterrupt\n" in err
    assert command.lines("out") == ["1", None, "3"]
    assert command.run(*arguments, "--resume")[0] == 0
