"""A program that gevent or eventlet has patched, and what it does with a pool.

Usage: patched_programs.py gevent|eventlet before|after METHOD

Patched before or after the pool's package is imported. Under spawn and forkserver the
supervisor imports it, so it is patched there as well.
"""

from __future__ import annotations

import sys
import warnings

LIBRARY, WHEN, METHOD = sys.argv[1:4]


def patch() -> None:
    if LIBRARY == "gevent":
        from gevent import monkey

        monkey.patch_all()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it is deprecated.
            import eventlet

        eventlet.monkey_patch()


if WHEN == "before":
    patch()

import concurrent.futures  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

from prefork_executor import PreforkExecutor, TaskTimeout, WorkerDied, yell  # noqa: E402

if WHEN == "after":
    patch()


def slow_double(number: int) -> int:
    time.sleep(0.05)
    return 2 * number


def yell_pid() -> int:
    yell(os.getpid())
    return os.getpid()


def use_what_is_patched() -> tuple[bytes, list[str], bytes]:
    """In a worker, where a patched function needs a hub."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: (time.sleep(0.01), said.append("thread")))
    thread.start()
    thread.join()
    left, right = socket.socketpair()
    with left, right:
        left.send(b"socket")
        return subprocess.check_output(["echo", "process"]), said, right.recv(100)


def sleep_long() -> None:
    time.sleep(600)


def kill_own_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Ticker:
    """Another greenlet, which runs as long as the program lets it. Were it to run on in a
    worker, that would be seen: it writes its process's id."""

    def __init__(self) -> None:
        self.ticks = 0
        self._reader, self._writer = os.pipe()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(0.005)
            self.ticks += 1
            if self.ticks % 10 == 0:
                os.write(self._writer, os.getpid().to_bytes(8, "little"))

    def processes(self) -> set[int]:
        written = os.read(self._reader, 1 << 16)
        return {int.from_bytes(written[i : i + 8], "little") for i in range(0, len(written), 8)}


def how_it_failed(future: concurrent.futures.Future[None]) -> type:
    return type(future.exception(60))


def main() -> None:
    ticker, yelled = Ticker(), []
    with PreforkExecutor(
        2, mp_context=METHOD, on_yell=lambda _, pid: yelled.append(pid)
    ) as executor:
        assert executor.submit(yell_pid).result(60) == yelled[0] != os.getpid()
        before = ticker.ticks
        assert list(executor.map(slow_double, range(10))) == list(range(0, 20, 2))
        assert ticker.ticks > before + 5, "no other greenlet ran while results were waited for"
        assert executor.submit(use_what_is_patched).result(60) == (
            b"process\n",
            ["thread"],
            b"socket",
        )
        wait_in_every_way(executor)
        wait_in_many_greenlets(executor)
        assert len(executor.submit(bytes, 1 << 20).result(60)) == 1 << 20
        assert how_it_failed(executor.submit(kill_own_worker)) is WorkerDied
        assert how_it_failed(executor.with_options(timeout=0.2).submit(sleep_long)) is TaskTimeout
        running = executor.submit(sleep_long)
        while not running.running():
            time.sleep(0.01)
        executor.abort(running)
        concurrent.futures.wait([running], 60)
        last = executor.submit(slow_double, 21)
    assert last.result(0) == 42
    assert ticker.processes() == {os.getpid()}, "greenlets of this program ran in the pool"
    print("all is well")


def wait_in_every_way(executor: PreforkExecutor) -> None:
    futures = [executor.submit(slow_double, i) for i in range(4)]
    assert len(concurrent.futures.wait(futures, 60).done) == 4
    futures = [executor.submit(slow_double, i) for i in range(4)]
    came = concurrent.futures.as_completed(futures, 60)
    assert sorted(future.result() for future in came) == [0, 2, 4, 6]
    called = threading.Event()
    executor.submit(abs, -1).add_done_callback(lambda _: called.set())
    assert called.wait(60)
    try:
        executor.submit(sleep_long).result(0.1)
    except TimeoutError:
        executor.terminate_workers()


def wait_in_many_greenlets(executor: PreforkExecutor) -> None:
    results: list[int] = []
    threads = [
        threading.Thread(
            target=lambda i=i: results.append(executor.submit(slow_double, i).result())
        )
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(0, 40, 2))


if __name__ == "__main__":
    main()
