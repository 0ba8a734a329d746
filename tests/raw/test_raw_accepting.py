"""Raw mode: several listeners, TLS, and work that is no connection."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import psutil
import pytest
from certificates import certify, trusting
from raw_programs import HUP, OBEYS_SIGNALS, TERM, Program, Run, run, run_to_end
from waiting import BOUND, eventually

__all__ = ["run"]

# --- several listeners ----------

TWO_LISTENERS = (
    OBEYS_SIGNALS
    + """
def code(*listeners):
    while taken := pf_kid_accept(*listeners):
        with taken[0] as connection:
            name = connection.getsockname()
            connection.sendall(f"{os.getpid()} {listeners[0].getsockname() == name}\\n".encode())
"""
)


def ask(address: str | tuple[str, int]) -> list[bytes]:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(BOUND)
        client.connect(address)
        return client.makefile("rb").readline().split()


def test_a_child_takes_from_tcp_and_unix_listeners_and_the_connection_tells_which(
    run: Run, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    program = run(
        TWO_LISTENERS
        + f"""
unix = socket.socket(socket.AF_UNIX)
unix.bind({path!r})
unix.listen(64)
pf_init(max_servers=1)
whip(code, (listen(), unix))
"""
    )
    answers = [ask(program.address), ask(path), ask(program.address)]
    assert [told for _, told in answers] == [b"True", b"False", b"True"]
    assert len({pid for pid, _ in answers}) == 1


def test_listeners_that_have_connections_take_turns(run: Run) -> None:
    program = run(
        """
        def code(first, second):
            while taken := pf_kid_accept(first, second):
                with taken[0] as connection:
                    say("took", "first" if connection.getsockname() == first.getsockname()
                        else "second")
        first, second = listen(), listen()
        clients = [socket.create_connection(listener.getsockname())
                   for listener in (first, first, first, second, second, second)]
        pf_init(max_servers=1)
        whip(code, (first, second))
        """
    )
    took = program.hear("took", 6)
    assert took == ["first", "second"] * 3 or took == ["second", "first"] * 3


def test_idle_children_with_two_listeners_reload_and_stop(run: Run) -> None:
    program = run(
        TWO_LISTENERS
        + """
first, second = listen(), listen()
pf_init(max_servers=3, min_spare_servers=2, start_servers=2)
whip(code, (first, second))
"""
    )
    ports = [int(port) for port in program.hear("port", 2)]
    before = {ask(("127.0.0.1", port))[0] for port in ports}
    program.signal(HUP)
    program.hear("reloaded")
    eventually(lambda: {ask(("127.0.0.1", port))[0] for port in ports}.isdisjoint(before))
    program.signal(TERM)
    assert program.wait() == 0


# --- TLS ----------


def tls_server(run: Run, tmp_path: Path, options: str, before: str = "") -> Program:
    certificate = certify(tmp_path, "server")
    return run(
        OBEYS_SIGNALS
        + f"""
import ssl
{before}
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({str(certificate)!r})
def code(listener):
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(b"%d %r\\n" % (os.getpid(), connection.gettimeout()))
pf_init({options})
whip(code, (context.wrap_socket(listen(), server_side=True),))
"""
    )


def secret(program: Program) -> bytes:
    """What the server answers over TLS."""
    with trusting().wrap_socket(program.connect()) as connection:
        return program.echo(connection)


def test_a_client_that_speaks_no_tls_ends_its_connection_and_not_the_child(
    run: Run, tmp_path: Path
) -> None:
    program = tls_server(run, tmp_path, "max_servers=1")
    before = secret(program)
    for _ in range(5):
        with program.connect() as plain:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(100):  # Perhaps an alert; then the end.
                    pass
    assert secret(program) == before
    assert before.endswith(b" None\n"), "the connection has no timeout"


def test_a_tls_connection_has_the_timeout_that_the_program_sets_for_its_sockets(
    run: Run, tmp_path: Path
) -> None:
    program = tls_server(run, tmp_path, "max_servers=1", "socket.setdefaulttimeout(77)")
    assert secret(program).endswith(b" 77.0\n")


def test_silent_clients_of_a_tls_listener_do_not_hold_up_the_others(
    run: Run, tmp_path: Path
) -> None:
    options = "max_servers=4, min_spare_servers=1, start_servers=2, handshake_timeout=500"
    program = tls_server(run, tmp_path, options)
    silent = [program.connect() for _ in range(3)]
    assert secret(program)
    for connection in silent:
        connection.close()


def test_a_silent_client_of_a_tls_listener_holds_a_child_for_a_bounded_time(
    run: Run, tmp_path: Path
) -> None:
    program = tls_server(run, tmp_path, "max_servers=1, handshake_timeout=0.3")
    with program.connect() as silent:
        assert secret(program)
        assert silent.recv(1) == b"", "its connection was closed"


# --- other work ----------

DATAGRAMS = (
    OBEYS_SIGNALS
    + """
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(("127.0.0.1", 0))
end.setblocking(False)
def code():
    while (ready := pf_kid_wait({sources})) is not None:
        taken = pf_kid_take(lambda: end.recvfrom(100))
        if taken:
            end.sendto(b"%d" % os.getpid(), taken[1])
pf_init(max_servers=3, min_spare_servers=2, start_servers=2)
say("port", end.getsockname()[1])
"""
)


def datagram_answer(program: Program) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(BOUND)
        client.connect(program.address)
        client.send(b"hello")
        return client.recv(100)


@pytest.mark.parametrize("sources", ["[end]", "[end.fileno()]", "[selector]"])
def test_children_that_wait_for_datagrams_reload_and_stop(run: Run, sources: str) -> None:
    program = run(
        DATAGRAMS.format(sources=sources)
        + """
import selectors
selector = selectors.DefaultSelector()
selector.register(end, selectors.EVENT_READ)
whip(code)
"""
    )
    before = datagram_answer(program)
    program.signal(HUP)
    program.hear("reloaded")
    eventually(lambda: int(before) not in program.children())
    assert datagram_answer(program) != before
    program.signal(TERM)
    assert program.wait() == 0


def test_a_datagram_is_not_lost_when_its_child_is_retired_as_it_takes_it(run: Run) -> None:
    program = run(
        DATAGRAMS.format(sources="[end]")
        + """
def code():
    while pf_kid_wait([end]) is not None:
        if taken := pf_kid_take(lambda: receive()):
            end.sendto(b"%d" % os.getpid(), taken[1])
def receive():
    taken = end.recvfrom(100)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    return taken
whip(code)
"""
    )
    answers = [datagram_answer(program) for _ in range(5)]
    assert len(set(answers)) == 5, "each child left after its datagram"


JOBS = (
    OBEYS_SIGNALS
    + """
import sqlite3
connection = None
def next_job():
    global connection
    connection = connection or sqlite3.connect("jobs.db", isolation_level=None, timeout=600)
    row = connection.execute("UPDATE jobs SET taken = 1 WHERE id = (SELECT id FROM jobs WHERE"
                             " taken = 0 LIMIT 1) RETURNING id").fetchone()
    return row and row[0]
def code():
    while pf_kid_wait(timeout=0.01) is not None:
        while (job := pf_kid_take(next_job)) is not None:
            say("did", job)
with sqlite3.connect("jobs.db") as database:
    database.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, taken INTEGER)")
    database.executemany("INSERT INTO jobs VALUES (?, 0)", [(job,) for job in range(1, 301)])
database.close()
pf_init(max_servers=4, min_spare_servers=1, max_spare_servers=2)
"""
)


def test_no_job_of_a_table_is_lost_in_reloads_and_retirements(run: Run) -> None:
    program = run(JOBS + "whip(code)")
    for done in range(1, 300, 30):
        program.hear("did", done)
        program.signal(HUP)
    program.hear("did", 300)
    assert sorted(map(int, program.said("did"))) == list(range(1, 301))
    program.signal(TERM)
    assert program.wait() == 0


def test_taking_nothing_leaves_a_child_idle_and_an_error_of_the_function_leaves_it_busy(
    run: Run,
) -> None:
    program = run_to_end(
        run,
        """
        import queue
        done, see = os.pipe()
        def refuse(error):
            raise error
        def say_state(of):
            say(of, State(raw._pool._main.child._state).name)
        def code():
            for nothing in (lambda: None, lambda: refuse(BlockingIOError()),
                            lambda: refuse(queue.Empty())):
                assert pf_kid_take(nothing) is None
                say_state("nothing")
            assert pf_kid_take(lambda: 0) == 0
            say_state("zero")
            try:
                pf_kid_take(lambda: refuse(KeyError("job")))
            except KeyError:
                say_state("error")
            os.write(see, b"1")
        pf_init(max_servers=1)
        pf_whip_kids(code)
        os.read(done, 1)
        pf_done()
        """,
    )
    assert program.lines == ["nothing IDLE"] * 3 + ["zero BUSY", "error BUSY"]


def test_a_wait_ends_at_its_timeout_and_with_none_when_the_child_should_leave(run: Run) -> None:
    program = run(
        """
        def code():
            say("waited", pf_kid_wait(timeout=0.05))
            say("ready", pf_kid_wait([source]) == [source], pf_kid_wait([source, source]))
            os.read(source, 1)
            say("told", pf_kid_wait([source]), pf_kid_wait(timeout=5), pf_kid_take(lambda: 1))
        source, tap = os.pipe()
        os.write(tap, b"1")
        pf_init(max_servers=1)
        whip(code)
        """
    )
    (ready,) = program.hear("ready")
    assert ready.startswith("True [")
    psutil.Process(program.children()[0]).terminate()
    assert program.hear("told")[0] == "None None None"
    assert program.said("waited")[0] == "[]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("pf_kid_wait([3.5])", "a source must be a descriptor or have a method fileno, not float"),
        ("pf_kid_wait([closed])", "a source is closed: "),
        ("pf_kid_wait(timeout='1')", "timeout must be seconds or None, not str"),
        ("pf_kid_take(None)", "function must be callable, not NoneType"),
        ("pf_kid_accept('here')", "a source must be a descriptor or have a method fileno, not str"),
    ],
)
def test_a_bad_argument_is_an_error_in_the_child(run: Run, call: str, message: str) -> None:
    program = run(
        f"""
        closed = socket.socket()
        closed.close()
        def code():
            try:
                {call}
            except (TypeError, ValueError) as error:
                say("error", error)
            time.sleep(100)
        pf_init(max_servers=1)
        whip(code)
        """
    )
    assert program.hear("error")[0].startswith(message)


def test_waiting_and_taking_work_only_in_a_child(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init()
        for call in (pf_kid_wait, lambda: pf_kid_take(print)):
            try:
                call()
            except RuntimeError as error:
                say(error)
        """,
    )
    works = "works only in a child of the pool"
    assert program.lines == [f"pf_kid_wait {works}", f"pf_kid_take {works}"]
