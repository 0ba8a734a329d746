"""Raw mode: what a pool tells of itself, in the log, to the user's functions, and on the board."""

from __future__ import annotations

import contextlib
import socket

import psutil
import pytest
from raw_programs import HUP, OBEYS_SIGNALS, TERM, Run, linux_only, run, run_to_end
from waiting import eventually

from prefork_executor import status
from prefork_executor.cli import main
from prefork_executor.errors import StatusError

__all__ = ["run"]

WATCHED = (
    OBEYS_SIGNALS
    + """
import logging
def started(pid):
    say("started", pid)
def ended(pid, status, reason):
    say("ended", pid, status, reason)
def decided(decision):
    say("decided", decision.workers, decision.started, decision.retired, decision.reason)
watchers = dict(on_child_start=started, on_child_exit=ended, on_decision=decided)
"""
)


def test_the_hooks_tell_of_starts_exits_and_decisions(run: Run) -> None:
    program = run(
        WATCHED
        + """
def code(listener):
    while taken := pf_kid_accept(listener):
        with taken[0] as connection:
            if connection.recv(100) == b"exit":
                connection.sendall(b"bye")
                sys.exit(3)
            1 / 0
pf_init(max_servers=4, min_spare_servers=2, max_spare_servers=2, start_servers=2, **watchers)
whip(code, (listen(),))
"""
    )
    program.expects_complaints = True
    eventually(lambda: len(program.children()) == 2)
    assert set(map(int, program.hear("started", 2))) == set(program.children())
    assert program.hear("decided")[0] == "0 2 0 0 idle, 2 lacking"
    with program.connect() as connection:
        connection.sendall(b"exit")
        assert connection.recv(10) == b"bye"
    assert program.hear("ended")[0].split()[1:] == ["3", "exit"]
    with program.connect() as connection:
        connection.sendall(b"raise")
        assert connection.recv(10) == b""
    assert program.hear("ended", 2)[1].split()[1:] == ["1", "died"]
    eventually(lambda: len(program.children()) == 2)
    before = set(program.children())
    program.signal(HUP)
    told = [line.split() for line in program.hear("ended", 4)[2:]]
    assert {int(pid) for pid, _, _ in told} == before
    assert {reason for _, _, reason in told} == {"reload"}
    eventually(lambda: len(program.children()) == 2)
    program.signal(TERM)
    assert program.wait() == 0
    assert [line.split()[2] for line in program.said("ended")[4:]] == ["stop", "stop"]
    assert len(program.said("ended")) == len(program.said("started"))


def test_surplus_crashed_and_killed_children_have_their_reasons(run: Run) -> None:
    program = run(
        WATCHED
        + """
def code(listener):
    if not os.path.exists("healed"):
        open("healed", "w").close()
        os._exit(9)
    serve(listener)
pf_init(max_servers=3, min_spare_servers=1, max_spare_servers=1, start_servers=1, **watchers)
whip(code, (listen(),))
"""
    )
    assert program.hear("ended")[0].split()[1:] == ["9", "crash"]
    connection = program.connect()
    assert program.echo(connection) == b"hello\n"
    eventually(lambda: len(program.children()) == 2)
    connection.close()
    assert program.hear("ended", 2)[1].split()[1:] == ["-15", "surplus"] or (
        program.said("ended")[1].split()[1:] == ["0", "surplus"]
    )
    psutil.Process(program.children()[0]).kill()
    assert program.hear("ended", 3)[2].split()[1] == "-9"


def test_scaling_decisions_are_in_the_log_at_info(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import logging
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
        pf_init(max_servers=2, min_spare_servers=2)
        while states() != ["IDLE"] * 2:
            pf_whip_kids(rest)
        pf_done()
        """,
    )
    assert program.lines == ["INFO 0 children: starting 2: 0 idle, 2 lacking"]


@pytest.mark.parametrize("act", ["1 / 0", "sys.exit(3)"])
def test_a_hook_that_raises_or_exits_is_logged_and_ends_nothing(run: Run, act: str) -> None:
    program = run_to_end(
        run,
        f"""
        def bad(*told):
            say("told")
            {act}
        pf_init(max_servers=2, min_spare_servers=2, on_child_start=bad, on_child_exit=bad,
                on_decision=bad)
        while states() != ["IDLE"] * 2:
            pf_whip_kids(rest)
        pf_done()
        say("end")
        """,
    )
    program.expects_complaints = True
    assert program.lines == ["told"] * 5 + ["end"]
    for name in ("on_child_start", "on_child_exit", "on_decision"):
        assert name in program.complaints


def test_hooks_may_reload_and_end_the_pool(run: Run) -> None:
    program = run_to_end(
        run,
        """
        ended = []
        def gone(pid, status, reason):
            ended.append(reason)
            pf_done(5) if len(ended) == 2 else None
        pf_init(max_servers=4, min_spare_servers=2, max_spare_servers=2, start_servers=2,
                on_child_start=lambda pid: pf_reload() if not ended else None, on_child_exit=gone)
        os.register_at_fork(after_in_parent=lambda: None)
        try:
            whip(rest)
        finally:
            say("ended", *sorted(set(ended)))
        """,
        status=5,
    )
    assert program.lines == ["ended reload stop"]


def test_a_hook_that_blocks_at_the_end_is_ended(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=1, on_child_exit=lambda *_: time.sleep(800), term_timeout=0.2,
                hook_timeout=0.2)
        while states() != ["IDLE"]:
            pf_whip_kids(rest)
        pf_done(4)
        """,
        status=4,
    )
    program.expects_complaints = True
    assert "a hook did not return in the main process" in program.complaints


@linux_only
def test_reloads_and_stops_count_no_deaths(run: Run) -> None:
    program = run(
        WATCHED
        + """
def code(listener):
    while True:
        connection, _ = listener.accept()
        pf_kid_busy()
        with connection:
            connection.sendall(connection.recv(100))
        pf_kid_idle()
from prefork_executor._board import scoreboard as sb
def count(pid, status, reason):
    words = raw._pool._main._board.words
    say("deaths", words[sb.DEATHS], words[sb.OTHER_DEATHS])
    ended(pid, status, reason)
watchers["on_child_exit"] = count
pf_init(max_servers=4, min_spare_servers=2, max_spare_servers=2, start_servers=2, **watchers)
whip(code, (listen(),))
"""
    )
    with program.connect() as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    for times in (2, 4):
        program.signal(HUP)
        program.hear("ended", times)
    with program.connect() as held:
        eventually(lambda: has_pool(program.pid))
        eventually(lambda: status.read(program.pid).states["busy"] == 1)
        program.signal(TERM)
        assert held.recv(1) == b""
        assert program.wait() == 0
    assert program.said("deaths")[-1] == "0 0"


# --- the backlog, and the size of the pool ----------

HELD_BACK = """
def code(*listeners):
    while taken := pf_kid_accept(*listeners):
        with taken[0] as connection:
            connection.sendall(connection.recv(100))
path = "here"
unix = socket.socket(socket.AF_UNIX)
unix.bind(path)
unix.listen(64)
tcp = listen()
pf_init(max_servers=1, listeners=[tcp, unix])
whip(code, (tcp, unix))
"""


def has_pool(pid: int) -> bool:
    """Whether this process has made its pool: its listeners are there earlier."""
    try:
        status.read(pid)
    except StatusError:
        return False
    return True


@linux_only
def test_connections_that_wait_in_the_kernel_are_the_backlog_of_a_raw_pool(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    program = run(HELD_BACK)
    program.expects_complaints = True  # The child may find that clients have gone.
    with contextlib.ExitStack() as opened:
        held = opened.enter_context(program.connect())
        eventually(lambda: has_pool(program.pid))
        eventually(lambda: status.read(program.pid).states["busy"] == 1)
        for _ in range(3):
            opened.enter_context(program.connect())
        for _ in range(2):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(program.directory / "here"))
        eventually(lambda: status.read(program.pid).backlog == 5)
        main(["status", str(program.pid)])
        assert "listen queue  5; at most 5" in capsys.readouterr().out
        held.sendall(b"x")
    eventually(lambda: status.read(program.pid).backlog == 0)
    assert status.read(program.pid).max_backlog == 5
    assert status.read(program.pid).listeners == 2


@linux_only
def test_a_pool_starts_more_children_for_connections_that_wait(run: Run) -> None:
    program = run(
        """
        clients = []
        def code(listener):
            while taken := pf_kid_accept(listener):
                with taken[0] as connection:
                    connection.recv(1)
        listener = listen()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(8)]
        pf_init(max_servers=20, min_spare_servers=1, max_spare_servers=20, start_servers=1,
                listeners=[listener], on_decision=lambda decision: say("why", decision.reason))
        whip(code, (listener,))
        """
    )
    eventually(lambda: any("tasks waiting" in why for why in program.said("why")))
    eventually(lambda: status.read(program.pid).states["busy"] == 8)


def test_a_surplus_child_stays_for_the_idle_timeout(run: Run) -> None:
    program = run(
        WATCHED
        + """
pf_init(max_servers=6, min_spare_servers=1, max_spare_servers=1, start_servers=1,
        idle_timeout=600, **watchers)
whip(serve, (listen(),))
"""
    )
    for _ in range(5):
        with contextlib.ExitStack() as opened:
            for _ in range(3):
                assert program.echo(opened.enter_context(program.connect())) == b"hello\n"
    assert program.said("ended") == []


def test_surplus_children_are_gone_after_the_idle_timeout_though_nothing_else_happens(
    run: Run,
) -> None:
    program = run(
        WATCHED
        + """
pf_init(max_servers=6, min_spare_servers=1, max_spare_servers=2, start_servers=6,
        idle_timeout=0.3, **watchers)
whip(serve, (listen(),))
"""
    )
    ended = program.hear("ended", 4)
    assert {line.split()[2] for line in ended} == {"surplus"}
    eventually(lambda: len(program.children()) == 2)


def test_pf_whip_kids_returns_1_after_its_timeout(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=1)
        while states() != ["IDLE"]:
            pf_whip_kids(rest)
        begun = time.monotonic()
        say("returned", pf_whip_kids(rest, timeout=0.2), time.monotonic() - begun >= 0.2)
        try:
            pf_whip_kids(rest, timeout="1")
        except TypeError as error:
            say(error)
        pf_done()
        say("at the end", pf_whip_kids(rest, timeout=500))
        """,
    )
    assert program.lines == [
        "returned 1 True",
        "timeout must be seconds or None, not str",
        "at the end 0",
    ]


@pytest.mark.parametrize(
    ("listeners", "message"),
    [
        ("listen()", "listeners must be sockets in a list or another iterable, not socket"),
        ("[5]", "listeners must be sockets, not int"),
        ("5", "listeners must be sockets in a list or another iterable, not int"),
    ],
)
def test_listeners_that_are_none_are_an_error_at_the_call(
    run: Run, listeners: str, message: str
) -> None:
    program = run_to_end(
        run,
        f"""
        try:
            pf_init(listeners={listeners})
        except TypeError as error:
            say("error", error)
        """,
    )
    assert program.said("error") == [message]
