"""``prefork-executor map`` and its standard streams: some do not block, some are closed, some are
files."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from map_command import Command
from waiting import BOUND, eventually


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_standard_input_that_does_not_block_is_read_to_its_end(command: Command) -> None:
    near, far = os.pipe()
    os.set_blocking(near, False)
    with command.start("lines_to_map:upper", "-q", stdin=near) as process:
        os.close(near)
        assert process.stdout is not None
        for line in (b"a", b"b", b"c"):
            os.write(far, line + b"\n")
            assert json.loads(process.stdout.readline()) == line.decode().upper()
        os.close(far)
        assert process.communicate(timeout=BOUND) == (b"", b"")
    assert process.returncode == 0


def test_standard_output_that_does_not_block_gets_every_result(command: Command) -> None:
    near, far = os.pipe()
    os.set_blocking(far, False)
    command.write("in.txt", *["x" * 1000] * 1000)  # More than a pipe has room for.
    with command.start("lines_to_map:upper", "-q", "in.txt", stdout=far) as process:
        os.close(far)
        with open(near, "rb") as results:
            eventually(lambda: bytes_in(near) > 50_000 or process.poll() is not None)
            assert len(results.readlines()) == 1000
        assert process.wait(BOUND) == 0


def bytes_in(pipe: int) -> int:
    """How many bytes wait in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


@pytest.mark.parametrize(
    ("out", "err"), [("/dev/stdout", "/dev/stderr"), ("/dev/fd/1", "/dev/fd/2")]
)
def test_errors_and_messages_for_one_stream_do_not_overwrite_each_other(
    command: Command, out: str, err: str
) -> None:
    command.write("in.txt", 1, 7, 14)
    with (command.folder / "all.txt").open("wb") as stream:
        stream.write(b"first\n")
        stream.flush()
        arguments = ("lines_to_map:some_fail", "in.txt", "-o", out, "--errors", err)
        with command.start(*arguments, stdout=stream, stderr=stream) as process:
            assert process.wait(BOUND) == 1
    lines = (command.folder / "all.txt").read_text().splitlines()
    assert lines[0] == "first"
    assert [json.loads(line)["line"] for line in lines if line[:1] == "{"] == [2, 3]
    assert [line for line in lines if line in ("1", "null")] == ["1", "null", "null"]
    assert lines[-1].startswith("prefork-executor map: 3 lines in ")


def run_with_closed(command: Command, closed: str, *arguments: str) -> tuple[int, bytes, bytes]:
    """Its exit code and output, if a shell closes these streams for it."""
    map_it = f'exec {sys.executable} -m prefork_executor map "$@" {closed}'
    done = subprocess.run(
        ["sh", "-c", map_it, "sh", *arguments],
        cwd=command.folder,
        env=command.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUND,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_with_closed_standard_streams_it_maps_a_file_to_a_file(
    command: Command, start: str
) -> None:
    command.write("in.txt", *range(20))
    arguments = ("lines_to_map:noisy", "in.txt", "-o", "out.jsonl", "--start-method", start)
    assert run_with_closed(command, "<&- >&- 2>&-", *arguments) == (0, b"", b"")
    assert command.lines("out.jsonl") == [str(number) for number in range(20)]


@pytest.mark.parametrize(
    ("closed", "arguments", "message"),
    [
        ("<&-", (), b"standard input is closed: give FILE"),
        (">&-", ("in.txt",), b"standard output is closed: give -o OUT"),
    ],
)
def test_a_closed_standard_stream_that_it_needs_is_named(
    command: Command, closed: str, arguments: tuple[str, ...], message: bytes
) -> None:
    command.write("in.txt", 1)
    code, out, err = run_with_closed(command, closed, "lines_to_map:upper", *arguments)
    assert (code, out) == (2, b"")
    assert message in err


def test_without_standard_error_its_messages_are_not_among_the_results(command: Command) -> None:
    command.write("in.txt", 1, 7)
    done = run_with_closed(command, "2>&-", "lines_to_map:some_fail", "in.txt")
    assert done == (1, b"1\nnull\n", b"")
