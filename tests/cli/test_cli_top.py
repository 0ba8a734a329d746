"""``prefork-executor top`` on a terminal: a pseudo-terminal that this process holds, and a
terminal emulator that says what a person would see."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from raw_programs import Run, run
from status_programs import EXECUTOR, command, held_pool
from waiting import BOUND, eventually

from prefork_executor import status
from prefork_executor.cli import _view
from prefork_executor.cli._view import View, sparkline
from prefork_executor.stats import ScalingDecision, Waits
from prefork_executor.status import PoolStatus, WorkerStatus

__all__ = ["run"]

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
ALTERNATE_ON, ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """A terminal with ``top`` on it."""

    def __init__(self, *arguments: object, columns: int = 80, lines: int = 24) -> None:
        self._near, self._far = pty.openpty()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._far)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefork_executor", "top", *map(str, arguments)],
            stdin=self._far,
            stdout=self._far,
            stderr=self._far,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm-256color"} | {"COLUMNS": "", "LINES": ""},
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def press(self, keys: str) -> None:
        os.write(self._near, keys.encode())

    def text(self) -> str:
        """What is to be seen now."""
        while select.select([self._near], [], [], 0.01)[0]:
            try:
                received = os.read(self._near, 65536)
            except OSError:
                break
            self.written += received
            self._stream.feed(received)
        return "\n".join(line.rstrip() for line in self._screen.display)

    def shows(self, pattern: str) -> str:
        """What is to be seen once there is this."""
        try:
            eventually(lambda: re.search(pattern, self.text(), re.M))
        except pytest.fail.Exception:
            pytest.fail(f"{pattern!r} is not to be seen:\n{self.text()}")
        return self.text()

    def ends(self) -> int:
        """Its exit code, when the terminal is as it was before."""

        def has_ended() -> bool:
            self.text()
            return self.process.poll() is not None

        eventually(has_ended)
        assert termios.tcgetattr(self._far) == self.modes
        for on, off in ((ALTERNATE_ON, ALTERNATE_OFF), (HIDE_CURSOR, SHOW_CURSOR)):
            assert self.written.count(on) == self.written.count(off)
            assert self.written.rfind(off) >= self.written.rfind(on)
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._near)
        os.close(self._far)


@pytest.fixture
def terminals() -> Iterator[Any]:
    """Opens terminals with ``top`` on them."""
    with contextlib.ExitStack() as opened:

        def terminal(*arguments: object, **size: int) -> Terminal:
            new = Terminal(*arguments, **size)
            opened.callback(new.close)
            return new

        yield terminal


def test_top_shows_the_pool_and_is_quit_by_a_key(run: Run, tmp_path: Path, terminals: Any) -> None:
    program = held_pool(run, tmp_path / "gate")
    terminal = terminals(program.pid, "-d", 0.1)
    text = terminal.shows("q quit")
    assert f"executor of process {program.pid}" in text
    assert "workers 3 of 3: 3 busy" in text
    assert re.search(r"backlog 5, at most [5-8]", text)
    assert re.search(r"forks 3 of [\d.]+ m?s each, retired 0, died 0", text)
    assert "\nWWW\n_ waiting, W working, S starting, G leaving, . open\n" in text
    for worker in status.read(program.pid).workers:
        assert re.search(rf"^ *{worker.pid} busy .* __main__\.hold$", text, re.M)
    terminal.shows(r"^workers +█{5,} 3$")
    assert re.search(r"^backlog +█{5,} \^5$", terminal.text(), re.M)
    terminal.press("q")
    assert terminal.ends() == 0


def test_it_is_live(run: Run, tmp_path: Path, terminals: Any) -> None:
    gate, end = tmp_path / "gate", tmp_path / "end"
    program = run(
        f"""
        with PreforkExecutor(3, "fork", idle_timeout=0.2) as executor:
            futures = [executor.submit(hold, {str(gate)!r}) for _ in range(3)]
            wait_for({str(end)!r})
        """,
        prelude=EXECUTOR,
    )
    program.hear("ready")
    terminal = terminals(program.pid, "-d", 0.1)
    terminal.shows("workers 3 of 3: 3 busy")
    gate.touch()
    text = terminal.shows(r"workers 1 of 3: 1 idle(.|\n)*^[_.]*_[_.]*$")
    assert re.search(r"^\d\d:\d\d:\d\d \d workers, -\d: \d idle for over 0\.2 s$", text, re.M)
    assert re.search(r"^workers +█+.*▃+ 3$", terminal.shows("▃▃"), re.M)
    end.touch()
    terminal.shows(f"the pool of process {program.pid} has ended")
    assert terminal.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_it_was_whatever_ends_it(
    run: Run, tmp_path: Path, terminals: Any, number: int
) -> None:
    program = held_pool(run, tmp_path / "gate")
    terminal = terminals(program.pid)
    terminal.shows("q quit")
    if number == signal.SIGINT:
        terminal.press("\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.ends() == (0 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in terminal.written


def test_the_terminal_is_as_it_was_if_the_pool_is_killed(
    run: Run, tmp_path: Path, terminals: Any
) -> None:
    program = held_pool(run, tmp_path / "gate")
    terminal = terminals(program.pid, "-d", 0.1)
    terminal.shows("q quit")
    program.signal(signal.SIGKILL)
    terminal.shows(f"the pool of process {program.pid} has ended")
    assert terminal.ends() == 0


def test_the_terminal_is_as_it_was_after_an_error_of_our_own(
    run: Run, tmp_path: Path, terminals: Any
) -> None:
    program = held_pool(run, tmp_path / "gate")
    with status.watch(program.pid):
        terminal = terminals(program.pid, "-d", 0.1)
        terminal.shows("q quit")
        # Too narrow and too low for anything.
        for columns, lines in ((1, 1), (3, 2), (20, 5), (200, 60), (80, 24)):
            terminal.resize(columns, lines)
            os.kill(terminal.process.pid, signal.SIGWINCH)
            time.sleep(0.05)
        terminal.shows("q quit")
        terminal.press("\x1a")  # Ctrl-Z does nothing.
        terminal.press("xyz\x1b[A")
        terminal.press("q")
        assert terminal.ends() == 0
        assert b"Traceback" not in terminal.written


def test_it_follows_the_size_of_the_terminal(run: Run, tmp_path: Path, terminals: Any) -> None:
    program = held_pool(run, tmp_path / "gate")
    terminal = terminals(program.pid, "-d", 3600)
    terminal.shows("q quit")
    terminal.resize(120, 30)
    eventually(lambda: terminal.text().split("\n")[29].startswith("q quit"), "without a key")
    terminal.resize(60, 12)
    eventually(lambda: terminal.text().split("\n")[11].startswith("q quit"))
    terminal.press("q")
    assert terminal.ends() == 0


def test_keys_sort_the_workers_and_turn_the_order_round(
    run: Run, tmp_path: Path, terminals: Any
) -> None:
    program = held_pool(run, tmp_path / "gate")
    terminal = terminals(program.pid, "-d", 3600)
    terminal.shows(r"s sort \(by pid\)")
    pids = [worker.pid for worker in status.read(program.pid).workers]

    def order() -> list[int]:
        return [int(pid) for pid in re.findall(r"^ *(\d+) busy", terminal.text(), re.M)]

    assert order() == sorted(pids)
    terminal.press("r")
    terminal.shows("by pid, reversed")
    assert order() == sorted(pids, reverse=True)
    terminal.press("s")
    terminal.shows("by state, reversed")
    terminal.press("q")
    assert terminal.ends() == 0


def test_without_a_terminal_it_is_printed_once(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    for arguments in ((), ("--once",)):
        done = command("top", program.pid, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "workers 3 of 3: 3 busy" in done.stdout
        assert done.stdout.count("__main__.hold") == 3
        assert "q quit" not in done.stdout


def test_without_rich_it_says_how_to_get_it(run: Run, tmp_path: Path) -> None:
    program = held_pool(run, tmp_path / "gate")
    without = (
        "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None;"
        f"from prefork_executor.cli import main; sys.exit(main(['top', '{program.pid}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", without],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'prefork-executor[top]'" in done.stderr


@pytest.mark.parametrize("delay", ["0", "-1", "nan", "1e9", "soon"])
def test_a_delay_that_makes_no_sense_is_refused(delay: str) -> None:
    done = command("top", "1", "-d", delay)
    assert done.returncode == 2
    assert "-d/--delay" in done.stderr


# --- the picture -------------------------------------------------------------------------------


def worker(slot: int, state: str = "busy", **facts: Any) -> WorkerStatus:
    given = {"task": "module.function", "in_state": 1.0, "age": 2.0, "tasks_done": 3, **facts}
    return WorkerStatus(1000 + slot, state, memory=2**24, slot=slot, cpu=1.0, **given)


def pool(workers: int = 3, **facts: Any) -> PoolStatus:
    given: dict[str, Any] = {
        "max_workers": 8,
        "workers": tuple(worker(slot) for slot in range(workers)),
        "peak_workers": workers,
        "backlog": 10,
        "max_backlog": 10,
        "times_at_max": 2,
        "seconds_at_max": 1.0,
        "waits": Waits(0.001, 0.01, 0.1, 50),
        "forks": workers,
        "retirements": 0,
        "deaths": 0,
        "other_deaths": 0,
        "decisions": (ScalingDecision(0.0, 1, 2, 0, "x" * 200),) * 5,
        "pid": 99,
        "supervisor": 100,
        "kind": "executor",
        "command": "python " + "y" * 200,
        "started": 1000.0,
        "time": 1010.0,
        "min_spare": 1,
        "max_spare": 8,
        "idle_timeout": 10.0,
        "outstanding": 13,
        "tasks_done": 1000,
        "generation": 0,
    }
    return PoolStatus(**{**given, **facts})


def test_what_a_pool_takes_of_its_memory_has_a_line_if_there_is_a_bound() -> None:
    view = View()
    view.add(pool(1, memory_bound=2 * 2**30, memory_taken=2**29, held=7, memory_ended=1))
    assert "memory 512M of 2.0G; 7 tasks held back, 1 ended" in drawn(view, 100, None)
    view.add(pool(1))
    assert not any(line.startswith("memory") for line in drawn(view, 100, None))


def drawn(view: View, width: int, height: int | None) -> list[str]:
    console = _view.Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(view.picture(width, height))
    return captured.get().splitlines()


def test_a_terminal_that_claims_to_have_no_columns_gets_a_picture() -> None:
    view = View()
    view.add(pool(3))
    assert view.picture(0, None)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [3, 10, 24, 60])
@pytest.mark.parametrize("workers", [0, 1, 8, 500])
def test_the_picture_fits_the_terminal(width: int, height: int, workers: int) -> None:
    view = View()
    for _ in range(300):
        view.add(pool(workers, max_workers=max(8, workers)))
    lines = drawn(view, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")
    if height >= 24:
        assert len(lines) == height


@pytest.mark.parametrize(("height", "decisions"), [(12, 0), (15, 1), (16, 2), (24, 3)])
def test_where_there_is_little_room_workers_come_before_decisions(
    height: int, decisions: int
) -> None:
    view = View()
    view.add(pool(3))
    lines = drawn(view, 80, height)
    assert sum("xxx" in line for line in lines) == decisions
    assert sum("module.function" in line for line in lines) == (3 if decisions else 0)
    assert any("and 3 more" in line for line in lines) == (decisions == 0)


@pytest.mark.parametrize(("before", "shown"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers")])
def test_a_decision_tells_how_many_workers_there_were_before_it(before: int, shown: str) -> None:
    view = View()
    view.add(pool(decisions=(ScalingDecision(0.0, before, 2, 0, "4 tasks waiting"),)))
    (line,) = (line for line in drawn(view, 80, 24) if "tasks waiting" in line)
    assert f" {shown}, +2: 4 tasks waiting" in line


def test_workers_for_whom_there_is_no_line_are_counted() -> None:
    view = View()
    view.add(pool(50, max_workers=50))
    lines = drawn(view, 80, 24)
    shown = sum("module.function" in line for line in lines)
    assert shown > 3
    assert f"and {50 - shown} more" in "\n".join(lines)


def test_every_slot_has_its_letter() -> None:
    rows = (worker(0, "starting"), worker(2, "idle"), worker(3, "taking"), worker(5, "leaving"))
    view = View()
    view.add(dataclasses.replace(pool(), workers=rows))
    assert "S.__.G.." in drawn(view, 80, 24)


def test_a_rate_is_that_between_two_looks() -> None:
    view = View()
    view.add(pool(1))
    assert "tasks done 1000, -/s" in "\n".join(drawn(view, 80, 24))
    view.add(pool(1, time=1012.0, tasks_done=1500))
    assert "tasks done 1500, 250/s" in "\n".join(drawn(view, 80, 24))


@pytest.mark.parametrize(
    ("values", "top", "bars"),
    [([0, 1, 4, 8], 8, " ▁▄█"), ([1, 1000], 1000, "▁█"), ([9, 5], 4, "██"), ([], 1, "")],
)
def test_a_sparkline_has_a_bar_for_each_value(values: list[int], top: int, bars: str) -> None:
    assert sparkline(values, top) == bars
