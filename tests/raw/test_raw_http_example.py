"""examples/http_server.py, as a server that people run: old clients, TLS, stops, reloads, a pid
file, a socket from systemd."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from certificates import certify
from raw_programs import HUP, RUN_FILE, TERM, Program, Run, run
from waiting import BOUND, eventually

__all__ = ["run"]

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVER = EXAMPLES / "http_server.py"
APPLICATION = """
import os
def application(environ, start_response):
    body = f"{version} {{environ['wsgi.url_scheme']}} {{os.getpid()}}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
OLD = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


def start(run: Run, *arguments: str) -> tuple[Program, int]:
    """The server, and its port."""
    program = run(RUN_FILE.format(arguments=[str(SERVER), *arguments, "--port", "0"]), prelude="")
    return program, port_of(program)


def port_of(program: Program) -> int:
    (port,) = ports_of(program)
    return port


def ports_of(program: Program) -> list[int]:
    return [int(port) for port in re.findall(r":(\d+)/", program.hear("serving")[0])]


def publish(folder: Path, version: int) -> None:
    """Put another version of the application in place, whole."""
    (folder / "next.py").write_text(APPLICATION.format(version=version))
    (folder / "next.py").replace(folder / "served.py")


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=BOUND)


def answer(connection: socket.socket) -> tuple[str, str]:
    """The head and the body of a response that says how long it is."""
    taken = b""
    while b"\r\n\r\n" not in taken:
        taken += received(connection)
    head, _, body = taken.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += received(connection)
    return head.decode().lower(), body.decode()


def received(connection: socket.socket) -> bytes:
    data = connection.recv(4096)
    assert data, "the connection has ended"
    return data


@pytest.mark.parametrize("serves", ["files", "application"])
def test_a_client_of_http_1_0_that_keeps_the_connection_hears_that_it_may(
    run: Run, tmp_path: Path, serves: str
) -> None:
    publish(tmp_path, 1)
    (tmp_path / "index.html").write_text("file")
    _, port = start(run, *(["--app", "served"] if serves == "application" else []))
    with connect(port) as client:
        for _ in range(3):
            client.sendall(OLD)
            head, body = answer(client)
            assert "connection: keep-alive" in head
            assert body.startswith("file" if serves == "files" else "1 http ")
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert "connection: keep-alive" not in answer(client)[0]
        assert client.recv(1) == b""


@pytest.mark.skipif(shutil.which("ab") is None, reason="needs ab, Apache's benchmark")
def test_apache_s_benchmark_does_not_wait_for_the_connections_to_end(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("file")
    _, port = start(run)
    done = subprocess.run(
        ["ab", "-q", "-k", "-n", "200", "-c", "1", f"http://127.0.0.1:{port}/"],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=True,
    )
    assert re.search(r"Keep-Alive requests: +200\n", done.stdout)
    assert re.search(r"Failed requests: +0\n", done.stdout)


# --- TLS ------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return certify(tmp_path, "first")


def ask_by_tls(port: int, certificate: Path) -> str:
    """The body of a response, if the server has this certificate."""
    context = ssl.create_default_context(cafile=str(certificate))
    with context.wrap_socket(connect(port), server_hostname="127.0.0.1") as client:
        client.sendall(PLAIN)
        return answer(client)[1]


def test_with_a_certificate_it_speaks_tls_and_bad_clients_cost_only_themselves(
    run: Run, tmp_path: Path, certificate: Path
) -> None:
    publish(tmp_path, 1)
    program, port = start(run, "--app", "served", "--certificate", str(certificate))
    with connect(port), connect(port) as plain:  # The first one is silent.
        plain.sendall(PLAIN)
        for _ in range(5):
            assert ask_by_tls(port, certificate).startswith("1 https ")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(4096).startswith(b"HTTP")
    program.signal(TERM)
    assert program.wait() == 0


def test_two_listeners_are_served_with_and_without_tls(
    run: Run, tmp_path: Path, certificate: Path
) -> None:
    publish(tmp_path, 1)
    arguments = [str(SERVER), "--app", "served", "--port", "0", "--tls-port", "0"]
    program = run(
        RUN_FILE.format(arguments=[*arguments, "--certificate", str(certificate)]), prelude=""
    )
    plain, secure = ports_of(program)
    for _ in range(5):
        assert ask(plain).startswith("1 http ")
        assert ask_by_tls(secure, certificate).startswith("1 https ")
    publish(tmp_path, 2)
    program.signal(HUP)
    eventually(lambda: ask(plain).startswith("2 http "), "the new version")
    eventually(lambda: ask_by_tls(secure, certificate).startswith("2 https "), "there, too")
    program.signal(TERM)
    assert program.wait() == 0


def ask(port: int) -> str:
    """The body of a response."""
    with connect(port) as client:
        client.sendall(PLAIN)
        return answer(client)[1]


WATCHED = """
import socket, ssl
plain = ssl.SSLContext.wrap_socket
def wrap_socket(self, sock, *args, **options):
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.gettimeout() != 0:
        open("blocking", "w").close()
    return plain(self, sock, *args, **options)
ssl.SSLContext.wrap_socket = wrap_socket
def application(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]
"""


def test_children_that_start_do_not_make_a_listener_blocking_for_those_that_wait(
    run: Run, tmp_path: Path, certificate: Path
) -> None:
    (tmp_path / "served.py").write_text(WATCHED)
    _, port = start(run, "--app", "served", "--certificate", str(certificate))
    assert ask_by_tls(port, certificate) == "served"
    assert not (tmp_path / "blocking").exists()


def test_a_reload_brings_the_new_certificate(run: Run, tmp_path: Path, certificate: Path) -> None:
    publish(tmp_path, 1)
    program, port = start(run, "--app", "served", "--certificate", str(certificate))
    assert ask_by_tls(port, certificate).startswith("1 https ")
    # A child that starts just now may read the certificate before and the key after. It ends, and
    # another starts.
    program.expects_complaints = True
    other = certify(tmp_path, "other")
    other.replace(certificate)

    def is_new() -> bool:
        try:
            return bool(ask_by_tls(port, certificate))
        except ssl.SSLCertVerificationError:
            return False

    assert not is_new()
    program.signal(HUP)
    eventually(is_new, "the new certificate")


def test_a_certificate_that_cannot_be_read_is_told_at_the_start(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("none")
    arguments = [str(SERVER), "--certificate", "bad.pem", "--port", "0"]
    program = run(RUN_FILE.format(arguments=arguments), prelude="")
    program.expects_complaints = True
    assert program.wait() == 1
    assert "bad.pem cannot be used: " in program.complaints


# --- stop and reload --------------------------------------------------------------------------


def test_a_request_that_is_on_its_way_at_the_stop_is_answered(run: Run, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(
        "import os, time\n"
        "def application(environ, start_response):\n"
        "    open('began', 'w').close()\n"
        "    while not os.path.exists('go on'): time.sleep(0.01)\n"
        "    start_response('200 OK', [('Content-Length', '4')])\n"
        "    return [b'done']\n"
    )
    program, port = start(run, "--app", "served")
    with connect(port) as client:
        client.sendall(PLAIN)
        eventually((tmp_path / "began").exists)
        program.signal(TERM)
        (tmp_path / "go on").touch()
        assert answer(client)[1] == "done"
    assert program.wait() == 0


# --- what runs it -----------------------------------------------------------------------------


def test_the_pid_file_is_there_as_long_as_it_serves_and_keeps_a_second_one_away(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "http.pid"
    path.write_text("0\n")  # What a crash has left.
    program, _ = start(run, "--pid-file", str(path))
    assert path.read_text() == f"{program.pid}\n"
    arguments = [str(SERVER), "--pid-file", str(path), "--port", "0"]
    second = run(RUN_FILE.format(arguments=arguments), prelude="")
    second.expects_complaints = True
    assert second.wait() == 1
    assert f"says that the server is running as process {program.pid}" in second.complaints
    assert path.read_text() == f"{program.pid}\n"
    program.signal(TERM)
    assert program.wait() == 0
    assert not path.exists()


ACTIVATE = """
import os, socket, sys
first, second = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
# Both are out of the way before one takes the place of another file.
held = [os.dup(listener.fileno()) for listener in (first, second)]
held = [os.dup2(descriptor, 100 + n) for n, descriptor in enumerate(held)]
for number, descriptor in enumerate(held, 3):
    os.dup2(descriptor, number)
    os.set_inheritable(number, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="http:tls")
server, certificate = {server!r}, {certificate!r}
os.execv(sys.executable, [sys.executable, server, "--app", "served", "--certificate", certificate])
"""


def test_it_serves_on_the_sockets_that_systemd_hands_over(
    run: Run, tmp_path: Path, certificate: Path
) -> None:
    publish(tmp_path, 1)
    source = ACTIVATE.format(server=str(SERVER), certificate=str(certificate))
    program = run(source, prelude="")
    plain, secure = ports_of(program)
    assert ask(plain).startswith("1 http ")
    assert ask_by_tls(secure, certificate).startswith("1 https ")
    program.signal(TERM)
    assert program.wait() == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_units() -> None:
    units = [EXAMPLES / f"http_server.{kind}" for kind in ("service", "socket")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=BOUND
    )
    assert [line for line in done.stderr.splitlines() if "http_server" in line] == []


def test_a_flask_application_is_served(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("flask")
    shutil.copy(EXAMPLES / "flask_app.py", tmp_path)
    assert len((tmp_path / "flask_app.py").read_text().splitlines()) <= 10
    _, port = start(run, "--app", "flask_app:app")
    with connect(port) as client:
        client.sendall(b"GET /?name=you HTTP/1.1\r\nHost: here\r\n\r\n")
        assert answer(client)[1] == "Hello, you!\n"
