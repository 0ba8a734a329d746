"""Test pools with the pytest fixtures of the package.

python -m pytest examples/test_fixtures.py
"""

from __future__ import annotations

import logging
import socket

import pytest

from prefork_executor import PreforkExecutor
from prefork_executor.pytest_plugin import PreforkPoolFactory
from prefork_executor.raw import pf_kid_accept, pf_kid_yell


def sell(item: str) -> int:
    """Log, print, and return."""
    logging.getLogger("shop").warning("sold %s", item)
    print("thanks")
    return len(item)


@pytest.mark.prefork(max_workers=4)
def test_an_executor_of_its_own(
    prefork_executor: PreforkExecutor,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(prefork_executor.map(sell, ["book", "lamps"])) == [4, 5]
    assert sorted(caplog.messages) == ["sold book", "sold lamps"]
    assert capfd.readouterr().out == "thanks\n" * 2


def serve(listener: socket.socket) -> None:
    """A raw child's life: answer a client, and yell that it has done so."""
    while taken := pf_kid_accept(listener):
        with taken[0] as connection:
            connection.sendall(connection.recv(100).upper())
        pf_kid_yell("answered", thaw=True)


def test_a_raw_server(prefork_pool: PreforkPoolFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = prefork_pool(serve, (listener,), max_servers=2)
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"HELLO"
        assert pool.wait_for_yells(1)[0].data == "answered"
        assert pool.stop() == 0
