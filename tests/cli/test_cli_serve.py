"""``prefork-executor serve``: new code and a new interpreter under the same listeners."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import NAMESPACE, needs_namespace
from raw_programs import HUP, TERM, Program, Run, linux_only, run
from waiting import BOUND, eventually

from prefork_executor.cli import main
from prefork_executor.raw import pf_listeners

__all__ = ["run"]

SERVER = """
import os, signal, socket, sys, time
from prefork_executor.raw import *
signal.alarm(900)
GENERATION = {generation}
{extra}
def serve(*listeners):
    while taken := pf_kid_accept(*listeners):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(b"%d %d\\n" % (GENERATION, os.getppid()))
listeners = pf_listeners()
assert listeners == pf_listeners()
print("port", listeners[0].getsockname()[1], flush=True)
pf_init(max_servers=6, min_spare_servers=2, max_spare_servers=2, start_servers=2)
def stop(*_):
    print("stopping", flush=True)
    pf_done({status})
signal.signal(signal.SIGTERM, stop)
while pf_whip_kids(serve, listeners):
    pass
"""


def write_server(directory: Path, generation: int, extra: str = "", status: int = 0) -> None:
    source = SERVER.format(generation=generation, extra=textwrap.dedent(extra), status=status)
    (directory / "server.new").write_text(source)
    (directory / "server.new").rename(directory / "server.py")


def start(run: Run, *options: str, error_to: str = "2") -> Program:
    """The command, with a server that lies in its directory. ``error_to``: an expression for the
    descriptor that becomes its standard error."""
    arguments = ["-m", "prefork_executor", "serve", "-b", "127.0.0.1:0", *options]
    program = run(
        f"""
        os.dup2({error_to}, 2)
        os.execv(sys.executable, [sys.executable, *{arguments}, "--", sys.executable, "server.py"])
        """
    )
    program.expects_complaints = True
    return program


@contextlib.contextmanager
def serving(run: Run, directory: Path, status: int = 0) -> Iterator[tuple[Program, socket.socket]]:
    """The command, and a connection that its server serves."""
    write_server(directory, 0, status=status)
    program = start(run)
    with program.connect() as connection:
        assert program.echo(connection).startswith(b"0 ")
        yield program, connection


def ask(program: Program) -> list[int]:
    """The generation that answers, and its main process."""
    with program.connect() as connection:
        return [int(word) for word in program.echo(connection).split()]


def test_sighup_loads_new_code_in_a_new_interpreter_and_no_request_is_lost(
    run: Run, tmp_path: Path
) -> None:
    write_server(tmp_path, 0)
    program = start(run)
    answers, is_over = [ask(program)], threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            answers.append(ask(program))

    clients = [threading.Thread(target=ask_on) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for generation in range(1, 4):
            write_server(tmp_path, generation)
            program.signal(HUP)
            eventually(lambda generation=generation: answers[-1][:1] == [generation])
    finally:
        is_over.set()
        for client in clients:
            client.join(BOUND)
    assert [] not in answers
    assert [number for number, _ in answers[:1]] == [0]
    assert len({pid for _, pid in answers}) == 4
    program.signal(TERM)
    assert program.wait() == 0


def test_a_connection_of_the_old_server_is_served_to_its_end(run: Run, tmp_path: Path) -> None:
    with serving(run, tmp_path) as (program, connection):
        write_server(tmp_path, 1)
        program.signal(HUP)
        eventually(lambda: ask(program)[0] == 1)
        assert program.echo(connection).startswith(b"0 ")


def test_a_server_that_deletes_systemds_variables_is_replaced_as_well(
    run: Run, tmp_path: Path
) -> None:
    """As servers do that take their listeners by sd_listen_fds(1)."""
    extra = "pf_listeners(), [os.environ.pop(name) for name in ('LISTEN_PID', 'LISTEN_FDS')]"
    write_server(tmp_path, 0, extra)
    program = start(run)
    assert ask(program)[0] == 0
    write_server(tmp_path, 1, extra)
    program.signal(HUP)
    program.hear("stopping")
    eventually(lambda: ask(program)[0] == 1)


@pytest.mark.parametrize(
    ("fault", "complaint", "timeout"),
    [
        ("import no_such_module", "ModuleNotFoundError", "900"),
        ("time.sleep(900)", "did not serve within 0.5 s", "0.5"),
        ("serve = None\ndef pf_kid_accept(*_): sys.exit(1)", "died before they did anything", "5"),
    ],
    ids=["cannot be imported", "hangs", "its children die"],
)
def test_the_old_server_goes_on_if_the_new_one_does_not_serve(
    run: Run, tmp_path: Path, fault: str, complaint: str, timeout: str
) -> None:
    write_server(tmp_path, 0)
    program = start(run, "--ready-timeout", timeout)
    before = ask(program)
    write_server(tmp_path, 1, fault)
    program.signal(HUP)
    eventually(lambda: complaint in program.complaints)
    eventually(lambda: len(program.children()) == 1, "the new server is gone")
    assert ask(program) == before


def test_a_reload_after_one_that_failed_loads_the_new_code(run: Run, tmp_path: Path) -> None:
    write_server(tmp_path, 0)
    program = start(run)
    assert ask(program)[0] == 0
    write_server(tmp_path, 1, "import no_such_module")
    program.signal(HUP)
    eventually(lambda: "ended before it served" in program.complaints)
    write_server(tmp_path, 2)
    program.signal(HUP)
    eventually(lambda: ask(program)[0] == 2)


def test_sigterm_ends_the_server_and_its_exit_status_is_the_commands(
    run: Run, tmp_path: Path
) -> None:
    with serving(run, tmp_path, status=5) as (program, connection):
        program.signal(TERM)
        program.hear("stopping")
        eventually(lambda: len(program.processes()) == 3, "one child is busy")
        assert program.echo(connection).startswith(b"0 ")
    assert program.wait() == 5


@linux_only
def test_a_second_sigterm_kills_the_server(run: Run, tmp_path: Path) -> None:
    with serving(run, tmp_path) as (program, _):
        program.signal(TERM)
        program.hear("stopping")  # Two signals that wait for the same process are one.
        program.signal(TERM)
        assert program.wait() == 128 + signal.SIGKILL


def test_it_ends_when_the_server_ends_by_itself(run: Run, tmp_path: Path) -> None:
    write_server(tmp_path, 0, "sys.exit(7)")
    program = start(run)
    assert program.wait() == 7


def test_it_heeds_signals_that_were_blocked_when_it_was_started(run: Run) -> None:
    program = run(
        """
        numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        say("ready")
        os.execv(sys.executable, [sys.executable, "-m", "prefork_executor", "serve",
                                  "-b", "127.0.0.1:0", "sleep", "900"])
        """
    )
    program.hear("ready")
    program.signal(TERM)
    assert program.wait() == 128 + TERM


@linux_only
def test_the_server_gets_sigterm_when_the_command_is_killed(run: Run, tmp_path: Path) -> None:
    with serving(run, tmp_path) as (program, connection):
        program.signal(signal.SIGKILL)
        eventually(lambda: len(program.processes()) == 2, "one child is busy")
        assert program.echo(connection).startswith(b"0 ")
    assert program.wait() == -signal.SIGKILL


def test_it_goes_on_when_nobody_reads_its_messages_any_more(run: Run, tmp_path: Path) -> None:
    write_server(tmp_path, 0, status=5)
    program = start(run, error_to="os.pipe()[1]")  # os.execv closes the end that reads.
    assert ask(program)[0] == 0
    write_server(tmp_path, 1, status=5)
    program.signal(HUP)
    eventually(lambda: ask(program)[0] == 1)
    program.signal(TERM)
    assert program.wait() == 5


LEAVES_AN_ORPHAN = """
import os, sys, time
orphan, told = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1:
            time.sleep(0.002)
        os.write(told, b"%d" % os.getpid())
    os._exit(0)
os.wait()
pid = os.read(orphan, 20).decode()
while os.path.exists(f"/proc/{pid}"):
    time.sleep(0.002)
"""


@needs_namespace
def test_as_the_first_process_of_a_container_it_reaps_what_others_leave() -> None:
    serve = [sys.executable, "-m", "prefork_executor", "serve", "-b", "127.0.0.1:0", "--"]
    command = [*NAMESPACE, *serve, sys.executable, "-c", LEAVES_AN_ORPHAN]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_process_that_nobody_gave_listeners_has_none() -> None:
    assert pf_listeners() == []


def test_a_unix_socket_that_a_killed_server_left_is_taken_over(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "here")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    write_server(tmp_path, 0)
    program = start(run, "-b", f"unix:{path}")
    program.hear("port")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(BOUND)
        client.connect(path)
        client.sendall(b"hello\n")
        assert client.recv(100).startswith(b"0 ")


def test_a_file_that_is_no_socket_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "orders.txt"
    path.write_text("precious")
    assert main(["serve", "-b", f"unix:{path}", "--", "true"]) == 1
    assert "Address already in use" in capsys.readouterr().err
    assert path.read_text() == "precious"


@linux_only
def test_a_socket_whose_process_is_too_busy_to_accept_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "here")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(path)
        busy.listen(0)
        client.connect(path)
        assert main(["serve", "-b", f"unix:{path}", "--", "true"]) == 1
        assert "Address already in use" in capsys.readouterr().err
        busy.accept()[0].close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-b", "127.0.0.1:0"], 2, "say which COMMAND to run"),
        (["-b", "8000", "--", "true"], 1, "'8000' is not HOST:PORT"),
        (["-b", "host:http", "--", "true"], 1, "'host:http' is not HOST:PORT"),
        (["-b", "127.0.0.1:65536", "--", "true"], 1, "'127.0.0.1:65536' is not HOST:PORT"),
        (["-b", f"unix:/{'x' * 200}", "--", "true"], 1, "AF_UNIX path too long"),
        (["-b", "unix:/nowhere/at/all", "--", "true"], 1, "cannot listen at unix:/nowhere/at/all"),
    ],
)
def test_bad_arguments_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["serve", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_command_that_cannot_be_run_is_named(run: Run) -> None:
    program = run(
        """
        os.execv(sys.executable, [sys.executable, "-m", "prefork_executor", "serve",
                                  "-b", "127.0.0.1:0", "no-such-command"])
        """
    )
    program.expects_complaints = True
    assert program.wait() == 127
    assert "cannot run no-such-command: No such file or directory" in program.complaints
