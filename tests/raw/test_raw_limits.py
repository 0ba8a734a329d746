"""Raw mode: the limits of single children, and counts of children as parts."""

from __future__ import annotations

import re
import time
from typing import Any

import psutil
import pytest
from raw_programs import OBEYS_SIGNALS, TERM, Program, Run, linux_only, run
from waiting import eventually

from prefork_executor._raw.options import Spares
from prefork_executor.raw import PreforkPool

__all__ = ["run"]

SERVER = (
    OBEYS_SIGNALS
    + """
def answer(listener):
    while taken := pf_kid_accept(listener):
        with taken[0] as connection:
            connection.sendall(b"%d\\n" % os.getpid())
def ended(pid, status, reason):
    say("ended", pid, status, reason)
"""
)


def ask(program: Program) -> int:
    with program.connect() as connection:
        return int(connection.makefile("rb").readline())


# --- requests, lifetime, memory ----------


@pytest.mark.parametrize("most", [1, 4])
def test_children_are_replaced_after_their_number_of_requests_and_none_is_lost(
    run: Run, most: int
) -> None:
    program = run(
        SERVER
        + f"""
pf_init(max_servers={most}, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        max_requests_per_child=5, limits_jitter=0, on_child_exit=ended)
whip(answer, (listen(),))
"""
    )
    answered = set()
    eventually(lambda: answered.add(ask(program)) or len(answered) >= 4)
    eventually(lambda: [said for said in program.said("ended") if said.endswith("_per_child")])


def test_a_worn_child_goes_when_its_successor_serves(run: Run) -> None:
    program = run(
        SERVER
        + """
from prefork_executor._pool import rollover
rollover.SETTLED_AFTER = 3600.0  # A child that is slow to fail does not count as sound.
def code(listener):
    if os.path.exists("no more"):
        sys.exit(1)
    say("serves", os.getpid())
    answer(listener)
pf_init(max_servers=2, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        max_requests_per_child=1)
whip(code, (listen(),))
"""
    )
    program.expects_complaints = True
    first = int(program.hear("serves")[0])
    (program.directory / "no more").touch()
    assert [ask(program) for _ in range(20)] == [first] * 20
    (program.directory / "no more").unlink()
    eventually(lambda: ask(program) != first)


def test_the_limits_of_children_differ_by_a_random_part(run: Run) -> None:
    program = run(
        """
        pf_init(max_servers=8, min_spare_servers=8, start_servers=8,
                max_requests_per_child=1000, limits_jitter=0.5)
        while states() != ["IDLE"] * 8:
            pf_whip_kids(rest)
        raw._pool._main._doorbell.ring()  # So that it does not wait.
        pf_whip_kids(rest)
        say("own", *[own.max_requests for own in raw._pool._main._wear._own.values()])
        pf_done()
        """
    )
    limits = [int(limit) for limit in program.hear("own")[0].split()]
    assert len(limits) == 8
    assert len(set(limits)) > 1
    assert all(500 <= limit <= 1000 for limit in limits)


def test_idle_children_are_replaced_at_the_end_of_their_lifetime(run: Run) -> None:
    program = run(
        SERVER
        + """
pf_init(max_servers=2, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        max_lifetime=0.3, on_child_exit=ended)
whip(answer, (listen(),))
"""
    )
    ended = [line.split() for line in program.hear("ended", 2)]
    assert {reason for _, _, reason in ended[:2]} == {"max_lifetime"}
    assert ask(program)


@linux_only
def test_a_child_above_its_memory_is_replaced_after_what_it_holds(run: Run) -> None:
    program = run(
        SERVER
        + """
def code(listener):
    kept = []
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                if line == b"more\\n":
                    kept.append(b"x" * 100_000_000)
                connection.sendall(b"%d\\n" % os.getpid())
pf_init(max_servers=2, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        max_memory_per_child=80_000_000, on_child_exit=ended)
whip(code, (listen(),))
"""
    )
    with program.connect() as connection:
        big = int(program.echo(connection, b"more\n"))
        eventually(lambda: len(program.children()) == 2)
        assert int(program.echo(connection)) == big
    eventually(lambda: f"{big} 0 max_memory_per_child" in program.said("ended"))


# --- busy_timeout ----------

STUCK = (
    SERVER
    + """
import threading
def endless_query():
    while True:
        time.sleep(0.01)
def code(listener):
    while taken := pf_kid_accept(listener):
        with taken[0] as connection:
            if connection.recv(100) == b"hang":
                endless_query()
            connection.sendall(b"%d\\n" % os.getpid())
pf_init(max_servers=3, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        busy_timeout=0.5, on_child_exit=ended)
whip(code, (listen(),))
"""
)


def test_a_child_that_is_busy_for_too_long_is_killed_and_its_stack_is_logged(run: Run) -> None:
    program = run(STUCK)
    program.expects_complaints = True
    with program.connect() as hangs:
        hangs.sendall(b"hang")
        with program.connect() as connection:
            connection.sendall(b"hello")
            assert connection.makefile("rb").readline()
        eventually(lambda: [line for line in program.said("ended") if line.endswith("timeout")])
    (ended,) = [line for line in program.said("ended") if line.endswith("timeout")]
    pid, status, _ = ended.split()
    assert status == "-9"
    found = re.search(
        rf"child {pid} has been busy for \d+\.\d s, longer than busy_timeout, and is killed. "
        r"Its stack:\n.*in endless_query\n.*in code\n",
        program.complaints,
        re.DOTALL,
    )
    assert found, program.complaints


def test_a_stopped_child_is_killed_without_its_stack(run: Run) -> None:
    program = run(STUCK.replace("busy_timeout=0.5", "busy_timeout=3"))
    program.expects_complaints = True
    with program.connect():
        eventually(lambda: len(program.children()) == 2, "one is busy, and another was started")
        for child in program.children():
            psutil.Process(child).suspend()
        program.hear("ended")
    assert "It did not write its stack." in program.complaints


def test_a_child_that_says_busy_again_is_not_killed(run: Run) -> None:
    program = run(
        SERVER
        + """
def code(listener):
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                pf_kid_busy()
                connection.sendall(line)
pf_init(max_servers=3, min_spare_servers=1, busy_timeout=2, on_child_exit=ended)
whip(code, (listen(),))
"""
    )
    begun = time.monotonic()
    with program.connect() as connection:
        while time.monotonic() < begun + 4:
            assert program.echo(connection) == b"hello\n"
            time.sleep(0.05)
    assert program.said("ended") == []


def test_a_stop_waits_for_no_child_that_is_busy_and_is_told(run: Run) -> None:
    program = run(STUCK.replace("busy_timeout=0.5", "busy_timeout=100, term_timeout=0.3"))
    program.expects_complaints = True
    with program.connect() as hangs:
        hangs.sendall(b"hang")
        eventually(lambda: len(program.children()) == 2)
        program.signal(TERM)
        assert program.wait() == 0


# --- options ----------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("10%", "25%", "15%", 20), (2, 5, 3)),
        (("1%", "100%", None, 20), (1, 20, 5)),
        (("50%", "50%", "0%", 3), (2, 2, 0)),
    ],
)
def test_spares_may_be_parts_of_the_maximum(given: Any, expected: tuple[int, ...]) -> None:
    limits = Spares.given(*given).limits()
    assert (limits.min_spare, limits.max_spare, limits.start_workers) == expected


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (
            ValueError,
            {"min_spare_servers": "10"},
            'min_spare_servers must be an int, or a part .*"',
        ),
        (ValueError, {"max_spare_servers": "101%"}, "max_spare_servers must be an int, or a part"),
        (ValueError, {"start_servers": "x%"}, "start_servers must be an int, or a part"),
        (ValueError, {"max_requests_per_child": 0}, "max_requests_per_child must be at least 1"),
        (TypeError, {"max_requests_per_child": 1.5}, "max_requests_per_child must be an int"),
        (ValueError, {"max_memory_per_child": -1}, "max_memory_per_child must be at least 1"),
        (ValueError, {"max_lifetime": 0}, "max_lifetime must be above 0 seconds"),
        (TypeError, {"busy_timeout": "1"}, "busy_timeout must be a number of seconds"),
        (ValueError, {"limits_jitter": 1}, "limits_jitter must be at least 0 and below 1, not 1"),
        (TypeError, {"limits_jitter": "1"}, "limits_jitter must be a number, not str"),
        (ValueError, {"idle_timeout": -1}, "idle_timeout must be above 0 seconds"),
        (TypeError, {"idle_timeout": None}, "idle_timeout must be a number of seconds"),
        (TypeError, {"on_child_start": 1}, "on_child_start must be callable or None, not int"),
        (TypeError, {"on_child_exit": 1}, "on_child_exit must be callable or None, not int"),
        (TypeError, {"on_decision": 1}, "on_decision must be callable or None, not int"),
        (ValueError, {"hook_timeout": 0}, "hook_timeout must be above 0 seconds and finite"),
        (ValueError, {"handshake_timeout": -1}, "handshake_timeout must be above 0 seconds"),
    ],
)
def test_a_nonsensical_limit_is_an_error_by_name(
    error: type[Exception], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        PreforkPool(**options)
